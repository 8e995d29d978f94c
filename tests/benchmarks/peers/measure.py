"""emaseg against what a user could run instead, in turn and on the same weights: one table in Markdown.

    python -m tests.benchmarks.peers.environment ENV                  once
    python -m tests.benchmarks.peers.measure ENV --images PHOTOS --results results.json [PART ...]

Parts (default: all): forward-2 forward-1 predict eval tta memorynet backbones growth. What is in the results file is not
measured again (`--again` does, from the first round); the table is that of the file. `--rounds`, `--count` and `--side` make
a part small enough to try it. Whole commands (predict, eval, tta) take minutes to hours: each finished round of theirs goes to
a file beside the results, and the same command goes on after it. PHOTOS is any folder of pictures, searched with its
sub-folders: they are resized to the sizes that are named below. `--small FOLDER --large FOLDER` give eval and tta images
that are taken as they are (a folder of CamVid's and one of Cityscapes'); `--precisions fp32` leaves bf16 out of commands.

The weights are drawn by a rule (tests/parity.py), in the peer's own file. Ways take turns round by round; a ratio is the
median of the rounds' ratios. Run it on a machine that does nothing else: the load before each part is printed with it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from emaseg.bench import environment
from emaseg.files import append_text
from tests.benchmarks.peers import ours, pictures
from tests.parity import filled_file

FIXTURE, ROW = "mmseg/mmseg_r50_512x1024", "mmseg_cityscapes_r50_d8_512x1024_80k"
CONFIG = "emanet_r50-d8_4xb2-80k_cityscapes-512x1024"
WORKER = Path(__file__).with_name("worker.py")
CLASSES = [f"class {k}" for k in range(19)]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What every part is given."""

    python: Path  # of the peers' environment
    images: Path | None
    rounds: int
    count: float  # factor on numbers of images
    side: float  # factor on image sides
    small: Path | None  # folders with the images of eval and tta, taken as they are
    large: Path | None
    precisions: tuple[str, ...]  # of emaseg, in whole commands
    folder: Path
    finished: Path  # where finished rounds of whole commands are kept until their part is done
    versions: dict[str, str]  # of the peers

    def size(self, height: int, width: int) -> tuple[int, int]:
        return tuple(max(64, round(s * self.side / 32) * 32) for s in (height, width))  # type: ignore[return-value]

    def number(self, images: int) -> int:
        return max(1, round(images * self.count))


# --------------------------------------------------------------------------------------- one network, pass by pass
def forward(settings: Settings, height: int, width: int, threads: int) -> list[Row]:
    """Network and resize to the input's size: the same image, weights and number of threads for everyone."""
    size = settings.size(height, width)
    torch.set_num_threads(threads)
    weights = filled_file(FIXTURE, settings.folder / "weights.pth")
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32))
    own = {f"emaseg {p}": ours.engine_pass(ROW, weights, image, p) for p in ("fp32", "bf16")}
    onnx = ours.export_onnx(ROW, weights, settings.folder / "network.onnx")
    options = {
        "ways": ["mmseg", "onnxruntime", "openvino", "openvino bf16"],
        "config": CONFIG,
        "weights": str(weights),
        "shape": size,
        "threads": threads,
        "onnx": str(onnx),
        "logits": str(settings.folder),
    }
    (settings.folder / "serve.json").write_text(json.dumps(options))
    serve = [str(settings.python), str(WORKER), "serve", str(settings.folder / "serve.json")]
    with _Server(serve, settings.folder / "worker.log") as peer:
        reference = np.load(settings.folder / "mmseg.npy")
        own_logits = {name: way().numpy() for name, way in own.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*peer.ways, *own)}
        for _ in range(settings.rounds):
            for name, taken in times.items():
                taken.append(peer.time(name) if name in peer.ways else _timed(own[name]))
        logits = {name: np.load(settings.folder / f"{name}.npy") for name in peer.ways} | own_logits
    return [
        _row(f"{size[0]}x{size[1]}, {threads} thread(s)", name, times, "mmseg", logits[name], reference)
        for name in times
    ]


class _Server:
    """Another process that runs a pass for each line it is sent; its threads sleep meanwhile."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log.open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=_quiet()
        )
        self.ways: list[str] = self._answer()["ways"]

    def time(self, way: str) -> tuple[float, float]:
        answer = self.ask(way)
        return answer["wall"], answer["cpu"]

    def ask(self, way: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{way}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"a worker ended:\n{Path(self.log.name).read_text()[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def _quiet() -> dict[str, str]:
    """Threads that wait sleep: two processes take turns on the same cores."""
    return {**os.environ, "GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}


def _timed(way: Callable[[], Any]) -> tuple[float, float]:
    began, used = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - began, time.process_time() - used


def _row(
    what: str, name: str, times: dict[str, list[tuple[float, float]]], base: str, own: Any = None, reference: Any = None
) -> Row:
    wall, cpu = ([pair[i] for pair in times[name]] for i in (0, 1))
    ratios = [[b[i] / o[i] for b, o in zip(times[base], times[name], strict=True)] for i in (0, 1)]
    row: Row = {
        "what": what,
        "way": name,
        "ratio": statistics.median(ratios[0]),
        "ratio_spread": [min(ratios[0]), max(ratios[0])],
        "cpu_ratio": statistics.median(ratios[1]),
        "seconds": statistics.median(wall),
        "spread": [min(wall), max(wall)],
        "cpu_seconds": statistics.median(cpu),
    }
    if own is not None:
        row["difference"] = float(np.abs(own - reference).max())
        row["agreement"] = float((own.argmax(1) == reference.argmax(1)).mean())
    return row


# ------------------------------------------------------------------------------------------------ whole commands
def predict(settings: Settings) -> list[Row]:
    """50 photographs of 500x375, masks written, start-up included."""
    photos = pictures.resized(settings.images, settings.number(50), (375, 500), settings.folder / "photos", ".jpg")
    weights = filled_file(FIXTURE, settings.folder / "weights.pth")
    scale = [2048, 512]
    base = {"config": CONFIG, "weights": str(weights), "scale": scale, "threads": 2, "images": str(photos)}
    (settings.folder / "predict.json").write_text(json.dumps({**base, "out": str(settings.folder / "peer")}))
    own = [
        *(sys.executable, "-m", "emaseg.cli", "predict", str(photos), "--recipe", ROW, "--weights", str(weights)),
        *(
            "--set",
            f"inference.resize_long_short={scale}",
            "--save",
            "mask",
            "-q",
            "--out",
            str(settings.folder / "own"),
        ),
    ]
    ways = _ways(settings, "predict", "predict.json", own)
    return _commands(settings, f"predict, {settings.number(50)} photographs of 500x375", ways)


def evaluate(settings: Settings, *, tta: bool) -> list[Row]:
    """60 and 4 images, or 16 and 1 with six scales and mirrored, with drawn labels.

    They are those of --small and --large, or pictures in the sizes of CamVid and Cityscapes as they were filmed."""
    small, large = (settings.number(n) for n in ((16, 1) if tta else (60, 4)))
    data = settings.folder / ("tta" if tta else "eval")
    for source, count, size, first in (
        (settings.small, small, (720, 960), 0),
        (settings.large, large, (1024, 2048), small),
    ):
        if source is None:
            pictures.resized(settings.images, count, settings.size(*size), data / "images", ".png", first)
        else:
            pictures.copies(source, count, data / "images", first)
    scale = [round(2048 * settings.side), round(1024 * settings.side)]
    pictures.draw_labels(data / "images", data / "labels", len(CLASSES))
    weights = filled_file(FIXTURE, settings.folder / "weights.pth")
    options = {
        "config": CONFIG,
        "weights": str(weights),
        "threads": 2,
        "data": str(data),
        "classes": CLASSES,
        "tta": tta,
        "scale": scale,
    }
    (settings.folder / "test.json").write_text(json.dumps({**options, "out": str(settings.folder / "work")}))
    names = ", ".join(f'"{name}"' for name in CLASSES)
    folders = f'train_images="images", train_masks="labels", eval_images="images", eval_masks="labels", root="{data}"'
    own = [
        *(sys.executable, "-m", "emaseg.cli", "eval", ROW, "--weights", str(weights), "-q"),
        *("--set", f'data={{kind="folder", classes=[{names}], {folders}}}', "--out", str(settings.folder / "scores")),
        *(["--tta"] if tta else ["--set", f"inference.resize_long_short={scale}"]),
    ]
    name = "eval --tta" if tta else "eval"
    return _commands(settings, f"{name}, {pictures.sizes(data / 'images')}", _ways(settings, "test", "test.json", own))


def _ways(settings: Settings, verb: str, options: str, own: list[str]) -> dict[str, list[str]]:
    """The peer's command and ours, one for each precision."""
    peer = {"mmseg": [str(settings.python), str(WORKER), verb, str(settings.folder / options)]}
    return peer | {f"emaseg {p}": [*own, "--precision", p] for p in settings.precisions}


def _commands(settings: Settings, what: str, ways: dict[str, list[str]]) -> list[Row]:
    """Whole processes in turn, with the peak memory of each with its children.

    A round is kept with what it measured and on what: rounds of another machine, of other versions or of other pictures
    are not taken over."""
    folders = [None if f is None else str(f.resolve()) for f in (settings.images, settings.small, settings.large)]
    about = {
        "what": what,
        "images": folders,
        "ways": list(ways),
        "peers": settings.versions,
        **environment(torch.device("cpu")),
    }
    rounds = [kept["ways"] for kept in _kept(settings.finished) if kept["about"] == about][: settings.rounds]
    while len(rounds) < settings.rounds:
        rounds.append(
            {name: _process(name, command, settings.folder / "command.log") for name, command in ways.items()}
        )
        append_text(settings.finished, json.dumps({"about": about, "ways": rounds[-1]}) + "\n")
        print(f"  round {len(rounds)} of {settings.rounds}", file=sys.stderr, flush=True)
    times = {name: [(done[name]["wall"], done[name]["cpu"]) for done in rounds] for name in ways}
    return [{**_row(what, name, times, "mmseg"), "peak": max(done[name]["peak"] for done in rounds)} for name in ways]


def _kept(path: Path) -> Iterator[dict[str, Any]]:
    """The rounds in a file; a line that a crash left half written counts for nothing."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _process(name: str, command: list[str], log: Path) -> dict[str, float]:
    """Runs a command to its end: seconds of wall and CPU time, and peak memory in bytes."""
    with log.open("w") as file:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"{name}: failed\n{log.read_text()[-3000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}


# ------------------------------------------------------------------------- networks that no other package can run here
def backbones(settings: Settings) -> list[Row]:
    """Each network of the results tables: the plain one, as published, against its engine."""
    torch.set_num_threads(2)
    rows: list[Row] = []
    size = settings.size(512, 512)
    for name, recipe in ours.NETWORKS.items():
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        ways = ours.plain_and_engines(recipe, image)
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(settings.rounds):
            for way, run in ways.items():
                times[way].append(_timed(run))
        rows += [_row(f"{name}, {size[0]}x{size[1]}", way, times, "plain") for way in ways]
        del ways
    return rows


def memorynet(settings: Settings) -> list[Row]:
    """MemoryNet R-50-D8, 150 classes, against the published way: attention weights and upsampled features held whole.

    Each runs in a process of its own, so that its peak memory is its own."""
    rows = []
    for what, shape in (("forward", (512, 512)), ("forward", (1024, 2048)), ("step", (512, 512))):
        size = settings.size(*shape)
        ways = ("published", "emaseg fp32") if what == "forward" else tuple(ours.STEPS)
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        peaks = dict.fromkeys(times, 0)
        with ExitStack() as stack:
            servers = {
                way: stack.enter_context(_Server(_own(what, way, size), settings.folder / f"{way}.log"))
                for way in times
            }
            for _ in range(settings.rounds):
                for way, server in servers.items():
                    answer = server.ask("pass")
                    times[way].append((answer["wall"], answer["cpu"]))
                    peaks[way] = answer["peak"]
        name = f"MemoryNet R-50-D8 {what}, {size[0]}x{size[1]}" + (", batch 2" if what == "step" else "")
        rows += [{**_row(name, way, times, "published"), "peak": peaks[way]} for way in times]
    return rows


def _own(what: str, way: str, size: tuple[int, int]) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.peers.ours", what, way, *map(str, size)]


def growth(settings: Settings) -> list[Row]:
    """How the time of an EMANet R-50-D8 grows: a row for each value of each quantity, and the exponent between ends."""
    rows: list[Row] = []
    for quantity, (values, ways) in ours.growing(settings.side).items():
        seconds = {}
        for value, run in zip(values, ways, strict=True):
            way = run()
            way()
            seconds[value] = statistics.median(_timed(way)[0] for _ in range(max(1, settings.rounds // 2)))
        exponent = np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0] if len(seconds) > 1 else 0.0
        rows += [
            {"what": f"growth with {quantity}", "way": str(value), "seconds": s, "exponent": float(exponent)}
            for value, s in seconds.items()
        ]
    return rows


# --------------------------------------------------------------------------------------------------------- the table
PARTS: dict[str, Callable[[Settings], list[Row]]] = {
    "forward-2": lambda s: forward(s, 512, 1024, 2),
    "forward-1": lambda s: forward(s, 512, 512, 1),
    "predict": predict,
    "eval": lambda s: evaluate(s, tta=False),
    "tta": lambda s: evaluate(s, tta=True),
    "memorynet": memorynet,
    "backbones": backbones,
    "growth": growth,
}


WITH_PEERS = ("forward-2", "forward-1", "predict", "eval", "tta")


def table(results: dict[str, Any]) -> str:
    """Everything that is in a results file, as Markdown."""
    lines = []
    for name, part in results.items():
        about = ", ".join(f"{key} {value}" for key, value in part["environment"].items())
        lines += [f"### {name} ({part['date']}, load {part['load']:.1f} before; {about})", ""]
        lines += ["| what | way | times as fast | in CPU time | median s | spread | CPU s | peak | logits | argmax |"]
        lines += ["| --- " * 10 + "|", *(_line(row) for row in part["rows"]), ""]
    return "\n".join(lines)


def _line(row: Row) -> str:
    def cell(key: str, form: str) -> str:
        return form.format(row[key]) if key in row else ""

    spread = "{:.3g} to {:.3g}".format(*row["spread"]) if "spread" in row else cell("exponent", "exponent {:.2f}")
    peak = f"{row['peak'] / 1e9:.2f} GB" if "peak" in row else ""
    cells = (
        *(row["what"], row["way"], cell("ratio", "{:.2f}"), cell("cpu_ratio", "{:.2f}"), cell("seconds", "{:.3g}")),
        *(spread, cell("cpu_seconds", "{:.3g}"), peak, cell("difference", "{:.1e}"), cell("agreement", "{:.4f}")),
    )
    return f"| {' | '.join(cells)} |"


def _versions(python: Path) -> dict[str, str]:
    done = subprocess.run([str(python), str(WORKER), "versions"], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("environment", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--images", type=Path)
    parser.add_argument("--results", type=Path, default=Path("peers.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=float, default=1.0)
    parser.add_argument("--side", type=float, default=1.0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--small", type=Path)
    parser.add_argument("--large", type=Path)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    options = parser.parse_intermixed_args(arguments)
    python = options.environment.absolute() / "bin" / "python"
    parts = options.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; possible: {', '.join(PARTS)}")
    for option in ("images", "small", "large"):
        folder = getattr(options, option)
        if folder is not None and not pictures.all_in(folder):
            parser.error(f"--{option} {folder}: no such folder, or no picture in it")
    if not options.results.absolute().parent.is_dir():
        parser.error(f"--results {options.results}: there is no such folder")
    if not python.exists() and not set(parts).isdisjoint(WITH_PEERS):
        parser.error(f"{python}: not there; python -m tests.benchmarks.peers.environment makes the environment")
    if os.environ.get("GOMP_SPINCOUNT") != "0":  # OpenMP reads it when torch is imported: start again with it
        module = "tests.benchmarks.peers.measure"
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], _quiet())
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in parts:
        if name in results and not options.again:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="emaseg-peers-") as folder:
            finished = options.results.with_suffix(f".{name}.rounds")
            if options.again:
                finished.unlink(missing_ok=True)
            versions = _versions(python) if name in WITH_PEERS else {}
            settings = Settings(
                python=python,
                images=options.images,
                rounds=options.rounds,
                count=options.count,
                side=options.side,
                small=options.small,
                large=options.large,
                precisions=tuple(options.precisions),
                folder=Path(folder),
                finished=finished,
                versions=versions,
            )
            load = os.getloadavg()[0]
            rows = PARTS[name](settings)
        about = environment(torch.device("cpu")) | versions
        results[name] = {"date": str(date.today()), "load": load, "environment": about, "rows": rows}
        options.results.write_text(json.dumps(results, indent=1) + "\n")
        finished.unlink(missing_ok=True)
    print(table(results))


if __name__ == "__main__":
    main()
