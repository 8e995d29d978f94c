"""Keys of the training sections that contradict each other are named; none is silently without effect."""

from __future__ import annotations

import pytest

from tests.recipe.samples import MINIMAL, complaint


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["optim.kind='adamw'", "optim.nesterov=true"], "optim.nesterov: is SGD's"),
        (["optim.betas=[0.8, 0.9]"], "optim.betas: is AdamW's"),
        (["optim.eps=1e-3"], "optim.eps: is AdamW's"),
        (["train.epochs=0", "train.iterations=10", "optim.warmup=10"], "optim.warmup: 10 is no less than"),
    ],
)
def test_contradictions_are_named(sets: list[str], message: str) -> None:
    """Protects people who wait for the effect of a key."""
    assert message in complaint(MINIMAL, *sets)


@pytest.mark.parametrize(
    "sets",
    [
        ["optim.kind='adamw'", "optim.betas=[0.8, 0.9]", "optim.eps=1e-3", "optim.warmup=10", "optim.clip_norm=1"],
        ["train.freeze='backbone'"],
    ],
)
def test_what_fits_together_is_accepted(sets: list[str]) -> None:
    """Protects from rules that refuse too much."""
    assert complaint(MINIMAL, *sets) == ""
