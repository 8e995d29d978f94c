"""`emaseg download-weights`, and what predict, eval and train do with its files: as a user types them."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from emaseg.events import Downloading, Finished, Note, TrainingStarted
from emaseg.models import build_model
from emaseg.recipe import load_recipe
from emaseg.training.train import train
from emaseg.weights import download
from emaseg.weights.address import Source
from emaseg.weights.released import Released
from tests.helpers import TINY, emaseg
from tests.weights import server as faulty
from tests.weights.server import Server, plausible, weights

CONTENT = weights()
BACKBONE = "resnet50_v1c-2cccc1ad.pth"
Output = tuple[int, str, str]


@pytest.fixture
def mirror(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server in the place of all owners; it serves what a test puts into `files`."""
    monkeypatch.setenv("EMASEG_MIRROR", server.url(""))
    return server


def test_without_a_name_it_is_the_model_of_predict(
    mirror: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the first use: one line says what and how large; the path alone is on stdout."""
    mirror.files["/emanet_resnet101os8_voc_train.pth"] = plausible("voc_r101_d8")
    code, out, err = emaseg(capsys, "download-weights")
    assert (code, out) == (0, f"{cache / 'emanet_resnet101os8_voc_train.pth'}\n")
    first = err.splitlines()[0]
    assert first == (
        "downloading voc_r101_d8 (EMANet R-101-D8, PASCAL VOC 2012 (sssegmentation), published mIoU 76.43): "
        "272 MB from 127.0.0.1"
    )
    assert "download voc_r101_d8 272/272  MB  " in err
    assert emaseg(capsys, "download-weights", "-q") == (0, out, "")


def test_json_is_one_object(mirror: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = mirror.files[f"/{BACKBONE}"] = plausible("resnet50_v1c")
    code, out, err = emaseg(capsys, "download-weights", "resnet50_v1c", "--json", "-q")
    assert (code, err) == (0, "")
    (file,) = json.loads(out)["files"]
    assert file == {
        "name": "resnet50_v1c",
        "path": str(cache / "resnet50_v1c-2cccc1ad.pth"),
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "state": "downloaded",
    }


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 45),
        (["--all"], 45),
        (["--dataset", "voc"], 4),
        (["--model", "memorynet"], 18),
        (["--model", "memorynet", "--dataset", "lip"], 4),
        (["--backbones"], 11),
        (["--backbones", "--dataset", "voc"], 2),
        (["--backbones", "memorynet_lip_s101_d8", "paper_voc_val_r101_emanet512"], 2),
        (["voc_r50_d8", "voc_r50_d8", "hrnetv2_w48"], 2),
    ],
)
def test_what_is_chosen(capsys: pytest.CaptureFixture[str], arguments: list[str], count: int) -> None:
    """Protects the choice: names, filters, all; the same for listing and fetching."""
    code, out, err = emaseg(capsys, "download-weights", "--list", "--json", *arguments)
    assert (code, err) == (0, "")
    listed = json.loads(out)["weights"]
    assert len(listed) == count
    assert {entry["state"] for entry in listed} == {"absent"}


def recorded(path: Path) -> Path:
    """A small file with a record of its hash, as an earlier version may have left it."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(CONTENT).hexdigest()}  {path.name}\n")
    return path


def test_the_list_shows_what_is_here(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(cache / "emanet_resnet50os8_voc_train.pth")
    (cache / "emanet_resnet50os16_voc.pth").write_bytes(CONTENT)
    code, out, _ = emaseg(capsys, "download-weights", "--list", "--dataset", "voc")
    lines = {line.split()[0]: line.rstrip() for line in out.splitlines()[2:]}
    assert code == 0
    assert lines["voc_r50_d8"].endswith("75.29              300 kB   here, hash recorded")
    assert lines["voc_r50_d16"].endswith("300 kB   here")
    assert lines["voc_r101_d8"].endswith("> 286 MB   -")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["voc_r50_d9"], 2, 'did you mean "voc_r50_d8"?'),
        (["demo"], 3, "this recipe has no released weights"),
        (["demo", "--backbones"], 3, "starts from no released backbone"),
        (["voc_r50_d8", "--all"], 2, "leave one of the two out"),
        (["--all", "--dataset", "voc"], 2, "--all means every file"),
        (["--list", "--verify"], 2, "choose one"),
        (["--dataset", "vco"], 2, 'did you mean "voc"?'),
        (["--model", "emanet", "--dataset", "lip"], 2, "nothing released"),
        (["--from", "nowhere"], 3, "no such folder"),
        (["resnet50_authors"], 3, "github.com/XiaLiPKU/EMANet"),
    ],
)
def test_mistakes_are_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    result, out, err = emaseg(capsys, "download-weights", *arguments)
    assert (result, out) == (code, "")
    assert said in err


def test_verify_reads_everything_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects --verify: ok, recorded now, changed (exit 3), and a named file that is not here (exit 3)."""
    assert emaseg(capsys, "download-weights", "--verify")[:2] == (0, "")
    recorded(cache / BACKBONE)
    (cache / "resnet50-19c8e357.pth").write_bytes(plausible("resnet50"))
    code, out, _ = emaseg(capsys, "download-weights", "--verify")
    assert code == 0
    assert [line.split("  ")[2] for line in out.splitlines()] == ["ok", "recorded now"]
    (cache / BACKBONE).write_bytes(weights(seed=1))
    code, out, err = emaseg(capsys, "download-weights", "--verify", "--json")
    assert code == 3
    assert [file["state"] for file in json.loads(out)["files"]] == ["changed", "ok"]
    assert "not the content that was here first" in err
    code, _, err = emaseg(capsys, "download-weights", "--verify", "voc_r50_d8")
    assert code == 3
    assert "emaseg download-weights voc_r50_d8" in err


def test_what_cannot_be_the_weights_is_never_recorded(
    mirror: Server, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects "the first copy holds": 45 bytes are no network of 209 MB, by whatever way they come."""
    content = b"PK\x03\x04" + bytes(41)
    mirror.files["/emanet_resnet50os8_voc_train.pth"] = content
    mirror.faults = [None, faulty.without_length, faulty.without_length, faulty.without_length]
    for _ in range(2):
        code, out, err = emaseg(capsys, "download-weights", "voc_r50_d8")
        assert (code, out) == (3, "")
        assert "has 45 bytes; the network's tensors alone take 209 MB" in err
    assert list(cache.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/emanet_resnet50os8_voc_train.pth").write_bytes(content)
    code, _, err = emaseg(capsys, "download-weights", "--from", tmp_path / "mine")
    assert code == 3
    assert "alone take 209 MB" in err
    assert list(cache.iterdir()) == []
    (cache / "emanet_resnet50os8_voc_train.pth").write_bytes(content)
    code, _, err = emaseg(capsys, "download-weights", "--verify")
    assert code == 3
    assert "not recorded" in err
    assert [file.name for file in cache.iterdir()] == ["emanet_resnet50os8_voc_train.pth"]


def test_from_a_folder_without_a_network(
    server: Server, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects air-gapped machines: the good files come in, the bad one is named and ends in exit 3."""
    monkeypatch.setenv("EMASEG_OFFLINE", "1")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / BACKBONE).write_bytes(plausible("resnet50_v1c"))
    (mine / "resnet50-19c8e357.pth").write_bytes(plausible("resnet50"))
    code, out, err = emaseg(capsys, "download-weights", "--from", mine)
    assert code == 0
    assert out.split() == [str(cache / BACKBONE), str(cache / "resnet50-19c8e357.pth")]
    assert f"2 taken from {mine}" in err
    (mine / "hrnetv2_w48-d2186c55.pth").write_bytes(b"<html>")
    code, out, err = emaseg(capsys, "download-weights", "--from", mine)
    assert code == 3
    assert len(out.split()) == 2
    assert "an HTML page instead of weights" in err
    code, _, err = emaseg(capsys, "download-weights", "voc_r101_d8", "--from", mine)
    assert code == 3
    assert "emanet_resnet101os8_voc_train.pth, emanet_resnet101os8_voc.pth" in err
    assert server.requests == []


def test_one_that_is_missing_does_not_keep_the_others(
    mirror: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects long lists: exit 3 at the end, everything else is there."""
    mirror.files[f"/{BACKBONE}"] = plausible("resnet50_v1c")
    code, out, err = emaseg(capsys, "download-weights", "--backbones", "--dataset", "voc")
    assert (code, out) == (3, f"{cache / BACKBONE}\n")
    assert "resnet101_v1c: could not be downloaded" in err


def test_a_host_that_is_not_there_does_not_keep_the_others(
    mirror: Server, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the files of other hosts; where nobody answers three times in a row the network itself is gone."""
    mirror.files[f"/{BACKBONE}"] = plausible("resnet50_v1c")
    there = download.sources

    def sources(entry: Released) -> tuple[Source, ...]:
        address = "http://host.invalid/net.pth"
        return there(entry) if entry.name == "resnet50_v1c" else (Source(address, address, "net.pth"),)

    def look_up(host: str, *rest: Any) -> Any:
        if host == "host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known(host, *rest)

    known = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(download, "sources", sources)
    code, out, err = emaseg(capsys, "download-weights", "resnet101_v1c", "resnet50_v1c", "--json")
    assert (code, [file["name"] for file in json.loads(out)["files"]]) == (4, ["resnet50_v1c"])
    assert "resnet101_v1c: could not be downloaded" in err
    names = ["resnet101_v1c", "resnet50", "resnet101", "hrnetv2_w48"]
    code, out, err = emaseg(capsys, "download-weights", *names)
    assert (code, out, err.count("could not be downloaded")) == (4, "", 3)
    code, out, _ = emaseg(capsys, "download-weights", "resnet50_v1c", *names, "--json")
    assert (code, [file["name"] for file in json.loads(out)["files"]]) == (4, ["resnet50_v1c"])


def test_some_that_are_missing_from_a_folder_are_named(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from "none of the files" where one was taken, and programs from an empty answer."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / BACKBONE).write_bytes(plausible("resnet50_v1c"))
    names = ("resnet50_v1c", "resnet101_v1c")
    code, out, err = emaseg(capsys, "download-weights", *names, "--from", tmp_path / "mine", "--json")
    assert (code, [file["name"] for file in json.loads(out)["files"]]) == (3, ["resnet50_v1c"])
    assert "not there: resnet101_v1c" in err


def test_fetching_needs_no_torch(mirror: Server, cache: Path) -> None:
    """Protects light machines (a login node): the whole command without torch, in a fresh interpreter."""
    mirror.files[f"/{BACKBONE}"] = plausible("resnet50_v1c")
    code = (
        "import sys; from emaseg.cli import main; code = main(['download-weights', 'resnet50_v1c']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stderr


# -------------------------------------------------------------------------------------------------- the other verbs
@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_recipe_alone_names_the_command_that_fetches_its_weights(
    server: Server, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects REF = RECIPE: exit 3 with the exact remedy, and no request without being asked."""
    for arguments in (["eval", "voc_r50_d8"], ["predict", str(photo), "--recipe", "voc_r50_d8"]):
        code, _, err = emaseg(capsys, *arguments)
        assert code == 3
        assert "try: emaseg download-weights voc_r50_d8; or download https://" in err
    assert server.requests == []


def test_damaged_weights_are_refused_when_used(cache: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects from a cache that changed under us: found before the file is loaded."""
    file = recorded(cache / "emanet_resnet50os8_voc_train.pth")
    file.write_bytes(weights(seed=1))
    code, _, err = emaseg(capsys, "predict", photo, "--recipe", "voc_r50_d8")
    assert code == 3
    assert "not the content that was here first" in err


def test_predict_without_weights_looks_at_the_image_first(
    mirror: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from a large download for a misspelt file name."""
    code, _, err = emaseg(capsys, "predict", tmp_path / "no.jpg")
    assert code == 3
    assert "no such file" in err
    assert mirror.requests == []


def test_predict_without_weights_says_how_the_download_failed(
    mirror: Server, cache: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.faults = [faulty.page, faulty.page]
    code, out, err = emaseg(capsys, "predict", photo)
    assert (code, out) == (3, "")
    assert "an HTML page instead of weights" in err
    assert f"save it as {cache / 'emanet_resnet101os8_voc_train.pth'}" in err


@pytest.fixture
def backbone(tmp_path: Path) -> bytes:
    """A file of resnet50_v1c, as its owners lay it out, of the recipe's own start values."""
    state = build_model(load_recipe("voc_r50_d8")).backbone.state_dict()
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(1000, 2048)}}, tmp_path / "backbone.pth")
    return (tmp_path / "backbone.pth").read_bytes()


def small(tmp_path: Path, weights: str) -> list[str]:
    """Arguments of the shortest training on a released backbone."""
    text = TINY.replace('kind = "resnet14"', 'kind = "resnet50"').replace("stem_channels = [8, 8, 8]\nwidth = 8\n", "")
    (tmp_path / "small.toml").write_text(text.replace('weights = "none"', f'weights = "{weights}"'))
    values = ["train.iterations=1", "train.batch=2", "data.train_images=2", "data.eval_images=1"]
    return [str(tmp_path / "small.toml"), *(part for value in values for part in ("--set", value))]


def test_training_fetches_the_backbone_that_it_starts_from(
    mirror: Server, cache: Path, tmp_path: Path, backbone: bytes
) -> None:
    """Protects `emaseg train RECIPE` on a fresh machine: it fetches, says so, counts, and uses what it fetched."""
    mirror.files["/resnet50_v1c-2cccc1ad.pth"] = backbone
    path, *values = small(tmp_path, "resnet50_v1c")
    events = train(load_recipe(path, values[1::2]), tmp_path / "run")
    told = list(takewhile(lambda event: not isinstance(event, TrainingStarted), events))
    events.close()  # type: ignore[attr-defined]
    notes = [event.text for event in told if isinstance(event, Note)]
    announced = "downloading resnet50_v1c (ResNet-50, stem of three 3x3 convolutions 32-32-64): 103 MB from 127.0.0.1"
    assert announced in notes
    assert f"backbone: {cache / 'resnet50_v1c-2cccc1ad.pth'}" in notes
    assert any(isinstance(event, Downloading) for event in told)
    assert len(mirror.requests) == 1


def test_a_dry_run_only_says_what_it_would_download(
    mirror: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects from a large download by `--dry-run`; what it measures does not depend on the weights."""
    (tmp_path / "tiny.toml").write_text(TINY.replace('weights = "none"', 'weights = "resnet50_v1c"'))
    code, _, err = emaseg(capsys, "train", tmp_path / "tiny.toml", "--dry-run", "--device", "cpu")
    assert code == 0
    assert "resnet50_v1c would be downloaded first (at least 94 MB)" in err
    assert mirror.requests == []


def test_stopping_while_it_downloads_ends_the_run_before_it_began(mirror: Server, cache: Path, tmp_path: Path) -> None:
    """Protects Ctrl-C and Slurm's signal at the very start: what has arrived is kept, and no run pretends to exist."""
    mirror.files[f"/{BACKBONE}"] = plausible("resnet50_v1c")
    mirror.faults = [faulty.slowly(0.05)]
    path, *values = small(tmp_path, "resnet50_v1c")
    stop = threading.Event()
    seen = []
    for event in train(load_recipe(path, values[1::2]), tmp_path / "run", stop=stop):
        seen.append(event)
        if isinstance(event, Downloading):
            stop.set()
    assert seen[-1] == Finished(tmp_path / "run", 0, None, interrupted=True)
    assert not (tmp_path / "run").exists()
    assert (cache / "resnet50_v1c-2cccc1ad.pth.part").stat().st_size > 0
    assert not list(cache.glob(".*.lock"))


def test_training_without_a_network_says_how_to_go_without(
    mirror: Server, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the way out: offline and with a dead link, both name the file and backbone.weights = none."""
    address = "https://download.openmmlab.com/pretrain/third_party/resnet50_v1c-2cccc1ad.pth"
    arguments = ["train", *small(tmp_path, address), "--out", str(tmp_path / "run"), "--device", "cpu"]
    mirror.faults = [faulty.status(404)]
    for offline, said in (("", "is not there any more"), ("1", "emaseg download-weights resnet50_v1c")):
        monkeypatch.setenv("EMASEG_OFFLINE", offline)
        code, _, err = emaseg(capsys, *arguments)
        assert code == 3
        assert said in err
        assert str(cache / "resnet50_v1c-2cccc1ad.pth") in err
        assert "--set 'backbone.weights=\"none\"'" in err
    assert len(mirror.requests) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
