"""Runs with a MemoryNet, small and real: training, resuming, evaluating, predicting, and two processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from emaseg.cli import main

from emaseg.checkpoint import load_weights
from emaseg.data.sets.build import build_dataset
from emaseg.evaluation.evaluate import evaluate
from emaseg.events import Evaluated, Finished
from emaseg.inference.predict import Predictor
from emaseg.models import Network, build_model
from emaseg.models.memory import ClassMemory
from emaseg.recipe import Recipe
from tests.helpers import equal, run, tiny

MODEL = (
    'model={kind="memorynet", channels=16, attention_channels=8, auxiliary_channels=8, memory_base_lr=0.05, '
    "aspp_dilations=[1, 2], memory_loss_weight=1.0}"
)


def memorynet(*overrides: str) -> Recipe:
    return tiny(MODEL, *overrides)


def trained(recipe: Recipe, folder: Path) -> tuple[Network, dict[str, torch.Tensor]]:
    """The network of a run's last checkpoint, and that checkpoint's state."""
    model = build_model(recipe)
    load_weights(model, folder / "checkpoints/last.pt")
    return model, {key: value.clone() for key, value in model.state_dict().items()}


def test_train_evaluate_predict(tmp_path: Path) -> None:
    """Protects the whole way: a run fills the memory of every class, and neither scoring nor predicting changes it."""
    recipe = memorynet()
    events = run(recipe, tmp_path / "run")
    assert isinstance(events[-1], Finished)
    model, before = trained(recipe, tmp_path / "run")
    assert (before["memory.features"].norm(dim=2) > 0).all()
    assert before["memory.age"].min() == 0
    assert (before["memory.age"] <= 11).all()

    dataset = build_dataset(recipe.data, "eval")
    backbone = recipe.backbone
    scored = list(evaluate(model, dataset, recipe.inference, backbone.pixel_stats, "cpu"))[-1]
    assert isinstance(scored, Evaluated)
    last = [e for e in events if isinstance(e, Evaluated)][-1]
    assert scored.scores == last.scores
    assert equal(before, model.state_dict())

    predictor = Predictor.from_weights(tmp_path / "run/checkpoints/last.pt")
    held = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    labels = predictor.predict(dataset.open(0).image()).labels
    assert labels.shape == dataset.open(0).label().shape
    assert labels.max() < 5
    assert torch.equal(held["network.memory.features"], before["memory.features"])
    assert equal(held, dict(predictor.model.state_dict()))


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Protects the promise for the memory too: stopped before or after its loss starts, no bit of last.pt changes."""
    run(memorynet(), tmp_path / "whole")
    for cut in (3, 7):
        run(memorynet(), tmp_path / f"{cut}", stop_after=cut)
        run(memorynet(), tmp_path / f"{cut}", resume=True)
        runs = (tmp_path / "whole", tmp_path / f"{cut}")
        whole, resumed = (torch.load(path / "checkpoints/last.pt", weights_only=True) for path in runs)
        assert equal(whole, resumed), cut


def test_a_loss_that_starts_later_leaves_its_cells_empty(tmp_path: Path) -> None:
    """Protects metrics.csv: one column for each loss from the start; the first mean counts only steps that had it."""
    run(memorynet("train.log_every=4", "train.evaluate_every=0"), tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert rows[0]["loss_memory"] == ""  # five steps an epoch, and the loss starts with the second
    parts = ("main", "coarse", "auxiliary")
    terms = [float(rows[1][f"loss_{name}"]) for name in parts]
    memory = float(rows[1]["loss_memory"])
    assert 1.0 < memory < 3.0  # of three steps of four; log 5 = 1.6
    assert float(rows[1]["loss"]) == pytest.approx(sum(terms) + 0.75 * memory, rel=1e-4)
    total = sum(float(rows[2][f"loss_{name}"]) for name in (*parts, "memory"))
    assert float(rows[2]["loss"]) == pytest.approx(total, rel=1e-4)


def test_a_run_tells_how_its_memory_is(tmp_path: Path) -> None:
    """Protects people from a memory that is never written for a class: each evaluation says so in the log."""
    run(memorynet("train.iterations=4", "train.evaluate_every=2"), tmp_path / "run")
    lines = [line for line in (tmp_path / "run/log.txt").read_text().splitlines() if "classes written" in line]
    assert len(lines) == 2
    assert all("steps since seen: median" in line for line in lines)


def test_eval_reports_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects `emaseg eval`: the memory's state stands below the scores and in metrics.json."""
    run(memorynet("train.iterations=2", "train.evaluate_every=0"), tmp_path / "run")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "5 of 5 classes written" in shown
    assert "row lengths" in shown
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert content["memory"]["never_written"] == []
    assert len(content["memory"]["per_class"]) == 5
    assert content["memory"]["age"]["max"] <= 1


# ------------------------------------------------------------------------------------------------- two processes
def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four images' coarse logits, features and labels; class 3 is in the last image alone, class 4 in none."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, 5, 6, dtype=torch.float64, generator=generator)
    pixels = torch.randn(4, 8, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (4, 20, 24), generator=generator)
    labels[3, :10] = 3
    labels[:, ::7] = 255
    return logits, pixels, labels


def learn(part: slice, steps: int = 3) -> ClassMemory:
    memory = ClassMemory(5, 8).double()
    for _ in range(steps):
        memory.read_and_update(*(x[part] for x in sample()), 0.7)
    return memory


def rank_main(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(learn(slice(2 * rank, 2 * rank + 2)).state_dict(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Protects the saved memory of a run on several processes: equal on every rank, and that of a single process."""
    mp.start_processes(rank_main, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(first, second)
    alone = learn(slice(0, 4)).state_dict()
    assert np.abs((first["features"] - alone["features"]).numpy()).max() < 1e-14
    assert torch.equal(first["age"], alone["age"])
    assert alone["age"].tolist() == [0, 0, 0, 0, -1]
