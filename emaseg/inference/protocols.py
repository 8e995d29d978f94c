"""From an image to its label map: whole or by windows, at several scales, mirrored, averaged.

Room: inference. Legend: H W size of the result (the original image), h w size of the network's input or of its feature grid,
K classes. A "term" is the scores of one scale, plain or mirrored; the result is their mean at (H, W).

The published protocols differ in where the softmax stands, over which sizes the scores travel and what is
rescaled; each difference is a key of the recipe's `[inference]`. All resizes after the network work in bands of rows, so
that K x H x W floats are held only where several terms of windows must be averaged - and then once, however many scales
there are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emaseg.data.dataset import Pixels
from emaseg.data.pipeline.resize import limit_size, resize_image
from emaseg.data.pipeline.transforms import eval_image, normalise
from emaseg.errors import DataError, RecipeError
from emaseg.recipe.backbones import PixelStats
from emaseg.recipe.inference import Inference

UInt8 = npt.NDArray[np.uint8]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Size = tuple[int, int]

# Scores of one band of rows: about a processor's cache, or enough to keep a GPU busy.
BAND_BYTES_CPU = 8 << 20
BAND_BYTES_GPU = 256 << 20
PROBE_SIDE = 512  # pixels, of a part of an image


@torch.inference_mode()
def label_map(
    model: nn.Module,
    image: Pixels,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    resized: Size | None = None,
) -> UInt8:
    """The class of every pixel of an image.

    Args:
        model: in eval mode, on `device`; images (1, C, h, w) -> logits (1, K, h', w'), attribute `align_corners`.
            An exported file's may have `input_size`: at one scale, whole, every image is brought to that size; and
            `decides`: its scores are 1 and 0 at the input's size, and labels are resized instead (nearest).
        image: (H, W, C) on 0..255; uint8 RGB unless the recipe declares others.
        stats: mean and standard deviation of the channels.
        resized: (h, w) of the network's input at scale 1; None = by the protocol's limits, which are for whole images.

    Returns:
        (H, W) uint8 train ids.

    Raises:
        DataError: the image is so small that nothing is left of it at one of the scales.
        ValueError: the model is in training mode.
    """
    result: UInt8 = _labels(model, image, inference, stats, device, resized, None).cpu().numpy()
    return result


@torch.inference_mode()
def label_and_confidence(
    model: nn.Module,
    image: Pixels,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    resized: Size | None = None,
) -> tuple[UInt8, Float32]:
    """As `label_map`, and how sure the network is of each pixel: the probability of its class.

    Where the protocol averages logits it is their softmax; where it averages probabilities, the mean itself. Costs one
    exponential for each class and pixel.

    Returns:
        (H, W) uint8 train ids, and (H, W) float32 in 0..1.

    Raises:
        RecipeError: the model gives class ids only.
    """
    check_scored(model, "confidence")
    confidence = torch.empty(image.shape[:2], dtype=torch.float32, device=device)
    labels = _labels(model, image, inference, stats, device, resized, confidence)
    return labels.cpu().numpy(), confidence.cpu().numpy()


@torch.inference_mode()
def label_and_probabilities(
    model: nn.Module,
    image: Pixels,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    count: int,
    ranked: bool = False,
    resized: Size | None = None,
) -> tuple[UInt8, Float32, Float16, UInt8 | None]:
    """As `label_and_confidence`, and the probability of each class: (K, H, W) float16, the one large array that is held.

    Args:
        count: K; with `ranked`, how many of the classes are kept for each pixel.
        ranked: keep the `count` most likely classes of each pixel, the most likely first.

    Returns:
        Labels, confidence, probabilities (count, H, W) float16, and with `ranked` whose they are: train ids (count, H, W)
        uint8, of which the first are the labels; else None.

    Raises:
        RecipeError: the model gives class ids only.
    """
    check_scored(model, "probabilities")
    height, width = image.shape[:2]
    confidence = torch.empty((height, width), dtype=torch.float32, device=device)
    probabilities = torch.empty((count, height, width), dtype=torch.float16)
    ranks = torch.empty((count, height, width), dtype=torch.uint8) if ranked else None
    labels = _labels(model, image, inference, stats, device, resized, confidence, probabilities, ranks)
    return (
        labels.cpu().numpy(),
        confidence.cpu().numpy(),
        probabilities.numpy(),
        None if ranks is None else ranks.numpy(),
    )


def _labels(
    model: nn.Module,
    image: Pixels,
    inference: Inference,
    stats: PixelStats,
    device: torch.device | str,
    resized: Size | None,
    confidence: Tensor | None,
    probabilities: Tensor | None = None,
    ranks: Tensor | None = None,
) -> Tensor:
    """The classes (H, W) uint8 of an image.

    Where they are given, `confidence` (H, W) is filled with their probabilities, `probabilities` (K, H, W) with those of
    all classes, or with `ranks` (k, H, W) both with the k most likely classes.
    """
    fixed = fixed_size(model, inference)
    if fixed is not None:
        seen = iter([normalise(resize_image(image, fixed), stats)[None]])
    else:
        seen = _image_views(image, inference, stats, resized)
    terms = _terms(model, map(functools.partial(Tensor.to, device=device), seen), inference)
    size = (image.shape[0], image.shape[1])
    if getattr(model, "decides", False):
        return _nearest(_whole(next(terms), bool(model.align_corners)).argmax(0).to(torch.uint8), size)
    count = len(inference.scales) * (2 if inference.flip else 1)
    logits = inference.average == "logits"
    finish = None if confidence is None else _Certainty(confidence, probabilities, ranks, count, logits)
    if count == 1 or inference.mode == "whole":
        # Terms on the feature grid have 1/64 of the input's pixels (1/16 for HRNet): keeping all of them costs
        # less than one sum at final size, and each band is then finished while it lies in the cache.
        return _arg_max(list(terms), size, inference, bool(model.align_corners), finish)
    align_corners = bool(model.align_corners)
    total = _sum((_whole(term, align_corners) for term in terms), size, inference, align_corners)
    plain = dataclasses.replace(inference, average="logits")  # nothing is left to do for each term
    return _arg_max([_Term(total)], size, plain, False, finish)


def check_scored(model: nn.Module, what: str) -> None:
    """
    Args:
        what: needs the classes' scores, for people.

    Raises:
        RecipeError: the model is an exported file that gives class ids only.
    """
    if getattr(model, "decides", False):
        raise RecipeError(
            f"{what}: this exported file chooses the classes inside and gives no probabilities",
            "export it again without --include argmax, or name the run or the checkpoint it was made from",
        )


def fixed_size(model: nn.Module, inference: Inference) -> Size | None:
    """(h, w) that every image is brought to, whatever its own size: an exported file's, where images are seen whole and
    once; else None."""
    fixed: Size | None = getattr(model, "input_size", None)
    return fixed if inference.mode == "whole" and inference.scales == (1.0,) else None


def probe(image: Pixels, inference: Inference, stats: PixelStats) -> Tensor:
    """A part of an image as the network sees it, (1, C, h, w), small enough to be looked at beside the real work."""
    view = next(_image_views(image, inference, stats))
    top, left = (max(0, (side - PROBE_SIDE) // 2) for side in view.shape[2:])
    return view[:, :, top : top + PROBE_SIDE, left : left + PROBE_SIDE].contiguous()


def _nearest(labels: Tensor, size: Size) -> Tensor:
    """(h, w) -> (H, W): the label whose pixel holds the new pixel's centre."""
    rows, columns = (
        torch.from_numpy(((np.arange(new) + 0.5) * (old / new)).astype(np.int64)).to(labels.device)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


# ---------------------------------------------------------------------------------------- what the network sees
def _image_views(
    image: Pixels, inference: Inference, stats: PixelStats, resized: Size | None = None
) -> Iterator[Tensor]:
    """The image at each scale, (1, C, h, w) normalised, channels last as networks want it, not padded: each forward pass
    pads for itself."""
    if inference.scale_source == "tensor":
        views = _rescaled(eval_image(image, inference, stats, resized), inference.scales)
    else:
        own = (image.shape[0], image.shape[1])
        sizes = (_at_scale(inference, own, resized, scale) for scale in inference.scales)
        views = (eval_image(image, inference, stats, size) for size in sizes)
    return map(_channels_last, views)  # unlike a loop, map holds no view that it has handed on


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _rescaled(image: Tensor, scales: Sequence[float]) -> Iterator[Tensor]:
    """The tensor at each scale; size floor(side * scale), sampled at steps of exactly 1/scale.

    That step is what sssegmentation's `scale_factor=` means; resizing to the same size with `size=` samples at
    in/out instead, and differs wherever side * scale is not whole. Corners are never aligned here.
    """
    for scale in scales:
        h, w = image.shape[-2:]
        if min(int(h * scale), int(w * scale)) < 1:
            raise DataError(f"nothing is left of an image of {w} x {h} pixels at scale {scale}", "use a larger image")
        if scale == 1:
            yield image  # resizing by 1 changes no value
        else:
            yield F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)


def _at_scale(inference: Inference, size: Size, resized: Size | None, scale: float) -> Size:
    """The target size, or the image's own, multiplied by `scale` (mmsegmentation, mmcv)."""
    if resized is not None:
        return _times(resized[0], scale), _times(resized[1], scale)
    if inference.resize_long_short:
        limits = [_times(limit, scale) for limit in inference.resize_long_short]
        return limit_size(size, limits, inference.keep_ratio)
    if scale == 1:
        return size
    return limit_size(size, [_times(side, scale) for side in size], keep_ratio=True)


def _times(side: int, scale: float) -> int:
    return max(1, int(side * scale + 0.5))


# --------------------------------------------------------------------------------------------------- the terms
@dataclasses.dataclass(frozen=True, slots=True)
class _Term:
    """One view's scores on their way to the final size.

    scores: (K, h, w), on the feature grid or at the input's size. through: (h, w) of the padded input over which they
    travel from the grid; None where they do not. kept: (h, w) of it without the padding. mirrored: they are of the mirror
    image, and still to be turned back.
    """

    scores: Tensor
    through: Size | None = None
    kept: Size = (0, 0)
    mirrored: bool = False


def _terms(model: nn.Module, views: Iterable[Tensor], inference: Inference) -> Iterator[_Term]:
    """The term of every view, and of its mirror image."""
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    for view in views:
        yield _term(model, view, inference)
        if inference.flip:
            view = view.flip(-1)  # in the place of the other, which is not held any more
            term = _term(model, view, inference)
            pairs = inference.flip_pairs
            scores = term.scores[_partners(len(term.scores), pairs)] if pairs else term.scores
            yield dataclasses.replace(term, scores=scores, mirrored=True)


def _term(model: nn.Module, image: Tensor, inference: Inference) -> _Term:
    """One pass, whole or by windows."""
    h, w = image.shape[-2:]
    if inference.pad == "8k+1":
        image = F.pad(image, (0, -(w - 1) % 8, 0, -(h - 1) % 8))  # zeros: the mean colour
    if inference.mode == "slide":
        return _Term(_slide(model, image, inference)[:, :h, :w])
    scores = _logits(model, image)
    if inference.average == "probs_before_resize":
        scores = scores.softmax(0)
    # Padding can only be cut off at the input's size.
    over_input = inference.logits_path == "via_input" or inference.pad != "none"
    return _Term(scores, (image.shape[-2], image.shape[-1]), (h, w)) if over_input else _Term(scores)


def _slide(model: nn.Module, image: Tensor, inference: Inference) -> Tensor:
    """Scores (K, h, w) at the input's size: each window's are resized to the window, summed, divided by the cover."""
    h, w = image.shape[-2:]
    total: Tensor | None = None
    cover = torch.zeros(h, w, device=image.device)
    for top, bottom in window_spans(h, inference.window[0], inference.stride[0]):
        for left, right in window_spans(w, inference.window[1], inference.stride[1]):
            logits = _logits(model, image[:, :, top:bottom, left:right])
            scores = _resize(logits, (bottom - top, right - left), bool(model.align_corners))
            if inference.average == "probs_before_resize":
                scores = scores.softmax(0)
            if total is None:
                total = scores.new_zeros(len(scores), h, w)
            total[:, top:bottom, left:right] += scores
            cover[top:bottom, left:right] += 1
    assert total is not None  # there is always one window
    return total.div_(cover)


def window_spans(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """[start, end) of the windows along one side: multiples of the stride, the last one shifted back inside.

    A side shorter than the window gives one window of that side's own length.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(count)]
    return [(max(end - window, 0), end) for end in ends]


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    """(1, C, h, w) -> (K, h', w') float32, whatever precision the network computes in."""
    logits: Tensor = model(image)[0]
    return logits.float()


def _partners(num_classes: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For each class the one that it looks like in the mirror: itself, or its left or right counterpart."""
    partner = list(range(num_classes))
    for a, b in pairs:
        partner[a], partner[b] = b, a
    return partner


# ---------------------------------------------------------------------------------------- resize, sum, arg max
def _resize(scores: Tensor, size: Size, align_corners: bool) -> Tensor:
    """(K, h, w) -> (K, H, W), bilinear."""
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=align_corners)[0]


def _sum(terms: Iterable[Tensor], size: Size, inference: Inference, align_corners: bool) -> Tensor:
    """The sum (K, H, W) of all terms at the final size; holds one sum and one term at a time."""
    total: Tensor | None = None
    for term in terms:
        scores = _resize(term, size, align_corners)
        if inference.average == "probs_after_resize":
            scores = scores.softmax(0)
        total = scores.clone() if total is None else total.add_(scores)
        del term, scores  # before the next one is made
    assert total is not None  # a recipe has at least one scale
    return total


@dataclasses.dataclass(frozen=True, slots=True)
class _Certainty:
    """Where probabilities go, made from the sum of `count` terms band by band.

    confidence: (H, W), of the chosen classes. probabilities: (K, H, W), of all, or None. ranks: (k, H, W), the k most
    likely classes, where only theirs are kept. logits: the terms are logits, and their mean's softmax is meant; else they
    are probabilities.
    """

    confidence: Tensor
    probabilities: Tensor | None
    ranks: Tensor | None
    count: int
    logits: bool

    def keep(self, rows: slice, total: Tensor, best: Tensor, labels: Tensor) -> None:
        """Of a band of rows: total (K, rows, W), its largest values and their classes (rows, W)."""
        if self.probabilities is not None:
            mean = total / self.count
            shares = mean.softmax(0) if self.logits else mean
            self.confidence[rows] = shares.amax(0)
            if self.ranks is not None:
                # 2 is above every probability: of equally likely classes the label is the first.
                order = shares.scatter(0, labels[None], 2.0).topk(len(self.ranks), dim=0).indices
                self.ranks[:, rows], shares = order, shares.gather(0, order)
            self.probabilities[:, rows] = shares
        elif self.logits:  # best's softmax; the exponents are at most 0
            self.confidence[rows] = ((total - best) / self.count).exp_().sum(0).reciprocal_()
        else:
            self.confidence[rows] = best / self.count


def _arg_max(
    terms: Sequence[_Term], size: Size, inference: Inference, align_corners: bool, certainty: _Certainty | None = None
) -> Tensor:
    """The class (H, W) uint8 with the highest sum over `terms`, each resized to (H, W), one band of rows at a time.

    A bilinear resize is separable, and an output row needs two input rows only: so a band of the resized map is
    the same numbers (up to rounding) as those rows of the whole one, and no more than a band is ever held.
    """
    height, width = size
    labels = torch.empty(size, dtype=torch.uint8, device=terms[0].scores.device)
    budget = BAND_BYTES_CPU if labels.device.type == "cpu" else BAND_BYTES_GPU
    step = max(1, budget // (4 * len(terms[0].scores) * width))
    for start in range(0, height, step):
        stop = min(start + step, height)
        rows = (_band(term, start, stop, height, align_corners) for term in terms)
        total = _sum(rows, (stop - start, width), inference, align_corners)
        best = total.max(0)  # several times faster than argmax on a CPU
        labels[start:stop] = best.indices
        if certainty is not None:
            certainty.keep(slice(start, stop), total, best.values, best.indices)
    return labels


def _band(term: _Term, start: int, stop: int, height: int, align_corners: bool) -> Tensor:
    """Rows [start, stop) of a term resized to (K, height, w): (K, stop - start, w)."""
    if term.through is None:
        rows = _rows(term.scores, start, stop, height, align_corners)
        return rows.flip(-1) if term.mirrored else rows
    # The rows of the input that this band lies between, made from the grid's; then the band, made from these.
    (h, w), (padded_h, padded_w) = term.kept, term.through
    above, below, share = _places(start, stop, h, height, align_corners)
    first, end = int(above[0]), int(below[-1]) + 1
    rows = _rows(term.scores, first, end, padded_h, align_corners)
    rows = _resize(rows, (end - first, padded_w), align_corners)[:, :, :w]
    rows = rows.flip(-1) if term.mirrored else rows
    return rows[:, : stop - start] if h == height else _between(rows, above - first, below - first, share)


def _whole(term: _Term, align_corners: bool) -> Tensor:
    """The scores (K, h, w) before the final resize, turned back; at the input's size where they travel over it."""
    scores = term.scores
    if term.through is not None:
        scores = _resize(scores, term.through, align_corners)[:, : term.kept[0], : term.kept[1]]
    return scores.flip(-1) if term.mirrored else scores


def _rows(scores: Tensor, start: int, stop: int, height: int, align_corners: bool) -> Tensor:
    """Rows [start, stop) of `scores` (K, h, w) resized to (K, height, w): (K, stop - start, w)."""
    h = scores.shape[1]
    return scores[:, start:stop] if h == height else _between(scores, *_places(start, stop, h, height, align_corners))


def _places(start: int, stop: int, h: int, height: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For rows [start, stop) of `height`: the two of h rows between which each lies, and the second one's share. On the CPU:
    who needs numbers of them does not wait for a GPU."""
    at = torch.arange(start, stop, dtype=torch.float32)
    at = at * ((h - 1) / max(height - 1, 1)) if align_corners else ((at + 0.5) * (h / height) - 0.5).clamp_(min=0)
    above = at.long().clamp_(max=h - 1)
    return above, (above + 1).clamp_(max=h - 1), at - above


def _between(scores: Tensor, above: Tensor, below: Tensor, share: Tensor) -> Tensor:
    """Between two rows each of `scores` (K, h, w): (K, rows, w)."""
    above, below, share = (x.to(scores.device) for x in (above, below, share))
    return torch.lerp(scores[:, above], scores[:, below], share[:, None])
