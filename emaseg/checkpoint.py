"""Our checkpoint files, and loading weights strictly from ours and others'.

Room: checkpoint. Threat: a file's numbers may be hostile, or a damaged disk's; each is checked before it is used.

A checkpoint is one file readable with torch.load(weights_only=True): tensors, numbers and text only, with the keys
    format     "emaseg/1"
    model      parameters and buffers
    optimizer  its state
    step       optimiser steps done;  epoch: passes over the data completed
    best       {miou, step, evaluated}: highest mIoU so far, where, and the last step that was evaluated
    rng        {cpu, cuda}, on Apple's GPUs mps, too: generator states that dropout draws from
    sampler    {seed, epoch, offset}: position in the sample order; {steps}: of the run, where train.hours or train.patience
               made them fewer; {stalled}: evaluations in a row without a better mIoU, with train.patience; {images,
               names, eval_images, eval_names}: counts of the two image lists and hashes of their names, and more of what a
               result depends on, as image_state.py and resuming.surroundings have it
    running    sums of the losses since the last row of metrics.csv, as step_statistics.StepStatistics keeps them; {} in older files
    average    the moving average of the network, as `model` has it, where optim.average_decay asks for one; it is what is
               evaluated, exported and started from. Else there is no such key
    scaler     of a run in fp16: compute.LossScale; else {}, as in older files
    recipe     the resolved recipe as TOML text
The archive's comment is the SHA-256 of everything before it; whoever reads the file compares it. Files of earlier
versions have none, and then the members' checksums are compared alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self, cast

import torch
from torch import nn

from emaseg.errors import RecipeError, WeightsError
from emaseg.files import atomic
from emaseg.models import build_model
from emaseg.models.backbones import FeatureExtractor
from emaseg.models.backbones.extractor import other_channels
from emaseg.models.network import Network
from emaseg.recipe import Recipe, parse_recipe, recipe_to_toml
from emaseg.recipe.channels import RGB
from emaseg.weights.contents import (
    check_contents,
    check_finite,
    is_table_of_tensors,
    optimizer_faults,
    rng_faults,
)
from emaseg.weights.convert import State, recognise, recognise_backbone
from emaseg.weights.fits import classes, describe, fitting_recipes
from emaseg.weights.meaning import other_meaning
from emaseg.weights.reading import read_content
from emaseg.weights.weight_archive import COMMENT, MARK
from emaseg.words import Lines, excerpt, quoted_path

FORMAT = "emaseg/1"
_PIECE = 16 << 20  # bytes that are hashed at once while a checkpoint is written


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
    running: dict[str, float] = field(default_factory=dict)
    average: State = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)


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
        "running": checkpoint.running,
        "scaler": checkpoint.scaler,
        "recipe": recipe_to_toml(checkpoint.recipe),
    }
    if checkpoint.average:
        content["average"] = _on_cpu(checkpoint.average)
    with atomic(path) as file, _Writer(file) as writer:
        torch.save(content, cast("IO[bytes]", writer))
        writer.sign()


def _on_cpu(value: Any) -> Any:
    """`value` with its tensors on the CPU, so that any machine can read the file."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


class _Writer:
    """Hands bytes on, and appends their SHA-256 as the archive's comment.

    A second thread hashes what was written while the first goes on.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._written = self._hashed = 0
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1)
        self._pieces: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: Any) -> int:
        written: int = self.file.write(data)
        self._written += written
        if self._written - self._hashed >= _PIECE:
            self._hash(self._written - _PIECE // 2)  # never the end, which `sign` changes
        return written

    def flush(self) -> None:
        self.file.flush()

    def sign(self) -> None:
        """End the archive with a comment: the length of the comment are its last two bytes, which are 0 so far."""
        if not hasattr(os, "pread"):  # Windows: files without a digest, as from earlier versions
            return
        self._hash(self._written - 2)
        for piece in self._pieces:
            piece.result()
        length = COMMENT.to_bytes(2, "little")
        self._digest.update(length)
        self.file.seek(-2, os.SEEK_END)
        self.file.write(length + MARK + self._digest.hexdigest().encode())

    def _hash(self, end: int) -> None:
        """Let the second thread hash what was written since the last time, up to `end`."""
        if hasattr(os, "pread"):
            self.file.flush()
            self._pieces.append(self._pool.submit(self._read, self._hashed, end))
            self._hashed = end

    def _read(self, start: int, end: int) -> None:
        while start < end:
            data = os.pread(self.file.fileno(), min(end - start, _PIECE), start)
            if not data:
                raise OSError(errno.EIO, "it became shorter while it was written")
            self._digest.update(data)
            start += len(data)


def read_checkpoint(path: Path) -> Checkpoint:
    """One of our checkpoints, every key of it checked.

    Raises:
        WeightsError: not readable, not one of ours, or one whose keys are not what they must be.
    """
    content = {"running": {}, "scaler": {}, "average": {}, **read_content(path)}  # files of earlier versions lack them
    _check_ours(content, path)
    check_contents(content, str(path))
    fields = {key: content[key] for key in Checkpoint.__dataclass_fields__}
    return Checkpoint(**{**fields, "recipe": recipe_inside(content["recipe"], path)})


def read_network(path: Path) -> tuple[str, State]:
    """The recipe's text and the weights in one of our checkpoints; the rest of it is let go.

    Raises:
        WeightsError: not readable, or without a recipe or weights.
    """
    content = read_content(path)
    if content.get("format") != FORMAT or not isinstance(content.get("recipe"), str):
        raise WeightsError(
            f"{path}: not an emaseg checkpoint: it holds no recipe, so it does not say which network it belongs to",
            f"name the recipe too: RECIPE --weights {quoted_path(path)}",
        )
    return content["recipe"], _own_state(content, path)


def _check_ours(content: Mapping[str, Any], path: Path) -> None:
    if content.get("format") != FORMAT:
        hint = "give a checkpoint written by `emaseg train`, or name a RECIPE together with --weights"
        raise WeightsError(f"{path}: not an emaseg checkpoint", hint)


def recipe_inside(text: str, path: Path) -> Recipe:
    """The recipe of a checkpoint.

    Raises:
        WeightsError: it is no recipe, or one that no recipe file may be.
    """
    try:
        return parse_recipe(text, f"{path} (recipe inside)").recipe
    except RecipeError as error:
        raise WeightsError(error.message, error.hint or "use another checkpoint") from error


def check_resumable(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, total: int, source: str
) -> None:
    """Refuse a checkpoint from which this training cannot go on exactly, before anything of it is loaded.

    Args:
        model, optimizer: as they were built from the recipe. total: steps of the whole training.

    Raises:
        WeightsError: its weights, momentum, step or generator states are not of this training; says what is wrong.
    """
    if not checkpoint.optimizer or not checkpoint.rng:
        raise WeightsError(
            f"{source}: holds weights alone, so this training cannot continue from it",
            "--init-from starts a new run from such a file",
        )
    _check_fits(model.state_dict(), checkpoint.model, source)
    check_finite(checkpoint.model, source)
    if checkpoint.recipe.optim.average_decay:
        _check_fits(model.state_dict(), checkpoint.average, f"{source} (average)")
        check_finite(checkpoint.average, source)
    skipped = int(checkpoint.scaler.get("skipped", 0))
    faults = optimizer_faults(checkpoint.optimizer, optimizer, checkpoint.step, skipped) + rng_faults(checkpoint.rng)
    if checkpoint.step > total:
        faults.insert(0, f"it is at step {checkpoint.step}, and this training ends with step {total}")
    if faults:
        more = [f"  ... and {len(faults) - 6} more"] if len(faults) > 6 else []
        raise WeightsError(
            Lines(f"{source}: this training cannot go on from it", *(f"  {fault}" for fault in faults[:6]), *more),
            "resume from another checkpoint of this run, or start a new run",
        )


def load_network(recipe: Recipe, path: Path, state: Mapping[str, torch.Tensor] | None = None) -> Network:
    """A recipe's network with a file's weights, in eval mode on the CPU.

    Args:
        state: the file's weights where `read_network` has read them already; they become the network's own.

    Raises:
        RecipeError: the recipe's network cannot be built.
        WeightsError: as `load_weights`; or the file is one of ours, and what its own recipe computes is something else.
    """
    with torch.device("meta"):  # no memory and no random start values for what is loaded anyway
        network = build_model(recipe)
    load_state(network, _state_for(recipe, path) if state is None else state, str(path))
    return network.eval()


def _state_for(recipe: Recipe, path: Path) -> State:
    """The state of a file that holds a whole network.

    Raises:
        WeightsError: as `load_network`.
    """
    content = read_content(path)
    own = None
    if content.get("format") == FORMAT and isinstance(content.get("recipe"), str):
        with contextlib.suppress(WeightsError):  # a recipe of another version, or damaged: the tensors may be good
            own = recipe_inside(content["recipe"], path)
    found = [] if own is None else other_meaning(own, recipe)
    if found:
        raise WeightsError(
            Lines(f"{path}: was trained as another network than {recipe.name} is", *(f"  {line}" for line in found)),
            f"name it alone, for its recipe is inside: {quoted_path(path)}",
        )
    return _state_of(content, path)[1]


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
    name, state = _state_of(read_content(Path(path)), Path(path))
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
    _, state = _state_of(read_content(path), path)
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


def _state_of(content: Mapping[str, Any], path: Path) -> tuple[str, State]:
    """Format and state, with our names, of a file's content that is a whole network."""
    if content.get("format") == FORMAT:
        return "emaseg", _own_state(content, path)
    known = recognise(content)
    if known is None:
        keys = ", ".join([excerpt(key) for key in content][:4]) or "nothing"
        raise WeightsError(
            f"{path}: no known weight format (it holds {keys})",
            "known are emaseg's own checkpoints and files of sssegmentation, mmsegmentation and the EMANet authors",
        )
    return known


def _own_state(content: Mapping[str, Any], path: Path) -> State:
    """The weights in one of our checkpoints: their moving average where it has one."""
    average = content.get("average")
    empty = average is None or (isinstance(average, Mapping) and not average)  # a tensor cannot be asked whether it is
    state = content.get("model") if empty else average
    if not is_table_of_tensors(state):
        raise WeightsError(f"{path}: a checkpoint without a table of tensors", "use another checkpoint")
    return dict(state)


def load_backbone(backbone: FeatureExtractor, path: Path) -> bool:
    """Load ImageNet weights into a backbone; only a classifier may be left over.

    A first convolution for RGB is adapted to another number of channels (extractor.other_channels); everything else must
    fit. Files from before PyTorch 0.4.1 lack the norms' batch counters, which nothing here reads: they start at 0.

    Returns:
        Whether the first convolution was adapted.

    Raises:
        WeightsError: unreadable, or of another backbone.
    """
    state = backbone.fitted(recognise_backbone(read_content(path)))
    first, channels = state.get(backbone.first_weight), backbone.in_channels
    adapted = first is not None and first.ndim == 4 and first.shape[1] == RGB != channels
    if first is not None and adapted:
        state = {**state, backbone.first_weight: other_channels(first.float(), channels)}
    counters = [key for key in backbone.state_dict() if key.endswith("num_batches_tracked")]
    load_state(backbone, {**{key: torch.zeros((), dtype=torch.int64) for key in counters}, **state}, str(path))
    return adapted


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """`load_state_dict` with a readable report instead of a partial load.

    Raises:
        WeightsError: names or shapes differ, or the weights are not finite.
    """
    own = model.state_dict()
    _check_fits(own, state, source)
    state = {key: value.to(own[key].dtype) for key, value in state.items()}
    check_finite(state, source)
    on_meta = any(value.is_meta for value in own.values())
    model.load_state_dict(state, strict=True, assign=on_meta)


def _check_fits(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], source: str) -> None:
    problems = mismatches(own, state)
    if problems:
        message = f"{source}: these weights are of another network"
        raise WeightsError(Lines(message, *_compared(own, state), *problems), _advice(own, state))


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
        lines += _listed([f"  {what}: {excerpt(k)}" for k in keys], limit)
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
