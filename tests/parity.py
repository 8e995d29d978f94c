"""Deterministic weights and inputs of the golden fixtures: values follow from a tensor's published name and shape.

The rule (one generator for each tensor, seeded by the CRC-32 of its name, one standard normal draw `n`) is the
fixtures' own; the golden numbers were made from the published systems with exactly these weights.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from emaseg.weights.convert import rename

GOLDEN = Path(__file__).parent / "golden"
_LAST_NORM = re.compile(r"(\.bn3\.weight$)|(\bbranches\..*\.bn2\.weight$)")


def keys_of(name: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Ordered (key, shape, dtype) of the published system's state dictionary."""
    return [(k, tuple(s), d) for k, s, d in json.loads((GOLDEN / f"{name}.keys.json").read_text())]


def fill(key: str, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """The fixture's value of one tensor."""
    if "int" in dtype:
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_mean"):
        value = 0.1 * n
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(n)
    elif key.endswith(("ema_module.bases", "emau.mu")):
        value = n / np.sqrt((n * n).sum(axis=1, keepdims=True))
    elif key.endswith("memory_module.memory"):
        value = n
    elif key.endswith(("pos_embed", "cls_token")):
        value = 0.5 * n
    elif key.endswith("bias"):
        value = 0.1 * n
    elif len(shape) == 1:
        value = (1 + 0.1 * n) * (0.25 if _LAST_NORM.search(key) else 1.0)
    else:
        value = n * np.sqrt(2 / np.prod(shape[1:])) * (0.5 if ".fuse_layers." in key else 1.0)
        # The mmseg and authors' fixtures scale two layers so that the attention is neither flat nor invisible.
        if key in ("decode_head.ema_mid_conv.conv.weight", "emau.conv1.weight"):
            value = 0.2 * value
        if key in ("decode_head.ema_out_conv.conv.weight", "emau.conv2.0.weight"):
            value = 30 * value
    return torch.from_numpy(np.asarray(value, np.float32))


def backbone_keys(name: str) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """What `fill` needs for each entry of an sssegmentation network's backbone, under the backbone's own names."""
    prefix = "backbone_net."
    return {key.removeprefix(prefix): (key, s, d) for key, s, d in keys_of(name) if key.startswith(prefix)}


def filled_backbone(name: str, backbone: nn.Module) -> nn.Module:
    """`backbone` (from the meta device) in evaluation mode with the fixture's weights."""
    backbone.load_state_dict({k: fill(*v) for k, v in backbone_keys(name).items()}, strict=True, assign=True)
    return backbone.eval()


def check_features(name: str, maps: tuple[torch.Tensor, ...]) -> None:
    """Every returned map agrees with the fixture's: each sixteenth of its channels, and mean, deviation, largest."""
    reference = golden(f"{name}.npz")
    assert len(maps) == sum(key.endswith("_stats") for key in reference)
    for i, x in enumerate(maps):
        assert worst(x[0, :: max(1, x.shape[1] // 16)], reference[f"eval_feat{i}_sub"]) <= 1e-5
        stats = torch.stack([x.mean(), x.std(), x.abs().max()])
        assert worst(stats, reference[f"eval_feat{i}_stats"]) <= 1e-5


def filled_file(name: str, path: Path) -> Path:
    """A weight file in the published system's own format, filled by the rule. `name` is like "ssseg/emanet_r50d8_voc"."""
    state = {k: fill(k, s, d) for k, s, d in keys_of(name)}
    if name.startswith("ssseg/"):
        content: dict[str, object] = {"epoch": 60, "model": state, "optimizer": {"state": {}, "param_groups": []}}
    elif "official" in name:
        content = {"net": state, "step": 30000}
    else:
        content = {"meta": {"iter": 80000}, "state_dict": state}
    torch.save(content, path)
    return path


def images(shape: tuple[int, ...], seed: int, *, spread: bool = True) -> torch.Tensor:
    """Normalised input batch; with `spread`, sample b is scaled by 1 + b/2 and shifted by b/2 (ssseg fixtures)."""
    x = np.random.default_rng(seed).standard_normal(shape)
    if spread:
        for b in range(shape[0]):
            x[b] = x[b] * (1 + 0.5 * b) + 0.5 * b
    return torch.from_numpy(x.astype(np.float32))


def blocky_labels(shape: tuple[int, int, int], classes: int, seed: int = 1, block: int = 16) -> torch.Tensor:
    """One class for each block, then 10 % of the pixels ignored (255). (N, H, W) int64."""
    n, h, w = shape
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, size=(n, -(-h // block), -(-w // block)))
    label = coarse.repeat(block, axis=1).repeat(block, axis=2)[:, :h, :w].astype(np.int64)
    label[rng.random((n, h, w)) < 0.1] = 255
    return torch.from_numpy(label)


def golden(name: str) -> dict[str, np.ndarray]:
    """Arrays of a golden file, e.g. "ssseg/emanet_r50d8_voc.npz"."""
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file.files}


def worst(own: torch.Tensor | np.ndarray, reference: np.ndarray) -> float:
    """Largest difference relative to the largest reference value."""
    own = own.detach().cpu().numpy() if isinstance(own, torch.Tensor) else own
    return float(np.abs(own.astype(np.float64) - reference).max() / np.abs(reference).max())


def no_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """The model with dropout switched off: golden training steps drew no random number."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    return model


def gradient_norms(model: torch.nn.Module, names: Mapping[str, str], keys: Sequence[str]) -> np.ndarray:
    """L2 norm of each published key's gradient, NaN where there is none."""
    parameters = dict(model.named_parameters())
    own = [parameters.get(rename(key, names)) for key in keys]
    return np.array([float("nan") if p is None or p.grad is None else p.grad.norm().item() for p in own])
