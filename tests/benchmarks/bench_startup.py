"""What a command costs before it works: modules, PyTorch or not, CPU seconds.

    python -m tests.benchmarks.bench_startup

Each command runs three times in a process of its own; the least CPU time counts. Commands that only read names, recipes
or paths, and every wrong name, must say `no` under torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 3

PROBE = """
import json, os, sys, time
from emaseg.cli import main
out, sys.stdout, sys.stderr = os.dup(1), open(os.devnull, "w"), open(os.devnull, "w")
code = main(sys.argv[1:])
names = [name for name in ("torch", "numpy", "PIL", "rich") if name in sys.modules]
os.write(out, json.dumps([code, len(sys.modules), names, time.process_time()]).encode())
"""

COMMANDS = (
    "--version",
    "--help",
    *(
        f"{name} --help"
        for name in ("train", "eval", "predict", "export", "download-weights", "recipes", "runs", "init")
    ),
    "recipes",
    "recipes voc_r50_d8",
    "recipes --keys crop",
    "runs {runs}",
    "download-weights --list",
    "train dmeo",
    "train demo --set optim.lrr=1",
    "train demo --init-from runs/nowhere",
    "eval dmeo",
    "eval runs/nowhere",
    "predict photo.jpg --weights runs/nowhere",
    "predict photo.jpg --weights dmeo",
    "export runs/nowhere --format torch",
    "export dmeo --format onnx",
    "init nowhere --images a",
    "runs nowhere",
)


def measured(arguments: list[str], cwd: Path) -> tuple[int, int, list[str], float]:
    """Exit code, modules, which large packages, CPU seconds of the program itself."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    code, modules, packages, seconds = json.loads(done.stdout)
    return code, modules, packages, seconds


def main() -> None:
    print("| command | exit | modules | torch | numpy | CPU seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "demo" / "first"
        (run / "checkpoints").mkdir(parents=True)
        text = subprocess.run(
            [sys.executable, "-m", "emaseg.cli", "recipes", "demo"], capture_output=True, text=True, check=True
        ).stdout
        (run / "recipe.toml").write_text(text)
        for command in COMMANDS:
            arguments = command.format(runs=run.parent.parent).split()
            code, modules, packages, seconds = min(
                (measured(arguments, Path(folder)) for _ in range(RUNS)), key=lambda one: one[3]
            )
            shown = command.replace("{runs}", "runs")
            cells = ("yes" if name in packages else "no" for name in ("torch", "numpy"))
            print(f"| `emaseg {shown}` | {code} | {modules} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
