"""Bases and class memory made visible: the numbers are those of the network itself, and the sheet shows them."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emaseg
from emaseg.engine import Engine, prepare
from emaseg.errors import RecipeError
from emaseg.inference.attention_sheet import sheet
from emaseg.inference.image_inputs import find_images
from emaseg.inference.predict import Predictor
from emaseg.inference.predict_files import predict_files
from emaseg.models import EMANet
from emaseg.recipe import Recipe
from tests.helpers import tiny
from tests.training.test_memorynet_runs import memorynet

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def made(recipe: Recipe) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Predictor(emaseg.build_model(recipe), recipe)


def test_responsibilities_are_the_networks_own_and_sum_to_one() -> None:
    """At every iteration; the last ones times the bases are what the network reconstructs from (equation 14)."""
    predictor = made(tiny())
    model = predictor.model
    assert isinstance(model, EMANet)
    seen = []
    handle = model.attention.register_forward_hook(
        lambda _module, _given, result: seen.append((result[0].clone(), result[1]))  # the ReLU after it works in place
    )
    maps = predictor.bases(IMAGE)
    handle.remove()
    assert (maps.kind, maps.values.shape[:2], maps.names[3]) == ("bases", (3, 4), "base 3")
    assert np.abs(maps.values.sum(axis=1) - 1).max() <= 1e-6
    reconstruction, adapted = seen[0]
    again = torch.einsum("cm,mhw->chw", adapted[0], torch.from_numpy(maps.values[-1]))
    assert torch.allclose(again, reconstruction[0], atol=1e-5)
    assert not np.array_equal(maps.values[0], maps.values[2])
    longer = predictor.bases(IMAGE, iterations=5).values
    assert longer.shape[0] == 5
    assert np.array_equal(longer[:3], maps.values)


@pytest.mark.parametrize("recipe", [tiny(), memorynet()], ids=["bases", "memory"])
def test_the_engine_shows_the_same_maps(recipe: Recipe) -> None:
    """What predict runs is the prepared network."""
    plain = made(recipe).bases(IMAGE).values
    fast = Predictor(prepare(made(recipe).model), recipe).bases(IMAGE).values  # type: ignore[arg-type]
    assert np.abs(plain - fast).max() < 1e-4


@pytest.mark.parametrize("recipe", [tiny(), memorynet()], ids=["bases", "memory"])
def test_a_compiled_network_shows_the_same_picture(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled passes by the hooks of the network's parts, as a copy does."""
    plain = Predictor(prepare(made(recipe).model), recipe)  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "compile", lambda network: copy.deepcopy(network).forward)
    compiled = Predictor(prepare(made(recipe).model, compiled=True), recipe)  # type: ignore[arg-type]
    compiled.predict(IMAGE)
    assert np.abs(plain.bases(IMAGE).values - compiled.bases(IMAGE).values).max() < 1e-4
    one, other = (np.array(predictor.bases_picture(IMAGE, [0, 1])) for predictor in (plain, compiled))
    assert (one == other).mean() > 0.99


def test_others_wait_while_the_memory_is_taken_out() -> None:
    """A network without its class memory would give a thread that predicts wrong labels, without a word."""
    predictor = Predictor(prepare(made(memorynet()).model), memorynet())  # type: ignore[arg-type]
    assert isinstance(predictor.model, Engine)
    other = threading.Thread(target=predictor.predict, args=[IMAGE])
    with predictor.model.lock:
        other.start()
        other.join(0.3)
        assert other.is_alive()
        predictor.bases_picture(IMAGE, 2)
    other.join(60)
    assert not other.is_alive()


def test_a_copy_of_an_engine_has_a_lock_of_its_own() -> None:
    engine = prepare(made(tiny()).model, compiled=True)  # type: ignore[arg-type]
    other = copy.deepcopy(engine)
    assert other.lock is not engine.lock
    assert other.precision == engine.precision


def test_an_image_that_does_not_fit_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Maps are made of whole images: one that would fill the memory is refused, and the next ones are predicted."""
    recipe = tiny()
    predictor = Predictor(made(recipe).model, recipe, max_memory=1)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (done,) = predict_files(predictor, find_images([str(tmp_path / "a.png")]), tmp_path / "out", ("mask",), bases=2)
    assert done.error is not None
    assert "one of 56 x 40 pixels does not fit into memory" in done.error
    assert "--max-memory" in done.hint


def test_the_most_used_come_first_and_others_can_be_named() -> None:
    maps = made(tiny()).bases(IMAGE)
    assert maps.shares.sum() == pytest.approx(1, abs=1e-6)
    assert maps.chosen(4) == sorted(range(4), key=lambda m: -maps.shares[m])
    assert maps.chosen([2, 0]) == [2, 0]
    for wrong in (0, [4], [-1]):
        with pytest.raises(RecipeError, match="bases: "):
            maps.chosen(wrong)


def test_a_memory_shows_its_weights_and_what_it_changes(tmp_path: Path) -> None:
    """One map a class, sums of 1, the classes' names; the sheet has the labels with and without."""
    predictor = made(memorynet())
    maps = predictor.bases(IMAGE)
    assert (maps.kind, maps.names, maps.values.shape[:2]) == ("memory", predictor.classes, (1, len(predictor.classes)))
    assert np.abs(maps.values.sum(axis=1) - 1).max() <= 1e-6
    assert predictor.bases_picture(IMAGE, 2).width > 4 * 240


def test_the_sheet_of_a_thin_image_stays_small() -> None:
    """Protects memory: a column is as wide for every image, but a cell is not higher than a screen."""
    maps = np.full((3, 4, 20, 1), 0.25, np.float32)
    page = sheet(np.zeros((6000, 4, 3), np.uint8), maps, [(m, f"base {m}", "") for m in range(4)], ["1", "2", "3"])
    assert page.height < 6000


def test_predict_writes_a_sheet_for_each_image(tmp_path: Path) -> None:
    """A row a base, a column an iteration; whatever else is asked for is written, too."""
    predictor = made(tiny())
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (done,) = predict_files(
        predictor, find_images([str(tmp_path / "a.png")]), tmp_path / "out", ("mask",), bases=[1, 3]
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_bases.png", "a_mask.png"]
    with Image.open(done.files["bases"]) as few:
        assert few.width == 150 + 3 * 250 + 10
        height = few.height
    assert predictor.bases_picture(IMAGE, 3).height > height


def test_networks_without_an_inside_say_so() -> None:
    class Outside(torch.nn.Module):
        align_corners = False

    with pytest.raises(RecipeError, match="inside of an exported file"):
        Predictor(Outside(), tiny()).bases(IMAGE)
