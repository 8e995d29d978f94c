"""Winograd's way computes the convolution that it replaces: for all sizes, dilations, activations and numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emaseg.engine import stages, winograd
from emaseg.engine.packed import NONE, RELU, Activation, leaky_relu, packed_weight, packing_works
from emaseg.engine.winograd import Scheme, WinogradConv, best_conv, together

pytestmark = pytest.mark.skipif(not packing_works(torch.float32), reason="this processor's PyTorch has no oneDNN")

FOUR = replace(winograd._FOUR, products=0, factor=0.0)  # always
SIX = replace(winograd._SIX, products=0, factor=0.0)
TWO = replace(winograd._TWO, products=0, factor=0.0)


def conv(channels: int, out: int, dilation: int = 1, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation).requires_grad_(False)


def image(*shape: int) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1)).relu()
    return drawn.contiguous(memory_format=torch.channels_last)


def exact(x: Tensor, layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    weight, bias, step = layer.weight.double(), layer.bias.double(), layer.dilation
    return F.conv2d(x.double(), weight, bias, padding=step, dilation=step)


def error(own: Tensor, reference: Tensor) -> float:
    """The largest difference as a share of the reference's range."""
    assert own.shape == reference.shape
    return float((own.double() - reference).abs().max() / (reference.max() - reference.min()))


@pytest.fixture(params=[1, 2], ids="threads={}".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(max_examples=25)
@given(st.integers(1, 2), st.integers(1, 21), st.integers(1, 21), st.integers(1, 5), st.sampled_from([SIX, FOUR, TWO]))
def test_every_size_and_dilation(batch: int, height: int, width: int, dilation: int, scheme: Scheme) -> None:
    """Protects the borders: tiles that reach beyond the image, images smaller than a tile or than the dilation."""
    layer, x = conv(24, 16, dilation), image(batch, 24, height, width)
    own = WinogradConv(layer, NONE, [scheme])(x)
    assert own.is_contiguous(memory_format=torch.channels_last) or 1 in (height, width)
    assert own.untyped_storage().nbytes() == own.nbytes  # what lies beyond the image is not held
    assert error(own, exact(x, layer)) <= 5e-6


def test_rounding_is_that_of_the_good_points() -> None:
    """Protects the choice of points: 512 channels lose 2e-6 of the range; with 0, 1, -1, 2, -2 it would be 1e-5."""
    layer, x = conv(512, 64), image(1, 512, 32, 32)
    assert error(WinogradConv(layer, NONE, [FOUR])(x), exact(x, layer)) <= 4e-6


@pytest.mark.skipif(not packing_works(torch.bfloat16), reason="this processor has no bf16 convolutions")
def test_16_bits() -> None:
    """Protects bf16: three times the error of the packed convolution at most."""
    layer, x = conv(512, 64), image(1, 512, 32, 32).bfloat16()
    reference = exact(x, layer)
    layer = layer.bfloat16()
    own, packed = WinogradConv(layer, NONE, [TWO])(x), best_conv(layer)(x)
    assert own.dtype == torch.bfloat16
    assert error(own, reference) <= 4 * error(packed, reference)


@pytest.mark.parametrize("activation", [NONE, RELU, leaky_relu(0.1)])
def test_activations_and_sums(activation: Activation) -> None:
    """Protects what the packed convolutions do in the same pass."""
    layer, x, total = conv(24, 16), image(1, 24, 9, 13), image(1, 16, 9, 13) - 0.5
    name, numbers, _ = activation
    reference = exact(x, layer)
    expected = reference if name == "none" else F.leaky_relu(reference, *(numbers or (0.0,)))
    assert error(WinogradConv(layer, activation, [FOUR])(x), expected) <= 5e-6
    if activation == NONE:
        summed = WinogradConv(layer, NONE, [FOUR]).add_relu(x, total.clone())
        assert error(summed, (reference + total.double()).relu()) <= 5e-6


def test_blocks_images_and_readers_do_not_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects memory's bound and the threads: parts of an image are computed apart, and convolutions share a transform."""
    layers = [conv(24, 16, 2, seed) for seed in range(2)]
    x = image(3, 24, 41, 30)
    convs = [WinogradConv(layer, activation, [FOUR]) for layer, activation in zip(layers, (RELU, NONE), strict=True)]
    whole = together(x, *convs)
    for way in convs:
        way.schemes = (replace(FOUR, part=8),)
    monkeypatch.setattr(winograd, "_BLOCK", 1)
    with torch.inference_mode():
        parts = together(x, *convs)
    for way, own, part in zip(convs, whole, parts, strict=True):
        assert error(part, own.double()) <= 2e-6
        assert torch.equal(way(x), part)
        assert torch.equal(torch.cat([way(x[i : i + 1]) for i in range(3)]), part)


def test_threads_stay_as_they_were(threads: int) -> None:
    """Protects the rest of the network: operators of the caller still run on all of its cores."""
    WinogradConv(conv(24, 16), NONE, [FOUR])(image(1, 24, 33, 33))
    assert torch.get_num_threads() == threads
    assert threads == 1 or winograd._pool(threads, winograd.os.getpid()) is not None


def test_an_error_in_a_thread_is_the_callers(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Protects predict's answer to full memory: it sees the error, and the next image is computed."""
    way, x = WinogradConv(conv(24, 16), NONE, [FOUR]), image(1, 24, 33, 33)
    expected = way(x)
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "product", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
        with pytest.raises(MemoryError, match="full"):
            way(x)
    assert torch.equal(way(x), expected)


def test_work_is_done_after_the_main_thread_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects threads that outlive the main one, after which Python's pools take no more work."""
    pool = ThreadPoolExecutor(2)
    pool.submit(int).result()
    pool.shutdown()
    monkeypatch.setattr(winograd, "_pool", lambda *_: pool)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    done: list[int] = []
    winograd._for_all(lambda image, *_: done.append(image), [(image, (0, 1), (0, 1)) for image in range(5)])
    assert done == [0, 1, 2, 3, 4]


def test_full_memory_leaves_no_part_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the next image: weights of which only some could be made are made again."""
    way, x = WinogradConv(conv(24, 16), NONE, [replace(FOUR, part=8)]), image(1, 24, 9, 13)
    expected, made = WinogradConv(conv(24, 16), NONE, [FOUR])(x), iter(range(50))

    def packed(weight: Tensor) -> Tensor:
        if next(made) == 49:
            raise MemoryError("full")
        return packed_weight(weight)

    with monkeypatch.context() as patch:
        patch.setattr(winograd, "packed_weight", packed)
        with pytest.raises(MemoryError, match="full"):
            way(x)
    torch.testing.assert_close(way(x), expected, rtol=1e-4, atol=1e-4)


def test_only_where_it_pays(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects small and narrow convolutions, for which the sums would take longer than the products."""
    monkeypatch.setattr(winograd, "has_matrix_units", lambda: False)
    wide = best_conv(conv(192, 192))
    assert isinstance(wide, WinogradConv)
    assert wide.scheme(image(1, 192, 32, 32)) is (winograd._FOUR if threads == 1 else None)  # too little for several
    assert wide.scheme(image(1, 192, 64, 64)) is winograd._FOUR
    assert wide.scheme(image(1, 192, 8, 8)) is None
    assert not isinstance(best_conv(conv(64, 64)), WinogradConv)
    assert not isinstance(best_conv(nn.Conv2d(192, 192, 3, stride=2, padding=1)), WinogradConv)
    assert not isinstance(best_conv(nn.Conv2d(192, 192, 3, padding=1, groups=2)), WinogradConv)
    assert not isinstance(best_conv(nn.Conv2d(192, 192, 3)), WinogradConv)
    assert not isinstance(best_conv(conv(192, 192).bfloat16()), WinogradConv)
    far = best_conv(conv(256, 256, dilation=12))
    assert isinstance(far, WinogradConv)
    assert far.scheme(image(1, 256, 64, 64)) is winograd._SIX  # grids of 5 and 6; tiles of 4 reach to 8
    assert far.scheme(image(1, 256, 96, 96)) is winograd._FOUR
    assert far.scheme(image(1, 256, 72, 144)) is winograd._SIX
    assert far.scheme(image(1, 256, 33, 33)) is None


def test_where_it_pays_beside_matrix_units(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects processors whose direct convolutions are quicker: in 16 bits Winograd's way would take twice as long there."""
    monkeypatch.setattr(winograd, "has_matrix_units", lambda: True)
    assert not isinstance(best_conv(conv(512, 512).bfloat16()), WinogradConv)
    assert not isinstance(best_conv(conv(192, 192)), WinogradConv)
    wide = best_conv(conv(512, 512))
    assert isinstance(wide, WinogradConv)
    assert wide.scheme(image(1, 512, 64, 64)) is winograd._FOUR_AMX
    assert wide.scheme(image(1, 512, 32, 32)) is (winograd._FOUR_AMX if threads == 1 else None)
    assert wide.scheme(image(1, 512, 16, 16)) is None


def test_weights_are_not_held_beside_the_largest_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the peak of --tta: for a very large image each convolution makes its weights, and gives them back. A smaller
    image afterwards holds them again; the results are the same to the bit."""
    monkeypatch.setattr(stages, "_LARGE", 40 * 40)
    held: list[int] = []
    ways = nn.Sequential(*(WinogradConv(conv(24, 24, seed=seed), NONE, [FOUR]) for seed in range(2)))
    ways.num_classes, ways.align_corners = 24, False  # type: ignore[assignment]
    engine = stages.Engine(ways, "fp32", torch.device("cpu"), packed=True, compiled=False)  # type: ignore[arg-type]
    for way in ways:
        way.register_forward_hook(lambda *_: held.append(sum(len(own._places) for own in ways)))
    small, large = image(1, 24, 40, 40), image(1, 24, 41, 40)
    with torch.inference_mode():
        first = engine(small)
        assert held == [1, 2]
        whole = engine(large)
        assert held[2:] == [0, 0]
        assert engine.bytes_to_come() == 2 * 36 * 24 * 24 * 4
        assert torch.equal(engine(small), first)
        assert held[4:] == [1, 2]
        assert torch.equal(engine(large), whole)
        assert held[6:] == [0, 0]
