"""The commands as Python functions: `emaseg.train`, `emaseg.evaluate` and `emaseg.export`.

Room: api. Each checks what it was given at once and returns an iterator of the events that the command of the same name
draws (emaseg/events.py); the work is done while they are read. What goes wrong is an `EmasegError`, as in the commands.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from emaseg.errors import RecipeError
from emaseg.events import Evaluated, Evaluating, Note, TrainEvent
from emaseg.recipe import Recipe, load_recipe
from emaseg.words import excerpt

if TYPE_CHECKING:
    from torch import nn

    from emaseg.exporting.export import Exported

PathLike = str | os.PathLike[str]
Callback = Callable[[TrainEvent], None]
Event = TypeVar("Event")


def train(
    recipe: Recipe | PathLike,
    out: PathLike,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
) -> Iterator[TrainEvent]:
    """Train a recipe into the folder `out`, as `emaseg train RECIPE --out OUT` does.

        for event in emaseg.train("demo", "runs/first", overrides=["train.iterations=200"]):
            if isinstance(event, Evaluated):
                print(event.step, event.scores.miou)

    Nothing is trained until the events are read; `*_, finished = emaseg.train(...)` reads them all.

    Args:
        recipe: a shipped recipe's name, a .toml file, or what `load_recipe` returned.
        out: the run's folder; must be empty or absent unless `resume`.
        overrides: as --set takes them, such as "train.batch=4".
        resume: go on from the newest checkpoint that can be used; without one, start at step 0.
        device: auto, cpu, cuda, cuda:N or mps.
        callbacks: each is called with every event before it is yielded.
        stop: set it from another thread or a signal handler, and the run saves after its step and ends.

    Yields:
        Note, Downloading, TrainingStarted, then Stepped after each step, Evaluating and Evaluated, Saved; the last one is
        Finished. A reader that stops early leaves a run that `resume` continues.

    Raises:
        RecipeError: an argument of the wrong type, a recipe that cannot be read or run, or a folder that is taken.
        DataError, WeightsError, SystemFault, Diverged: as the command, with its exit code in `exit_code`.
    """
    folder = _path("out", out)
    _check("resume", resume, bool, "True or False")
    _check("stop", stop, (threading.Event, type(None)), "a threading.Event")
    calls = _sequence("callbacks", callbacks, callable, "functions")
    loaded = _recipe(recipe, overrides)
    target = _device(device)

    def events() -> Generator[TrainEvent, None, None]:
        from emaseg.training.train import train as train_engine

        yield from train_engine(loaded, folder, resume=resume, device=target(), stop=stop)

    return called(events(), calls)


def evaluate(
    reference: PathLike,
    *,
    weights: PathLike | None = None,
    checkpoint: str | None = None,
    split: str | None = None,
    tta: bool = False,
    calibration: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
) -> Iterator[Note | Evaluating | Evaluated]:
    """Score a trained model on a labelled split, as `emaseg eval REF` does; no file is written.

        *_, scored = emaseg.evaluate("runs/first")
        print(scored.scores.miou, {c.name: c.iou for c in scored.scores.per_class})

    Args:
        reference: a run folder, a checkpoint, an exported file, or a recipe.
        weights: for a recipe: a weight file, also of other systems.
        checkpoint: of a run folder: "best", "last" or a file; None = best, else last.
        split: as the data set names it; None = the recipe's data.eval_split.
        tta: by the recipe's [inference_tta].
        calibration: also count how sure the network is: `emaseg.metrics.details_of(scored.tally).calibration`.
        overrides: as --set takes them. device: auto, cpu, cuda, cuda:N or mps.

    Yields:
        Notes, Evaluating after each image, Evaluated at the end.

    Raises:
        RecipeError: an argument of the wrong type, or one that contradicts another.
        DataError, WeightsError, SystemFault: as the command.
    """
    from emaseg.open_datasets import choose_split
    from emaseg.reference import resolve

    _check("tta", tta, bool, "True or False")
    _check("calibration", calibration, bool, "True or False")
    _check("split", split, (str, type(None)), "a split's name")
    _check("checkpoint", checkpoint, (str, os.PathLike, type(None)), '"best", "last" or a path')
    resolved = resolve(
        os.fspath(_path("reference", reference, keep=True)),
        weights=None if weights is None else os.fspath(_path("weights", weights, keep=True)),
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        overrides=_overrides(overrides),
        tta=tta,
    )
    data, phase = choose_split(resolved.recipe.data, split)
    target = _device(device)

    def events() -> Generator[Note | Evaluating | Evaluated, None, None]:
        from emaseg.data.files.bands import bands_of
        from emaseg.data.sets.build import build_dataset
        from emaseg.evaluation.evaluate import evaluate as evaluate_engine
        from emaseg.reference import device_for, open_engine

        yield from map(Note, resolved.notes)
        recipe = resolved.recipe
        where, notes = device_for(resolved, target(), str(device))
        yield from map(Note, notes)
        dataset = build_dataset(data, phase, bands_of(recipe))
        model = open_engine(resolved, where)
        yield from evaluate_engine(
            model, dataset, recipe.inference, recipe.backbone.pixel_stats, where, calibration=calibration
        )

    return events()


def export(
    reference: PathLike,
    format: str,
    out: PathLike | None = None,
    *,
    weights: PathLike | None = None,
    shape: tuple[int, int] | None = None,
    precision: str = "fp32",
    include: Sequence[str] = (),
    calibrate: PathLike | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[Note | Exported]:
    """Write a trained model as a file for other programs, as `emaseg export REF --format FORMAT` does.

        *_, exported = emaseg.export("runs/first", "onnx", "model.onnx")
        assert exported.passed

    Args:
        reference: a run folder, a checkpoint, or a recipe (with `weights`).
        format: onnx, torch (torch.export's .pt2) or weights.
        out: the file; None = named after the recipe, here.
        shape: (height, width) of the only image size that the file will take; None = any.
        precision: fp32, fp16, bf16 or int8. include: "normalize", "argmax" or both.
        calibrate: a folder of images that int8 learns its ranges from.
        overrides: as --set takes them.

    Yields:
        Notes, Exported at the end; the file exists only if `passed`: it was run and compared with the model.

    Raises:
        RecipeError: an argument of the wrong type, or a combination that cannot be made.
        DataError, WeightsError, SystemFault: as the command.
    """
    from emaseg.exporting.request import make_request, target
    from emaseg.reference import resolve

    _check("format", format, str, "onnx, torch or weights")
    _check("precision", precision, str, "fp32, fp16, bf16 or int8")
    inside = _sequence("include", include, lambda word: isinstance(word, str), "words")
    file = None if out is None else _path("out", out)
    if shape is not None and not _is_size(shape):
        raise _wrong("shape", shape, "(height, width)")
    request = make_request(
        format,
        precision,
        None if shape is None else f"{shape[0]}x{shape[1]}",
        include=",".join(inside),
        calibrate=None if calibrate is None else _path("calibrate", calibrate),
    )
    resolved = resolve(
        os.fspath(_path("reference", reference, keep=True)),
        weights=None if weights is None else os.fspath(_path("weights", weights, keep=True)),
        overrides=_overrides(overrides),
    )
    path = target(request, file, resolved.recipe.name)

    def events() -> Generator[Note | Exported, None, None]:
        from emaseg.exporting.export import export as export_engine
        from emaseg.reference import open_network

        yield from map(Note, resolved.notes)
        yield from export_engine(open_network(resolved), resolved.recipe, request, path)

    return events()


def called(events: Iterator[TrainEvent], callbacks: Sequence[Callback]) -> Generator[TrainEvent, None, None]:
    """The events, each told to every callback first. What a callback raises ends the training there."""
    for event in events:
        for callback in callbacks:
            callback(event)
        yield event


# ---------------------------------------------------------------------------------------------------- arguments
def _recipe(recipe: Recipe | PathLike, overrides: Sequence[str]) -> Recipe:
    changes = _overrides(overrides)
    if isinstance(recipe, Recipe):
        if changes:
            raise RecipeError(
                "overrides: were given together with a recipe that is loaded already",
                "give them to load_recipe(NAME, overrides), or name the recipe here",
            )
        return recipe
    return load_recipe(os.fspath(_path("recipe", recipe, keep=True, or_else=" or a Recipe")), changes)


def _device(name: str) -> Callable[[], Any]:
    """The device, found when it is needed: that takes the import of torch."""
    _check("device", name, str, "auto, cpu, cuda, cuda:N or mps")

    def find() -> Any:
        from emaseg.device import pick_device

        return pick_device(name)

    return find


def _path(what: str, value: object, *, keep: bool = False, or_else: str = "") -> Any:
    """A path; with `keep` as it was written, since `./x` and `x` are two things where x may be a recipe's name."""
    if not isinstance(value, str | os.PathLike):
        raise _wrong(what, value, f"a path as str or Path{or_else}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text:
        raise _wrong(what, value, f"a path as str or Path{or_else}")
    return text if keep else Path(text)


def _overrides(overrides: Sequence[str]) -> list[str]:
    return _sequence("overrides", overrides, lambda item: isinstance(item, str), 'texts such as "train.batch=4"')


def _sequence(what: str, values: Sequence[Any], fits: Callable[[Any], bool], expected: str) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(map(fits, values)):
        raise _wrong(what, values, f"a list of {expected}")
    return list(values)


def _is_size(shape: object) -> bool:
    return isinstance(shape, tuple | list) and len(shape) == 2 and all(type(side) is int for side in shape)


def load_weights(model: nn.Module, path: PathLike) -> str:
    """Load a whole network's weights, strictly: every entry must find its place, every place its entry.

    Args:
        model: from `build_model`; one built on the meta device is materialised.
        path: whatever the commands take as REF, but an exported file: a run folder (its best checkpoint, else its last),
            a folder of runs, a checkpoint, a recipe's name, or a file of sssegmentation, mmsegmentation or the EMANet
            authors.

    Returns:
        The format that was recognised.

    Raises:
        RecipeError: an argument of the wrong type.
        WeightsError: unreadable, of no known format, or of another network; says what does not fit.
    """
    from torch import nn

    from emaseg.checkpoint import load_weights as load
    from emaseg.reference import resolve

    _check("model", model, nn.Module, "a network from emaseg.build_model")
    _check("path", path, (str, os.PathLike), "a run folder, a checkpoint, a weight file or a recipe's name")
    text = os.fspath(path)
    return load(model, Path(text) if os.path.isfile(text) else resolve(text).weights)


def _check(what: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kinds):
        raise _wrong(what, value, expected)


def _wrong(what: str, value: object, expected: str) -> RecipeError:
    return RecipeError(f"{what} = {excerpt(repr(value))}: is of type {type(value).__name__}", f"give {expected}")
