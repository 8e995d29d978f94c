"""The command line is a promise: its commands, options and exit codes change only together with this file."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import typer

from emaseg.errors import DataError, Diverged, RecipeError, SystemFault, WeightsError

app_module = importlib.import_module("emaseg.cli.app")

COMMON = {"--set", "--device", "--json", "--quiet", "-q", "--verbose", "-v"}

COMMANDS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    # name: (arguments, options)
    "train": (("recipe",), {"--out", "--resume", "--dry-run", "--init-from", "--nproc", "--deterministic"} | COMMON),
    "eval": (
        ("reference",),
        {
            "--weights",
            "--checkpoint",
            "--nproc",
            "--split",
            "--out",
            "--tta",
            "--calibration",
            "--check",
            "--submit",
            "--em-iterations",
            "--precision",
            "--compile",
        }
        | COMMON,
    ),
    "predict": (
        ("images",),
        {"--weights", "--recipe", "--out", "--save", "--resume", "--em-iterations", "--precision", "--max-memory"}
        | {"--bases", "--classes", "--min-confidence", "--shard", "--top-k", "--compile", "--overwrite"}
        | COMMON,
    ),
    "export": (
        ("reference",),
        {"--format", "--weights", "--shape", "--dynamic", "--precision", "--include", "--calibrate", "--out"}
        | {"--snippet"}
        | (COMMON - {"--device"}),
    ),
    "download-weights": (
        ("names",),
        {"--all", "--dataset", "--model", "--backbones", "--list", "--verify", "--from"}
        | {"--json", "--quiet", "-q", "--verbose", "-v"},
    ),
    "recipes": (("name",), {"--keys", "--model", "--data", "--dataset", "--backbone", "--json", "--verbose", "-v"}),
    "runs": (("folders",), {"--out", "--json", "--verbose", "-v"}),
    "check-data": (("recipe",), {"--set", "--sample", "--sheet", "--json", "--quiet", "-q", "--verbose", "-v"}),
    "init": (("folder",), {"--out", "--images", "--masks", "--name", "--device", "--quiet", "-q", "--verbose", "-v"}),
    "convert": (
        ("folder",),
        {"--out", "--format", "--overlap", "--unlabelled", "--empty"} | {"--json", "--quiet", "-q", "--verbose", "-v"},
    ),
    "doctor": ((), {"--json", "--verbose", "-v"}),
    "bench": (
        ("reference",),
        {"--shape", "--batch", "--threads", "--passes", "--warm-up", "--train", "--precision", "--compile"} | COMMON,
    ),
}

REPEATABLE = {
    ("train", "overrides"),
    ("eval", "overrides"),
    ("predict", "overrides"),
    ("export", "overrides"),
    ("check-data", "overrides"),
    ("bench", "overrides"),
}


def root() -> Any:
    return typer.main.get_command(app_module.app)


def test_the_commands_are_exactly_these() -> None:
    assert list(root().commands) == list(COMMANDS)


def test_the_program_itself_has_only_version_completion_and_help() -> None:
    names = {name for parameter in root().params for name in parameter.opts}
    assert names == {"--version", "--install-completion", "--show-completion"}
    assert root().context_settings["help_option_names"] == ["-h", "--help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_exactly_its_arguments_and_options(name: str) -> None:
    arguments, options = COMMANDS[name]
    parameters = root().commands[name].params
    assert tuple(p.name for p in parameters if p.param_type_name == "argument") == arguments
    names = {opt for p in parameters if p.param_type_name == "option" for opt in (*p.opts, *p.secondary_opts)}
    assert names == options


def test_set_is_the_only_option_that_repeats() -> None:
    repeatable = {
        (name, p.name)
        for name, command in root().commands.items()
        for p in command.params
        if p.param_type_name == "option" and p.multiple
    }
    assert repeatable == REPEATABLE


def test_exit_codes_are_the_documented_ones() -> None:
    errors = {kind: kind.exit_code for kind in (RecipeError, DataError, WeightsError, SystemFault, Diverged)}
    assert errors == {RecipeError: 2, DataError: 3, WeightsError: 3, SystemFault: 4, Diverged: 5}
    train_module = importlib.import_module("emaseg.cli.train")
    assert (app_module.NOT_ACCEPTABLE, app_module.BUG, app_module.INTERRUPTED) == (1, 70, 130)
    assert train_module.INTERRUPTED_WITH_CHECKPOINT == 75


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_shows_an_example_before_the_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app_module.run(root(), [name, "--help"]) == 0
    text = capsys.readouterr().out
    assert 0 < text.index(f"  emaseg {name}") < text.index("Options:")
    assert not re.search(r"[{}]|<(str|int|float|path|list|bool)|<=x|x>=|\bNone\b", text)  # Python's words for types


def texts() -> list[tuple[str, str]]:
    """Command and parameter, of every one that takes a name, a path or a list of names; --set has a rule of its own."""
    numbers = {"nproc", "em_iterations", "min_confidence", "top_k", "passes", "warm_up", "sample"}
    return [
        (name, parameter.name)
        for name, command in root().commands.items()
        for parameter in command.params
        if parameter.type.name not in ("boolean", "choice") and not getattr(parameter, "is_flag", False)
        if parameter.name not in {*numbers, "overrides"}
    ]


@pytest.mark.parametrize(("name", "parameter"), texts())
def test_an_empty_name_is_refused_everywhere(name: str, parameter: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from work on everything, on nothing, or in the current folder, where a shell variable is not set."""
    words, said = [], ""
    for one in root().commands[name].params:
        empty = one.name == parameter
        if one.param_type_name == "argument":
            words += [""] if empty else ["x"] if one.required else []
            said = one.metavar.strip("[].").partition("|")[0] if empty else said
        elif empty or one.required:
            words += [one.opts[0], "" if empty else "x"]
            said = one.opts[0] if empty else said
    assert app_module.main([name, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {said}: an empty name was given\n  try: is it a shell variable that is not set?\n"
