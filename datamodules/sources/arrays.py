"""Reading files of arrays: NumPy's ``.npz``, and MATLAB's ``.mat``."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import io, sparse

from lightning_ncmtl.errors import InputError

CELL = "cell"  # the column of the number of the cell, of rows out of cell arrays
SUFFIXES = (".npz", ".mat")
_KINDS = "biufUSO"  # of arrays that hold numbers, texts or cells

Matrix = NDArray[Any]


def read_arrays(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of arrays by the names of their columns, and where each stands: ``(row, "file:number")``.

    An array of one column is a column of its name; one of several has numbers behind it: ``X1``, ``X2``, ... Where
    there are cell arrays, with a matrix for each task, the rows of all cells follow each other, ``file[cell]:number``,
    and the column ``cell`` has the number of the cell, such as ``01``. What has a single row, or value, in each cell
    holds for all rows of the cell. Scalars and structures are no columns.

    Raises:
        InputError: If the file cannot be read, or arrays have different numbers of rows.
    """
    arrays = {name: values if values.dtype == object else _matrix(values) for name, values in _load(file).items()}
    longest = max((values.size if values.dtype == object else len(values) for values in arrays.values()), default=0)
    arrays = {name: values for name, values in arrays.items() if values.size > 1 or longest == 1}
    if not arrays:
        raise InputError(f"{file}: found no arrays of numbers or texts")
    has_cells = any(values.dtype == object for values in arrays.values())
    cells = _cells(file, arrays) if has_cells else [arrays]
    parts = [_stack(file, cell, repeat=has_cells) for cell in cells]
    grouped = has_cells and any(_count_rows(part) != 1 for part in parts)  # else each cell is a row
    for number, part in enumerate(parts, start=1):
        if odd := sorted(set(part) ^ set(parts[0])):
            raise InputError(f"{file}: cell {number} has other columns than cell 1: {odd[0]!r} is only in one of them")
        place = f"{file}[{number}]" if grouped else str(file)
        own = {CELL: f"{number:0{len(str(len(parts)))}d}"} if grouped else {}
        rows = zip(*(column.tolist() for column in part.values()), strict=True)
        for row, values in enumerate(rows, start=number if has_cells and not grouped else 1):
            yield {**dict(zip(part, values, strict=True)), **own}, f"{place}:{row}"


def _cells(file: Path, arrays: Mapping[str, Matrix]) -> list[dict[str, Matrix]]:
    """The arrays of each cell. What is no cell array has a row for each."""
    split = {name: values.ravel() if values.dtype == object else values[:, None] for name, values in arrays.items()}
    numbers = {name: len(cells) for name, cells in split.items()}
    if len(set(numbers.values())) > 1:
        raise InputError(f"{file}: different numbers of cells: {_list(numbers)}")
    count = next(iter(numbers.values()))
    return [{name: _matrix(cells[cell]) for name, cells in split.items()} for cell in range(count)]


def _load(file: Path) -> dict[str, Matrix]:
    """The arrays of numbers, texts and cells."""
    try:
        with file.open("rb") as opened:
            if file.suffix.lower() == ".mat":
                with warnings.catch_warnings():
                    # scipy 1.18 says which kind of sparse matrices 1.20 will give: both are read
                    warnings.filterwarnings("ignore", "The default value for `spmatrix`", DeprecationWarning)
                    content = io.loadmat(opened)
                arrays = {name: values for name, values in content.items() if not name.startswith("__")}
            else:
                archive = np.load(opened, allow_pickle=False)
                arrays = {name: archive[name] for name in archive.files}
    except NotImplementedError as error:
        raise InputError(f"{str(file)!r} has MATLAB's format 7.3: save it with '-v7'") from error
    except Exception as error:  # of many kinds, where files are damaged
        raise InputError(f"cannot read {str(file)!r}: {' '.join(str(error).split())[:200]}") from error
    arrays = {name: values.toarray() if sparse.issparse(values) else values for name, values in arrays.items()}
    return {name: values for name, values in arrays.items() if values.ndim and values.dtype.kind in _KINDS}


def _matrix(values: Any) -> Matrix:
    """``[n, columns]``; a vector is one column, and of more dimensions the first are the rows."""
    array = values.toarray() if sparse.issparse(values) else np.asarray(values)
    array = array.astype(str) if array.dtype.kind in "SO" else array  # no setting can mean cells within cells
    return array.reshape(-1, 1) if array.ndim < 2 else array.reshape(len(array), -1)


def _stack(file: Path, arrays: Mapping[str, Matrix], repeat: bool) -> dict[str, Matrix]:
    """The columns ``[n]`` of all arrays of a cell; those of one row are repeated or refused."""
    rows = max(map(len, arrays.values()))
    columns: dict[str, Matrix] = {}
    for name, values in arrays.items():
        matrix = values
        if matrix.shape == (1, rows):  # MATLAB's row vectors
            matrix = matrix.T
        elif len(matrix) == 1 and repeat:
            matrix = matrix.repeat(rows, 0)
        if len(matrix) != rows:
            raise InputError(f"{file}: different numbers of rows: {_list({n: len(a) for n, a in arrays.items()})}")
        width = matrix.shape[1]
        columns |= {name if width == 1 else f"{name}{place + 1}": matrix[:, place] for place in range(width)}
    return columns


def _count_rows(columns: Mapping[str, Matrix]) -> int:
    return len(next(iter(columns.values()), ()))


def _list(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
