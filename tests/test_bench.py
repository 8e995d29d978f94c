"""`bench`: the paper's own count of its networks, figures that fit together, and a step whose stages add up."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from emaseg.cli.bench import _network, _tell

from emaseg.bench import STAGES, Case, Measured, Part, measure_training, parts
from emaseg.recipe import load_recipe
from emaseg.training.step import training_step
from tests.helpers import TINY, emaseg, run, tiny
from tests.models.test_emanet_rows import TABLE_1, TABLE_1_BARE, millions

pytestmark = pytest.mark.usefixtures("one_thread")


def test_drawn_weights_stay_within_fp16() -> None:
    """Protects `bench NAME --precision fp16`: without weights of its own a deep network's sums would overflow."""
    network = _network(load_recipe("paper_voc_val_r101_emanet512"), None)
    largest = []
    for module in network.modules():
        module.register_forward_hook(
            lambda _, __, y: largest.append(float(y.abs().max())) if isinstance(y, torch.Tensor) else None
        )
    with torch.inference_mode():
        network(torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(0)))
    assert max(largest) < torch.finfo(torch.float16).max / 10


@pytest.mark.parametrize("channels", TABLE_1)
def test_the_papers_table_1(channels: int) -> None:
    """Protects the columns of table 1: billions of multiply-adds at 513x513 and millions of parameters, of the bare
    ResNet-101 and of the attention beside it. Ours leave out what is neither convolution nor product: up to 1 %."""
    found = {part.name: part for part in parts(load_recipe(f"paper_voc_val_r101_emanet{channels}"), 513, 513)}
    backbone, unit = found["backbone"], found["EM attention unit"]
    cost, parameters = TABLE_1[channels]
    assert backbone.multiply_adds / 1e9 == pytest.approx(TABLE_1_BARE[0], rel=0.01)
    assert millions(backbone.parameters, TABLE_1_BARE[1]) == TABLE_1_BARE[1]
    assert unit.multiply_adds / 1e9 == pytest.approx(cost, rel=0.01)
    assert millions(unit.parameters, parameters) == parameters
    *single, whole = found.values()
    assert sum(part.multiply_adds for part in single) == whole.multiply_adds


def test_latencies_are_those_of_the_passes() -> None:
    """Protects the percentiles: each is the time of a pass, and 99 of few passes is the slowest."""
    seconds = tuple(0.001 * i for i in (5, 1, 4, 2, 3))
    result = Measured(Case(2, 64, 64, "fp32", 1), seconds, 0.01, None, True)
    assert [result.latency(p) for p in (1, 50, 90, 99)] == [0.001, 0.003, 0.005, 0.005]
    assert result.images_per_second == pytest.approx(2 / 0.003)


def test_the_command_measures_what_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the JSON: a case for each shape, batch and number of threads, without any weights, and where it ran."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    cases = ("--shape", "32x48,40x40", "--batch", "1,2", "--threads", "1")
    code, out, _ = emaseg(capsys, "bench", file, *cases, "--passes", "2", "--warm-up", "1", "--json")
    assert code == 0
    content = json.loads(out)
    assert [(c["height"], c["width"], c["batch"]) for c in content["cases"]] == [
        *((32, 48, 1), (32, 48, 2)),
        *((40, 40, 1), (40, 40, 2)),
    ]
    assert all(0 < c["seconds"]["p50"] <= c["seconds"]["p99"] for c in content["cases"])
    assert all(c["precision"] == "fp32" and c["passes"] == 2 for c in content["cases"])
    assert {"device", "torch", "cores"} <= set(content["environment"])
    code, out, _ = emaseg(
        capsys, "bench", file, "--shape", "32x32", "--passes", "1", "--warm-up", "0", "--threads", "1"
    )
    assert code == 0
    assert "EM attention unit" in out
    assert "1 of 32x32" in out


@pytest.mark.parametrize("workers", [0, -1])  # -1: as many as suit the machine
def test_a_training_step_by_its_stages(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects --train: the trainer's own step, none of its stages negative or missing."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    workers = f"train.workers={workers}"
    code, out, _ = emaseg(
        capsys, "bench", file, "--train", "--passes", "2", "--warm-up", "1", "--json", "--set", workers
    )
    assert code == 0
    found = json.loads(out)["train"]
    assert tuple(found["seconds"]) == STAGES
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["seconds"]["backward"] > 0
    assert found["seconds"]["loss"] > 0
    assert (found["batch"], found["crop"]) == (4, [32, 32])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--shape", "512"), "512x1024"), (("--precision", "fp8"), "fp"), (("--batch", "0"), "--batch 1,2")],
)
def test_wrong_options(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with how to write it."""
    code, _, err = emaseg(capsys, "bench", "demo", *arguments)
    assert code == 2
    assert message in err


def test_a_name_that_is_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe needs no weights; what is no recipe is still an error."""
    assert emaseg(capsys, "bench", "no/such/run")[0] == 3


def test_a_training_step_has_the_threads_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the figure: a step is measured on as many threads as `train` computes it on, and others stay as many."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    seen = set()

    def step(*arguments: Any, **named: Any) -> Any:
        seen.add(torch.get_num_threads())
        return training_step(*arguments, **named)

    monkeypatch.setattr("emaseg.bench.training_step", step)
    before = torch.get_num_threads()
    recipe = load_recipe(str(file), ("train.threads=2", "train.workers=0"))
    measure_training(recipe, torch.device("cpu"), steps=1, warm_up=1)
    assert seen == {2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("option", "key"),
    [
        (("--shape", "512x512"), "augment.crop"),
        (("--batch", "2"), "train.batch"),
        (("--threads", "1"), "train.threads"),
        (("--precision", "auto"), "train.precision"),
        (("--compile",), "train.compile"),
    ],
)
def test_options_that_a_training_step_does_not_heed(
    option: tuple[str, ...], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from a figure of something else than was asked for: each is refused, with the key that does it."""
    code, out, err = emaseg(capsys, "bench", "demo", "--train", *option)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {option[0]}: --train measures")
    (change,) = re.findall(r"--set (\S+)", err)
    assert change.startswith(f"{key}=")
    load_recipe("demo", (change,))


def test_what_is_measured_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects readers from the figures of a run that they did not name: a recipe is measured as it is written, whatever
    was trained with it before. And tells of old keys, as every command does."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    short = ("--shape", "32x32", "--passes", "1", "--warm-up", "0", "--threads", "1", "--json")
    old = ("--set", "model.stages=2")
    code, _, err = emaseg(capsys, "bench", "tiny.toml", *short, *old)
    assert code == 0
    assert err.startswith("--set model.stages: ")
    run(tiny("train.iterations=1"), tmp_path / "runs/tiny/first")
    steps = ("--train", "--passes", "1", "--warm-up", "1", "--json", "-q")
    changed = TINY.replace("batch = 4", "batch = 2").replace("crop = [32, 32]", "crop = [24, 24]")
    assert changed != TINY
    Path("tiny.toml").write_text(changed)
    code, out, _ = emaseg(capsys, "bench", "tiny.toml", *steps)
    assert (code, json.loads(out)["train"]["batch"], json.loads(out)["train"]["crop"]) == (0, 2, [24, 24])
    code, out, _ = emaseg(capsys, "bench", "runs/tiny/first", *steps)
    assert (code, json.loads(out)["train"]["batch"], json.loads(out)["train"]["crop"]) == (0, 4, [32, 32])
    parameters = []
    for bases in (4, 8):
        code, out, err = emaseg(capsys, "bench", "tiny.toml", *short, "-q", "--set", f"model.bases={bases}")
        assert (code, err) == (0, "")
        parameters.append(json.loads(out)["parts"][-1])
    assert parameters[0] != parameters[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 60, 76, 80, 99, 100])
def test_no_number_is_lost_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects figures from being broken inside or cut off: columns go, and where nothing else helps the table."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    result = Measured(Case(16, 1024, 2048, "fp32", 16), (1.2345, 1.3456, 1.4567), 9.8765, 123_456_000_000, True)
    part = Part("network, training heads included", 123_456_789, 1_234_567_800_000)
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        _tell(load_recipe("demo"), [part], (1024, 2048), [result])
    shown = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert max(map(len, shown.splitlines())) <= columns
    always = (part.name, "123.46 M", "1234.6 G", "16 of 1024x2048", "precision", "threads", "images/s", "1345.6")
    sometimes = ("1456.7", "9876.5") if columns < 76 or columns == 100 else ()
    for word in (*always, "peak memory", "123.46 GB", *sometimes):
        assert word in shown
