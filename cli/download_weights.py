"""`emaseg download-weights`: released weights into the cache.

Room: cli. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emaseg.errors import NetworkFault, RecipeError, UserError, WeightsError

from .options import SCHEMA, Json, Quiet, Verbose, session_of

if TYPE_CHECKING:
    from emaseg.weights.released import Released

_MOST_SILENT = 3  # files in a row for which nobody answers: then the network is gone


def download_weights(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Recipes or backbones, see --list [default: the model of predict]."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every released file, backbones too.")] = False,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="KIND", help="The networks of a data set: voc, ade20k, ...")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="KIND", help="The networks of a family: emanet or memorynet.")
    ] = None,
    backbones: Annotated[
        bool,
        typer.Option("--backbones", help="Not the networks, but the ImageNet weights that their training starts from."),
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="Only show what there is and what is here.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only hash the files that are here, against the record.")] = (
        False
    ),
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Take files that you have from DIR; no network.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Download released weights into the cache; an interrupted download continues.

    \b
    Examples:
      emaseg download-weights voc_r50_d8
      emaseg download-weights --list --dataset voc
      emaseg download-weights voc_r50_d8 --backbones
      emaseg download-weights --from /mnt/weights
      emaseg download-weights --verify

    Each file's path is a line on stdout. EMASEG_CACHE is the cache's folder; EMASEG_MIRROR the address of a folder to
    fetch from instead of the owners' servers (a served cache will do; https://user:password@host/folder?token=x works,
    and neither password nor token is shown); EMASEG_OFFLINE=1 forbids the network; HTTPS_PROXY and SSL_CERT_FILE are
    obeyed.
    """
    session_of(context, verbose, keeps_files=not (listing or verify))
    names = names or []
    filtered = bool(dataset or model)
    if names and (filtered or everything):
        raise RecipeError("names together with --all, --dataset or --model", "leave one of the two out")
    if everything and (filtered or backbones):
        raise RecipeError("--all means every file", "leave --dataset, --model and --backbones out, or --all")
    if sum((listing, verify, source is not None)) > 1:
        raise RecipeError("--list, --verify and --from are three different things to do", "choose one")

    chosen = _choose(names, everything, dataset, model, backbones, default=not (listing or verify or source))
    if listing:
        return _list(chosen, as_json)
    if verify:
        return _verify(chosen, as_json, strict=bool(names))
    if source is not None:
        return _import_from(chosen, source, as_json, quiet, strict=bool(names))
    return _download(chosen, as_json, quiet, strict=bool(names))


def _choose(
    names: Sequence[str], everything: bool, dataset: str | None, model: str | None, backbones: bool, *, default: bool
) -> list[Released]:
    """The entries that are meant; without any choice the default's, or all when `default` is false.

    Raises:
        RecipeError: an unknown name, data set or family. WeightsError: a recipe without released weights.
    """
    from emaseg.errors import nearest
    from emaseg.weights import released

    everything = everything or not (default or names or dataset or model or backbones)
    entries = released.released()
    if everything:
        return list(entries)
    networks = [entry for entry in entries if entry.kind == "network"]
    for option, value, known in (
        ("--dataset", dataset, {entry.dataset for entry in networks}),
        ("--model", model, {entry.model for entry in networks}),
    ):
        if value is not None and value not in known:
            hint = nearest(value, known) or f"there are {', '.join(sorted(known))}"
            raise RecipeError(f"{option} {value}: nothing released", hint)
    if names:
        return list(dict.fromkeys(_start_of(name) if backbones else _named(name) for name in names))
    if not (dataset or model or backbones):
        return [released.default()]
    if backbones and not (dataset or model):
        return [entry for entry in entries if entry.kind == "backbone"]
    networks = [e for e in networks if dataset in (None, e.dataset) and model in (None, e.model)]
    if not networks:
        message = f"--dataset {dataset} --model {model}: nothing released"
        raise RecipeError(message, "see emaseg download-weights --list")
    if not backbones:
        return networks
    return list(dict.fromkeys(released.by_name(entry.backbone) for entry in networks))


def _named(name: str) -> Released:
    from emaseg.resources import shipped_recipes
    from emaseg.weights.released import by_name, released

    if name in shipped_recipes() and name not in {entry.name for entry in released()}:
        raise WeightsError(f"{name}: this recipe has no released weights", f"train it: emaseg train {name}")
    return by_name(name)


def _start_of(name: str) -> Released:
    """The ImageNet weights that a recipe's training starts from, or the backbone of that name."""
    from emaseg.recipe import load_recipe
    from emaseg.resources import shipped_recipes
    from emaseg.weights.released import by_name, by_reference

    if name not in shipped_recipes():
        return by_name(name)
    weights = load_recipe(name).backbone.weights
    entry = by_reference(weights)
    if entry is None:
        raise WeightsError(f"{name}: its training starts from no released backbone (backbone.weights = {weights!r})")
    return entry


def _list(entries: Sequence[Released], as_json: bool) -> int:
    from emaseg.weights.cache import locate, state
    from emaseg.words import size

    from .render import print_json, print_table

    if as_json:
        print_json({"schema": SCHEMA, "weights": [_listed(entry) for entry in entries]})
        return 0
    states = {"absent": "-", "here": "here", "recorded": "here, hash recorded"}
    rows = []
    for entry in entries:
        path = locate(entry)
        large = size(path.stat().st_size) if path else f"> {size(entry.megabytes * 1e6)}"
        rows.append((entry.name, entry.row, entry.score or "-", large, states[state(entry)]))
    print_table(("name", "row", "published mIoU", "size", "in the cache"), rows, numbers=("size",), whole="name")
    return 0


def _listed(entry: Released) -> dict[str, Any]:
    from emaseg.weights.cache import locate, state

    path = locate(entry)
    return {
        **{key: getattr(entry, key) for key in ("name", "kind", "row", "dataset", "model", "format", "file", "url")},
        "mirrors": list(entry.mirrors),
        "published": {key: getattr(entry, key) for key in ("miou", "miou_flip", "miou_ms_flip")},  # percent
        "least_size": entry.megabytes * 1_000_000,
        "size": path.stat().st_size if path else entry.size,
        "state": state(entry),
        "path": str(path) if path else None,
        "note": entry.note,
    }


def _verify(entries: Sequence[Released], as_json: bool, *, strict: bool) -> int:
    """A line for each file that is here; 3 when one has changed, or when `strict` and one is not here."""
    from emaseg.weights.cache import locate, state, unfit, verified

    from .render import print_error, print_line, print_lines

    failed = False
    files = []
    for entry in entries:
        path = locate(entry)
        if path is None:
            if strict:
                failed = True
                print_error(f"{entry.name}: not in the cache", f"emaseg download-weights {entry.name}")
            continue
        had = state(entry) == "recorded"
        try:
            digest = verified(entry, path, full=True).sha256
            if not had and (reason := unfit(entry, path)):
                raise WeightsError(f"{path}: {reason}; not recorded", "remove the file and download it again")
        except UserError as error:
            failed = True
            print_error(error.message, error.hint)
            files.append(_file(entry, path, "", "changed"))
            continue
        # A cache that may only be read keeps no new record.
        verdict = "ok" if had else "recorded now" if state(entry) == "recorded" else "not recorded"
        files.append(_file(entry, path, digest, verdict))
        if not as_json:
            print_line(f"{digest}  {path}  {verdict}")
    if as_json:
        _print_files(files)
    elif not files and not strict:
        print_lines(["no released weights in the cache; see emaseg download-weights --list"])
    return WeightsError.exit_code if failed else 0


def _import_from(entries: Sequence[Released], source: Path, as_json: bool, quiet: bool, *, strict: bool) -> int:
    from emaseg.weights.cache import import_from, verified

    from .render import print_error, print_lines, print_path

    if not source.is_dir():
        raise WeightsError(f"--from {source}: no such folder", "name the folder that holds the weight files")
    failed, files, missing = False, [], []
    for entry in entries:
        try:
            path = import_from(entry, source)
        except WeightsError as error:  # the other files may be good
            failed = True
            print_error(error.message, error.hint)
            continue
        if path is None:
            missing.append(entry)
            continue
        files.append(_file(entry, path, verified(entry, path).sha256, "here"))
        if not as_json:
            print_path(path)
    if missing and (strict or not (files or failed)):
        expected = [name for entry in missing for name in entry.files]
        more = f" and {len(expected) - 6} more" if len(expected) > 6 else ""
        hint = f"they are called {', '.join(expected[:6])}{more}"
        if not (files or failed):
            raise WeightsError(f"--from {source}: none of the files looked for", hint)
        failed = True
        print_error(f"--from {source}: not there: {', '.join(entry.name for entry in missing)}", hint)
    if as_json:
        _print_files(files)
    elif not quiet:
        print_lines([f"{len(files)} taken from {source}"])
    return WeightsError.exit_code if failed else 0


def _download(entries: Sequence[Released], as_json: bool, quiet: bool, *, strict: bool) -> int:
    """Fetch one after the other; a file that cannot be had does not keep the others from coming, until the network itself
    seems to be gone.

    A file without an address is a failure only when `strict`: then it was named.
    """
    from emaseg.events import Note
    from emaseg.weights.cache import by_hand_advice, locate, verified
    from emaseg.weights.download import fetch, sources

    from .progress import Meter, show_download
    from .render import print_error, print_path

    files: list[dict[str, Any]] = []
    code, silent = 0, 0
    with Meter(quiet) as meter:
        for entry in entries:
            had = locate(entry) is not None
            if not (had or strict or sources(entry)):
                meter.note(
                    Note(f"{entry.name}: skipped, its owners give no address ({by_hand_advice(entry)})", warning=True)
                )
                continue
            try:
                path = show_download(fetch(entry), meter)
            except (WeightsError, NetworkFault) as error:
                if len(entries) == 1:
                    raise
                code = max(code, error.exit_code)
                print_error(error.message, error.hint, meter.out)
                silent = silent + 1 if isinstance(error, NetworkFault) else 0
                if silent == _MOST_SILENT:
                    break
                continue
            silent = 0
            files.append(_file(entry, path, verified(entry, path).sha256, "here" if had else "downloaded"))
            if not as_json:
                print_path(path)
    if as_json:
        _print_files(files)
    return code


def _file(entry: Released, path: Path, sha256: str, state: str) -> dict[str, Any]:
    return {"name": entry.name, "path": str(path), "size": path.stat().st_size, "sha256": sha256, "state": state}


def _print_files(files: Sequence[dict[str, Any]] | Iterator[dict[str, Any]]) -> None:
    from .render import print_json

    print_json({"schema": SCHEMA, "files": list(files)})
