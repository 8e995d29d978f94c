"""Help, the version and usage errors appear at once: no torch, plain sentences, exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import emaseg

HELP_SECONDS = 0.3

# Runs the command line in a fresh interpreter and reports on the last stderr line whether torch came in.
PROBE = (
    "import sys\n"
    "from importlib.metadata import entry_points\n"
    "(script,) = entry_points(group='console_scripts', name='emaseg')\n"
    "code = script.load()()\n"
    "print('torch' in sys.modules, file=sys.stderr)\n"
    "sys.exit(code)"
)


def probe(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str, bool]:
    """Exit code, stdout, stderr and whether torch was imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60, check=False
    )
    *lines, torch = done.stderr.splitlines(keepends=True)
    return done.returncode, done.stdout, "".join(lines), torch.strip() == "True"


# The same for several command lines, one after the other in one interpreter; a JSON list of their results.
PROBE_SEVERAL = """
import contextlib, io, json, sys
from importlib.metadata import entry_points
(script,) = entry_points(group='console_scripts', name='emaseg')
results, main = [], script.load()
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    results.append((code, out.getvalue(), err.getvalue(), 'torch' in sys.modules))
print(json.dumps(results))
"""


Several = dict[tuple[str, ...], tuple[int, str, str, bool]]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Several:
    """What `probe` finds of each of HELP, USAGE_ERRORS and WRONG_REFERENCES, in an empty folder."""
    lines = [*HELP, *USAGE_ERRORS, *WRONG_REFERENCES]
    command = [sys.executable, "-c", PROBE_SEVERAL, json.dumps(lines)]
    folder = tmp_path_factory.mktemp("empty")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))


HELP = (
    ("--help",),
    ("-h",),
    ("train", "--help"),
    ("eval", "-h"),
    ("predict", "-h"),
    ("download-weights", "-h"),
)
USAGE_ERRORS = {
    ("trian",): 'error: no such command: trian\n  try: did you mean "train"? see emaseg --help\n',
    ("xyz",): "error: no such command: xyz\n  try: see emaseg --help\n",
    ("train",): "error: missing argument 'RECIPE'\n  try: see emaseg train --help\n",
    ("train", "demo", "--resum"): (
        'error: no such option: --resum\n  try: did you mean "--resume"? see emaseg train --help\n'
    ),
    ("--verison",): 'error: no such option: --verison\n  try: did you mean "--version"? see emaseg --help\n',
}
WRONG_REFERENCES = (
    ("predict", "x.jpg", "--weights", "none.pt"),
    ("predict", "x.jpg", "--weights", "runs/none"),
    ("predict", "x.jpg", "--recipe", "voc_r50_d9", "--weights", "none.pt"),
    ("predict", "x.jpg", "--recipe", "demo", "--weights", "none.pt"),
    ("eval", "none.pt"),
    ("export", "none.pt", "--format", "weights"),
    ("train", "demo", "--init-from", "none.pt"),
    ("train", "demo", "--init-from", "none.pt", "--dry-run"),
    ("train", "voc_r50_d8", "--set", "data.root=none"),
    ("init", "."),
)


def test_help_is_fast() -> None:
    """Best of three whole processes, in CPU seconds (on an idle machine that is the wall time, and load hardly
    changes it); an import of torch or rich at module level would show here."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "emaseg.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    assert min(seconds() for _ in range(3)) < HELP_SECONDS


def test_bare_command_says_what_it_is_and_what_to_type() -> None:
    code, out, err, torch = probe()
    assert (code, err, torch) == (0, "", False)
    assert out.startswith("emaseg trains, evaluates and runs")
    for command in ("train demo", "eval runs/", "predict photo.jpg"):
        assert f"  emaseg {command}" in out


@pytest.mark.parametrize("arguments", HELP)
def test_help_imports_no_torch(arguments: tuple[str, ...], several: Several) -> None:
    code, out, err, torch = several[arguments]
    assert (code, err, torch) == (0, "", False)
    assert out.startswith("Usage: emaseg")


def test_version() -> None:
    assert probe("--version") == (0, f"emaseg {emaseg.__version__}\n", "", False)


@pytest.mark.parametrize("arguments", USAGE_ERRORS)
def test_usage_errors_name_the_nearest_right_word(arguments: tuple[str, ...], several: Several) -> None:
    assert several[arguments] == (2, "", USAGE_ERRORS[arguments], False)


def test_an_option_without_its_value_is_a_usage_error() -> None:
    code, out, err, torch = probe("train", "demo", "--out")
    assert (code, out, torch) == (2, "", False)
    assert err.startswith("error: option '--out' requires an argument\n  try: see emaseg")


def test_unknown_recipe_names_the_nearest_one(tmp_path: Path) -> None:
    code, out, err, torch = probe("train", "dmeo", cwd=tmp_path)
    assert (code, out, torch) == (2, "", False)
    assert "dmeo" in err
    assert "demo" in err.replace("dmeo", "")


def test_recipe_error_names_file_line_and_key(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('schema = 1\nname = "mine"\ncolour = "red"\n')
    code, out, err, torch = probe("train", "mine.toml", "--json", cwd=tmp_path)
    assert (code, out, torch) == (2, "", False)
    assert "mine.toml:3" in err
    assert "colour" in err


def test_predict_without_weights_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMASEG_OFFLINE", "1")
    monkeypatch.setenv("EMASEG_CACHE", str(tmp_path))
    code, out, err, torch = probe("predict", "photo.jpg", cwd=tmp_path)
    assert (code, out, torch) == (3, "", False)
    assert "--weights" in err.partition("try:")[2]


def test_save_list_is_checked_before_anything_else(tmp_path: Path) -> None:
    code, out, err, _ = probe("predict", "photo.jpg", "--weights", "x.pt", "--save", "mask,overlays", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert 'did you mean "overlay"?' in err


def test_recipes_lists_the_shipped_ones() -> None:
    code, out, err, torch = probe("recipes")
    assert (code, err, torch) == (0, "", False)
    assert any(line.split()[:1] == ["demo"] for line in out.splitlines())
    assert os.linesep not in probe("recipes", "--json")[1].rstrip()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_do_not_spin_for_long_unless_told_to(given: dict[str, str], expected: str) -> None:
    """Spinning threads of one program starve those of another; OpenMP reads the limit when torch is imported, later."""
    code = "import os; from emaseg.cli import app; app.main(); print(os.environ.get('GOMP_SPINCOUNT'))"
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], env=inherited | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize("arguments", WRONG_REFERENCES)
def test_a_wrong_reference_is_told_before_torch_is_imported(arguments: tuple[str, ...], several: Several) -> None:
    """Protects from seconds of waiting for a typing error, in every command that takes a REF or a folder of data."""
    code, _, err, torch = several[arguments]
    assert (code, torch) == (2 if "voc_r50_d9" in arguments else 3, False)
    assert "error: " in err


def test_a_wrong_image_is_told_before_the_weights_are_read(tmp_path: Path) -> None:
    """Protects from waiting for a whole checkpoint; a wrong REF is told before, for it costs a look at a path."""
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    code, _, err, torch = probe("predict", "x.jpg", "--weights", "weights.pt", cwd=tmp_path)
    assert (code, torch) == (3, False)
    assert "error: x.jpg: no such file" in err
    code, _, err, _ = probe("predict", "x.jpg", "--weights", "wieghts.pt", cwd=tmp_path)
    assert (code, "wieghts.pt" in err, "x.jpg" in err) == (3, True, False)
