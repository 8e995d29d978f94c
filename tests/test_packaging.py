"""The wheel: complete, alone in site-packages, and working from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed() -> None:
    """Protects the wheel from a sub-package that only an editable install has."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    on_disk = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "emaseg").rglob("__init__.py")}
    assert listed == on_disk | {"emaseg.cli", "emaseg.recipes"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a clean copy, so that nothing left in the tree gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listing.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_only_emaseg_in_site_packages(wheel: Path) -> None:
    """Protects other people's environments from top-level `cli`, `recipes` or `tests`."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"emaseg", "emaseg-0.1.0.dist-info"}
    assert {f"emaseg/recipes/{p.name}" for p in (ROOT / "recipes").glob("*.toml")} <= set(names)
    assert "emaseg/py.typed" in names
    assert "emaseg/data/label_sets.toml" in names
    assert "emaseg/weights/released.toml" in names


def test_installed_wheel_runs_anywhere(wheel: Path, tmp_path: Path) -> None:
    """Protects the first command of a user: help, recipes and the demo from the installed wheel in another folder."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    zipfile.ZipFile(wheel).extractall(site)  # pure Python: unpacking is installing
    # The dependencies come from this environment, without its editable emaseg.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def emaseg(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from emaseg.cli import main; sys.exit(main())"
        return subprocess.run(
            [python, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip

    help_text = emaseg("--help")
    assert help_text.returncode == 0, help_text.stderr
    assert "predict" in help_text.stdout
    short = ("train.iterations=2", "data.train_images=16", "data.eval_images=2", "train.workers=0")
    done = emaseg("train", "demo", *(part for value in short for part in ("--set", value)))
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    assert (tmp_path / run / "samples.png").is_file()
