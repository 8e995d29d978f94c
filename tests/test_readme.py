"""The READMEs tell the truth: the recipe for own images reads, its commands and options exist, its set-up is what CI runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import typer

from emaseg.recipe import parse_recipe
from emaseg.resources import shipped_recipes

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_recipe_for_own_images_reads() -> None:
    """Protects the first recipe that people copy: the only whole one among the blocks of recipes/README.md."""
    text = (ROOT / "recipes/README.md").read_text()
    (whole,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if block.startswith("schema")]
    recipe = parse_recipe(whole, "recipes/README.md").recipe
    assert recipe.data.kind == "folder"


def test_commands_and_options_exist() -> None:
    """Protects every `emaseg ...` line: the command is there and takes those options."""
    command: Any = typer.main.get_command(importlib.import_module("emaseg.cli.app").app)
    known = {name: {opt for p in sub.params for opt in p.opts} for name, sub in command.commands.items()}
    lines = re.findall(r"emaseg ([a-z-]+)([^\n`|]*)", TEXT)
    used = [(verb, set(re.findall(r"--[a-z-]+", rest))) for verb, rest in lines if verb in known]
    assert {verb for verb, _ in used} == set(known)
    for verb, options in used:
        assert options <= known[verb], f"emaseg {verb} has no {options - known[verb]}"


def test_ci_runs_the_readme_command() -> None:
    """Protects from a second way of testing: CI runs what the README says."""
    commands = [line for block in blocks("sh") for line in block.splitlines() if "pytest" in line]
    script = (ROOT / ".ci/run").read_text()
    assert commands
    assert commands[0].split("&& ")[1] in script
    assert "demo" in shipped_recipes()
