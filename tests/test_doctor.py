"""`emaseg doctor` sees what is wrong with a machine, says what to do, and is exit 4 only for what will not work."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from emaseg import doctor
from emaseg.doctor import Finding, examine, extras, folders, packages, shared_memory
from emaseg.extras import EXTRAS
from tests.helpers import emaseg


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache, and an own current folder."""
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_machine_that_works(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects people from false alarms, and scripts: exit 0 here, every package with its version, the devices, and
    nothing is written."""
    code, out, _ = emaseg(capsys, "doctor", "--json")
    content = json.loads(out)
    checks = {check["name"]: check for check in content["checks"]}
    assert code == 0, out
    assert content["works"] is True
    assert set(content["checks"][0]) == {"name", "value", "state", "remedy"}
    assert checks["torch"]["value"] == importlib.metadata.version("torch")
    assert {"Python", "decoders", "memory", "shared memory", "cache folder", "runs folder", "cpu"} <= checks.keys()
    assert all(check["remedy"] for check in checks.values() if check["state"] != "ok")
    assert list(home.iterdir()) == []


def test_it_reads_well(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the screen: a line for each thing in two columns, the remedy below, and a verdict at the end."""
    found = [Finding("torch", "2.11.0"), Finding("memory", "1 GB free", "warning", "close other programs")]
    monkeypatch.setattr(doctor, "examine", lambda: iter(found))
    code, out, _ = emaseg(capsys, "doctor")
    assert code == 0
    assert out.splitlines() == [
        "ok      torch             2.11.0",
        "warning memory            1 GB free",
        "        try: close other programs",
        "",
        "everything works; 1 warning",
    ]
    found.append(Finding("cuda", "no kernel", "error", "use --device cpu"))
    code, out, _ = emaseg(capsys, "doctor")
    assert code == 4
    assert out.endswith("        try: use --device cpu\n\n1 thing will not work\n")


def test_packages_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects from a start that fails with an ImportError: missing, too old, and a torchvision of another torch."""
    version = importlib.metadata.version
    other = "2.9.0" if version("torch").startswith("2.8.") else "2.8.0+cu128"
    versions = {"h5py": None, "numpy": "1.9.3", "torch": other}

    def told(name: str) -> str:
        found = versions.get(name, version(name) if name not in versions else None)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", told)
    found = list(packages())
    wrong = {finding.name: finding.remedy for finding in found if finding.state == "error"}
    assert wrong["h5py"].startswith("pip install 'h5py>=")
    assert wrong["numpy"].startswith("pip install 'numpy>=")
    assert "torch" not in wrong
    assert f"'torchvision=={version('torchvision')}'" in wrong["torchvision"]
    versions["onnx"] = None
    assert "onnx is not installed" in by_name(list(extras()))["extra onnx"].value
    assert all(finding.state == "ok" for finding in extras())


def test_extras_are_those_of_the_package() -> None:
    """Protects the command that installs an extra: its packages are those that pyproject.toml lists."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    listed = {
        name: tuple(text.partition(">=")[0] for text in texts)
        for name, texts in project["optional-dependencies"].items()
    }
    assert listed == EXTRAS


def cache_is_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "cache").write_text("")


def cache_below_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("EMASEG_CACHE", str(home / "file" / "cache"))


def nobody_can_write(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMASEG_CACHE", "/proc/self/cache")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where nobody can write")
@pytest.mark.parametrize("spoil", [cache_is_a_file, cache_below_a_file, nobody_can_write])
def test_folders_that_cannot_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    """Protects from a download or a run that fails at its end."""
    spoil(home, monkeypatch)
    found = by_name(list(folders()))
    assert (found["cache folder"].state, found["runs folder"].state) == ("error", "ok")
    assert "EMASEG_CACHE" in found["cache folder"].remedy


def test_a_folder_that_cannot_be_looked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the other findings: the system may answer with an error, as below a folder that one may not enter."""
    monkeypatch.setenv("EMASEG_CACHE", str(home / ("x" * 300) / "cache"))
    assert set(by_name(list(folders()))) == {"cache folder", "runs folder", "temporary folder"}


def test_a_full_disk_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects checkpoints: little space is told with the folder."""
    usage = os.statvfs(home)
    monkeypatch.setattr(doctor, "_LEAST_DISK", usage.f_bavail * usage.f_frsize * 10)
    assert {finding.state for finding in folders()} == {"warning"}


def test_no_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects loading processes: they work without, and slower."""

    def refuse(*_: object) -> None:
        raise OSError("none")

    monkeypatch.setattr("mmap.mmap", refuse)
    assert shared_memory().state == "warning"


@pytest.mark.parametrize(("built_for", "says"), [(None, "without CUDA"), ("12.8", "does not see it")])
def test_a_card_that_pytorch_does_not_see(monkeypatch: pytest.MonkeyPatch, built_for: str | None, says: str) -> None:
    """Protects from weeks on the CPU beside an idle GPU; without a GPU there is nothing wrong."""
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    finding = doctor._no_cuda(built_for)
    assert finding.state == "error"
    assert says in finding.value
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert doctor._no_cuda(built_for).state == "ok"


def test_quick_things_come_first() -> None:
    """Protects the first impression: what needs no torch is told before it is imported."""
    names = [finding.name for finding in examine()]
    assert names.index("network") < names.index("cpu")
