"""The forecast of several processes: its formula, and what a dry run shows of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from emaseg.errors import RecipeError
from emaseg.events import Forecast, Measuring, Planned
from emaseg.models import build_model
from emaseg.training.dry_run import dry_run
from emaseg.training.scaling import LINKS, RANKS, Link, Message, Traffic, efficiency, traffic
from tests.helpers import TINY, emaseg, tiny

CPU = torch.device("cpu")
SMALL = ("augment.crop=[8, 8]", "data.size=[16, 16]")  # one value a crop for each channel of a norm


def test_the_formula() -> None:
    """Protects the docstring's formula, worked out by hand: a message of 1 MB summed over 4 ranks at 1 GB/s and 1 ms."""
    link = Link("slow", 1e9, 1e-3)
    message = 2 * 3 / 4 * 1e6 / 1e9 + 2 * 2 * 1e-3
    hidden = 2 * 2 * 1e-3  # of an empty gradient: one piece is never hidden
    sent = Traffic((Message("bases", 1_000_000),), 0)
    assert efficiency(1.0, sent, 4, link) == pytest.approx(1 / (1 + message + hidden))
    gathered = Traffic((Message("norms", 1_000_000, gathered=True),), 0)
    assert efficiency(1.0, gathered, 4, link) == pytest.approx(1 / (1 + 3 * 1e6 / 1e9 + 2 * 1e-3 + hidden))


def test_a_gradient_hides_behind_the_backward_pass() -> None:
    """Protects large networks from a forecast that waits for every byte: only what is longer than 2/3 of a step counts."""
    link = Link("link", 1e9, 0.0)
    sent = Traffic((), 100 * 25 * 2**20)
    whole = 2 * 1 / 2 * sent.gradient / link.bandwidth
    assert efficiency(10.0, sent, 2, link) == pytest.approx(10 / (10 + whole / 100))
    assert efficiency(1.0, sent, 2, link) == pytest.approx(1 / (1 + whole - 2 / 3))


def test_slower_links_and_more_ranks_cost_more() -> None:
    sent = traffic(build_model(tiny()), tiny())
    shares = [[efficiency(0.1, sent, ranks, link) for ranks in RANKS] for link in LINKS]
    assert all(row == sorted(row, reverse=True) for row in shares)
    assert all(column == sorted(column, reverse=True) for column in map(list, zip(*shares, strict=True)))
    assert all(0 < share < 1 for row in shares for share in row)


def test_norms_that_are_not_shared_send_nothing() -> None:
    alone = tiny('model.norm="batch"')
    assert not [m for m in traffic(build_model(alone), alone).messages if m.part == "norms"]


def test_a_dry_run_measures_one_ranks_share() -> None:
    """Protects `--dry-run --nproc 2`: half of the batch is measured, and the efficiencies come last."""
    events = list(dry_run(tiny(), device=CPU, ranks=2))
    assert max(event.crops for event in events if isinstance(event, Measuring)) == 2
    forecast = next(event for event in events if isinstance(event, Forecast))
    assert forecast.fits
    last = events[-1]
    assert isinstance(last, Planned)
    lines = dict(last.lines)
    assert {"ranks send", "messages", "over NVLink", "over 100 Gb/s", "over 10 Gb/s"} == set(lines)
    assert all("on 64 ranks" in lines[f"over {link.name}"] for link in LINKS)


def test_a_dry_run_refuses_what_ranks_cannot_share() -> None:
    with pytest.raises(RecipeError, match="cannot be shared by 3 processes"):
        list(dry_run(tiny(), device=CPU, ranks=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train.batch=6", "train.accumulate=2"), "parts cannot be made of 3 images"),
        (("train.batch=2", 'model.norm="batch"', *SMALL), "of 2 processes, leaves one value"),
    ],
)
def test_a_dry_run_refuses_what_the_training_refuses(options: tuple[str, ...], message: str) -> None:
    """Protects from a forecast of a run that cannot start: parts and norms are checked for one rank's share."""
    with pytest.raises(RecipeError, match=message):
        list(dry_run(tiny(*options), device=CPU, ranks=2))


def test_a_dry_run_measures_parts_that_one_rank_can_compute_alone() -> None:
    """Protects norms over two ranks with one crop in each part: a training can, and so must its forecast."""
    events = list(dry_run(tiny("train.accumulate=2", 'model.norm="sync"', *SMALL), device=CPU, ranks=2))
    assert max(event.crops for event in events if isinstance(event, Measuring)) == 4
    assert next(event for event in events if isinstance(event, Forecast)).fits


@pytest.mark.parametrize("number", [0, 1])
def test_a_dry_run_of_a_launcher_is_rank_0s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Protects `torchrun ... --dry-run` from ranks that wait for one that has ended, and from one process's forecast."""
    command = importlib.import_module("emaseg.cli.train")
    asked: list[object] = []

    def forecast(*arguments: object) -> int:
        asked.append(arguments[-1])
        return 0

    monkeypatch.setattr(command, "_dry_run", forecast)
    monkeypatch.setattr(command, "_follow", lambda *_: pytest.fail("waits for rank 0"))
    surroundings = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": number, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in surroundings.items():
        monkeypatch.setenv(name, str(value))
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    code, out, _ = emaseg(capsys, "train", path, "--dry-run")
    assert (code, out, asked) == (0, "", [2] if number == 0 else [])
