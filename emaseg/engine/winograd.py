"""3x3 convolutions of many channels by Winograd's minimal filtering: fewer products, and sums in their place.

Room: engine. Legend: B batch, C O input and output channels, h w feature grid, d dilation, p of its d phases, t side of a
tile, n m tiles down and across.

A tile of t x t results is A^T [(G g G^T) * (D^T x D)] A, with g the 3x3 weights, x the (t + 2) x (t + 2) values under the
tile and * a product for each of its places (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016;
their B is D here). Over all tiles and channels, a place is one matrix product. A convolution of dilation d is d * d plain
ones, each on every d-th row and column.

The matrices follow from t + 1 points and infinity: 0, and pairs of a number and its negative. In float32 t is 4: 36 products
for 16 results in the place of 144. The paper's points 0, +-1, +-2 lose 20 times as much to rounding as the plain sum;
0, +-sqrt(1/2), +-sqrt(2) lose 4 times as much, 1e-6 of the range of the results. Where a large dilation leaves grids too
small for that, t is 6 with 5e-6. In 16 bits t is 2: 16 products for 4 results, with 2.6 times the error.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil, inf, prod, sqrt
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from emaseg.engine.packed import (
    NONE,
    Activation,
    PackedConv,
    SplitConv,
    activate_,
    has_matrix_units,
    packed_conv,
    packed_weight,
    product,
)

_BLOCK = 10_000_000  # bytes of transformed values that a thread holds at once


@dataclass(frozen=True, slots=True)
class Scheme:
    """One size of tile, and from where on it is quicker.

    Attributes:
        points: t / 2 positive numbers, which with their negatives, 0 and infinity give the transforms.
        channels: below which the sums take as long as the products they save. dilation: the smallest.
        products: of one place, for the square of the number of threads, below which the rest takes longer than they: reading
            the larger weights, handing small operators to threads.
        factor: on its products, when they are compared: for the sums beside them, and for what it loses to rounding.
        part: channels that are transformed at once. More tiles of fewer channels read the weights less often; in 16 bits
            each part's sum would be rounded.
    """

    points: tuple[float, ...]
    channels: int
    dilation: int
    products: int
    factor: float
    part: int

    @property
    def tile(self) -> int:
        """t."""
        return 2 * len(self.points)

    @property
    def side(self) -> int:
        """t + 2: places of a tile in one direction."""
        return self.tile + 2

    def suits(self, conv: nn.Conv2d) -> bool:
        """Whether a convolution can take this way and has channels enough."""
        square = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
        centred = conv.padding == conv.dilation and conv.dilation[0] == conv.dilation[1] >= self.dilation
        return square and centred and min(conv.in_channels, conv.out_channels) >= self.channels

    def count(self, side: int, dilation: int) -> int:
        """Tiles that cover a side of the image, on each of the grids that a dilation makes of it."""
        return -(-side // (self.tile * dilation))

    def load(self, height: int, width: int, dilation: int, weights: int) -> float:
        """Its work on images of a size as a share of the plain sum's; weights: C O. Tiles may reach beyond the image."""
        tiles = self.count(height, dilation) * self.count(width, dilation) * dilation**2
        if tiles * weights < self.products * torch.get_num_threads() ** 2:
            return inf
        plain = prod(side + 2 * max(0, side - dilation) for side in (height, width))  # it leaves out what lies beyond
        return self.factor * self.side**2 * tiles / plain


# Measured on Zen 4.
_TWO = Scheme((1.0,), channels=256, dilation=1, products=9_000_000, factor=1.1, part=4096)
_FOUR = Scheme((sqrt(0.5), sqrt(2.0)), channels=96, dilation=1, products=1_500_000, factor=1.0, part=512)
_SIX = Scheme((0.5, 1.0, 2.0), channels=96, dilation=8, products=1_500_000, factor=1.4, part=512)
# Measured on Sapphire Rapids, whose direct convolutions are twice as fast beside the sums.
_FOUR_AMX = replace(_FOUR, channels=256, products=9_000_000)
_SIX_AMX = replace(_SIX, channels=256, products=12_000_000)
_PAYS = 0.6  # a load below which it is quicker


def best_conv(conv: nn.Conv2d, activation: Activation = NONE) -> Conv:
    """A convolution and its activation: one that takes Winograd's way where it pays, else the packed one."""
    schemes = [scheme for scheme in _known(conv.weight.dtype) if scheme.suits(conv)]
    return WinogradConv(conv, activation, schemes) if schemes else packed_conv(conv, activation)


def _known(dtype: torch.dtype) -> tuple[Scheme, ...]:
    """The schemes that may pay on this processor. With matrix units (AMX) the products of 16 bits are so fast that the sums
    beside them take twice as long as the plain convolution."""
    if has_matrix_units():
        return (_FOUR_AMX, _SIX_AMX) if dtype == torch.float32 else ()
    return (_FOUR, _SIX) if dtype == torch.float32 else (_TWO,)


class WinogradConv(nn.Module):
    """A 3x3 convolution and its activation. Images for which it does not pay go through the packed convolution.

    The weights of either way are made when the first image needs them: Winograd's are 2 to 7 times as large. For a very
    large image they are made again, and given back at once (`hold_weights`).

    Args:
        schemes: the one with the least load is taken for an image.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation, schemes: Sequence[Scheme]) -> None:
        super().__init__()
        self.schemes = tuple(schemes)
        self.activation = activation
        self.dilation = conv.dilation[0]
        self.out_channels = conv.out_channels
        self._conv = [conv]  # in a list: nothing here is trained or moved
        self._places: dict[Scheme, list[list[Tensor]]] = {}
        self._holds = True
        self._direct: PackedConv | SplitConv | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the transformed weights, which a copy makes anew."""
        return {**self.__dict__, "_places": {}}

    def forward(self, x: Tensor, *, alone: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, O, h, w), channels last. alone: as for `PackedConv`."""
        scheme = self.scheme(x)
        return _computed([x], [self], scheme)[0] if scheme else self._packed()(x)

    def add_relu(self, x: Tensor, total: Tensor) -> Tensor:
        """relu(convolution + total), written over `total`; the module's own activation must be none."""
        return total.add_(self(x)).relu_() if self.scheme(x) else self._packed().add_relu(x, total)

    def scheme(self, x: Tensor) -> Scheme | None:
        """Which way (B, C, h, w) takes; None is the packed convolution's."""
        size, weights = (x.shape[2], x.shape[3]), self._conv[0].weight[:, :, 0, 0].numel()
        loads = [(scheme.load(*size, self.dilation, weights), scheme) for scheme in self.schemes]
        load, scheme = min(loads, key=itemgetter(0), default=(inf, None))
        return scheme if load < _PAYS else None

    def places(self, scheme: Scheme) -> list[list[Tensor]]:
        """The transformed weights: for each part of the channels, for each place, (O, channels) as oneDNN wants it."""
        if scheme not in self._places:
            weight, g = self._conv[0].weight.detach(), _weights(scheme.points)
            pairs = torch.einsum("ai,bj->abij", g, g).reshape(-1, 9).float()  # what each place takes of the nine
            own = []
            for some in torch.split(weight, scheme.part, dim=1):
                places = (pairs @ some.reshape(-1, 9).t().float()).to(weight.dtype).view(-1, *some.shape[:2])
                own.append([packed_weight(place) for place in places])
            self._places[scheme] = own  # whole or not at all: memory may have been full
        return self._places[scheme]

    def bytes_to_come(self) -> int:
        """Of the transformed weights at most, until an image has needed them."""
        weight, places = self._conv[0].weight, max((scheme.side**2 for scheme in self.schemes), default=0)
        return 0 if self._places else weight.element_size() * weight[:, :, 0, 0].numel() * places

    def hold_weights(self, holds: bool) -> None:
        """Whether the transformed weights are there for the next image, or are made again for each."""
        self._holds = holds
        self.let_go()

    def let_go(self) -> None:
        """Give the transformed weights back, unless they are held."""
        if not self._holds:
            self._places.clear()

    def keep_to_what_is_there(self) -> None:
        """Take no way whose weights are still to come."""
        self.schemes = tuple(self._places)

    def finish(self, y: Tensor) -> None:
        """Add the bias and apply the activation, to (..., O) in place."""
        bias = self._conv[0].bias
        if bias is not None:
            y.add_(bias.detach())
        activate_(y, self.activation)

    def _packed(self) -> PackedConv | SplitConv:
        if self._direct is None:
            self._direct = packed_conv(self._conv[0], self.activation)
        return self._direct


Conv = PackedConv | SplitConv | WinogradConv
Span = tuple[int, int]  # first, and the one behind the last
Item = tuple[int, Span, Span]


def together(x: Tensor, *convs: Conv) -> list[Tensor]:
    """What convolutions make of the same (B, C, h, w). They share its transform where all take the same of Winograd's ways."""
    own = [conv for conv in convs if isinstance(conv, WinogradConv)]
    ways = {(conv.dilation, conv.scheme(x)) for conv in own}
    scheme = ways.pop()[1] if len(own) == len(convs) and len(ways) == 1 else None
    return _computed([x], own, scheme) if scheme else [conv(x) for conv in convs]


def joined(maps: Sequence[Tensor], conv: Conv) -> Tensor:
    """The convolution of maps (B, C_i, h, w), one's channels after the other's. Winograd's way reads them where they are."""
    scheme = conv.scheme(maps[0]) if isinstance(conv, WinogradConv) else None
    if isinstance(conv, WinogradConv) and scheme and all(x.shape[1] % scheme.part == 0 for x in maps[:-1]):
        return _computed(maps, [conv], scheme)[0]
    return conv(torch.cat(list(maps), dim=1))  # type: ignore[no-any-return]


def _computed(maps: Sequence[Tensor], convs: Sequence[WinogradConv], scheme: Scheme) -> list[Tensor]:
    """Winograd's way through convolutions of one dilation, a block of rows of tiles at a time."""
    d, x = convs[0].dilation, maps[0]
    (batch, _, height, width), parts = x.shape, [part for y in maps for part in torch.split(y, scheme.part, dim=1)]
    t, n, m = scheme.tile, scheme.count(height, d), scheme.count(width, d)
    outs = [x.new_empty(batch, height, width, conv.out_channels) for conv in convs]
    weights = [conv.places(scheme) for conv in convs]

    def block(image: int, rows: Span, phases: Span) -> None:
        first, lines, p = rows[0], rows[1] - rows[0], phases[1] - phases[0]
        under, over = _row_spans(t * first - 1, t * lines + 2, d, phases), _row_spans(t * first, t * lines, d, phases)
        totals: list[list[Tensor | None]] = [[None] * scheme.side**2 for _ in convs]
        for i, some in enumerate(parts):
            padded = _with_border(some[image].permute(1, 2, 0), under, d, (t * m + 1) * d)
            places = _spread(scheme, padded.view(t * lines + 2, p, t * m + 2, d, -1))
            for conv, weight, total, out in zip(convs, weights, totals, outs, strict=True):
                products = partial(_product, places, weight[i], total)
                if i + 1 < len(parts):
                    total[:] = map(products, range(scheme.side**2))
                else:
                    result = _gather(scheme, products, places, (lines, p, m, d, conv.out_channels))
                    conv.finish(result)
                    _put(result.view(-1, m * t * d, conv.out_channels), out[image], over)

    channels = max(part.shape[1] for part in parts)
    held = x.element_size() * scheme.side**2 * channels * d * m  # for one phase of a row of tiles
    _for_all(block, [(image, *spans) for image in range(batch) for spans in _blocks(n, d, max(1, _BLOCK // held))])
    for conv in convs:
        conv.let_go()
    return [y.permute(0, 3, 1, 2) for y in outs]


def _blocks(n: int, d: int, most: int) -> list[tuple[Span, Span]]:
    """Rows of tiles 0..n, and of each the phases 0..d (the grids that a dilation makes of the rows), in blocks of at most
    `most` phases: whole rows where each thread gets one."""
    if most >= d and n >= torch.get_num_threads():
        return [(rows, (0, d)) for rows in _spans(n, most // d)]
    return [((row, row + 1), phases) for row in range(n) for phases in _spans(d, most)]


def _spans(length: int, most: int) -> list[Span]:
    """0..length in equal parts of at most `most`, as many for each thread."""
    threads = torch.get_num_threads()
    count = min(length, threads * ceil(length / (threads * most)))
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _row_spans(first: int, lines: int, d: int, phases: Span) -> list[Span]:
    """Rows of the image that some lines of some phases' grids are; those of all phases follow each other."""
    if phases == (0, d):
        return [(first * d, (first + lines) * d)]
    return [(line * d + phases[0], line * d + phases[1]) for line in range(first, first + lines)]


def _for_all(work: Callable[[int, Span, Span], None], items: Sequence[Item]) -> None:
    """Do the work for all items, one core an item: hundreds of small operators that each wait for all cores take twice as
    long, and ten times where another program has one of the cores."""
    threads = min(torch.get_num_threads(), len(items))
    pool = _pool(torch.get_num_threads(), os.getpid()) if threads > 1 else None
    if pool is None:
        for item in items:
            work(*item)
        return
    inference = torch.is_inference_mode_enabled()

    def alone(item: Item) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both belong to a thread
            work(*item)

    begun = []
    with contextlib.suppress(RuntimeError):  # no pool takes work once the main thread has ended; another may go on
        for item in items:
            begun.append(pool.submit(alone, item))
    try:
        for item in items[len(begun) :]:
            work(*item)
        for done in begun:
            done.result()
    finally:
        for done in begun:  # after an error
            done.cancel()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor | None:
    """Threads of this process whose operators run on one core each; None where PyTorch cannot have that."""
    pool, all_here = ThreadPoolExecutor(threads, "winograd"), threading.Barrier(threads)

    def start(_: int) -> int:
        all_here.wait(10)
        torch.set_num_threads(1)  # of this thread
        return torch.get_num_threads()  # the first question settles it

    try:
        counts = list(pool.map(start, range(threads)))
    except RuntimeError:  # no more threads are to be had
        counts = []
    torch.set_num_threads(threads)  # of this one, and of MKL, which knows one number only
    if set(counts) == {1} and torch.get_num_threads() == threads and pool.submit(torch.get_num_threads).result() == 1:
        return pool
    pool.shutdown(wait=False)
    return None


class _Scratch(threading.local):
    """Arrays that a thread uses again for its next block. A new array of this size comes from the system page by page,
    which takes as long as the sums that fill it."""

    def __init__(self) -> None:
        self._arrays: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An array of a shape and of the type of `like`, with whatever was in it; its name is free again at the next call."""
        size = prod(shape) * like.element_size()
        held = self._arrays.pop(name, None)
        if held is None or len(held) < size:
            held = None  # given back before the larger one is taken
            with torch.inference_mode(False):  # an array made in this mode could not be written to outside of it
                held = torch.empty(size, dtype=torch.uint8)
        self._arrays[name] = held
        return held[:size].view(like.dtype).view(shape)


_SCRATCH = _Scratch()


def _with_border(image: Tensor, spans: Sequence[Span], left: int, right: int) -> Tensor:
    """Some rows of (h, w, C), one span after the other, as (rows, left + right, C): column 0 of the image lies at `left`, and
    beyond the image are zeros."""
    _, width, channels = image.shape
    padded = _SCRATCH.take("padded", image, sum(last - first for first, last in spans), left + right, channels)
    padded[:, :left].zero_()
    padded[:, left + width :].zero_()
    place = 0
    for first, last in spans:
        inside = image[max(first, 0) : max(last, 0)]
        above = place + min(max(-first, 0), last - first)
        below = above + len(inside)
        padded[place:above].zero_()
        padded[above:below, left : left + width] = inside
        place += last - first
        padded[below:place].zero_()
    return padded


def _put(rows: Tensor, image: Tensor, spans: Sequence[Span]) -> None:
    """Write the spans, which follow each other in (rows, columns, O), to their places in (h, w, O), as far as it reaches."""
    place = 0
    for first, last in spans:
        target = image[first:last]
        target.copy_(rows[place : place + len(target), : image.shape[1]])
        place += last - first


def _spread(scheme: Scheme, x: Tensor) -> Tensor:
    """D^T x D of every tile: (t n + 2, p, t m + 2, d, C) -> (places, tiles, C)."""
    (height, p, width, d, channels), t, side = x.shape, scheme.tile, scheme.side
    n, m = (height - 2) // t, (width - 2) // t
    rows = _SCRATCH.take("rows", x, side, n, p, width, d, channels)
    _spread_lines(scheme.points, [x[row::t][:n] for row in range(side)], rows.unbind())
    places = _SCRATCH.take("places", x, side, side, n, p, m, d, channels)
    columns = [rows[:, :, :, column::t][:, :, :, :m] for column in range(side)]
    _spread_lines(scheme.points, columns, places.unbind(1))
    return places.view(side * side, -1, channels)


def _product(places: Tensor, weight: Sequence[Tensor], totals: Sequence[Tensor | None], place: int) -> Tensor:
    """Of a place's (tiles, C) with its (O, C), added to what the channels before gave."""
    return product(places[place], weight[place], totals[place])


def _gather(scheme: Scheme, products: Callable[[int], Tensor], like: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A^T y A of every tile, y being the product at each place, column by column of a tile's places.

    like: of their type. grid: (n, p, m, d, O) -> (n, t, p, m, t, d, O).
    """
    (n, p, m, d, channels), t, side = grid, scheme.tile, scheme.side
    rows = _SCRATCH.take("rows", like, t, side, *grid)
    for column in range(side):
        own = [products(k).view(grid) for k in range(column, side * side, side)]
        _gather_lines(scheme.points, own, rows[:, column].unbind())
    out = _SCRATCH.take("padded", like, n, t, p, m, t, d, channels)
    _gather_lines(scheme.points, rows.unbind(1), out.movedim(1, 0).unbind(4))
    return out


# -------------------------------------------------------------------------------------- the matrices, one direction
def _weights(points: Sequence[float]) -> Tensor:
    """G, (t + 2, 3), with the factors that `_spread_lines` leaves out."""
    zero = [1 / prod(-(p**2) for p in points), 0.0, 0.0]
    lines = []
    for p in points:
        norm = 2 * p**2 * prod(p**2 - q**2 for q in points if q != p)
        lines += [[1 / norm, p / norm, p**2 / norm], [1 / norm, -p / norm, p**2 / norm]]
    return torch.tensor([zero, *lines, [0.0, 0.0, 1.0]], dtype=torch.float64)


def _spread_lines(points: Sequence[float], x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    """D^T, of t + 2 arrays into as many. A line holds the coefficients of the polynomial that is zero at all other points."""
    first, last = y[0], y[-1]
    for p, plus, minus in zip(points, y[1:-1:2], y[2:-1:2], strict=True):
        factors = _expanded([q**2 for q in points if q != p])
        even, odd = _sum(factors, x[2::2], plus), _sum(factors, x[1:-1:2], first)
        torch.sub(even, odd, alpha=p, out=minus)
        torch.add(even, odd, alpha=p, out=plus)
    factors = _expanded([p**2 for p in points])
    _sum(factors, x[0::2], first)
    _sum(factors, x[1::2], last)


def _gather_lines(points: Sequence[float], y: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A^T, of t + 2 arrays into t: the i-th sums the points' arrays with the i-th powers of the points."""
    pairs = list(zip(y[1:-1:2], y[2:-1:2], strict=True))
    sums, differences = [plus + minus for plus, minus in pairs], [plus - minus for plus, minus in pairs]
    for i, target in enumerate(out):
        terms = differences if i % 2 else sums
        if i == 0:
            torch.add(y[0], terms[0], out=target)
        else:
            torch.mul(terms[0], points[0] ** i, out=target)
        for p, term in zip(points[1:], terms[1:], strict=True):
            target.add_(term, alpha=p**i)
    out[-1].add_(y[-1])


def _expanded(roots: Sequence[float]) -> list[float]:
    """Coefficients of the polynomial with these roots, the constant first; the last is 1."""
    factors = [1.0]
    for root in roots:
        factors = [low - root * own for low, own in zip([0.0, *factors], [*factors, 0.0], strict=True)]
    return factors


def _sum(factors: Sequence[float], arrays: Sequence[Tensor], out: Tensor) -> Tensor:
    """The arrays' sum with factors of which the last is 1, in `out`; a single array as it is."""
    if len(arrays) == 1:
        return arrays[0]
    torch.add(arrays[-1], arrays[0], alpha=factors[0], out=out)
    for factor, array in zip(factors[1:-1], arrays[1:-1], strict=True):
        out.add_(array, alpha=factor)
    return out
