"""3x3 convolutions of many channels by Winograd's minimal filtering: fewer products, and sums in their place.

Room: engine. Legend: B batch, C O input and output channels, h w feature grid, d dilation, t side of a tile, n m tiles
down and across.

A tile of t x t results is A^T [(G g G^T) * (D^T x D)] A, with g the 3x3 weights, x the (t + 2) x (t + 2) values under the
tile and * a product for each of its places (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016;
their B is D here). Over all tiles and channels, a place is one matrix product. A convolution of dilation d is d * d plain
ones, each on every d-th row and column.

The matrices follow from t + 1 points and infinity. In float32 t is 4: 36 products for 16 results in the place of 144. The
paper's points 0, +-1, +-2 lose 20 times as much to rounding as the plain sum; 0, +-sqrt(1/2), +-sqrt(2) lose 4 times as
much, 2e-6 of the range of the results. In 16 bits t is 2: 16 products for 4 results, with 2.6 times the error.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil, prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emaseg.engine.packed import NONE, Activation, PackedConv, SplitConv, packed_conv, packed_weight, product

_BLOCK = 10_000_000  # bytes of transformed values that a thread holds at once
_NEAR, _FAR = sqrt(0.5), sqrt(2.0)  # the points of the larger tile; their product is 1, which leaves out a factor


@dataclass(frozen=True, slots=True)
class Scheme:
    """One size of tile: its three transforms, and from where on it is quicker (measured on Zen 4).

    Attributes:
        tile: t. weights: G, (t + 2, 3).
        spread: D^T, of t + 2 arrays into as many. gather: A^T, of t + 2 arrays into t.
        channels: below which the sums take as long as the products they save.
        products: of one place, for the square of the number of threads, below which the rest takes longer than they: reading
            the larger weights, handing small operators to threads.
        waste: computed results for each one needed, from which on nothing is saved: tiles reach beyond the image.
        part: channels that are transformed at once. More tiles of fewer channels read the weights less often; in 16 bits
            each part's sum would be rounded.
    """

    tile: int
    weights: Tensor
    spread: Callable[[Sequence[Tensor], Sequence[Tensor]], None]
    gather: Callable[[Sequence[Tensor], Sequence[Tensor]], None]
    channels: int
    products: int
    waste: float
    part: int

    @property
    def side(self) -> int:
        """t + 2: places of a tile in one direction."""
        return self.tile + 2

    def count(self, side: int, dilation: int) -> int:
        """Tiles that cover a side of the image, on each of the grids that a dilation makes of it."""
        return -(-side // (self.tile * dilation))

    def pays(self, height: int, width: int, dilation: int, weights: int) -> bool:
        """Whether it is quicker than the plain sum for images of this size; weights: C O."""
        tiles = self.count(height, dilation) * self.count(width, dilation) * dilation**2
        many = tiles * weights >= self.products * torch.get_num_threads() ** 2
        return many and self.tile**2 * tiles < self.waste * height * width


def best_conv(conv: nn.Conv2d, activation: Activation = NONE) -> Conv:
    """A convolution and its activation: one that takes Winograd's way where it pays, else the packed one."""
    scheme = _FOUR if conv.weight.dtype == torch.float32 else _TWO
    square = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
    centred = conv.padding == conv.dilation and conv.dilation[0] == conv.dilation[1]
    many = conv.in_channels >= scheme.channels and conv.out_channels >= scheme.channels
    if square and centred and many:
        return WinogradConv(conv, activation, scheme)
    return packed_conv(conv, activation)


class WinogradConv(nn.Module):
    """A 3x3 convolution and its activation. Images for which it does not pay go through the packed convolution.

    The weights of either way are made when the first image needs them: Winograd's are 2 or 4 times as large.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.activation = activation
        self.dilation = conv.dilation[0]
        self.out_channels = conv.out_channels
        self.allowed = True
        self._conv = [conv]  # in a list: nothing here is trained or moved
        self._places: list[list[Tensor]] | None = None
        self._direct: PackedConv | SplitConv | None = None

    def forward(self, x: Tensor, *, alone: bool = False) -> Tensor:
        """(B, C, h, w) -> (B, O, h, w), channels last. alone: as for `PackedConv`."""
        return _computed([x], [self])[0] if self.pays(x) else self._packed()(x)

    def add_relu(self, x: Tensor, total: Tensor) -> Tensor:
        """relu(convolution + total), written over `total`; the module's own activation must be none."""
        return total.add_(self(x)).relu_() if self.pays(x) else self._packed().add_relu(x, total)

    def pays(self, x: Tensor) -> bool:
        """Whether (B, C, h, w) takes Winograd's way."""
        weights = self._conv[0].weight[:, :, 0, 0].numel()
        return self.allowed and self.scheme.pays(x.shape[2], x.shape[3], self.dilation, weights)

    def places(self) -> list[list[Tensor]]:
        """The transformed weights: for each part of the channels, for each place, (O, channels) as oneDNN wants it."""
        if self._places is None:
            weight, g = self._conv[0].weight.detach(), self.scheme.weights
            pairs = torch.einsum("ai,bj->abij", g, g).reshape(-1, 9).float()  # what each place takes of the nine
            self._places = []
            for some in torch.split(weight, self.scheme.part, dim=1):
                places = (pairs @ some.reshape(-1, 9).t().float()).to(weight.dtype).view(-1, *some.shape[:2])
                self._places.append([packed_weight(place) for place in places])
        return self._places

    def bytes_to_come(self) -> int:
        """Of the transformed weights, until an image has needed them."""
        weight = self._conv[0].weight
        return weight.element_size() * weight[:, :, 0, 0].numel() * self.scheme.side**2 if self._places is None else 0

    def finish(self, y: Tensor) -> None:
        """Add the bias and apply the activation, to (..., O) in place."""
        bias, (name, numbers, _) = self._conv[0].bias, self.activation
        if bias is not None:
            y.add_(bias.detach())
        if name != "none":
            F.leaky_relu_(y, *numbers) if numbers else y.relu_()

    def _packed(self) -> PackedConv | SplitConv:
        if self._direct is None:
            self._direct = packed_conv(self._conv[0], self.activation)
        return self._direct


Conv = PackedConv | SplitConv | WinogradConv


def together(x: Tensor, *convs: Conv) -> list[Tensor]:
    """What convolutions make of the same (B, C, h, w). They share its transform where all take Winograd's way."""
    own = [conv for conv in convs if isinstance(conv, WinogradConv) and conv.pays(x)]
    if len(own) == len(convs) and len({(conv.dilation, conv.scheme.tile) for conv in own}) == 1:
        return _computed([x], own)
    return [conv(x) for conv in convs]


def joined(maps: Sequence[Tensor], conv: Conv) -> Tensor:
    """The convolution of maps (B, C_i, h, w), one's channels after the other's. Winograd's way reads them where they are."""
    if isinstance(conv, WinogradConv) and conv.pays(maps[0]):
        at_parts = all(x.shape[1] % conv.scheme.part == 0 for x in maps[:-1])
        return _computed(maps if at_parts else [torch.cat(list(maps), dim=1)], [conv])[0]
    return conv(torch.cat(list(maps), dim=1))  # type: ignore[no-any-return]


def _computed(maps: Sequence[Tensor], convs: Sequence[WinogradConv]) -> list[Tensor]:
    """Winograd's way through convolutions of one dilation, a block of rows of tiles at a time."""
    scheme, d, x = convs[0].scheme, convs[0].dilation, maps[0]
    (batch, _, height, width), parts = x.shape, [part for y in maps for part in torch.split(y, scheme.part, dim=1)]
    t, n, m = scheme.tile, scheme.count(height, d), scheme.count(width, d)
    outs = [x.new_empty(batch, height, width, conv.out_channels) for conv in convs]
    weights = [conv.places() for conv in convs]

    def block(image: int, first: int, last: int) -> None:
        totals: list[list[Tensor | None]] = [[None] * scheme.side**2 for _ in convs]
        for i, some in enumerate(parts):
            places = _spread(scheme, _with_border(some[image].permute(1, 2, 0), t, d, first, last, m))
            for conv, weight, total, out in zip(convs, weights, totals, outs, strict=True):
                products = partial(_product, places, weight[i], total)
                if i + 1 < len(parts):
                    total[:] = map(products, range(scheme.side**2))
                else:
                    result = _gather(scheme, products, (last - first, d, m, d, conv.out_channels))
                    conv.finish(result)
                    target = out[image, first * t * d : last * t * d]
                    target.copy_(result.view(-1, m * t * d, conv.out_channels)[: len(target), :width])

    held = x.element_size() * scheme.side**2 * max(part.shape[1] for part in parts) * d * d * m  # by one row of tiles
    _for_all(block, [(image, *span) for image in range(batch) for span in _spans(n, max(1, _BLOCK // held))])
    return [y.permute(0, 3, 1, 2) for y in outs]


def _spans(length: int, most: int) -> list[tuple[int, int]]:
    """0..length in equal parts of at most `most`, as many for each thread."""
    threads = torch.get_num_threads()
    count = min(length, threads * ceil(length / (threads * most)))
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _for_all(work: Callable[[int, int, int], None], items: Sequence[tuple[int, int, int]]) -> None:
    """Do the work for all items, one core an item: hundreds of small operators that each wait for all cores take twice as
    long, and ten times where another program has one of the cores."""
    threads = min(torch.get_num_threads(), len(items))
    pool = _pool(torch.get_num_threads(), os.getpid()) if threads > 1 else None
    if pool is None:
        for item in items:
            work(*item)
        return
    inference = torch.is_inference_mode_enabled()

    def alone(item: tuple[int, int, int]) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both belong to a thread
            work(*item)

    for _ in pool.map(alone, items):
        pass


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


def _with_border(image: Tensor, t: int, d: int, first: int, last: int, m: int) -> Tensor:
    """Of (h, w, C), what lies under some rows of m tiles: (t n + 2, d, t m + 2, d, C), zeros beyond the image."""
    _, width, channels = image.shape
    top, bottom, right = (t * first - 1) * d, (t * last + 1) * d, (t * m + 1) * d
    padded = _SCRATCH.take("padded", image, bottom - top, right + d, channels)
    inside = image[max(top, 0) : bottom]
    above, left = max(-top, 0), d
    below, beyond = above + len(inside), left + width
    for border in (padded[:above], padded[below:], padded[above:below, :left], padded[above:below, beyond:]):
        border.zero_()
    padded[above:below, left:beyond] = inside
    return padded.view(t * (last - first) + 2, d, t * m + 2, d, channels)


def _spread(scheme: Scheme, x: Tensor) -> Tensor:
    """D^T x D of every tile: (t n + 2, d, t m + 2, d, C) -> (places, tiles, C)."""
    (height, d, width, _, channels), t, side = x.shape, scheme.tile, scheme.side
    n, m = (height - 2) // t, (width - 2) // t
    rows = _SCRATCH.take("rows", x, side, n, d, width, d, channels)
    scheme.spread([x[row::t][:n] for row in range(side)], rows.unbind())
    places = _SCRATCH.take("places", x, side, side, n, d, m, d, channels)
    scheme.spread([rows[:, :, :, column::t][:, :, :, :m] for column in range(side)], places.unbind(1))
    return places.view(side * side, -1, channels)


def _product(places: Tensor, weight: Sequence[Tensor], totals: Sequence[Tensor | None], place: int) -> Tensor:
    """Of a place's (tiles, C) with its (O, C), added to what the channels before gave."""
    return product(places[place], weight[place], totals[place])


def _gather(scheme: Scheme, products: Callable[[int], Tensor], grid: tuple[int, ...]) -> Tensor:
    """A^T y A of every tile, y being the product at each place, column by column of a tile's places.

    grid: (n, d, m, d, O) -> (n, t, d, m, t, d, O).
    """
    (n, d, m, _, channels), t, side = grid, scheme.tile, scheme.side
    first = products(0)
    rows = _SCRATCH.take("rows", first, t, side, *grid)
    for column in range(side):
        own = [products(k).view(grid) if k else first.view(grid) for k in range(column, side * side, side)]
        scheme.gather(own, rows[:, column].unbind())
    out = _SCRATCH.take("padded", first, n, t, d, m, t, d, channels)
    scheme.gather(rows.unbind(1), out.movedim(1, 0).unbind(4))
    return out


# ------------------------------------------------------------------------------------------------------- tiles of 4
def _spread_4(x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    """Its rows lack a factor, which the weights have."""
    y0, y1, y2, y3, y4, y5 = y
    for plus, minus, point, other in ((y1, y2, _NEAR, _FAR), (y3, y4, _FAR, _NEAR)):
        torch.sub(x[4], x[2], alpha=other**2, out=plus)
        torch.sub(x[3], x[1], alpha=other**2, out=y0)
        torch.sub(plus, y0, alpha=point, out=minus)
        plus.add_(y0, alpha=point)
    torch.sub(x[4], x[2], alpha=_NEAR**2 + _FAR**2, out=y0).add_(x[0])
    torch.sub(x[5], x[3], alpha=_NEAR**2 + _FAR**2, out=y5).add_(x[1])


def _gather_4(y: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    near, near_odd = y[1] + y[2], (y[1] - y[2]).mul_(_NEAR)
    far, far_odd = y[3] + y[4], (y[3] - y[4]).mul_(_FAR)
    torch.add(y[0], near, out=out[0]).add_(far)
    torch.add(near_odd, far_odd, out=out[1])
    torch.add(near.mul_(_NEAR**2), far, alpha=_FAR**2, out=out[2])
    torch.add(near_odd.mul_(_NEAR**2), far_odd, alpha=_FAR**2, out=out[3]).add_(y[5])


def _weights_4() -> Tensor:
    factors = ((_NEAR, -2 / 3), (-_NEAR, -2 / 3), (_FAR, 1 / 6), (-_FAR, 1 / 6))
    points = [[factor * point**power for power in range(3)] for point, factor in factors]
    return torch.tensor([[1.0, 0.0, 0.0], *points, [0.0, 0.0, 1.0]], dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- tiles of 2
def _spread_2(x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    for place, (first, second) in zip(y, ((0, 2), (1, 2), (2, 1), (1, 3)), strict=True):
        torch.add(x[first], x[second], alpha=1 if (first, second) == (1, 2) else -1, out=place)


def _gather_2(y: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    torch.add(y[0], y[1], out=out[0]).add_(y[2])
    torch.sub(y[1], y[2], out=out[1]).sub_(y[3])


def _weights_2() -> Tensor:
    return torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


_FOUR = Scheme(4, _weights_4(), _spread_4, _gather_4, channels=96, products=1_500_000, waste=1.6, part=512)
_TWO = Scheme(2, _weights_2(), _spread_2, _gather_2, channels=256, products=9_000_000, waste=1.2, part=4096)
