"""Every tool's export of one scene becomes the same masks, and `init` and the start of training take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emaseg.convert import FORMATS
from emaseg.convert.formats import recognise
from emaseg.convert.source import scan
from tests.convert.made import CLASSES, EXPORTERS, ORDERED, SCENE, expected, masks, names, run
from tests.starter.made import data_of, dry_run, start


def test_every_format_has_an_exporter_here() -> None:
    """Protects from a format without a test."""
    assert {form for _, form in EXPORTERS.values()} == set(FORMATS)


@pytest.mark.parametrize("kind", EXPORTERS)
def test_one_scene_in_every_form(kind: str, tmp_path: Path) -> None:
    """Protects each reader: the format is recognised, classes have the same numbers, pixels are those of the tested
    painter, later objects on top (of separate masks the later class), and the result trains."""
    export, form = EXPORTERS[kind]
    root, out = tmp_path / "export", tmp_path / "out"
    root.mkdir()
    export(root, SCENE)
    assert recognise(scan(root), "")[0] is FORMATS[form]
    done = run(root, out)
    assert done.ok
    assert not done.left
    assert names(out) == ["background", *CLASSES]
    by_class = {image: sorted(objects, key=lambda one: CLASSES.index(one[0])) for image, objects in SCENE.items()}
    scene = SCENE if kind in ORDERED else by_class
    found = masks(out)
    assert set(found) == {"a", "b", "c"}
    for image, objects in scene.items():
        np.testing.assert_array_equal(found[image[0]], expected(objects), err_msg=f"{kind} {image}")
    drawn = form != "colours"  # which holds pixels, not objects
    assert [one.objects for one in done.classes[1:]] == [3, 2] if drawn else True
    assert [one.pixels for one in done.classes] == [sum(int((m == v).sum()) for m in found.values()) for v in range(3)]
    started = start(out)
    assert data_of(started).classes == ("background", *CLASSES)
    dry_run(started.text)
