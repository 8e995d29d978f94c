"""Our checkpoint files, and loading weights strictly from ours and others'.

Room: checkpoint; imports recipe, files, models, weights.convert, errors and torch.

A checkpoint is one file readable with torch.load(weights_only=True): tensors, numbers and text only, with the keys
    format     "emaseg/1"
    model      parameters and buffers
    optimizer  its state
    step       optimiser steps done;  epoch: passes over the data completed
    best       {miou, step, evaluated}: highest mIoU so far, where, and the last step that was evaluated
    rng        {cpu, cuda}: generator states that dropout draws from
    sampler    {seed, epoch, offset}: position in the sample order; {images, names, eval_images, eval_names}: counts of
               the two image lists and hashes of their names, as plan.image_lists has them
    recipe     the resolved recipe as TOML text
"""

from __future__ import annotations

import errno
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from emaseg.errors import WeightsError
from emaseg.files import atomic
from emaseg.models.backbones import FeatureExtractor
from emaseg.models.network import Network
from emaseg.recipe import Recipe, parse_recipe, recipe_to_toml
from emaseg.weights.convert import State, recognise, recognise_backbone
from emaseg.weights.fits import classes, describe, fitting_recipes
from emaseg.words import Lines

FORMAT = "emaseg/1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file's content; see the module's list of keys."""

    model: State
    optimizer: dict[str, Any]
    step: int
    epoch: int
    best: dict[str, float]
    rng: dict[str, Any]
    sampler: dict[str, int | str]
    recipe: Recipe


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` under `path`, whole or not at all.

    Raises:
        SystemFault: disk full, no permission.
    """
    content = {
        "format": FORMAT,
        "model": _on_cpu(checkpoint.model),
        "optimizer": _on_cpu(checkpoint.optimizer),
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "best": checkpoint.best,
        "rng": checkpoint.rng,
        "sampler": checkpoint.sampler,
        "recipe": recipe_to_toml(checkpoint.recipe),
    }
    with atomic(path) as file:
        writer = _Writer(file)
        try:
            torch.save(content, cast("IO[bytes]", writer))
        except (OSError, RuntimeError) as error:
            raise writer.error or error from error


def _on_cpu(value: Any) -> Any:
    """`value` with its tensors on the CPU, so that any machine can read the file."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


class _Writer:
    """Hands bytes on and remembers the first operating-system error: torch.save replaces it by one of its own."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written: int = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        return written

    def flush(self) -> None:
        self.file.flush()


def read_file(path: Path) -> Mapping[str, Any]:
    """Content of a weight file; nothing in it is executed.

    Raises:
        WeightsError: missing, truncated, damaged, not a weight file, or one that wants to run code.
    """
    remedy = "check the path, or copy or download the file again"
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol of odd files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file", remedy) from None
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors, numbers and text, so loading it could run code"
            raise WeightsError(f"{path}: refused: {reason}", "use a file of plain weights") from error
        raise WeightsError(f"{path}: not a weight file, or damaged", remedy) from error
    except IsADirectoryError:
        raise WeightsError(f"{path}: is a folder, not a weight file", remedy) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to where a whole file would go on
            raise WeightsError(f"{path}: not a weight file, or damaged", remedy) from error
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})", remedy) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise WeightsError(f"{path}: not a weight file, or damaged", remedy) from error
    except (zipfile.BadZipFile, ImportError, AssertionError, MemoryError, OverflowError) as error:
        raise WeightsError(f"{path}: not a weight file, or damaged", remedy) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights", remedy)
    return content


def read_checkpoint(path: Path) -> Checkpoint:
    """One of our checkpoints.

    Raises:
        WeightsError: not readable, or not one of ours.
    """
    content = read_file(path)
    if content.get("format") != FORMAT:
        hint = "give a checkpoint written by `emaseg train`, or name a RECIPE together with --weights"
        raise WeightsError(f"{path}: not an emaseg checkpoint", hint)
    missing = [key for key in Checkpoint.__dataclass_fields__ if key not in content]
    if missing:
        raise WeightsError(f"{path}: incomplete checkpoint, no {', '.join(missing)}", "use another checkpoint")
    fields = {key: content[key] for key in Checkpoint.__dataclass_fields__}
    recipe = parse_recipe(str(content["recipe"]), f"{path} (recipe inside)").recipe
    return Checkpoint(**{**fields, "recipe": recipe})


def weights_format(content: Mapping[str, Any]) -> str:
    """ "emaseg", "ssseg", "mmseg", "authors", or "" for a file of no known format."""
    if content.get("format") == FORMAT:
        return "emaseg"
    known = recognise(content)
    return known[0] if known else ""


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Load a whole network's weights, strictly: every entry must find its place, every place its entry.

    Args:
        model: from `build_model`; one built on the meta device is materialised.
        path: one of our checkpoints, or a file of sssegmentation, mmsegmentation or the EMANet authors.

    Returns:
        The format that was recognised.

    Raises:
        WeightsError: unreadable, of no known format, or of another network; says what does not fit.
    """
    name, state = _network_state(Path(path))
    load_state(model, state, str(path))
    return name


def load_start(model: Network, path: Path) -> int | None:
    """Fill a network with the weights and buffers of one that was trained before, to train it further.

    As strict as `load_weights`, but that the file may be of another class count: then `model.per_class` keeps its own
    start values, and nothing else.

    Args:
        model: initialised; not on the meta device.
        path: as for `load_weights`.

    Returns:
        The file's class count where it is another one, else None.

    Raises:
        WeightsError: as `load_weights`.
    """
    _, state = _network_state(path)
    own = model.state_dict()
    theirs: int | None = None
    for key in (k for k in own if k in state and _belongs(k, model.per_class)):
        count, *rest = state[key].shape or (0,)
        if count != model.num_classes and rest == list(own[key].shape[1:]):
            theirs, state[key] = count, own[key]
    load_state(model, state, str(path))
    return theirs


def _belongs(key: str, names: Sequence[str]) -> bool:
    """Whether a tensor is one of `names` or lies in a module of that name."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _network_state(path: Path) -> tuple[str, State]:
    """Format and state, with our names, of a file that holds a whole network."""
    content = read_file(path)
    if content.get("format") == FORMAT:
        state = content.get("model")
        if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise WeightsError(f"{path}: a checkpoint without a table of tensors", "use another checkpoint")
        return "emaseg", dict(state)
    known = recognise(content)
    if known is None:
        keys = ", ".join(list(map(str, content))[:4]) or "nothing"
        raise WeightsError(
            f"{path}: no known weight format (it holds {keys})",
            "known are emaseg's own checkpoints and files of sssegmentation, mmsegmentation and the EMANet authors",
        )
    return known


def load_backbone(backbone: FeatureExtractor, path: Path) -> None:
    """Load ImageNet weights into a backbone; only a classifier may be left over.

    Files from before PyTorch 0.4.1 lack the norms' batch counters, which nothing here reads: they start at 0.

    Raises:
        WeightsError: unreadable, or of another backbone.
    """
    state = backbone.fitted(recognise_backbone(read_file(path)))
    counters = [key for key in backbone.state_dict() if key.endswith("num_batches_tracked")]
    load_state(backbone, {**{key: torch.zeros((), dtype=torch.int64) for key in counters}, **state}, str(path))


def load_state(model: nn.Module, state: State, source: str) -> None:
    """`load_state_dict` with a readable report instead of a partial load.

    Raises:
        WeightsError: names or shapes differ.
    """
    own = model.state_dict()
    problems = mismatches(own, state)
    if problems:
        message = f"{source}: these weights are of another network"
        raise WeightsError(Lines(message, *_compared(own, state), *problems), _advice(own, state))
    state = {key: value.to(own[key].dtype) for key, value in state.items()}
    on_meta = any(value.is_meta for value in own.values())
    model.load_state_dict(state, strict=True, assign=on_meta)


def mismatches(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], limit: int = 6) -> list[str]:
    """What keeps `given` from being loaded, one line each, at most `limit` of a kind; [] when it fits exactly."""
    lines = []
    for key in ("classifier.weight", "final.classifier.weight", "auxiliary.classifier.weight"):
        if key in own and key in given and own[key].shape[0] != given[key].shape[0]:
            lines.append(f"  it has {given[key].shape[0]} classes, the recipe has {own[key].shape[0]}")
            break
    shapes = [k for k in own if k in given and own[k].shape != given[k].shape]
    odd = [k for k in own if k in given and not _plain(given[k], own[k])]
    for what, keys in (
        ("not in the file", [k for k in own if k not in given]),
        ("not in the network", [k for k in given if k not in own]),
    ):
        lines += _listed([f"  {what}: {k}" for k in keys], limit)
    lines += _listed(
        [f"  {k}: {tuple(given[k].shape)} in the file, {tuple(own[k].shape)} in the network" for k in shapes], limit
    )
    return lines + _listed([f"  {k}: {given[k].dtype}, {given[k].layout} in the file" for k in odd], limit)


def _plain(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor holds numbers of the network's kind (floats of any precision, or integers), one for each place."""
    same_kind = given.is_floating_point() == own.is_floating_point() and not given.is_complex()
    return same_kind and given.layout == torch.strided and not given.is_quantized and not given.is_meta


def _listed(lines: list[str], limit: int) -> list[str]:
    rest = len(lines) - limit
    return lines if rest <= 0 else [*lines[:limit], f"  ... and {rest} more"]


def _compared(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """What the file holds beside what the recipe builds, in words; [] where the words are the same."""
    theirs, ours = describe(given), describe(own)
    return [f"  the file: {theirs}; the recipe: {ours}"] if theirs and theirs != ours else []


def _advice(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """The shipped recipes that would take the file; of a backbone alone, and when there is none, what to look at."""
    names = fitting_recipes(given)
    if names:
        return f"these weights fit: {', '.join(names)}"
    if classes(given) != classes(own):
        return "use the recipe these weights were trained with, or one whose data has the same classes"
    return "use the recipe these weights were trained with (backbone, stem and head must agree)"


def _check_archive(path: Path) -> None:
    """Refuse archives that torch.save does not write: compressed entries could unfold to any size.

    Raises:
        zipfile.BadZipFile: so, or damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(m.compress_type == zipfile.ZIP_STORED and m.file_size == m.compress_size for m in members)
    if not stored or sum(m.file_size for m in members) > path.stat().st_size:
        raise zipfile.BadZipFile("entries that are larger than the archive")
