"""report.html: a whole file that needs no other, whose text is text, and whose failure costs nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from emaseg.data.label_sets import voc_colours
from emaseg.evaluation.evaluate import Comparison, protocol
from emaseg.events import Evaluated, Finished, Note
from emaseg.metrics import Tally, details_of
from emaseg.metrics.examples import BEST, WORST, Examples
from emaseg.recipe import Recipe, load_recipe
from emaseg.report import run as report
from emaseg.report.charts import Line, chart
from emaseg.report.confusion import matrix
from emaseg.report.history import History, read_history
from emaseg.report.sections import Result
from emaseg.training.train import train
from tests.helpers import emaseg, run, tiny

UInt8 = npt.NDArray[np.uint8]
HOSTILE = (
    '<script>alert("x")</script>',
    "'\"><img src=x onerror=alert(1)>",
    "naïve 🦔 & co",
    "line\nbreak \x1b[31m\u202e",
)


def parsed(page: str) -> ET.Element:
    """The page as XML: it must be well-formed, every element closed and every attribute quoted."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page.partition("\n")[2])


def tags(page: str) -> set[str]:
    return {element.tag.rpartition("}")[2] for element in parsed(page).iter()}


def result(classes: int, images: int = 3, names: tuple[str, ...] = (), seed: int = 0, side: int = 40) -> Result:
    """An evaluation of made-up maps."""
    rng = np.random.default_rng(seed)
    named = (*names, *(f"class {k}" for k in range(len(names), classes)))
    tally = Tally.empty(classes, calibrated=True)
    for index in range(images):
        label = np.kron(rng.integers(0, classes, (4, 5)), np.ones((side // 4, side // 4))).astype(np.uint8)
        label[:3] = 255
        prediction = np.where(rng.random(label.shape) < 0.7, label, rng.integers(0, classes, label.shape)).astype(
            np.uint8
        )
        prediction[label == 255] = 0
        image = rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8)
        name = names[index % len(names)] if names else f"images/{index}.jpg"
        tally.add(index, name, label, prediction, rng.random(label.shape).astype(np.float32), image)
    scores = tally.scores(named)
    return Result(
        scores, details_of(tally), tally, named, voc_colours(classes), Comparison(0.5), "own size; whole", [("a", names[0] if names else "b")]
    )  # fmt: skip


def page_of(recipe: Recipe, found: Result | None, name: str = "run") -> str:
    history = History(
        losses={"loss": [(1.0, 2.0), (9.0, 0.5)], "loss_main": [(1.0, 1.5), (9.0, 0.4)]},
        mious=[(5.0, 0.25), (9.0, 0.5)],
        starts=[{"started": "now", "command": ["emaseg", "train", HOSTILE[0]], "packages": {"torch": "2"}}],
    )
    return report.run_page(recipe, found, history, name, 9)


@pytest.mark.parametrize("classes", [2, 21, 59, 171])
def test_a_page_is_well_formed_small_and_asks_for_nothing(classes: int) -> None:
    """At the class counts of the published sets: no script, no request, no second file, under 3 MB."""
    page = page_of(tiny(), result(classes, images=8, side=200))
    assert tags(page) & {"script", "link", "iframe", "object"} == set()
    assert "default-src 'none'" in page
    assert all(match.startswith("data:") for match in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert len(page.encode()) < 3 << 20
    shown = "".join(parsed(page).itertext())
    assert all(f"class {k}" in shown for k in range(classes))
    assert "published mIoU" in shown


def test_text_from_outside_is_text() -> None:
    """Names of classes, images and runs, the recipe and the command: shown letter by letter, never obeyed."""
    recipe = replace(tiny(), title=HOSTILE[0], name="x</title><script>")
    page = page_of(recipe, result(4, names=HOSTILE), HOSTILE[1])
    assert tags(page) & {"script"} == set()
    allowed = {"img", "i", "b"}
    assert not {tag for tag in tags(page) if tag.startswith("on")}
    for element in parsed(page).iter():
        assert not [name for name in element.attrib if name.startswith("on")], element.tag
        assert element.tag.rpartition("}")[2] not in allowed or "x" not in element.attrib.get("src", "data:")[:5]
    shown = "".join(parsed(page).itertext())
    for text in HOSTILE[:3]:
        assert text in shown
    assert "line\\nbreak \\x1b[31m\\u202e" in shown


def test_steps_have_all_of_their_digits() -> None:
    """Protects the step of the best score and the axis of a long run from 1.23457e+06."""
    history = History(mious=[(500_000.0, 0.25), (1_234_567.0, 0.5)])
    shown = "".join(parsed(report.run_page(tiny(), result(2), history, "run", 1_234_567)).itertext())
    assert "50.00 after step 1,234,567" in shown
    assert "measured, step 1,234,567: 50" in shown
    assert "1,000,000" in shown
    assert "e+0" not in shown
    assert "0.5" in chart("Loss", [Line("a", [(0.0, 1.0), (2.0, 2.0)])])


def test_a_run_on_other_images_stands_alone() -> None:
    """Protects the page of a run from a published score beside images that are not the table's, as `emaseg eval` does."""
    made = result(21)
    evaluated = Evaluated(made.scores, 9, tally=made.tally)
    found = report.result_of(load_recipe("voc_r50_d8"), evaluated, made.classes, made.palette)
    assert found is not None
    assert found.comparison == Comparison(None, "not comparable: 3 images, where the table's are 1,449")


def test_a_run_is_scored_in_float32() -> None:
    """Protects the page of a run from a precision that its evaluations did not have."""
    made = result(5)
    recipe = tiny("inference.precision=bf16")
    found = report.result_of(recipe, Evaluated(made.scores, 9, tally=made.tally), made.classes, made.palette)
    assert found is not None
    assert found.protocol == protocol(tiny().inference) != protocol(recipe.inference)


def test_a_page_without_scores_and_without_history_is_a_page() -> None:
    page = report.run_page(tiny(), None, History(), "", None)
    assert "nothing is scored" in "".join(parsed(page).itertext())


def test_damaged_run_folders_give_what_they_have(tmp_path: Path) -> None:
    """Torn rows, other texts and broken JSON are left out."""
    assert read_history(tmp_path) == History()
    (tmp_path / "metrics.csv").write_text("step,epoch,lr,loss,miou\n1,1,0.1,2.5,\nx,1\n4,1,0.1,,0.25\n5,1,0.1,nan,\n6,")
    (tmp_path / "env.json").write_text("{")
    history = read_history(tmp_path)
    assert history.mious == [(4.0, 0.25)]
    assert history.losses["loss"][0] == (1.0, 2.5)
    assert "nan" not in chart("Loss", [Line("a", history.losses["loss"])])
    assert chart("Loss", [Line("a", [])]) == ""


@pytest.mark.parametrize("end", ["\0" * 300, '5,1,0.1,"' + "x" * 140_000, "\x1a\r5,1,0.1,2.0,0.1"])
@pytest.mark.parametrize("step", ["inf", "nan", "1e999", "-1", "1e200"])
def test_a_damaged_table_costs_its_damaged_rows_only(step: str, end: str, tmp_path: Path) -> None:
    """Protects an evaluation that is done from ending as a bug where its page is drawn: of a disk that lost a block."""
    rows = f"1,1,0.1,2.5,0.25\n{step},1,0.1,1.5,0.5\n2,1,0.1,1e300,7\n3,1,0.1,-inf,nan\n4,1,0.1,2.0,0.125\n"
    (tmp_path / "metrics.csv").write_text(f"step,epoch,lr,loss,miou\n{rows}{end}", newline="")
    history = read_history(tmp_path)
    assert history.best == (1.0, 0.25)
    assert history.losses["loss"][:2] == [(1.0, 2.5), (4.0, 2.0)]
    page = report.run_page(tiny(), None, history, "", None)
    assert 'd="M' in page
    parsed(page)


@pytest.mark.parametrize(
    "values",
    [
        *([3.0], [0.0, 0.0], [1e-9, 1e9], [-5.0, 5.0], [0.0, 5e-324], [1e-320], [-1e100, 1e100]),
        *([1.0, float("inf"), float("nan"), 1e308, -1e308], [1e16, 1e16 + 2], [1.0, 1.0 + 2**-52], [0.0, 1e-20]),
    ],
)
def test_every_line_can_be_drawn(values: list[float]) -> None:
    """A single point, a constant, nine orders of magnitude: inside the axes, in few ticks."""
    drawn = chart("x", [Line("<a>", [(float(step), value) for step, value in enumerate(values)])])
    ET.fromstring(drawn)
    assert 2 <= drawn.count("text-anchor='end'") + drawn.count('text-anchor="end"') <= 12


def test_the_matrix_shows_rows_in_percent_sorted_by_pixels() -> None:
    counts = np.array([[1, 0, 1, 0], [0, 6, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    svg = ET.fromstring(matrix(counts, ("rare", "often", "only predicted", "absent")))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text") if element.text]
    titles = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert titles[::2] == ["often", "rare", "only predicted"]
    assert texts == ["75", "25", "50", "50"]


def test_the_worst_and_the_best_are_kept_whatever_the_order() -> None:
    """And in parts, which are merged, the same ones; copies are small."""
    mious = np.random.default_rng(0).permutation(40) / 40
    image, label = np.zeros((700, 500, 3), np.uint8), np.zeros((700, 500), np.uint8)

    def kept(indices: list[int]) -> Examples:
        examples = Examples()
        for index in indices:
            examples.add(index, str(index), float(mious[index]), image, label, label)
        return examples

    whole, parts = kept(list(range(40))), kept(list(range(0, 40, 2)))
    parts.merge(kept(list(range(1, 40, 2))))
    order = np.argsort(mious)
    assert [e.index for e in whole.worst] == [e.index for e in parts.worst] == order[:WORST].tolist()
    assert [e.index for e in whole.best] == [e.index for e in parts.best] == order[::-1][:BEST].tolist()
    assert whole.worst[0].image.shape[:2] == whole.worst[0].label.shape == (234, 167)


# --------------------------------------------------------------------------------------------------- in a run
def test_training_and_eval_write_the_runs_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After each evaluation of a training, and after `emaseg eval`, which leaves one beside its metrics.json, too."""
    root = tmp_path / "run"
    seen = []
    for event in train(tiny(), root):
        if isinstance(event, Evaluated):
            seen.append((root / "report.html").is_file())
    assert seen == [False, True, True]  # told before the page is written
    page = (root / "report.html").read_text()
    shown = "".join(parsed(page).itertext())
    for words in ("Loss", "mIoU in percent", "Worst images", "shapes/eval/0000", "The whole recipe", "iterations = 12"):
        assert words in shown
    assert emaseg(capsys, "eval", root, "--device", "cpu", "-q")[0] == 0
    (beside,) = root.glob("eval/*/report.html")
    again = (root / "report.html").read_text()
    assert again != page
    assert "".join(parsed(again).itertext()).count("mIoU in percent") == 2  # title and its tooltip: the curves stay
    assert beside.is_file()


def test_a_page_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with it is one line of warning; the run is complete."""

    def broken(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(report, "run_page", broken)
    events = run(tiny(), tmp_path / "run")
    assert isinstance(events[-1], Finished)
    notes = [event.text for event in events if isinstance(event, Note) and event.warning]
    assert [note for note in notes if note.endswith("could not be written (ValueError: no ink)")]
    assert "no ink" in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/samples.png").is_file()
