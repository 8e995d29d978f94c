"""A network as a program without Python, and the two files that hold one: torch.export's .pt2, and ONNX.

Room: exporting; onnx's exporter is imported when it is used. Legend: B batch, H W image.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.export import Dim, ExportedProgram

from emaseg.errors import WeightsError
from emaseg.exported.info import INPUT, METADATA_FIELD, ONNX_DIGEST, SMALLEST_SIDE
from emaseg.exported.protobuf import written
from emaseg.exported.pt2_archive import ABOUT, DIGEST, digest_of, hash_members, read_directory
from emaseg.exported.run_pt2 import quiet
from emaseg.exporting.network import InferenceNetwork
from emaseg.files import atomic, open_file, sha256_of
from emaseg.recipe.channels import RGB

OPSET = 18  # the exporter's own: every runtime since 2023 has it
ONNX_LIMIT = 2_000_000_000  # bytes of weights in one file: protobuf.LARGEST, less what describes them

_EXAMPLE = (136, 200)  # sides that nothing divides into one another, so that no equality is taken for a rule
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def program_of(network: InferenceNetwork, shape: tuple[int, int] | None, channels: int = RGB) -> ExportedProgram:
    """The network as a graph of tensor operations, for any batch, and for one size or (None) any from SMALLEST_SIDE.

    Raises:
        WeightsError: the program would keep state.
    """
    height, width = shape or _EXAMPLE
    example = torch.zeros(2, channels, height, width, dtype=torch.uint8 if network.pixels else torch.float32)
    sizes: dict[int, Dim] = {0: Dim("batch")}
    if shape is None:
        sizes |= {2: Dim("height", min=SMALLEST_SIDE), 3: Dim("width", min=SMALLEST_SIDE)}
    with torch.no_grad(), quiet():
        program = torch.export.export(network, (example,), dynamic_shapes={INPUT: sizes}, strict=False)
    if program.graph_signature.buffers_to_mutate:
        raise WeightsError("the program would change its own weights", "report this: no network here should")
    for node in program.graph.nodes:  # where in the sources each operation comes from is nobody's business
        for key in _TRACES:
            node.meta.pop(key, None)
    program._guards_code = []  # Python that a loader would execute; `FileInfo.check_size` says the same
    return program


def write_pt2(program: ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    """torch.export's archive with the metadata in it, and the SHA-256 of all its members.

    Raises:
        SystemFault, OSError: disk full, no permission.
    """
    program.example_inputs = None
    with atomic(path) as place, quiet():
        taken = _TakesAll(place)
        extra = {ABOUT.removeprefix("extra/"): json.dumps(dict(texts))}
        torch.export.save(program, cast("IO[bytes]", taken), extra_files=extra)
        if taken.error is not None:
            raise taken.error
    with open_file(path) as file:
        digest = digest_of(hash_members(file, read_directory(file).values()))
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{folder}/{DIGEST}"), digest)


class _TakesAll(io.RawIOBase):
    """A file to PyTorch's writer, which must not see that a write fails or is interrupted: when it is torn down with an
    archive that is not at its end, C++ ends the process. What came first is kept, to be raised once the writer is done.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self._file = file

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return offset if self.error is not None else self._file.seek(offset, whence)

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except BaseException as error:  # noqa: BLE001  (Ctrl-C, too)
                self.error = error
        return len(data)


def write_onnx(
    program: ExportedProgram, path: Path, output: str, texts: Mapping[str, str], shape: tuple[int, int] | None
) -> None:
    """One ONNX file, weights and metadata inside; the axes that may have any size are called as in `program_of`.

    Raises:
        WeightsError: it would be larger than such a file can be.
    """
    held = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if held > ONNX_LIMIT:
        raise WeightsError(
            f"{held / 1e9:.2f} GB of weights do not fit into one ONNX file (2 GB)", "use --precision fp16"
        )
    axes = {0: "batch"} if shape else {0: "batch", 2: "height", 3: "width"}
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )
    assert exported is not None  # None is the old exporter's
    model = exported.model
    model.producer_name, model.producer_version = "emaseg", json.loads(texts["versions"])["emaseg"]
    model.metadata_props.clear()
    model.metadata_props.update(texts)
    for node in model.graph:
        node.metadata_props.clear()
    exported.save(str(path), external_data=False)
    seal(path)


def seal(path: Path) -> None:
    """Append the SHA-256 of an ONNX file to its metadata: of all its bytes but this entry's own."""
    with open_file(path) as file:
        digest = sha256_of(file)
    with path.open("ab") as file:
        file.write(written(METADATA_FIELD, written(1, ONNX_DIGEST.encode()) + written(2, digest.encode())))
