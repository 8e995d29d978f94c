"""Our ViT is the published one: torchvision's block, sssegmentation's position embedding, padding and taps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from emaseg.checkpoint import load_backbone
from emaseg.errors import WeightsError
from emaseg.models.backbones.vit import NORM_EPSILON, Layer, ViT, resize_positions
from emaseg.weights.convert import recognise_backbone
from tests.parity import backbone_keys, check_features, filled_backbone, images

PUBLISHED = "ssseg/memorynet_vitl_ade20k"
TAPS = (9, 14, 19, 23)
# ours -> timm's, of one layer
TIMM = {
    "ln1.weight": "norm1.weight",
    "ln1.bias": "norm1.bias",
    "attn.attn.in_proj_weight": "attn.qkv.weight",
    "attn.attn.in_proj_bias": "attn.qkv.bias",
    "attn.attn.out_proj.weight": "attn.proj.weight",
    "attn.attn.out_proj.bias": "attn.proj.bias",
    "ln2.weight": "norm2.weight",
    "ln2.bias": "norm2.bias",
    "ffn.layers.0.0.weight": "mlp.fc1.weight",
    "ffn.layers.0.0.bias": "mlp.fc1.bias",
    "ffn.layers.1.weight": "mlp.fc2.weight",
    "ffn.layers.1.bias": "mlp.fc2.bias",
}


def published() -> ViT:
    with torch.device("meta"):
        return ViT(image_size=(512, 512), taps=TAPS)


def small(image_size: tuple[int, int] = (64, 64), taps: tuple[int, ...] = (0, 11), seed: int = 0) -> ViT:
    """Twelve layers, so that numbers of one and two digits meet in the names."""
    torch.manual_seed(seed)
    return ViT(image_size=image_size, taps=taps, width=16, depth=12, heads=2, hidden=24).eval()


def timm_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our entries as timm calls them, with the norm and the classifier that its file also holds."""
    named = {}
    for key, value in state.items():
        if key.startswith("layers."):
            _, layer, rest = key.split(".", 2)
            named[f"blocks.{layer}.{TIMM[rest]}"] = value
        else:
            named[key.replace("patch_embed.projection.", "patch_embed.proj.")] = value
    surplus = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    return named | {key: torch.zeros(16) for key in surplus}


def bilinear(grid: int, target: int) -> np.ndarray:
    """(target, grid) weights of bilinear resizing, corners not aligned, written from its definition."""
    weights = np.zeros((target, grid))
    for i in range(target):
        at = max((i + 0.5) * grid / target - 0.5, 0.0)
        low = min(math.floor(at), grid - 1)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, grid - 1)] += at - low
    return weights


def test_names_and_shapes_are_the_published_ones() -> None:
    """Protects released weights: every entry has its place, one to one."""
    own = {key: tuple(value.shape) for key, value in published().state_dict().items()}
    assert own == {key: shape for key, (_, shape, _) in backbone_keys(PUBLISHED).items()}


@pytest.mark.slow
def test_features() -> None:
    """Protects all four taps of ViT-Large (300 million weights), with a resized position embedding."""
    network = filled_backbone(PUBLISHED, published())
    with torch.inference_mode():
        check_features(PUBLISHED, network(images((1, 3, 256, 256), 0)))


@pytest.mark.parametrize("training", [False, True])
def test_layer_equals_torchvision(training: bool) -> None:
    """Protects attention, perceptron and norms: torchvision's encoder block with the same weights, gradients too."""
    torch.manual_seed(0)
    theirs = EncoderBlock(4, 32, 48, 0.0, 0.0, lambda size: nn.LayerNorm(size, NORM_EPSILON)).train(training)
    names = {
        "ln_1": "ln1",
        "ln_2": "ln2",
        "self_attention.": "attn.attn.",
        "mlp.0": "ffn.layers.0.0",
        "mlp.3": "ffn.layers.1",
    }
    state = theirs.state_dict()
    for old, new in names.items():
        state = {key.replace(old, new): value + 0.05 * torch.randn_like(value) for key, value in state.items()}
    ours = Layer(32, 4, 48).train(training)
    ours.load_state_dict(state)
    for old, new in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    theirs.load_state_dict(state)
    a = torch.randn(2, 11, 32, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    torch.testing.assert_close(ours(a), theirs(b), rtol=1e-5, atol=1e-5)
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_no_attention_map_is_kept() -> None:
    """Protects memory in training: the backward pass of a layer keeps nothing of size tokens x tokens."""
    sizes: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        Layer(16, 2, 24)(torch.randn(1, 401, 16))
    assert max(sizes) < 401 * 401


@pytest.mark.parametrize("size", [(50, 61), (64, 49), (1, 1)])
def test_sizes_are_padded_with_zeros(size: tuple[int, int]) -> None:
    """Protects any image size: the same as the image with zeros below and on the right."""
    network = small()
    padded = torch.zeros(1, 3, *(-(-side // 16) * 16 for side in size))
    image = torch.randn(1, 3, *size)
    padded[:, :, : size[0], : size[1]] = image
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image), network(padded), strict=True))


@pytest.mark.parametrize(("grid", "target"), [((4, 4), (6, 9)), ((6, 5), (3, 7)), ((24, 24), (32, 32))])
def test_positions_are_resized_bilinearly(grid: tuple[int, int], target: tuple[int, int]) -> None:
    """Protects the resampling rule (no antialiasing, no cubic) and the class token's place."""
    embedding = torch.randn(1, 1 + grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0))
    own = resize_positions(embedding, grid, target)
    image = embedding[0, 1:].double().numpy().reshape(*grid, 3)
    wanted = np.einsum("ih,jw,hwc->ijc", bilinear(grid[0], target[0]), bilinear(grid[1], target[1]), image)
    assert torch.equal(own[:, 0], embedding[:, 0])
    np.testing.assert_allclose(own[0, 1:].numpy().reshape(*target, 3), wanted, rtol=0, atol=1e-5)


def test_positions_at_another_size() -> None:
    """Protects run-time sizes: as a network whose embedding was resized to that grid beforehand."""
    network, other = small(), small((48, 96), seed=1)
    state = network.state_dict()
    other.load_state_dict({**state, "pos_embed": resize_positions(state["pos_embed"], (4, 4), (3, 6))})
    image = torch.randn(1, 3, 48, 96)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image), other(image), strict=True))


def test_positions_of_as_many_patches_are_taken_as_they_are() -> None:
    """Protects the published quirk: 2 x 8 patches take the 4 x 4 embedding row after row, not resized."""
    network, other = small((64, 64)), small((32, 128), seed=1)
    other.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, 32, 128)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(image), other(image), strict=True))


def test_taps_are_layers_from_zero() -> None:
    """Protects which layers the heads read: tap i is the output of layer i, its class token dropped, not normalised."""
    network = small(taps=(1, 5))
    seen: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(network.layers):
        layer.register_forward_hook(lambda m, x, y, i=i: seen.__setitem__(i, y))
    with torch.inference_mode():
        maps = network(torch.randn(2, 3, 32, 48))
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    for x, i in zip(maps, (1, 5), strict=True):
        assert torch.equal(x.flatten(2).transpose(1, 2), seen[i][:, 1:])


def test_layers_behind_the_last_tap_are_frozen() -> None:
    """Protects training on several processes, which waits for every gradient: what never runs asks for none."""
    frozen = {name.split(".")[1] for name, p in small(taps=(1, 9)).named_parameters() if not p.requires_grad}
    assert frozen == {"10", "11"}


def test_start_values() -> None:
    """Protects the documented random start: truncated normal weights, biases 0, norms 1 and 0."""
    for name, parameter in small().named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif ".ln" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 300:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name


def test_imagenet_file(tmp_path: Path) -> None:
    """Protects the start from timm's file: all names mapped, norm and classifier left out, positions resized."""
    source = small((48, 48), seed=1).state_dict()
    torch.save(timm_state(source), tmp_path / "weights.pth")
    network = small((64, 80))
    load_backbone(network, tmp_path / "weights.pth")
    wanted = {**source, "pos_embed": resize_positions(source["pos_embed"], (3, 3), (4, 5))}
    assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())


def test_every_published_imagenet_name_is_mapped() -> None:
    """Protects ViT-Large's own file: 24 layers, 24 x 24 patches, nothing missing, nothing left over."""
    with torch.device("meta"):
        file = timm_state(ViT(image_size=(384, 384), taps=TAPS).state_dict())
    network = published()
    state = network.fitted(recognise_backbone(file))
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in state.items()} == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": torch.zeros(1, 12, 16)}, r"pos_embed: \(1, 12, 16\) in the file, \(1, 17, 16\) in the network"),
        ({"pos_embed": torch.zeros(1, 10, 8)}, r"pos_embed: \(1, 17, 8\) in the file"),
        ({"blocks.3.attn.extra": torch.zeros(1)}, r"not in the network: blocks\.3\.attn\.extra"),
        ({"blocks.12.norm1.weight": torch.zeros(16)}, r"not in the network: layers\.12\.ln1\.weight"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, torch.Tensor], message: str) -> None:
    """Protects strictness: a position embedding of no square grid, or entries without a place, are an error."""
    torch.save(timm_state(small().state_dict()) | change, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        load_backbone(small(), tmp_path / "weights.pth")
