"""Scripts that kill, starve and double training runs: `python -m tests.stress.kills`, `.full_disk 20`,
`.two_trainers 20`. Each prints one table and ends with 1 if anything was lost. The suite runs them with small numbers."""
