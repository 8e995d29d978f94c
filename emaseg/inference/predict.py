"""Predicting: a trained model and its recipe, pictures in, label maps out; predict_files.py writes files of many.

Room: inference; never torchvision. Legend: H W image height and width, K classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import os
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from emaseg.data.dataset import Pixels
from emaseg.data.files.bands import bands_of
from emaseg.data.label_sets import label_set
from emaseg.device import pick_device
from emaseg.engine import Engine
from emaseg.errors import DataError, RecipeError, need_type
from emaseg.free_memory import free_memory, give_back, is_out_of_memory, room
from emaseg.inference.attention_maps import AttentionMaps, attention_maps, attention_picture
from emaseg.inference.prediction import (
    Maps,
    Picture,
    Prediction,
    Wanted,
    check_limits,
    class_shares,
    names_of,
    pixels_of,
)
from emaseg.inference.protocols import (
    check_scored,
    fixed_size,
    label_and_confidence,
    label_and_probabilities,
    label_map,
)
from emaseg.inference.tiles import RESULT, SIDES, USUAL_PIXEL, Tiling, measured_need, tile_size, tiling, whole_need
from emaseg.recipe import Inference, Recipe
from emaseg.reference import device_for, open_engine, resolve
from emaseg.resources import expanded
from emaseg.runs.folder import find_run, pick_checkpoint
from emaseg.threads import read_ahead
from emaseg.weights.kind import check_kind

_WEIGHTS_SHARE = 0.25  # of the memory for images: more than that, weights which only save time do not get

UInt8 = npt.NDArray[np.uint8]


class Predictor:
    """A trained model together with its recipe: pictures in, label maps out.

    Several threads may share one made by `from_weights`; its network then works for one after the other.

    Attributes:
        classes: K names. palette: (K, 3) uint8 RGB, a colour for each class.
        model, recipe, device: as given; the model is in eval mode.
        bands: what the recipe declares of its images; None = 8-bit RGB.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device | str = "cpu",
        *,
        max_memory: int | None = None,
    ) -> None:
        """
        Args:
            max_memory: bytes that this process (on a GPU: the network) may hold; an image that would take more is
                predicted in tiles. None = nine tenths of what is free.

        Raises:
            RecipeError: an argument of the wrong type, no bytes at all, or no such device.
            SystemFault: this machine has none.
        """
        need_type("model", model, nn.Module, "a network; from a run or a file: Predictor.from_weights")
        need_type("recipe", recipe, Recipe, "what emaseg.load_recipe returns")
        if max_memory is not None:
            need_type("max_memory", max_memory, numbers.Real, "a number of bytes, such as 2_000_000_000")
            if max_memory < 1:
                raise RecipeError(f"max_memory: {max_memory} is not a number of bytes", "give at least 1")
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        self.max_memory = max_memory
        self._for_pixel: float | None = None  # what the network takes; measured when it matters
        self.model = model.to(self.device).eval()
        self.recipe = recipe
        self.bands = bands_of(recipe)
        labels = label_set(recipe.data)
        self.classes: tuple[str, ...] = labels.classes
        self.palette: UInt8 = labels.palette

    @classmethod
    def from_weights(
        cls, path: str | Path, *, recipe: Recipe | None = None, device: torch.device | str = "auto"
    ) -> Predictor:
        """A predictor of whatever the commands take as REF.

        Args:
            path: a run folder, a folder of runs, one of our checkpoints, an exported file, a recipe's name (its released
                weights, else its newest run), or with `recipe` weights of sssegmentation, mmsegmentation or the EMANet
                authors.
            recipe: what the weights belong to; may be left out where they carry theirs.

        Raises:
            RecipeError: an argument of the wrong type, or no such device.
            WeightsError: missing, damaged, of another model, or foreign and without a recipe.
        """
        need_type("path", path, (str, os.PathLike), "a run folder, a checkpoint, an exported file or a recipe's name")
        where = device if isinstance(device, torch.device) else pick_device(device)
        if recipe is None:
            resolved = resolve(os.fspath(path))
            where, _ = device_for(resolved, where, str(device))
            return cls(open_engine(resolved, where), resolved.recipe, where)
        from emaseg.checkpoint import load_network
        from emaseg.engine import prepare

        need_type("recipe", recipe, Recipe, "what emaseg.load_recipe returns")
        file = expanded(os.fspath(path))
        file = pick_checkpoint(find_run(file)[0]) if file.is_dir() else file
        check_kind(file)
        return cls(prepare(load_network(recipe, file), recipe.inference.precision, where), recipe, where)

    @overload
    def predict(
        self,
        image: Picture,
        *,
        confidence: bool = ...,
        probabilities: bool = ...,
        classes: Collection[str] = ...,
        min_confidence: float = ...,
        top_k: int | None = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        confidence: bool = ...,
        probabilities: bool = ...,
        classes: Collection[str] = ...,
        min_confidence: float = ...,
        top_k: int | None = ...,
    ) -> list[Prediction]: ...

    def predict(
        self,
        image: Picture | list[Any] | tuple[Any, ...],
        *,
        confidence: bool = False,
        probabilities: bool = False,
        classes: Collection[str] = (),
        min_confidence: float = 0.0,
        top_k: int | None = None,
    ) -> Prediction | list[Prediction]:
        """The label map of one picture, by the recipe's inference protocol; of a list of pictures, a list.

        Args:
            image: a file; a Pillow picture; an array or a tensor (H, W), (H, W, 3) or (H, W, 4), a tensor also
                (3, H, W), unless W is 1, 3 or 4: uint8, or floats in 0..1, in RGB order; (H, W, C) in the files'
                values where the recipe declares other channels. Or a list of them.
            confidence: also how sure the network is of each pixel.
            probabilities: also the probability of every class, 2 K H W bytes.
            classes: keep these only; all other pixels become 255. () keeps all.
            min_confidence: pixels of which the network is less sure become 255; 0..1.
            top_k: with `probabilities`, only those of each pixel's k most likely classes, 3 k H W bytes.

        Raises:
            DataError: a file cannot be read as an image, or an array is of another kind.
            RecipeError: a name in `classes` is none of this network's, a number is out of its range, or probabilities
                are asked of an exported file that gives class ids only.
            WeightsError: what the network gives for this image is NaN or infinite.
        """
        classes = names_of(classes)
        self.check_limits(classes, min_confidence, top_k)
        if top_k is not None and not probabilities:
            raise RecipeError(
                "top_k: keeps some of the probabilities, which are not asked for", "add probabilities=True"
            )
        wanted = Wanted(confidence or bool(min_confidence), probabilities, top_k)
        self.check_scored(confidence=confidence, probabilities=probabilities, min_confidence=min_confidence)
        if not isinstance(image, list | tuple):
            return self._predict(pixels_of(image, self.bands), wanted, classes, min_confidence)
        # The next file is read while the network is at work.
        pictures = read_ahead(partial(pixels_of, bands=self.bands), image)
        return [self._predict(p, wanted, classes, min_confidence) for p in pictures]

    def bases(self, image: Picture, iterations: int | None = None) -> AttentionMaps:
        """How much each base of an EMANet is responsible for each part of a picture, at every EM iteration; of a
        MemoryNet, by what weight each part reads the row of each class.

            maps = predictor.bases("photo.jpg")
            maps.values  # (T, M, h, w); the sums over M are 1

        Args:
            image: as for `predict`. iterations: T; None = as many as the network runs.

        Raises:
            DataError: as `predict`, or the image does not fit into memory. RecipeError: the network is an exported file.
        """
        stats, protocol = self.recipe.backbone.pixel_stats, self.recipe.inference
        pixels = pixels_of(image, self.bands)
        with self._undivided(pixels):
            return attention_maps(self.model, pixels, protocol, stats, self.device, self.classes, iterations)

    def bases_picture(self, image: Picture, choice: int | Sequence[int], iterations: int | None = None) -> Image.Image:
        """The maps of `bases` as one picture: of the `choice` most used bases, or of those listed, counted from 0."""
        stats, protocol, labels = self.recipe.backbone.pixel_stats, self.recipe.inference, label_set(self.recipe.data)
        pixels = pixels_of(image, self.bands)
        with self._undivided(pixels):
            return attention_picture(self.model, pixels, protocol, stats, self.device, labels, choice, iterations)

    def check_limits(self, classes: Collection[str], min_confidence: float, top_k: int | None = None) -> None:
        """RecipeError for what `predict` would refuse."""
        check_limits(self.classes, classes, min_confidence, top_k)

    def check_scored(self, *, confidence: bool, probabilities: bool, min_confidence: float) -> None:
        """RecipeError where `predict` is asked for probabilities that an exported file does not give."""
        asked = {"probabilities": probabilities, "confidence": confidence, "min_confidence": min_confidence}
        for name, given in asked.items():
            if given:
                check_scored(self.model, name)

    def _predict(self, pixels: Pixels, wanted: Wanted, classes: Collection[str], least: float) -> Prediction:
        tiles, (labels, sure, every, ranks) = self._maps(pixels, wanted)
        height, width = labels.shape
        prediction = Prediction(
            labels,
            class_shares(labels, self.classes),
            width,
            height,
            confidence=sure,
            probabilities=every,
            indices=ranks,
            classes=self.classes,
            palette=self.palette.copy(),  # a caller may change it
            image=pixels,
            tiles=None if tiles is None else str(tiles),
        )
        return prediction.limited(classes, least) if classes or least else prediction

    def _maps(self, pixels: Pixels, wanted: Wanted) -> tuple[Tiling | None, Maps]:
        """What is wanted of an image, whole or, where it does not fit into memory, in tiles.

        Raises:
            DataError: not even a small tile fits.
        """
        most, size = SIDES[0], (pixels.shape[0], pixels.shape[1])
        self._check_kept(size, wanted)
        while True:
            tiles = self._tiling(size, most, wanted)
            try:
                return tiles, self._whole(pixels, wanted) if tiles is None else self._tiled(pixels, tiles, wanted)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if most <= SIDES[-1] or fixed_size(self.model, self.recipe.inference):
                    raise DataError(
                        f"out of memory with an image of {size[1]} x {size[0]} pixels",
                        "use a smaller image, or free memory",
                    ) from error
            self._for_pixel = self._for_pixel or float(USUAL_PIXEL)
            most = max(SIDES[-1], most // 2)
            give_back()

    def _tiling(self, size: tuple[int, int], most: int, wanted: Wanted) -> Tiling | None:
        """How an image of (H, W) must be divided; None where it fits whole. most: pixels of a tile's side, SIDES[0] unless
        memory has run out before."""
        protocol = self.recipe.inference
        kept = wanted.bytes_kept(size, len(self.classes)) if self.device.type == "cpu" else 0
        if fixed_size(self.model, protocol) or (most == SIDES[0] and self._fits(size, protocol, kept)):
            return None
        space = self._room()  # None: this system does not say, and memory has run out with larger tiles
        budget = math.inf if space is None else space - RESULT * size[0] * size[1] - kept
        tiles = tiling(size, protocol, budget, self._for_pixel or float(USUAL_PIXEL), most)
        return tiles if len(tiles.boxes) > 1 else None

    def _fits(self, size: tuple[int, int], protocol: Inference, kept: int = 0) -> bool:
        """Whether there is room for an image of (H, W), whole. What the network takes is measured before that is denied.

        Args:
            kept: bytes that are held beside it.
        """
        for measured in (False, True):
            if measured:
                give_back()
                channels = self.recipe.backbone.in_channels
                self._for_pixel = self._for_pixel or measured_need(self.model, self.device, channels)
            space = self._room()
            need = whole_need(size, protocol, len(self.classes), self._for_pixel or float(USUAL_PIXEL))
            if space is None or need + kept <= space:
                return True
        return False

    def _check_kept(self, size: tuple[int, int], wanted: Wanted) -> None:
        """
        Raises:
            DataError: there is no room for the probabilities, which are held whole.
        """
        kept, free = wanted.bytes_kept(size, len(self.classes)), free_memory()
        if free is not None and kept > free:
            raise DataError(
                f"out of memory: the probabilities of {size[1]} x {size[0]} pixels take {kept / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free",
                "keep fewer of them with --top-k 3, use a smaller image, or free memory",
            )

    @contextlib.contextmanager
    def _undivided(self, pixels: Pixels) -> Iterator[None]:
        """Within the block the network sees an image whole, once.

        Raises:
            DataError: it does not fit into memory.
        """
        size = (pixels.shape[0], pixels.shape[1])
        once = dataclasses.replace(self.recipe.inference, mode="whole", scales=(1.0,), flip=False)
        too_large = DataError(
            f"bases are shown of an image as a whole, and one of {size[1]} x {size[0]} pixels does not fit into memory",
            "use a smaller image, leave --bases out, or give it more with --max-memory",
        )
        if not self._fits(size, once):
            raise too_large
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise too_large from error
            raise

    def _room(self) -> int | None:
        """Bytes that an image may take, less the weights that the first large one adds. Where those would take much of it,
        the network does without them."""
        space = room(self.device, self.max_memory)
        if space is None or not isinstance(self.model, Engine):
            return space
        if self.model.bytes_to_come() > _WEIGHTS_SHARE * space:
            self.model.save_memory()
        return space - self.model.bytes_to_come()

    def _tiled(self, pixels: Pixels, tiles: Tiling, wanted: Wanted) -> Maps:
        """Each tile's results without its margins."""
        size = (pixels.shape[0], pixels.shape[1])
        whole = wanted.empty(size, len(self.classes))
        for tile, kept in tiles.boxes:
            part = pixels[tile[0] : tile[0] + tile[2], tile[1] : tile[1] + tile[3]].copy()
            found = self._whole(part, wanted, tile_size(tile, size, self.recipe.inference))
            top, left = kept[0] - tile[0], kept[1] - tile[1]
            for own, one in zip(whole, found, strict=True):
                if own is not None and one is not None:
                    place = own[..., kept[0] : kept[0] + kept[2], kept[1] : kept[1] + kept[3]]
                    place[...] = one[..., top : top + kept[2], left : left + kept[3]]
        return whole

    def _whole(self, pixels: Pixels, wanted: Wanted, resized: tuple[int, int] | None = None) -> Maps:
        """resized: as for `label_map`."""
        protocol, stats = self.recipe.inference, self.recipe.backbone.pixel_stats
        if wanted.probabilities:
            count, ranked = wanted.top_k or len(self.classes), wanted.top_k is not None
            return label_and_probabilities(self.model, pixels, protocol, stats, self.device, count, ranked, resized)
        if wanted.confidence:
            return *label_and_confidence(self.model, pixels, protocol, stats, self.device, resized), None, None
        return label_map(self.model, pixels, protocol, stats, self.device, resized), None, None, None
