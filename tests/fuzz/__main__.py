"""`python -m tests.fuzz`: see the package."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a network of this size, and a fork without other threads

import argparse
import importlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from PIL import Image

from tests.fuzz.campaign import Campaign
from tests.fuzz.seeds import make_apart
from tests.fuzz.targets import TARGETS, damaged

_ENGINE = (
    *("inference.predict_files", "reference", "check_data", "training.train", "evaluation.evaluate"),
    *("data.files.mat", "data.sets.packed"),
)


def main() -> int:
    """0: no finding; 1: findings; 2: usage, or the harness itself fails."""
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    asked.add_argument("--minutes", type=float, default=20)
    asked.add_argument("--cases", type=int, default=10**9, help="of each target at most")
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--jobs", type=int, default=2, help="processes")
    asked.add_argument("--limit", type=float, default=10, help="seconds that a case may take")
    asked.add_argument("--targets", default="", help="comma-separated; default: all")
    asked.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where findings go")
    asked.add_argument("--case", nargs=2, metavar=("TARGET", "NUMBER"), help="one case again")
    asked.add_argument("--list", action="store_true", help="the targets")
    given = asked.parse_args()
    if given.list:
        print("\n".join(f"{name:12} {target.file}" for name, target in TARGETS.items()))
        return 0
    targets = [given.case[0]] if given.case else list(filter(None, given.targets.split(","))) or list(TARGETS)
    if unknown := sorted(set(targets) - set(TARGETS)):
        asked.error(f"no target is called {', '.join(unknown)}; see --list")
    with tempfile.TemporaryDirectory(prefix="emaseg-fuzz-") as folder:
        seeds = Path(folder, "seeds")
        prepare(seeds, targets)
        targets = [target for target in targets if (seeds / TARGETS[target].file).exists()]
        campaign = Campaign(seeds, Path(folder, "work"), given.keep.absolute(), given.seed, given.limit)
        try:
            if given.case:
                return _one(campaign, given.case[0], int(given.case[1]))
            campaign.run(targets, seconds=60 * given.minutes, most=given.cases, jobs=given.jobs)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
    print(table(campaign))
    return int(any(tally.findings for tally in campaign.tallies.values()))


def prepare(seeds: Path, targets: list[str]) -> None:
    """Import what the commands will, and make the files that the targets need."""
    torch.set_num_threads(1)
    for module in _ENGINE:
        importlib.import_module(f"emaseg.{module}")
    for module in ("train", "predict", "check_data", "render", "progress"):
        importlib.import_module(f"emaseg.cli.{module}")
    importlib.import_module("emaseg.cli.options").recipe_keys("")  # evaluates the annotations of every key
    Image.init()  # a picture that no reader knows makes Pillow import them all
    for module in ("scipy.io", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"):
        importlib.import_module(module)
    if {"program", "onnx"} & set(targets):
        for module in ("emaseg.exported.runtime", "torch.export", "onnxruntime"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
    trained = any(TARGETS[target].tree == "run" for target in targets)
    if trained or "dry-run" in targets:
        torch.optim.SGD([torch.zeros(1)], lr=1.0)  # imports a compiler, which takes seconds
    make_apart(seeds, exports=bool({"program", "onnx"} & set(targets)), trained=trained)


def _one(campaign: Campaign, target: str, number: int) -> int:
    done = campaign.one(target, number)
    data, how = damaged(target, number, campaign.seed, campaign.seeds)
    folder = campaign.kept / f"{target}-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / Path(TARGETS[target].file).name
    place.write_bytes(data)
    print(f"{place}: {how}")
    print(json.dumps({key: done[key] for key in ("code", "ms", "peak", "findings")}, indent=1))
    print(done["out"], done["error"], sep="\n", file=sys.stderr)
    return int(bool(done["findings"]))


def table(campaign: Campaign) -> str:
    """A row for each target, and below it its findings."""
    rows = [f"{'target':12} {'cases':>6} {'exit codes':38} {'longest ms':>10} {'peak MB':>8} findings"]
    for name, tally in campaign.tallies.items():
        codes = " ".join(f"{code}:{count}" for code, count in sorted(tally.codes.items()))
        found = sum(tally.findings.values())
        rows.append(f"{name:12} {tally.cases:6} {codes:38} {tally.longest:10.0f} {tally.peak / 2**20:8.0f} {found}")
        rows += [f"    {count:5} x {kind}" for kind, count in tally.findings.most_common()]
    total, seconds = (sum(getattr(tally, key) for tally in campaign.tallies.values()) for key in ("cases", "seconds"))
    rows.append(f"{total} cases, {1000 * seconds / max(1, total):.0f} ms each; findings are in {campaign.kept}")
    return "\n".join(rows)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # some libraries complain of being left by a program that has forked
