"""The public names: few, lazy, as documented, and the verbs from Python like the commands."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import emaseg
from emaseg.errors import RecipeError, UserError, WeightsError
from emaseg.events import Evaluated, Finished, Stepped, TrainEvent
from emaseg.metrics import details_of
from tests.helpers import TINY, equal, run, tiny
from tests.helpers import emaseg as command_line
from tests.training.test_train import last, untimed


def test_public_names_are_exact() -> None:
    """Protects users' imports: these names and no others."""
    functions = ["build_model", "evaluate", "export", "load_recipe", "load_weights", "train"]
    assert emaseg.__all__ == ["Predictor", "__version__", *functions]
    assert all(callable(getattr(emaseg, name)) for name in emaseg.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = emaseg.nothing


def modules_after(code: str) -> set[str]:
    """The modules that a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_is_free() -> None:
    """Protects start-up: importing the package, or reading a recipe, loads neither torch nor numpy."""
    loaded = modules_after("import emaseg, sys; emaseg.load_recipe('voc_r50_d8'); print(*sys.modules)")
    assert not {"torch", "numpy", "torchvision", "rich", "typer"} & loaded


def test_prediction_does_without_torchvision_and_a_verb_stays_a_function() -> None:
    """Protects the first prediction from seconds of imports it does not need. Then `emaseg.train(...)` from the module of
    the same name, which the import system would put in its place; and `from emaseg.training.train import train` from the
    function."""
    loaded = modules_after("""
import emaseg, numpy as np, sys
r = emaseg.load_recipe('demo')
emaseg.Predictor(emaseg.build_model(r), r).predict(np.zeros((64, 64, 3), np.uint8))
print(*sys.modules)
import emaseg.training.train
before = emaseg.train
from emaseg.training.train import train
import emaseg.evaluation.evaluate, emaseg.exporting.request
assert train.__module__ == "emaseg.training.train"
assert emaseg.train is before
assert {f.__module__ for f in (emaseg.train, emaseg.evaluate, emaseg.export)} == {"emaseg.api"}
""")
    assert "torch" in loaded
    assert not {"torchvision", "rich", "typer", "torch._dynamo", "torch._inductor"} & loaded


# ------------------------------------------------------------------------------------------------------ the verbs
SHORT = ("train.iterations=4", "train.evaluate_every=2", "train.threads=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, list[TrainEvent]]:
    """A short run from Python, and its events."""
    top = tmp_path_factory.mktemp("api")
    (top / "tiny.toml").write_text(TINY)
    events = emaseg.train(str(top / "tiny.toml"), top / "run", overrides=list(SHORT), device="cpu")
    return top / "run", list(events)


def test_training_from_python_is_the_command(trained: tuple[Path, list[TrainEvent]], tmp_path: Path) -> None:
    """Protects the result: the same bits as the engine's, the same events, and the last one is Finished."""
    out, events = trained
    run(tiny(*SHORT), tmp_path / "engine")
    assert equal(last(out), last(tmp_path / "engine"))
    assert untimed(out) == untimed(tmp_path / "engine")
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
    assert isinstance(events[-1], Finished)


def test_callbacks_see_every_event_and_a_stopped_run_resumes(
    trained: tuple[Path, list[TrainEvent]], tmp_path: Path
) -> None:
    """Protects loggers: each event in its order; and that stop, resume and a loaded recipe work from Python."""
    stop, seen = threading.Event(), list[TrainEvent]()

    def stop_at_three(event: TrainEvent) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            stop.set()

    first = list(emaseg.train(tiny(*SHORT), tmp_path / "run", callbacks=[seen.append, stop_at_three], stop=stop))
    assert seen == first
    assert isinstance(first[-1], Finished)
    assert first[-1].interrupted
    *_, finished = emaseg.train(tiny(*SHORT), tmp_path / "run", resume=True)
    assert finished.step == 4
    assert equal(last(trained[0]), last(tmp_path / "run"))


def test_scores_from_python_are_those_of_the_run(trained: tuple[Path, list[TrainEvent]]) -> None:
    """Protects emaseg.evaluate: the scores of the best checkpoint are those that were measured in training."""
    out, events = trained
    *_, scored = emaseg.evaluate(out, device="cpu")
    best = max(event.scores.miou or 0 for event in events if isinstance(event, Evaluated))
    assert isinstance(scored, Evaluated)
    assert scored.scores.miou == best
    *_, on_train = emaseg.evaluate(str(out), split="train", checkpoint="last")
    assert on_train.scores.images == 20


def test_calibration_from_python_is_that_of_the_command(
    trained: tuple[Path, list[TrainEvent]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted only when asked for; the same bins as in metrics.json of `eval --calibration`."""
    *_, plain = emaseg.evaluate(trained[0], device="cpu")
    *_, scored = emaseg.evaluate(trained[0], device="cpu", calibration=True)
    assert isinstance(plain, Evaluated)
    assert isinstance(scored, Evaluated)
    assert plain.tally is not None
    assert scored.tally is not None
    assert details_of(plain.tally).calibration is None
    command = ("eval", trained[0], "--calibration", "--json", "--device", "cpu", "--out", tmp_path / "scores")
    code, out, _ = command_line(capsys, *command)
    told = json.loads(out)["calibration"]
    assert code == 0
    assert details_of(scored.tally).json()["calibration"] == told
    assert sum(row["pixels"] for row in told["bins"]) == int(scored.tally.confusion.counts.sum())


def test_export_from_python(trained: tuple[Path, list[TrainEvent]], tmp_path: Path) -> None:
    """Protects emaseg.export: the file is there, compared, and readable as a REF."""
    *_, exported = emaseg.export(trained[0], "weights", tmp_path / "slim.pt", precision="fp16")
    assert exported.passed
    assert exported.path == tmp_path / "slim.pt"
    *_, scored = emaseg.evaluate(tmp_path / "slim.pt")
    assert scored.scores.images == 4


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: emaseg.train(5, "x"), "recipe = 5: is of type int"),
        (lambda: emaseg.train(None, "x"), "recipe = None"),
        (lambda: emaseg.train("", "x"), "recipe = ''"),
        (lambda: emaseg.train(b"demo", "x"), "recipe = b'demo'"),
        (lambda: emaseg.train("demo", 5), "out = 5"),
        (lambda: emaseg.train("demo", "x", overrides="train.batch=4"), "overrides = "),
        (lambda: emaseg.train("demo", "x", overrides=[5]), "overrides = "),
        (lambda: emaseg.train("demo", "x", resume="yes"), "resume = 'yes'"),
        (lambda: emaseg.train("demo", "x", device=0), "device = 0"),
        (lambda: emaseg.train("demo", "x", callbacks=print), "callbacks = "),
        (lambda: emaseg.train("demo", "x", callbacks=[5]), "callbacks = "),
        (lambda: emaseg.train("demo", "x", stop=True), "stop = True"),
        (lambda: emaseg.train(emaseg.load_recipe("demo"), "x", overrides=["train.batch=4"]), "loaded already"),
        (lambda: emaseg.train("demoo", "x"), "demo"),
        (lambda: emaseg.evaluate(5), "reference = 5"),
        (lambda: emaseg.evaluate("x", tta=1), "tta = 1"),
        (lambda: emaseg.evaluate("x", calibration="yes"), "calibration = 'yes'"),
        (lambda: emaseg.evaluate("x", split=3), "split = 3"),
        (lambda: emaseg.evaluate("x", weights=3), "weights = 3"),
        (lambda: emaseg.evaluate("x", checkpoint=3), "checkpoint = 3"),
        (lambda: emaseg.export("x", 5), "format = 5"),
        (lambda: emaseg.export("x", "onxx"), "onnx"),
        (lambda: emaseg.export("x", "torch", shape="512x512"), "shape = '512x512'"),
        (lambda: emaseg.export("x", "torch", shape=(512.0, 512)), "shape = "),
        (lambda: emaseg.export("x", "torch", include="argmax"), "include = 'argmax'"),
        (lambda: emaseg.export("x", "torch", out=3), "out = 3"),
    ],
)
def test_wrong_arguments_are_our_errors(call: Callable[[], Any], says: str) -> None:
    """Protects from a traceback out of our inside: at once, as a UserError that names the argument or the nearest name."""
    with pytest.raises(UserError) as caught:
        call()
    assert isinstance(caught.value, RecipeError | WeightsError)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_nothing_is_written_before_the_events_are_read(tmp_path: Path) -> None:
    """Protects from a folder that a forgotten loop leaves."""
    emaseg.train("demo", tmp_path / "run")
    assert not (tmp_path / "run").exists()
