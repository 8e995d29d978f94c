"""Images that are trained on and evaluated are told wherever a training begins: by `init` and at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from emaseg.data.sets.build import build_dataset
from emaseg.data.sets.shared_images import shared_images
from emaseg.open_datasets import open_datasets
from tests.data.sets.test_folder import data
from tests.starter.made import dry_run, grey, made, start


def test_lists_that_share_names(tmp_path: Path) -> None:
    """Protects the scores: val.txt names what train.txt names, which only check-data said."""
    made(tmp_path, grey(0, 1), count=6)
    names = sorted(path.stem for path in (tmp_path / "images").iterdir())
    (tmp_path / "train.txt").write_text("\n".join(names[:4]))
    (tmp_path / "val.txt").write_text("\n".join(names[3:]))
    started = start(tmp_path)
    words = "1 of the 3 images that are evaluated are trained on, too"
    assert any(words in note and names[3] in note for note in started.notes)
    assert [note.warning for note in open_datasets(dry_run(started.text))[2] if words in note.text] == [True]


@pytest.mark.parametrize(("evaluated", "told"), [("images/val", 2), ("images", 0), ("other", 0)])
def test_folders_within_folders(evaluated: str, told: int, tmp_path: Path) -> None:
    """A folder is read with its sub-folders. One folder for both phases, as the demo has, is no mistake."""
    made(tmp_path, grey(0, 1), count=4)
    for folder in ("val", "other"):
        made(tmp_path / "x", grey(0, 1), image=f"images/{folder}/{{}}.jpg", mask=f"masks/{folder}/{{}}.png", count=2)
    for kind in ("images", "masks"):
        (tmp_path / "x" / kind / "val").rename(tmp_path / kind / "val")
        (tmp_path / "x" / kind / "other").rename(tmp_path / f"other{'_masks' * (kind == 'masks')}")
    masks = {"images": "masks", "images/val": "masks/val", "other": "other_masks"}[evaluated]
    section = data(tmp_path, train_images="images", train_masks="masks", eval_images=evaluated, eval_masks=masks)
    doubt = shared_images(build_dataset(section, "train"), build_dataset(section, "eval"))
    assert (doubt is not None) == bool(told)
    assert doubt is None or doubt.message.startswith(f"{told} of the 2 images")
