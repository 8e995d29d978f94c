"""Label maps in MATLAB files, as some data sets publish them.

Room: data. Imports errors; scipy only when a file is read. Legend: H W image height and width.

Files of MATLAB's versions 4 to 7.2 hold numbers, text and structures; reading them executes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emaseg.errors import DataError, SystemFault, nearest

_AGAIN = "unpack or download it again"


def read_mat(path: Path, variable: str, *fields: str, content: bytes | None = None) -> npt.NDArray[np.integer]:
    """The (H, W) integer matrix `variable` of a MATLAB 4 to 7.2 file; whole numbers stored as floats are converted.

    fields: where the variable is a structure, the field that holds the matrix (and its field, and so on).
    content: the file's bytes where they are not at `path`, which then only names them.

    Raises:
        DataError: missing, damaged, without that variable or field, or that is not a matrix of whole numbers.
        SystemFault: it does not fit into memory.
    """
    matrix, name = _variable(path, variable, content), variable
    for field in fields:
        known, name = matrix.dtype.names or (), f"{name}.{field}"
        if field not in known or not matrix.size:
            raise _not_there(path, name, known)
        matrix = np.asarray(matrix.reshape(-1)[0][field])  # the first of the structure's elements
    return _whole_numbers(matrix, path, name)


def _variable(path: Path, variable: str, content: bytes | None) -> npt.NDArray[np.generic]:
    from scipy.io import loadmat, whosmat

    try:
        with path.open("rb") if content is None else io.BytesIO(content) as file:
            found = loadmat(file, variable_names=[variable])
            names = [] if variable in found else [name for name, _, _ in whosmat(file)]
    except OSError as error:
        if error.errno is None:  # scipy's own, of a truncated file
            raise DataError(f"{path}: a damaged .mat file ({error})", _AGAIN) from error
        raise DataError(f"{path}: cannot be read ({error.strerror})", _AGAIN) from error
    except MemoryError as error:
        raise SystemFault(f"{path}: does not fit into memory", "check the file, or free memory") from error
    except NotImplementedError as error:
        raise DataError(f"{path}: a MATLAB 7.3 (HDF5) file", "save it in the format -v7") from error
    except Exception as error:  # scipy's parser raises whatever the bytes lead it to
        raise DataError(f"{path}: not a .mat file, or a damaged one ({error})", _AGAIN) from error
    if variable not in found:
        raise _not_there(path, variable, names)
    return np.asarray(found[variable])


def _not_there(path: Path, name: str, names: Sequence[str]) -> DataError:
    return DataError(
        f'{path}: holds no "{name}"; found {", ".join(names[:8]) or "nothing there"}',
        nearest(name.rpartition(".")[2], names) or "this is not a label file of the data set; check the label folder",
    )


def _whole_numbers(matrix: npt.NDArray[np.generic], path: Path, name: str) -> npt.NDArray[np.integer]:
    if matrix.ndim == 2 and matrix.size:
        if np.issubdtype(matrix.dtype, np.integer):
            return matrix.astype(matrix.dtype.newbyteorder("="), copy=False)
        if np.issubdtype(matrix.dtype, np.floating):  # MATLAB's default number is a double
            whole = matrix.astype(np.float64)
            if np.isfinite(whole).all() and (np.abs(whole) < 2**31).all() and (whole == np.floor(whole)).all():
                return whole.astype(np.int64)
    raise DataError(f"{path}: {name} is {matrix.dtype} of shape {matrix.shape}, not a map of class numbers", _AGAIN)
