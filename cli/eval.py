"""`emaseg eval`: a trained model's scores on a labelled split, or its label maps for the server that has the labels.

Room: cli.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emaseg.errors import RecipeError, SystemFault
from emaseg.files import open_file

from .options import (
    Compile,
    Device,
    EMIterations,
    Json,
    Nproc,
    Overrides,
    Precision,
    Quiet,
    Verbose,
    recipe_names,
    session_of,
)
from .ranks import as_rank, launched, rank_of
from .submission import check_archive, check_unscored, submission_of, tell_submission

if TYPE_CHECKING:
    import torch

    from emaseg.data.dataset import Dataset
    from emaseg.engine import Engine
    from emaseg.evaluation.evaluate import Comparison
    from emaseg.evaluation.submit import Submission
    from emaseg.events import Evaluated
    from emaseg.exported.runtime import ExportedNetwork
    from emaseg.metrics import Scores
    from emaseg.models.network import Report
    from emaseg.recipe import Recipe
    from emaseg.recipe.models import Model
    from emaseg.reference import Resolved

CHECK_TOLERANCE = 0.5  # points of mIoU below the published figure that --check still accepts


def evaluate(
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            autocompletion=recipe_names,
            help="A run folder, a checkpoint, an exported file, or a recipe: its released weights, else its newest run, "
            "or --weights.",
        ),
    ],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="FILE", help="Weight file for a recipe; also others' formats.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="best|last|PATH",
            help="Which checkpoint of the run to use [default: best, else last].",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="SPLIT",
            help="As the data set names it (val, test, ...); train or eval for the kinds folder, packed and shapes "
            "[default: the recipe's data.eval_split].",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for metrics.json, its tables and report.html [default: RUN/eval/<time>, eval/<recipe>/<time>].",
        ),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Use the row's published protocol with several scales and flipping, [inference_tta] in the recipe; "
            "--set inference.KEY then changes that section.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help=f"Exit 1 if mIoU is more than {CHECK_TOLERANCE} points below the published one."),
    ] = False,
    submit: Annotated[
        Path | None,
        typer.Option(
            "--submit",
            metavar="ZIP",
            help="Write the label maps as the server of PASCAL VOC, Cityscapes or ADE20K takes them; "
            "a split without public labels is not scored here.",
        ),
    ] = None,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration",
            help="Also compare the network's confidence with how often it is right; some percent slower.",
        ),
    ] = False,
    em_iterations: EMIterations = None,
    precision: Precision = "auto",
    compile_: Compile = False,
    nproc: Nproc = None,
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
      emaseg eval memorynet_cityscapes_r50_d8 --tta --submit results.zip
      emaseg eval runs/first --em-iterations 1
      emaseg eval runs/first --calibration
      emaseg eval runs/first --nproc 4

    Beside metrics.json go images.csv (the scores of each image), confusion.csv (which class is taken for which),
    environment.json (versions, device, command) and report.html (a page that shows all of it; a run's own page is
    written anew, too, where the images are those that its recipe is scored on).
    """
    session = session_of(context, verbose, keeps_files=True)
    session.memory_hint = "free memory, or use another --device"
    rank = rank_of(nproc)
    _check_options(submit, calibration, out, rank.world > 1 or (nproc or 1) > 1)
    if nproc and nproc > 1:
        return launched(session.arguments, nproc, device)
    quiet, verbose = quiet or not rank.leads, verbose and rank.leads
    with contextlib.ExitStack() as stack, as_rank(rank, device):
        from emaseg.reference import (
            check_precision_name,
            device_for,
            hash_of_weights,
            resolve,
            stamp_of,
            with_em_iterations,
            with_precision,
        )

        from .render import print_lines, print_notes, print_path

        check_precision_name(precision)
        resolved = resolve(reference, weights=weights, checkpoint=checkpoint, overrides=overrides, tta=tta)
        print_notes(resolved.notes, quiet)
        if em_iterations is not None:
            resolved = with_em_iterations(resolved, em_iterations)
        resolved = with_precision(resolved, precision)
        from emaseg.open_datasets import choose_split

        data, which = choose_split(resolved.recipe.data, split)
        recipe = dataclasses.replace(resolved.recipe, data=data)
        from emaseg.evaluation.evaluate import compare_with_published, on_images, other_split, protocol, split_name

        comparison = compare_with_published(recipe, resolved.written, which, resolved.stretched)
        way = protocol(recipe.inference, resolved.stretched) + _em_deviation(recipe.model)
        if check:
            _check_comparison(comparison, f"{recipe.name} has no published mIoU for this protocol ({way})")

        from emaseg.data.files.bands import bands_of
        from emaseg.data.sets.build import build_dataset
        from emaseg.device import pick_device, slow_precision
        from emaseg.files import make_folder
        from emaseg.inference.protocols import check_scored
        from emaseg.runs.lock import reserve

        target, notes = device_for(resolved, pick_device(device), device)
        print_notes([*notes, *slow_precision(recipe.inference.precision, target)], quiet)
        submission = None if submit is None else submission_of(submit, data)
        dataset = build_dataset(data, which, bands_of(recipe))
        if dataset.withheld_by:
            scoring = [option for option, given in (("--check", check), ("--out", out)) if given]
            check_unscored(dataset, data, submission, scoring)
        comparison = on_images(comparison, data, which, len(dataset))
        if check:
            _check_comparison(comparison, f"{recipe.name} has no published mIoU for these images")
        folder = out or _default_folder(resolved.run, recipe.name)
        stamp = resolved.stamp or stamp_of(resolved.weights)
        model = _engine(resolved, dataset, target, compile_, verbose)
        weights_hash = hash_of_weights(resolved.weights, stamp)
        if calibration:
            check_scored(model, "--calibration")
        if not dataset.withheld_by and rank.leads:  # the folder is made before the work, not after it
            if out is None:
                folder = stack.enter_context(reserve(folder))
            else:
                _check_place(folder, resolved.run)
                make_folder(folder)
        evaluated = _score(model, dataset, recipe, target, submission, calibration, quiet)
        if not rank.leads:
            return 0
        if evaluated is None:
            if submission is not None:
                tell_submission(submission, len(dataset), comparison, way, weights_hash, as_json, quiet)
            return 0
        scored = Split(split_name(data, which), bool(other_split(data, resolved.written.data, which)))
        told = model.report(dataset.classes)
        subject = Subject(recipe, resolved.run, dataset, scored, comparison, way, weights_hash, told, target)
        _tell(evaluated, subject, folder / "metrics.json", as_json, quiet)
        if submission is not None and not as_json:
            print_path(submission.path)
        if not check or comparison.miou is None:
            return 0
        passed, verdict = _check(evaluated.scores, comparison.miou)
        print_lines([verdict])
        return 0 if passed else 1


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """The images that are scored. other: not those that the recipe itself is scored on."""

    name: str
    other: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """What is scored. report: what the network tells of itself, with the scores."""

    recipe: Recipe
    run: Path | None
    dataset: Dataset
    split: Split
    comparison: Comparison
    protocol: str
    weights_hash: str
    report: Report | None
    device: torch.device


def _check_options(submit: Path | None, calibration: bool, out: Path | None, several: bool) -> None:
    """
    Raises:
        RecipeError: options that contradict each other, or a place that cannot be written to.
    """
    if submit is not None:
        if several:
            raise RecipeError(f"--submit {submit}: one process writes it", "leave --nproc, torchrun or srun out")
        if calibration:
            raise RecipeError("--calibration: is not counted while a submission is written", "leave one of the two out")
        check_archive(submit)
    if out is not None and out.exists() and not out.is_dir():
        raise RecipeError(f"--out {out}: a file, not a folder", "name a folder; metrics.json goes into it")


def _score(
    model: Engine | ExportedNetwork,
    dataset: Dataset,
    recipe: Recipe,
    device: torch.device,
    submission: Submission | None,
    calibration: bool,
    quiet: bool,
) -> Evaluated | None:
    """Run the network over the images; None where a submission was written whose labels are not published."""
    from emaseg.evaluation.evaluate import evaluate
    from emaseg.evaluation.submit import write_submission

    from .progress import show_evaluation, show_submission

    inference, stats = recipe.inference, recipe.backbone.pixel_stats
    if submission is not None:
        return show_submission(write_submission(submission, model, dataset, inference, stats, device), quiet)
    return show_evaluation(
        evaluate(model, dataset, inference, stats, device, calibration=calibration, shared=True), quiet
    )


def _tell(evaluated: Evaluated, subject: Subject, file: Path, as_json: bool, quiet: bool) -> None:
    """Print the scores, and write metrics.json as `file` with everything that belongs beside it."""
    from emaseg.evaluation.evaluate import evaluation_json
    from emaseg.files import write_text
    from emaseg.metrics import details_of
    from emaseg.report.run import write_report
    from emaseg.report.sections import Result
    from emaseg.runs.evaluation_files import write_environment, write_tables
    from emaseg.runs.folder import environment

    from .render import print_json, print_lines, print_path, print_scores

    scores, tally, dataset, recipe = evaluated.scores, evaluated.tally, subject.dataset, subject.recipe
    details = None if tally is None else details_of(tally)
    remarks = subject.report.lines if subject.report else ()
    published, inference, split = subject.comparison.miou, recipe.inference, subject.split
    other = split.name if split.other else ""
    content = evaluation_json(scores, published, inference, subject.weights_hash, subject.report, details, other)
    content["protocol"] = subject.protocol
    if as_json:
        print_json(content)
    else:
        print_scores(scores, subject.comparison, subject.protocol, remarks, details, split.name)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(file, text.encode("utf-8", "backslashreplace").decode())  # a lone surrogate becomes JSON's own escape
    if tally is not None and details is not None:
        write_tables(file.parent, tally, dataset.classes)
        write_environment(file.parent, environment(subject.device))
        seen = Result(
            scores,
            details,
            tally,
            dataset.classes,
            dataset.palette,
            subject.comparison,
            subject.protocol,
            remarks,
            split.name,
        )
        write_report(file.parent / "report.html", recipe, seen, subject.run)
        if subject.run is not None and subject.run != file.parent and not split.other:
            try:
                write_report(subject.run / "report.html", recipe, seen, subject.run)
            except SystemFault as error:  # somebody else's run
                print_lines([f"warning: the run's own page is not written anew: {error.message}"])
        if not quiet:
            print_lines([f"report: {file.parent / 'report.html'}"])
    if not as_json:
        print_path(file)


def _engine(
    resolved: Resolved, dataset: Dataset, device: torch.device, compiled: bool, verbose: bool
) -> Engine | ExportedNetwork:
    """The network made ready to run; `verbose`: compared with itself before, on the first image."""
    from emaseg.data.dataset import read_pair
    from emaseg.engine import engine_lines
    from emaseg.inference.protocols import probe
    from emaseg.reference import open_engine

    from .render import print_lines

    if not verbose or len(dataset) == 0:
        return open_engine(resolved, device, compiled=compiled)
    recipe = resolved.recipe
    image, _ = read_pair(dataset, 0)
    first = probe(image, recipe.inference, recipe.backbone.pixel_stats)
    model = open_engine(resolved, device, compiled=compiled, probe=first)
    print_lines(engine_lines(model))
    return model


def _em_deviation(model: Model) -> str:
    """What to add to the protocol where an EMANet iterates otherwise than it was trained: no published row does."""
    from emaseg.recipe.models import EMANetModel

    if not isinstance(model, EMANetModel) or model.em_iterations_eval == model.em_iterations:
        return ""
    return f"; {model.em_iterations_eval} EM iterations, {model.em_iterations} in training"


def _check_comparison(comparison: Comparison, otherwise: str) -> None:
    """
    Raises:
        RecipeError: there is no published score for --check.
    """
    if comparison.miou is None:
        reason = f": {comparison.reason}" if comparison.reason else ""
        raise RecipeError(f"--check: {otherwise}{reason}", "leave --check out")


def _check_place(folder: Path, run: Path | None) -> None:
    """Before any work: an earlier evaluation's files may be replaced, nothing else. run: whose page is its own.

    Raises:
        RecipeError: something else is called like one of them.
    """
    from emaseg.runs.evaluation_files import CONFUSION, ENVIRONMENT, IMAGES

    file = folder / "metrics.json"
    own = run is not None and folder.is_dir() and folder.samefile(run)
    try:
        with open_file(file) as opened:
            ours = (opened.read(20) or b"").lstrip().startswith(b'{\n  "schema":') and not file.is_symlink()
    except OSError:
        ours = False
    names = () if ours else ("metrics.json", IMAGES, CONFUSION, ENVIRONMENT, *([] if own else ["report.html"]))
    for place in (folder / name for name in names):
        if os.path.lexists(place):
            raise RecipeError(
                f"{place}: already exists, and no evaluation wrote it", "choose another folder with --out"
            )


def _default_folder(run: Path | None, name: str) -> Path:
    """Inside the run that was evaluated, else below ./eval; a folder for each evaluation."""
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return run / "eval" / time if run is not None else Path("eval", name, time)


def _check(scores: Scores, published: float) -> tuple[bool, str]:
    """Whether the measured mIoU reaches the published one (a fraction), and the sentence that says so."""
    measured = 100 * (scores.miou or 0.0)
    least = 100 * published - CHECK_TOLERANCE
    if measured < least:
        return False, f"check failed: mIoU {measured:.2f} is below {least:.2f} (published {100 * published:.2f})"
    return True, f"check passed: mIoU {measured:.2f}, published {100 * published:.2f}"
