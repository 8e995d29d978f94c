"""Parameter names of the published EMANets, mapped to ours.

Room: weights; imports torch only. The tensors are never changed, only renamed; every name must find its place.

    format    file                  where the names come from
    ssseg     {model, ...}          sssegmentation, unchanged from 2020 to 2025
    mmseg     {state_dict, meta}    mmsegmentation 0.5 to 1.2
    authors   {net, step}           the EMANet authors' repository
    backbone  {state_dict} or flat  ImageNet backbones (v1c stem as `stem.`, torchvision's 7x7 as `conv1`, `bn1`)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]

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

_BACKBONE = {"conv1.": "stem.0.", "bn1.": "stem.1."}

# format -> (key of the state inside the file, prefix that only this format has, names)
FORMATS: dict[str, tuple[str, str, Mapping[str, str]]] = {
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
            return name, {rename(key, names): value for key, value in state.items()}
    return None


def recognise_backbone(content: Mapping[str, object]) -> State:
    """State of an ImageNet backbone file with our names; classifier entries (fc., head.) are left out."""
    state = _tensors(content.get("state_dict")) or _tensors(content.get("model")) or _tensors(content)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    return {rename(k, _BACKBONE): v for k, v in state.items() if not k.startswith(("fc.", "head."))}


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
