import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import io, sparse

from lightning_ncmtl.datamodules.sources.arrays import read_arrays
from lightning_ncmtl.errors import InputError


def cells(*values: Any) -> Any:
    """A cell array of 1 x N."""
    array = np.empty((1, len(values)), dtype=object)
    array[0] = [None] * len(values)
    for place, value in enumerate(values):
        array[0, place] = value
    return array


def test_rows_of_cells(tmp_path: Path) -> None:
    file = tmp_path / "mines.mat"
    content = {
        "feature": cells(np.array([[1.5, 2], [3, 4]]), np.array([[5.0, 6]])),
        "label": cells(np.array([[0], [1]], dtype=np.uint8), np.array([[1]], dtype=np.uint8)),
        "name": cells("foliated", "bare"),
        "comment": np.array([3.0]),
    }
    io.savemat(file, content)
    assert list(read_arrays(file)) == [
        ({"feature1": 1.5, "feature2": 2, "label": 0, "name": "foliated", "cell": "1"}, f"{file}[1]:1"),
        ({"feature1": 3, "feature2": 4, "label": 1, "name": "foliated", "cell": "1"}, f"{file}[1]:2"),
        ({"feature1": 5, "feature2": 6, "label": 1, "name": "bare", "cell": "2"}, f"{file}[2]:1"),
    ]


@pytest.mark.parametrize("suffix", ["mat", "npz"])
def test_rows_of_plain_arrays(tmp_path: Path, suffix: str) -> None:
    """Labels lie in a row, as MATLAB has vectors; tasks are texts."""
    file = tmp_path / f"all.{suffix}"
    content = {"X": np.array([[1.0, np.inf], [2, 3], [4, 5]]), "y": np.array([[0, 1, 1]]), "kind": ["a", "b", "a"]}
    if suffix == "mat":
        content["kind"] = cells("a", "b", "a")
        content["y"] = content["y"].T
        io.savemat(file, content)
    else:
        np.savez(file, **content)  # type: ignore[arg-type]
    assert list(read_arrays(file)) == [
        ({"X1": 1, "X2": np.inf, "y": 0, "kind": "a"}, f"{file}:1"),
        ({"X1": 2, "X2": 3, "y": 1, "kind": "b"}, f"{file}:2"),
        ({"X1": 4, "X2": 5, "y": 1, "kind": "a"}, f"{file}:3"),
    ]


def test_sparse_matrices(tmp_path: Path) -> None:
    file = tmp_path / "bits.mat"
    io.savemat(file, {"bits": sparse.csc_matrix(np.eye(3)), "y": np.array([[1], [0], [1]])})
    assert [row for row, _ in read_arrays(file)] == [
        {"bits1": float(place == 0), "bits2": float(place == 1), "bits3": float(place == 2), "y": y}
        for place, y in enumerate([1, 0, 1])
    ]


MATRIX = np.ones((4, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": MATRIX, "y": np.ones(3)}, "all.npz: different numbers of rows: X 4, y 3"),
        ({"X": MATRIX, "y": np.ones((1, 2))}, "all.npz: different numbers of rows: X 4, y 1"),
        ({"one": np.array(1.0)}, "all.npz: found no arrays of numbers or texts"),
        ({"X": np.array([None, 3])}, "cannot read '.*all.npz': Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    file = tmp_path / "all.npz"
    np.savez(file, **content)
    with pytest.raises(InputError, match=message):
        list(read_arrays(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": cells(MATRIX, MATRIX), "y": cells(np.ones(4), np.ones(3))}, "different numbers of rows: X 4, y 3"),
        ({"X": cells(MATRIX, MATRIX[:, :2])}, "cell 2 has other columns than cell 1: 'X3' is only in one of them"),
        ({"X": cells(MATRIX, MATRIX), "y": cells(1, 2, 3)}, "different numbers of cells: X 2, y 3"),
    ],
)
def test_cells_that_cannot_be_used(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    io.savemat(tmp_path / "all.mat", content, oned_as="column")
    with pytest.raises(InputError, match=re.escape(message)):
        list(read_arrays(tmp_path / "all.mat"))


@pytest.mark.parametrize("name", ["all.mat", "all.npz"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no such thing\n" * 20)
    with pytest.raises(InputError, match=f"cannot read '.*{name}': ") as raised:
        list(read_arrays(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_newer_format_of_matlab(tmp_path: Path) -> None:
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(64)
    (tmp_path / "new.mat").write_bytes(header)
    with pytest.raises(InputError, match="has MATLAB's format 7.3: save it with '-v7'"):
        list(read_arrays(tmp_path / "new.mat"))
