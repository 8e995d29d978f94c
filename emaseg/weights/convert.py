"""Parameter names of the published networks, mapped to ours.

Room: weights. The tensors are never changed, only renamed; every name must find its place.

    format    file                  where the names come from
    ssseg     {model, ...}          sssegmentation, unchanged from 2020 to 2025; MemoryNet's names differ from EMANet's
    mmseg     {state_dict, meta}    mmsegmentation 0.5 to 1.2
    authors   {net, step}           the EMANet authors' repository
    backbone  {state_dict} or flat  ImageNet backbones, see `recognise_backbone`
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]


def _conv_norm(theirs: str, ours: str, first: int = 0) -> dict[str, str]:
    """Names of a convolution and its norm that stand one after the other in a published sequence."""
    return {f"{theirs}.{first}.": f"{ours}.conv.", f"{theirs}.{first + 1}.": f"{ours}.norm."}


def _attention(theirs: str, ours: str) -> dict[str, str]:
    names = _conv_norm(f"{theirs}.value_project", f"{ours}.value") | _conv_norm(f"{theirs}.out_project", f"{ours}.out")
    for part in ("query", "key"):
        for i in range(2):
            names |= _conv_norm(f"{theirs}.{part}_project.{i}", f"{ours}.{part}.{i}")
    return names


def _head(theirs: str, ours: str) -> dict[str, str]:
    return _conv_norm(theirs, f"{ours}.conv") | {f"{theirs}.4.": f"{ours}.classifier."}


def _upsampling_head(theirs: str, ours: str) -> dict[str, str]:
    convs = _conv_norm(theirs, f"{ours}.conv1") | _conv_norm(theirs, f"{ours}.conv2", first=4)
    return convs | {f"{theirs}.9.": f"{ours}.classifier."}


_SSSEG = {
    "backbone_net.": "backbone.",
    "ema_in_conv.0.": "reduce.conv.",
    "ema_in_conv.1.": "reduce.norm.",
    "ema_mid_conv.": "project.",
    "ema_module.": "attention.",
    "ema_out_conv.0.": "expand.conv.",
    "ema_out_conv.1.": "expand.norm.",
    "bottleneck.0.": "bottleneck.conv.",
    "bottleneck.1.": "bottleneck.norm.",
    "decoder.0.": "fuse.conv.",
    "decoder.1.": "fuse.norm.",
    "decoder.4.": "classifier.",
    "auxiliary_decoder.0.": "auxiliary.conv.conv.",
    "auxiliary_decoder.1.": "auxiliary.conv.norm.",
    "auxiliary_decoder.4.": "auxiliary.classifier.",
}

_MOST = 24  # branches of a context, and maps of a backbone: more than any network has

_SSSEG_MEMORYNET = {
    "backbone_net.": "backbone.",
    "norm_layers.": "tap_norms.",
    **_conv_norm("downsample_backbone", "downsample"),
    **_conv_norm("context_within_image_module.global_branch", "context.pooled", first=1),
    **_conv_norm("context_within_image_module.bottleneck", "context.fuse"),
    **_conv_norm("bottleneck", "reduce"),
    "memory_module.memory": "memory.features",
    **_attention("memory_module.self_attention", "memory_attention"),
    **_attention("memory_module.self_attention_ms", "context_attention"),
    **_conv_norm("memory_module.bottleneck", "memory_fuse"),
    **_conv_norm("memory_module.bottleneck_ms", "context_fuse"),
    **_head("decoder_stage1", "coarse"),
    **_head("decoder_stage2", "final"),
    **_head("auxiliary_decoder", "auxiliaries.0"),
}
for _i in range(_MOST):
    _SSSEG_MEMORYNET |= _conv_norm(f"context_within_image_module.parallel_branches.{_i}", f"context.branches.{_i}")
    _SSSEG_MEMORYNET |= _upsampling_head(f"auxiliary_decoder.{_i}", f"auxiliaries.{_i}")  # a ViT's; one number longer

_MMSEG = {
    "backbone.": "backbone.",
    "decode_head.ema_in_conv.conv.": "reduce.conv.",
    "decode_head.ema_in_conv.bn.": "reduce.norm.",
    "decode_head.ema_mid_conv.conv.": "project.",
    "decode_head.ema_module.": "attention.",
    "decode_head.ema_out_conv.conv.": "expand.conv.",
    "decode_head.ema_out_conv.bn.": "expand.norm.",
    "decode_head.bottleneck.conv.": "bottleneck.conv.",
    "decode_head.bottleneck.bn.": "bottleneck.norm.",
    "decode_head.conv_cat.conv.": "fuse.conv.",
    "decode_head.conv_cat.bn.": "fuse.norm.",
    "decode_head.conv_seg.": "classifier.",
    "auxiliary_head.convs.0.conv.": "auxiliary.conv.conv.",
    "auxiliary_head.convs.0.bn.": "auxiliary.conv.norm.",
    "auxiliary_head.conv_seg.": "auxiliary.classifier.",
}

_AUTHORS = {
    "extractor.0.": "backbone.stem.",
    "extractor.1.": "backbone.stem.7.",
    "extractor.4.": "backbone.layer1.",
    "extractor.5.": "backbone.layer2.",
    "extractor.6.": "backbone.layer3.",
    "extractor.7.": "backbone.layer4.",
    "fc0.conv.": "reduce.conv.",
    "fc0.bn.": "reduce.norm.",
    "emau.mu": "attention.bases",
    "emau.conv1.": "project.",
    "emau.conv2.0.": "expand.conv.",
    "emau.conv2.1.": "expand.norm.",
    "fc1.0.conv.": "bottleneck.conv.",
    "fc1.0.bn.": "bottleneck.norm.",
    "fc2.": "classifier.",
}

# ImageNet files of backbones
_PLAIN_STEM = {"conv1.": "stem.0.", "bn1.": "stem.1."}
_DEEP_STEM = {"conv1.": "stem.", "bn1.": "stem.7."}
_PATCHES = {"patch_embed.proj.": "patch_embed.projection."}
_LAYER = {
    "norm1.": "ln1.",
    "norm2.": "ln2.",
    "attn.qkv.weight": "attn.attn.in_proj_weight",
    "attn.qkv.bias": "attn.attn.in_proj_bias",
    "attn.proj.": "attn.attn.out_proj.",
    "mlp.fc1.": "ffn.layers.0.0.",
    "mlp.fc2.": "ffn.layers.1.",
}
_CLASSIFIER = ("fc.", "head.")
_HRNET_CLASSIFIER = ("classifier.", "incre_modules.", "downsamp_modules.", "final_layer.")

# format -> (key of the state inside the file, prefix that no later format has, names)
FORMATS: dict[str, tuple[str, str, Mapping[str, str]]] = {
    "ssseg_memorynet": ("model", "memory_module.", _SSSEG_MEMORYNET),
    "ssseg": ("model", "backbone_net.", _SSSEG),
    "mmseg": ("state_dict", "decode_head.", _MMSEG),
    "authors": ("net", "extractor.", _AUTHORS),
}


def recognise(content: Mapping[str, object]) -> tuple[str, State] | None:
    """Format name and state, with our names, of a whole network's file; None when it is none of the known formats.

    A `module.` prefix (left by a parallel wrapper) is dropped.
    """
    for name, (where, prefix, names) in FORMATS.items():
        state = _tensors(content.get(where))
        if any(key.startswith(prefix) for key in state):
            return name, _completed({rename(key, names): value for key, value in state.items()})
    return None


def _completed(state: State) -> State:
    """A MemoryNet's state with the ages of its memory rows, which no published file records: all unknown (-1)."""
    memory = state.get("memory.features")
    if memory is None or not memory.numel():  # of no numbers, which claims any length: a strict loader reports it
        return state
    return state | {"memory.age": torch.full((memory.shape[0] if memory.ndim else 1,), -1)}


def recognise_backbone(content: Mapping[str, object]) -> State:
    """State of an ImageNet backbone file with our names; the classifier's entries are left out.

    Known are ResNet and ResNeSt (stem as `stem.`, as one `conv1`, or as three in `conv1.`; classifier `fc.`), HRNet
    (its classifier is everything behind the four branches) and ViT (timm's names; `norm.` and `head.` left out).
    """
    state = _tensors(content.get("state_dict")) or _tensors(content.get("model")) or _tensors(content)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    names: Mapping[str, str] = _DEEP_STEM if "conv1.0.weight" in state else _PLAIN_STEM
    classifier: tuple[str, ...] = _CLASSIFIER
    if "cls_token" in state:
        names, classifier = _vit_names(state), (*_CLASSIFIER, "norm.")
    elif any(key.startswith("stage2.") for key in state):
        names, classifier = {}, (*_CLASSIFIER, *_HRNET_CLASSIFIER)
    return {rename(k, names): v for k, v in state.items() if not k.startswith(classifier)}


def _vit_names(state: State) -> dict[str, str]:
    layers = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    return _PATCHES | {f"blocks.{i}.{old}": f"layers.{i}.{new}" for i in layers for old, new in _LAYER.items()}


def rename(key: str, names: Mapping[str, str]) -> str:
    """`key` with its longest known prefix replaced; unchanged when none fits (a strict loader then reports it)."""
    prefixes = [prefix for prefix in names if key.startswith(prefix)]
    if not prefixes:
        return key
    prefix = max(prefixes, key=len)
    return names[prefix] + key.removeprefix(prefix)


def _tensors(value: object) -> State:
    """The tensors of a mapping, or nothing when it is not a state dictionary."""
    if not isinstance(value, Mapping):
        return {}
    return {
        key.removeprefix("module."): tensor
        for key, tensor in value.items()
        if isinstance(key, str) and isinstance(tensor, torch.Tensor)
    }
