"""The forecast before a training: it leaves nothing, measures the training's own step, and cannot hurt the machine."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emaseg.errors import RecipeError
from emaseg.events import DryRunEvent, Forecast, Measuring, Note, Planned
from emaseg.free_memory import allocation_limit, free_memory, is_out_of_memory
from emaseg.models import build_model
from emaseg.recipe import Recipe
from emaseg.training import dry_run as engine
from emaseg.training.dry_run import dry_run
from tests.helpers import TINY, emaseg, run, tiny

pytestmark = pytest.mark.usefixtures("few_objects")

CPU = torch.device("cpu")


def forecast(recipe: Recipe, **arguments: Path) -> tuple[dict[str, str], list[DryRunEvent]]:
    """All label and value pairs, and the events."""
    events = list(dry_run(recipe, device=CPU, **arguments))
    pairs = [pair for event in events if isinstance(event, Planned | Forecast) for pair in event.lines]
    return dict(pairs), events


def measured(events: list[DryRunEvent]) -> list[int]:
    """The crops of each measured step of the recipe itself."""
    return [event.crops for event in events if isinstance(event, Measuring) and not event.recomputed]


def last(events: list[DryRunEvent]) -> Forecast:
    assert isinstance(events[-1], Forecast)
    return events[-1]


def test_it_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects --dry-run: a plan with measured time, values as TOML writes them, and an untouched folder."""
    monkeypatch.chdir(tmp_path)
    plan, events = forecast(tiny())
    assert Note('backbone: untrained (backbone.weights = "none")') in events
    assert plan["steps"] == "12 (5 an epoch, 2.4 epochs)"
    assert "20 training, 4 evaluation" in plan["data"]
    assert "s measured" in plan["one step"]
    assert plan["peak memory"].split(" measured")[1].startswith("; fits")
    assert list(tmp_path.iterdir()) == []


def test_the_plan_comes_before_anything_is_measured() -> None:
    """Protects from a long silence: notes, then the plan, then one crop, two, and the whole batch."""
    _, events = forecast(tiny())
    kinds = [type(event) for event in events]
    assert kinds.index(Planned) < kinds.index(Measuring)
    assert measured(events) == [1, 2, 4]


def test_it_measures_the_step_of_the_training() -> None:
    """Protects the forecast from a step of its own: both verbs call the one training step."""
    modules = [importlib.import_module(f"emaseg.training.{name}") for name in ("train", "follow", "dry_run", "step")]
    assert len({module.training_step for module in modules}) == 1


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_small_batches(batch: int) -> None:
    """Protects batches that leave nothing to extrapolate from."""
    _, events = forecast(tiny(f"train.batch={batch}"))
    assert measured(events) == list(range(1, batch + 1))
    assert last(events).fits


def test_a_norm_layer_with_one_value_for_a_channel_is_measured_with_two_crops() -> None:
    """Protects networks that average each image to one pixel, and tiny crops: a batch of one would be an error."""
    _, events = forecast(tiny("augment.crop=[8, 8]", "data.size=[16, 16]"))
    assert measured(events) == [2, 3, 4]
    with pytest.raises(RecipeError, match="one value"):
        forecast(tiny("train.batch=1", "augment.crop=[8, 8]", "data.size=[16, 16]"))


def test_a_batch_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the machine: memory follows from two small steps, and the answer names the batch that would fit."""
    sizes = "augment.crop=[192, 192]", "data.size=[192, 192]", "backbone.width=16"
    _, events = forecast(tiny(*sizes, "train.batch=2"))
    two = last(events).needed
    assert two is not None
    # room for some crops more, whatever the tests before have left in this process
    monkeypatch.setattr(engine, "device_memory", lambda device: two + 150_000_000)
    monkeypatch.setattr(engine, "allocation_limit", lambda more: allocation_limit(None))
    wide = tiny(*sizes, "train.batch=20")
    plan, events = forecast(wide)
    assert measured(events) == [1, 2]
    found = last(events)
    assert found.fits is False
    assert not found.measured
    assert found.needed is not None
    assert found.available is not None
    assert found.needed > found.available
    assert found.remedy.startswith("--set train.")
    assert found.remedy == next(way.options for way in found.less_memory if way.fits)
    assert plan["would fit"] == found.remedy
    assert plan["peak memory"].startswith("does not fit: needs about ")
    assert "from steps with 1 and 2 crops" in plan["one step"]


def test_ranks_on_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects `--dry-run --nproc N` from a forecast that gives each process the whole machine's memory, and a dry run
    under a launcher from one that shares a machine's among the processes of all."""
    monkeypatch.setattr(engine, "device_memory", lambda device: 64 << 30)
    events = list(dry_run(tiny(), device=torch.device("cpu"), ranks=2))
    (found,) = [event for event in events if isinstance(event, Forecast)]
    assert found.available == 32 << 30
    launched = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    (found,) = [e for e in dry_run(tiny(), device=torch.device("cpu"), ranks=4) if isinstance(e, Forecast)]
    assert found.available == 64 << 30


def test_ways_that_need_less_memory_are_named() -> None:
    """Protects the choice between them: recomputed first, which changes nothing, then in parts; estimated, with options."""
    plan, events = forecast(tiny("augment.crop=[128, 128]", "data.size=[128, 128]", "backbone.width=16"))
    recomputed, parts = last(events).less_memory
    assert max(recomputed.needed, parts.needed) < (last(events).needed or 0)
    assert (recomputed.options, recomputed.fits) == ("--set train.recompute=true", True)
    assert (parts.options, parts.fits) == ("--set train.accumulate=2", True)
    assert plan["recomputed"].endswith("would fit; --set train.recompute=true, same result")
    assert plan["in parts"].endswith("would fit; --set train.accumulate=2")
    assert [e.crops for e in events if isinstance(e, Measuring) and e.recomputed] == [1, 2]


def test_a_recipe_that_has_them_is_measured_with_them() -> None:
    """Protects the forecast of a recipe with train.recompute and train.accumulate: its own step, and what is left to do."""
    # large enough that what a part saves is more than what measured memory varies by
    size = ("augment.crop=[128, 128]", "data.size=[128, 128]", "backbone.width=16")
    _, events = forecast(tiny("train.recompute=true", "train.accumulate=2", *size))
    assert measured(events) == [1, 2, 4]
    assert last(events).fits
    assert [way.options for way in last(events).less_memory] == ["--set train.accumulate=4"]


def test_the_first_way_that_fits_is_proposed() -> None:
    """Protects people without the memory: recomputing is proposed before parts, parts before a smaller batch."""
    recipe = tiny("train.batch=8")
    run = engine._Run(recipe, CPU, build_model(recipe), *[None] * 3, 0, None)  # type: ignore[arg-type]
    probes = [engine._Probe(crops, 100_000_000 + crops * 100_000_000, 1.0, True) for crops in (1, 2)]
    remedy = engine._remedy(run, 1, probes, 600_000_000)
    with pytest.raises(StopIteration) as caught:
        next(remedy)
    assert caught.value.value == "--set train.batch=4"
    assert engine._needed(run, probes, 1) == 900_000_000
    assert engine._needed(run, probes, 4) == pytest.approx(300_000_000, rel=0.01)
    assert not engine._way("--set train.recompute=true", 700_000_000, 600_000_000).fits
    assert engine._way("--set train.accumulate=2", 500_000_000, 600_000_000).fits


LARGE = """
import emaseg.free_memory
from tests.helpers import tiny
from tests.training.test_dry_run import forecast, last

emaseg.free_memory.free_memory = lambda: 150 * 2**20
plan, events = forecast(tiny("augment.crop=[1024, 1024]", "data.size=[1024, 1024]", "train.batch=2", "data.train_images=2"))
found = last(events)
print(found.fits, found.remedy, plan["peak memory"], sep="\\n")
"""


@pytest.mark.skipif(free_memory() is None, reason="the limit is Linux's")
@pytest.mark.slow
def test_a_crop_that_does_not_fit_is_refused_and_a_smaller_one_named() -> None:
    """Protects from the system's killing this process: under the limit the first step fails, and half a crop does not.

    In a process of its own: memory that other tests have freed is still this process's, and would do for the step.
    """
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    fits, remedy, peak = done.stdout.splitlines()
    assert fits == "False"
    assert remedy.startswith(("--set train.batch=1 --set 'augment.crop=[", "--set train.recompute=true"))
    assert peak.startswith("does not fit: needs more than the ")


def test_half_a_crop_is_on_the_same_grid() -> None:
    """Protects the search for a crop that fits: it ends, and keeps sides of 8k + 1 and 16k."""
    assert engine._halved((513, 512)) == (257, 256)
    assert engine._halved((40, 769)) == (40, 385)


def test_a_loss_that_is_not_finite_is_told() -> None:
    """Protects from a first step that would end the run; the dry run has no batch to save and goes on."""
    _, events = forecast(tiny("optim.lr=1e25", "optim.momentum=0.0"))
    assert any(isinstance(event, Note) and event.warning and "not finite" in event.text for event in events)


def test_the_allocation_limit_refuses_and_ends() -> None:
    """Protects what runs after the block, and that a refused tensor is recognised."""
    with allocation_limit(64 * 2**20), pytest.raises(RuntimeError) as caught:
        torch.empty(2**30)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    torch.empty(2**28)  # 1 GiB, never touched


def test_a_resumed_run_is_forecast_from_where_it_stopped(tmp_path: Path) -> None:
    """Protects `--resume --dry-run`: what is left, by the checks of a resume; the run is left as it is."""
    out = tmp_path / "run"
    run(tiny(), out, stop_after=5)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    plan, events = forecast(tiny(), run=out)
    assert plan["steps left"] == "7 of 12"
    assert last(events).steps_left == 7
    assert any(isinstance(event, Note) and "continuing at step 5 of 12" in event.text for event in events)
    with pytest.raises(RecipeError, match=r"optim\.lr"):
        forecast(tiny("optim.lr=0.1"), run=out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    run(tiny(), out, resume=True)
    plan, events = forecast(tiny(), run=out)
    assert last(events).steps_left == 0
    assert not any(isinstance(event, Measuring) for event in events)


def test_a_run_that_ends_early_is_forecast_to_that_end(tmp_path: Path) -> None:
    """Protects `--resume --dry-run` of a run that train.patience or train.hours has made shorter than its recipe."""
    recipe, out = tiny("train.hours=9"), tmp_path / "run"
    run(recipe, out, stop_after=5)
    content = torch.load(out / "checkpoints/last.pt", weights_only=True)
    for end, left in ((8, 3), (5, 0)):
        content["sampler"]["steps"] = end
        torch.save(content, out / "checkpoints/last.pt")
        plan, events = forecast(recipe, run=out)
        assert last(events).steps_left == left
        assert any(isinstance(event, Note) and f"continuing at step 5 of {end}" in event.text for event in events)
        assert plan["steps"].startswith(f"{end} (5 an epoch")
        assert "time limit" not in plan  # what there was to decide is decided


def test_resume_of_nothing_says_so(tmp_path: Path) -> None:
    """Protects a script that always passes --resume."""
    plan, events = forecast(tiny(), run=tmp_path / "none")
    assert any(isinstance(event, Note) and "starting at step 0" in event.text for event in events)
    assert "steps left" not in plan


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects scripts: one object with the old keys and the new, and exit code 4 where `train` would find no memory."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    command = ("train", "tiny.toml", "--dry-run", "--device", "cpu")
    code, stdout, _ = emaseg(capsys, *command, "--json")
    content = json.loads(stdout)
    assert code == 0
    assert {"schema", "recipe", "plan", "notes"} < set(content)
    assert content["steps_left"] == 12
    assert content["memory"]["fits"] is True
    assert content["memory"]["measured"] is True
    assert content["seconds_left"] == pytest.approx(12 * content["seconds_per_step"])
    monkeypatch.setattr(engine, "device_memory", lambda device: 2**20)
    monkeypatch.setattr(engine, "allocation_limit", lambda more: allocation_limit(None))
    code, stdout, stderr = emaseg(capsys, *command, "--json")
    assert code == 4
    assert json.loads(stdout)["memory"]["fits"] is False
    assert "does not fit into the memory" in stderr
    assert "augment.crop" in stderr.partition("try:")[2]


# ----------------------------------------------------------------------------------------------------------- memory
def made(root: Path, groups: str, **files: str) -> tuple[Path, Path]:
    """Folders as /proc and /sys/fs/cgroup: 1000 kB available, the process in `groups`, and files of the groups."""
    proc, cgroups = root / "proc", root / "cgroups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 1000 kB\n")
    (proc / "self/cgroup").write_text(groups)
    for name, text in files.items():
        path = cgroups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, cgroups


GROUP2 = {"memory.max": "500000", "memory.current": "300000", "memory.stat": "anon 5\ninactive_file 100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 1_024_000),
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, 1_024_000),
        ("0::/\n", GROUP2, 300_000),
        ("0::/host/name/of/it\n", GROUP2, 300_000),
        ("0::/job/step\n", {"job/memory.max": "9000", "job/memory.current": "2000"}, 7_000),
        ("0::/job\n", {"job/memory.max": "9000", "job/memory.current": "20000"}, 0),
        (
            "4:memory:/job\n1:cpu:/\n0::/\n",
            {"memory/job/memory.limit_in_bytes": "9000", "memory/job/memory.usage_in_bytes": "1000"},
            8_000,
        ),
        ("0::/../../x\n", {"memory.max": "max", "memory.current": "5"}, 1_024_000),
    ],
    ids=["none", "no limit", "container", "container seen by the host's name", "job", "over", "version 1", "outside"],
)
def test_free_memory_heeds_every_limit(tmp_path: Path, groups: str, files: dict[str, str], free: int) -> None:
    """Protects containers and batch jobs, whose limit is below what the machine has; cached files count as free."""
    proc, cgroups = made(tmp_path, groups, **files)
    assert free_memory(proc, cgroups) == free


def test_free_memory_is_unknown_elsewhere(tmp_path: Path) -> None:
    """Protects other systems from a guess."""
    assert free_memory(tmp_path / "proc", tmp_path) is None
