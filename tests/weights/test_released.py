"""The manifest: complete, consistent with the recipes, and readable without torch."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

import emaseg
from emaseg.errors import RecipeError
from emaseg.recipe import Recipe, load_recipe
from emaseg.recipe.backbones import HRNetBackbone, ResNeStBackbone, ResNetBackbone, ViTBackbone
from emaseg.recipe.models import EMANetModel
from emaseg.resources import shipped_recipes
from emaseg.weights import released
from emaseg.weights.convert import FORMATS
from emaseg.weights.released import Released, by_name, by_reference, file_name

NETWORKS = [entry for entry in released.released() if entry.kind == "network"]
BACKBONES = [entry for entry in released.released() if entry.kind == "backbone"]
RECIPES = {name: load_recipe(name) for name in shipped_recipes()}


def state_bytes(module: torch.nn.Module) -> int:
    """Bytes of a network's parameters and buffers, without those that are ours alone (the memory's ages)."""
    state = {key: value for key, value in module.state_dict().items() if not key.endswith(".age")}
    return sum(value.numel() * value.element_size() for value in state.values())


def test_every_row_with_weights_has_one_entry_and_every_entry_one_recipe() -> None:
    """Protects completeness: 34 of the 41 published rows have weights, and nothing else is listed."""
    with_weights = {name for name, r in RECIPES.items() if r.published and r.published.checkpoint}
    names = [entry.name for entry in NETWORKS]
    assert len(names) == len(set(names)) == 34
    assert set(names) == with_weights


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_an_entry_says_what_its_recipe_says(entry: Released) -> None:
    """Protects from two truths: addresses, scores, title, family, data set and start weights agree."""
    recipe = RECIPES[entry.name]
    published = recipe.published
    assert published is not None
    assert (entry.url, entry.mirrors) == (published.checkpoint, published.checkpoint_mirrors)
    assert entry.logs[0] == published.log
    assert (entry.miou, entry.miou_flip, entry.miou_ms_flip) == (
        published.miou, published.miou_flip, published.miou_ms_flip
    )  # fmt: skip
    assert entry.score
    assert (entry.row, entry.model, entry.dataset) == (recipe.title, recipe.model.kind, recipe.data.kind)
    assert by_reference(recipe.backbone.weights) == by_name(entry.backbone)
    assert entry.format in FORMATS


def test_every_backbone_is_one_that_recipes_can_build() -> None:
    """Protects each backbone entry: its kind is one of the schema's, its stem follows from its name."""
    kinds = {recipe.backbone.kind for recipe in RECIPES.values()}
    assert {entry.backbone for entry in BACKBONES} <= kinds | {"resnet152"}
    wanted = {r.backbone.weights for r in RECIPES.values() if r.backbone.weights != "none"}
    assert all(by_reference(text) in BACKBONES for text in wanted)


def test_names_and_files_are_never_ambiguous() -> None:
    """Protects the flat cache: no file name, in any of its forms, means two things; all addresses are https."""
    files = [name for entry in released.released() for name in entry.files]
    assert len(files) == len(set(files))
    addresses = [url for e in released.released() for url in (e.url, *e.mirrors, *e.logs) if url]
    assert {urlsplit(url).scheme for url in addresses} == {"https"}
    assert len(addresses) == len(set(addresses))
    assert all(entry.url or entry.page for entry in released.released())
    assert all(file_name(e.url) == e.file for e in released.released() if e.url)


def test_nothing_claims_to_be_published_that_is_not() -> None:
    """Protects honesty: sizes and hashes are filled in only when an owner has published them, in full."""
    for entry in released.released():
        assert entry.sha256 == "" or len(entry.sha256) == 64
        assert (entry.size, entry.sha256) == (None, "")


def _resnet(stem: list[int], kind: str) -> Recipe:
    return load_recipe("voc_r50_d8", [f'backbone.kind="{kind}"', f"backbone.stem_channels={stem}"])


@pytest.mark.parametrize("name", ["voc_r50_d8", "ade20k_r101_d16", "mmseg_cityscapes_r50_d8_512x1024_80k"])
def test_the_least_size_is_that_of_the_network(name: str) -> None:
    """Protects the sizes that are shown: the tensors' own, rounded down to MB."""
    with torch.device("meta"):
        model = emaseg.build_model(RECIPES[name])
    assert by_name(name).megabytes == state_bytes(model) // 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_the_least_size_of_every_network(entry: Released) -> None:
    with torch.device("meta"):
        model = emaseg.build_model(RECIPES[entry.name])
    assert abs(entry.megabytes - state_bytes(model) / 1e6) < 2


@pytest.mark.parametrize("entry", BACKBONES, ids=lambda entry: entry.name)
def test_the_least_size_of_every_backbone(entry: Released) -> None:
    """Protects the same of backbones; a ViT's position embedding is smaller in the file than in our network."""
    by_kind: dict[str, type] = {"resnest101": ResNeStBackbone, "hrnetv2_w48": HRNetBackbone}
    if entry.backbone in by_kind or entry.backbone.startswith("vit"):
        wanted = by_kind.get(entry.backbone, ViTBackbone)
        recipe = next(r for r in RECIPES.values() if isinstance(r.backbone, wanted))
    else:
        stem = {"v1c": [32, 32, 64], "authors": [64, 64, 128]}.get(entry.name.partition("_")[2], [])
        recipe = _resnet(stem, entry.backbone)
        assert isinstance(recipe.backbone, ResNetBackbone)
        assert isinstance(recipe.model, EMANetModel)
    with torch.device("meta"):
        backbone = emaseg.build_model(recipe).backbone
    assert abs(entry.megabytes - state_bytes(backbone) / 1e6) < 3


def test_the_default_is_the_best_released_emanet_on_voc() -> None:
    voc = [entry for entry in NETWORKS if (entry.model, entry.dataset) == ("emanet", "voc")]
    assert released.default() == max(voc, key=lambda entry: entry.miou or 0.0)


def test_names_addresses_and_files_find_their_entry() -> None:
    """Protects backbone.weights: a name, the owner's address or a file name; the same file elsewhere is not it."""
    entry = by_name("resnet50_v1c")
    assert by_reference("resnet50_v1c") == by_reference(entry.url) == by_reference(entry.file) == entry
    assert by_reference(f"https://elsewhere.example/{entry.file}") is None
    assert by_reference("none") is None
    assert by_reference("") is None
    with pytest.raises(RecipeError) as caught:
        by_name("resnet50_v1d")
    assert 'did you mean "resnet50_v1c"?' in caught.value.hint


def test_golden_recipes_know_the_same_addresses() -> None:
    """Protects the addresses against the golden rows, which were read from the published tables on their own."""
    rows = json.loads((Path(__file__).parents[1] / "golden/recipes.json").read_text())
    text = json.dumps(rows)
    assert {e.url for e in NETWORKS if e.dataset == "voc"} <= {word for word in text.split('"') if "://" in word}
