"""Damaged and hostile files through the real commands: every one ends in the right result or a plain refusal.

    python -m tests.fuzz --minutes 20 --seed 1                  everything, two processes
    python -m tests.fuzz --minutes 5 --targets checkpoint,png   some of it
    python -m tests.fuzz --case checkpoint 4711 --seed 1        one case again, with what the command said
    python -m tests.fuzz --list                                 the targets

seeds.py makes valid files, mutate.py and shapes.py damage them, targets.py says by which command each is read, cage.py
runs the cases in forked processes that watch themselves, __main__.py counts and prints. A case follows from
(seed, target, number) alone; seed files are made with fixed random numbers, but hold times and paths where our formats
do. Findings are kept with their files.
"""
