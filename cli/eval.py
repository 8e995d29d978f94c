"""`emaseg eval`: a trained model's scores on a labelled split.

Room: cli.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from emaseg.errors import RecipeError

from .options import Device, EMIterations, Json, Overrides, Quiet, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.metrics import Scores
    from emaseg.recipe.schema import Data, Model

CHECK_TOLERANCE = 0.5  # points of mIoU below the published figure that --check still accepts


def evaluate(
    context: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A run folder, a checkpoint, or a recipe together with --weights.")
    ],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE", help="Weight file for a recipe; also others' formats.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="best|last|PATH", help="Which of a run's [default: best, else last]."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="As the data set names it (val, test, ...); train or eval for the kinds folder and shapes "
            "[default: the recipe's data.eval_split].",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="For metrics.json [default: RUN/eval/<time>, eval/<recipe>/<time>]."),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Several scales, mirrored: the row's published protocol, [inference_tta] of the recipe; "
            "--set inference.KEY then changes that one.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help=f"Exit 1 if mIoU is over {CHECK_TOLERANCE} points below the recipe's published."),
    ] = False,
    em_iterations: EMIterations = None,
    overrides: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Score a trained model: IoU of each class, mIoU, accuracies.

    \b
    Examples:
      emaseg eval runs/first
      emaseg eval runs/first --checkpoint last --json
      emaseg eval voc_r50_d8 --weights voc_r50_d8.pth --check
      emaseg eval memorynet_ade20k_r50_d8 --tta
      emaseg eval runs/first --em-iterations 1
    """
    session_of(context, verbose)
    from emaseg.reference import open_model, resolve, with_em_iterations

    resolved = resolve(reference, weights=weights, checkpoint=checkpoint, overrides=overrides, tta=tta)
    if em_iterations is not None:
        resolved = with_em_iterations(resolved, em_iterations)
    data, which = _choose_split(resolved.recipe.data, split)
    recipe = dataclasses.replace(resolved.recipe, data=data)
    from emaseg.evaluate import compare, evaluation_json, protocol, sha256_of

    comparison = compare(recipe, resolved.written, which)
    published, deviation = comparison.miou, _em_deviation(recipe.model)
    if check and published is None:
        way = protocol(recipe.inference) + deviation
        reason = f": {comparison.reason}" if comparison.reason else ""
        raise RecipeError(
            f"--check: {recipe.name} has no published mIoU for this protocol ({way}){reason}",
            "leave --check out",
        )

    from emaseg.data import build_dataset
    from emaseg.device import pick_device
    from emaseg.evaluate import evaluate as evaluate_engine
    from emaseg.files import make_folder, write_text

    from .progress import show_evaluation
    from .render import print_json, print_lines, print_scores

    target = pick_device(device)
    dataset = build_dataset(recipe.data, which)
    file = (out or _default_folder(resolved.run, recipe.name)) / "metrics.json"
    model, weights_hash = open_model(resolved, target), sha256_of(resolved.weights)
    make_folder(file.parent)  # before the work, not after it
    backbone = recipe.backbone
    events = evaluate_engine(model, dataset, recipe.inference, backbone.mean, backbone.std, target)
    scores = show_evaluation(events, quiet)

    report = model.report(dataset.classes)
    content = evaluation_json(scores, published, recipe.inference, weights_hash, report)
    content["protocol"] += deviation
    if as_json:
        print_json(content)
    else:
        print_scores(scores, comparison, content["protocol"], report.lines if report else ())
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if not as_json:
        print(file)
    if not check or published is None:
        return 0
    passed, verdict = _check(scores, published)
    print_lines([verdict])
    return 0 if passed else 1


def _em_deviation(model: Model) -> str:
    """What to add to the protocol where an EMANet iterates otherwise than it was trained: no published row does."""
    from emaseg.recipe.schema import EMANetModel

    if not isinstance(model, EMANetModel) or model.stages_eval == model.stages:
        return ""
    return f"; {model.stages_eval} EM iterations, {model.stages} in training"


def _choose_split(data: Data, split: str | None) -> tuple[Data, Literal["train", "eval"]]:
    """The data section and which of its two splits to read.

    Raises:
        RecipeError: not a split of this kind.
    """
    from emaseg.recipe.schema import FolderData, PackedData, ShapesData

    if split is None:
        return data, "eval"
    if not isinstance(data, FolderData | PackedData | ShapesData):
        return dataclasses.replace(data, eval_split=split), "eval"
    if split == "train":
        return data, "train"
    if split == "eval":
        return data, "eval"
    raise RecipeError(f"--split {split}: data of kind {data.kind} has the splits train and eval")


def _default_folder(run: Path | None, name: str) -> Path:
    """Inside the run that was evaluated, else below ./eval; a folder for each evaluation."""
    time = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    return run / "eval" / time if run is not None else Path("eval", name, time)


def _check(scores: Scores, published: float) -> tuple[bool, str]:
    """Whether the measured mIoU reaches the published one (a fraction), and the sentence that says so."""
    measured = 100 * (scores.miou or 0.0)
    least = 100 * published - CHECK_TOLERANCE
    if measured < least:
        return False, f"check failed: mIoU {measured:.2f} is below {least:.2f} (published {100 * published:.2f})"
    return True, f"check passed: mIoU {measured:.2f}, published {100 * published:.2f}"
