"""Checkpoints that were made or changed by hand: refused with the key that is wrong, never another training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from emaseg.checkpoint import Checkpoint, load_weights, save_checkpoint
from emaseg.errors import WeightsError
from emaseg.models import build_model
from emaseg.recipe import Recipe
from emaseg.reference import resolve
from emaseg.training.train import train
from emaseg.words import excerpt
from tests.helpers import emaseg, run, tiny

RECIPE = tiny("train.iterations=4")
WEIGHT = "classifier.weight"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, stopped after two."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(RECIPE, out, stop_after=2)
    return out


def put(*path: Any) -> Change:
    """Put the last argument where the others lead to."""
    *keys, last, value = path

    def change(content: dict[str, Any]) -> None:
        at: Any = content
        for key in keys:
            at = at[key]
        at[last] = value

    return change


def drop(*path: Any) -> Change:
    *keys, last = path

    def change(content: dict[str, Any]) -> None:
        at: Any = content
        for key in keys:
            at = at[key]
        del at[last]

    return change


WRONG: dict[str, Change] = {
    **{f"without {key}": drop(key) for key in ("model", "optimizer", "step", "epoch", "best", "rng", "sampler", "recipe")},
    **{
        f"step = {value!r}": put("step", value)
        for value in (-1, 5, 10**30, True, "2", 2.0, None, [2], math.nan, torch.tensor(2))
    },
    **{f"epoch = {value!r}": put("epoch", value) for value in (-1, "0", None, 0.5)},
    **{f"{key} = {value!r}": put(key, value) for key in ("model", "optimizer", "rng", "sampler", "best") for value in (1, [])},
    **{f"best.miou = {value!r}": put("best", {"miou": value, "step": 1}) for value in (math.nan, -1.0, 2.0, "0.5", None)},
    "best of nothing": put("best", {"miou": 0.5}),
    "best of another kind": put("best", {"loss": 0.5}),
    "best of a later step": put("best", {"miou": 0.5, "step": 3}),
    "evaluated in the future": put("best", {"evaluated": 3}),
    "recipe that is none": put("recipe", "schema = 2"),
    "recipe that is bytes": put("recipe", b"x"),
    "recipe of a thousand million EM iterations": lambda c: c.update(
        recipe=c["recipe"].replace("em_iterations_eval = 3", "em_iterations_eval = 1000000000")
    ),
    "no generator": put("rng", {}),
    "a short generator": put("rng", "cpu", torch.zeros(16, dtype=torch.uint8)),
    "a damaged generator": lambda c: c["rng"]["cpu"].fill_(255),
    "a generator of floats": put("rng", "cpu", torch.zeros(5056)),
    "a generator's text": put("rng", "cpu", "seed"),
    "a GPU generator of 3 bytes": put("rng", "cuda", [torch.zeros(3, dtype=torch.uint8)]),
    "a GPU generator that is none": put("rng", "cuda", 7),
    "a sampler of texts without end": put("sampler", "names", "x" * 1000),
    "a sampler below zero": put("sampler", "seed", -1),
    "no optimiser": put("optimizer", {}),
    "an optimiser without groups": drop("optimizer", "param_groups"),
    "an optimiser without state": drop("optimizer", "state"),
    "no momentum": put("optimizer", "state", {}),
    "groups of another network": lambda c: c["optimizer"]["param_groups"][0]["params"].pop(),
    "another group": lambda c: c["optimizer"]["param_groups"].append(dict(c["optimizer"]["param_groups"][0])),
    "a group without lr_scale": lambda c: c["optimizer"]["param_groups"][0].pop("lr_scale"),
    "another momentum": lambda c: c["optimizer"]["param_groups"][0].update(momentum=0.5),
    "another weight decay": lambda c: c["optimizer"]["param_groups"][0].update(weight_decay=1.0),
    "a rate that is text": lambda c: c["optimizer"]["param_groups"][0].update(lr="0.1"),
    "a rate that is no number": lambda c: c["optimizer"]["param_groups"][0].update(lr=math.nan),
    "momentum of another shape": put("optimizer", "state", 0, {"momentum_buffer": torch.zeros(3)}),
    "momentum of integers": lambda c: c["optimizer"]["state"][0].update(
        momentum_buffer=c["optimizer"]["state"][0]["momentum_buffer"].int()
    ),
    "momentum that is text": put("optimizer", "state", 0, {"momentum_buffer": "x"}),
    "momentum that is not finite": lambda c: c["optimizer"]["state"][0]["momentum_buffer"].fill_(math.nan),
    "momentum of what is not there": put("optimizer", "state", 10_000, {"momentum_buffer": torch.zeros(3)}),
    "state that is no table": put("optimizer", "state", 0, 1),
    "weights that are not finite": lambda c: c["model"][WEIGHT].fill_(math.nan),
    "one weight missing": drop("model", WEIGHT),
    "one weight of another shape": put("model", WEIGHT, torch.zeros(2, 2)),
    "a weight that is text": put("model", WEIGHT, "x"),
    "a weight without a name": put("model", 3, torch.zeros(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_made_by_hand_is_refused(stopped: Path, tmp_path: Path, name: str) -> None:
    """Protects a resume: each wrong key is exit 3 before anything is trained, and the folder stays as it was."""
    content = torch.load(stopped / "checkpoints/last.pt", weights_only=True)
    WRONG[name](content)
    file = tmp_path / "run/checkpoints/last.pt"
    file.parent.mkdir(parents=True)
    torch.save(content, file)
    with pytest.raises(WeightsError, match=r"last\.pt") as caught:
        next(iter(_first_step(RECIPE, tmp_path / "run")))
    assert caught.value.hint
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def _first_step(recipe: Recipe, out: Path) -> Any:
    return (event for event in train(recipe, out, resume=True) if type(event).__name__ == "TrainingStarted")


def test_the_unchanged_checkpoint_goes_on(stopped: Path, tmp_path: Path) -> None:
    """Protects the test above from refusing everything, and resuming from what is wrongly called damaged."""
    file = tmp_path / "run/checkpoints/last.pt"
    file.parent.mkdir(parents=True)
    torch.save(torch.load(stopped / "checkpoints/last.pt", weights_only=True), file)
    assert next(iter(_first_step(RECIPE, tmp_path / "run"))).step == 2


def test_exported_weights_say_how_to_train_on(tmp_path: Path) -> None:
    """Protects who puts an exported file in a run: it has no training state; the remedy is --init-from."""
    file = tmp_path / "run/checkpoints/last.pt"
    save_checkpoint(file, Checkpoint(build_model(RECIPE).state_dict(), {}, 0, 0, {}, {}, {}, RECIPE))
    with pytest.raises(WeightsError, match="holds weights alone") as caught:
        next(iter(_first_step(RECIPE, tmp_path / "run")))
    assert "--init-from" in caught.value.message


# ---------------------------------------------------------------------------------------------------- finite weights
BUFFER = "reduce.norm.running_var"
NOT_FINITE: dict[str, tuple[str, Callable[[torch.Tensor], Any], str]] = {
    "one NaN": (WEIGHT, lambda t: t[0, 0].fill_(math.nan), "classifier.weight (1 of 80 values)"),
    "all infinite": (WEIGHT, lambda t: t.fill_(math.inf), "classifier.weight (80 of 80 values)"),
    "both infinities": (WEIGHT, lambda t: t[:2].copy_(torch.tensor([[math.inf], [-math.inf]]).view(2, 1, 1, 1).expand(2, *t.shape[1:])), "classifier.weight"),
    "a buffer": (BUFFER, lambda t: t[3].fill_(math.nan), f"{BUFFER} (1 of 16 values)"),
    "a negative variance": (BUFFER, lambda t: t[3].fill_(-1.0), f"{BUFFER} (1 of 16 values)"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FINITE)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str) -> None:
    """Protects from "background 100 %": the tensors are named, with how many of their values."""
    key, change, message = NOT_FINITE[name]
    model = build_model(RECIPE)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    change(state[key])
    torch.save({"format": "emaseg/1", "model": state}, tmp_path / "a.pt")
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "a.pt")
    assert f"a.pt: the weights are not finite: {message}" in caught.value.message


def test_an_average_that_is_one_tensor_is_refused(tmp_path: Path) -> None:
    """Protects who predicts with a stranger's file: asked whether it is empty, a tensor of two values raises."""
    for average in (torch.zeros(2), torch.zeros(0), torch.ones(1), [], 0):
        torch.save({"format": "emaseg/1", "recipe": "x", "average": average}, tmp_path / "a.pt")
        with pytest.raises(WeightsError, match="without a table of tensors"):
            load_weights(build_model(RECIPE), tmp_path / "a.pt")
    model = build_model(RECIPE)
    torch.save({"format": "emaseg/1", "model": model.state_dict(), "average": {}}, tmp_path / "a.pt")
    load_weights(model, tmp_path / "a.pt")


def test_what_only_overflows_is_judged_as_it_is_used(tmp_path: Path) -> None:
    """Protects both ways: halves whose sum overflows are fine; a double beyond single precision is infinite here."""
    model = build_model(RECIPE)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state[WEIGHT] = torch.full_like(state[WEIGHT], 60000.0).half()
    torch.save({"format": "emaseg/1", "model": state}, tmp_path / "a.pt")
    load_weights(model, tmp_path / "a.pt")
    state[WEIGHT] = state[WEIGHT].double().fill_(1e300)
    torch.save({"format": "emaseg/1", "model": state}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="not finite"):
        load_weights(model, tmp_path / "a.pt")


# ---------------------------------------------------------------------------------------------------- recipe inside
HARMFUL = {
    "EM iterations": ("em_iterations_eval = 3", "em_iterations_eval = 1000000000", "1 to 100"),
    "stride 1": (
        'mode = "whole"\nwindow = []\nstride = []',
        'mode = "slide"\nwindow = [512, 512]\nstride = [1, 1]',
        "at least [32, 32]",
    ),
    "resize": ("resize_long_short = []", "resize_long_short = [1000000, 1000000]", "1 to 16384"),
    "crop": ("crop = [32, 32]", "crop = [1000000000, 32]", "1 to 16384"),
    "scales": ("scales = [1.0]", f"scales = [{', '.join(['1.0'] * 1000)}]", "at most 32 of them"),
    "length": ('title = ""', f'title = "{"x" * 300_000}"', "more than 256 kB"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_the_recipe_inside_a_checkpoint_is_bounded(
    tmp_path: Path, stopped: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects who predicts with a stranger's file: what would compute for ever is refused, as the file's fault."""
    old, new, message = HARMFUL[name]
    content = torch.load(stopped / "checkpoints/last.pt", weights_only=True)
    assert old in content["recipe"]
    content["recipe"] = content["recipe"].replace(old, new)
    file = tmp_path / "a.pt"
    torch.save(content, file)
    with pytest.raises(WeightsError, match="recipe inside"):
        resolve(str(file))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    code, _, stderr = emaseg(capsys, "predict", tmp_path / "a.png", "--weights", file, "--out", tmp_path / "out")
    assert code == 3
    assert message in " ".join(stderr.split())


def test_names_from_a_file_are_shown_escaped_and_short() -> None:
    """Protects the terminal: control characters, escapes and a megabyte in a tensor's name."""
    assert excerpt("a\x1b[2J\nb\x9b\u202e") == "a\\x1b[2J\\nb\\x9b\\u202e"
    assert len(excerpt("x" * 1_000_000)) == 80
    assert excerpt(7) == "7"
