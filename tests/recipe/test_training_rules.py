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
        (["loss.class_weights=[1, 2, 3]"], "loss.class_weights: 3 weights for 2 classes"),
        (["loss.class_weights=[0, 0]"], "loss.class_weights: are all 0"),
        (["loss.focal_gamma=2", "loss.label_smoothing=0.1"], "loss.label_smoothing: has no meaning"),
        (["loss.ohem_threshold=0.7"], "loss.ohem_min_kept: 100000 is no less than the pixels of augment.crop"),
        (["train.patience=3"], "train.patience: counts evaluations"),
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
        ["train.patience=3", "train.evaluate_every=1", "train.hours=2"],
        [
            "loss.class_weights=[0, 2]",
            "loss.label_smoothing=0.1",
            "loss.dice_weight=1",
            "loss.class_balance='inverse_log'",
        ],
        ["loss.ohem_threshold=0.7", "loss.ohem_min_kept=1000", "loss.focal_gamma=2"],
    ],
)
def test_what_fits_together_is_accepted(sets: list[str]) -> None:
    """Protects from rules that refuse too much."""
    assert complaint(MINIMAL, *sets) == ""
