"""Features as inputs: what the training rows say of each, and the numbers made of that."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor

from lightning_ncmtl.compatibility import rank_zero_info
from lightning_ncmtl.datamodules.copies import Integers
from lightning_ncmtl.errors import InputError

Numbers = NDArray[np.float64]
_ROWS = 4096  # read at a time: a bound on memory


@dataclass(frozen=True)
class Scaling:
    """Standardises features: over the rows that it was learned from, each has mean 0 and standard deviation 1.

    A feature that is the same in all of these rows becomes 0 wherever it is applied, as nothing was learned of others.

    Args:
        mean: ``[F]``, the mean of each feature.
        deviation: ``[F]``, its standard deviation; infinite where it is constant.
    """

    mean: Numbers
    deviation: Numbers

    @classmethod
    def learn(cls, features: Sequence[str], table: Dataset, places: Integers) -> "Scaling":
        """Learn from rows, of which constant features are named in a message.

        Args:
            features: Names of the F features.
            table: A table with the column ``features``.
            places: ``[n]``, the rows to learn from, ascending.

        Raises:
            InputError: If values are too large for their squares.
        """
        total, least, most = np.zeros(len(features)), np.full(len(features), np.inf), np.full(len(features), -np.inf)
        square = np.zeros(len(features))
        with np.errstate(over="ignore", invalid="ignore"):
            for rows in _read(table, places):
                total += rows.sum(0)
                least, most = np.minimum(least, rows.min(0)), np.maximum(most, rows.max(0))
            mean = total / len(places)
            for rows in _read(table, places):
                square += ((rows - mean) ** 2).sum(0)
        constant = least == most  # means of equal numbers may be off in the last digit
        deviation = np.where(constant, np.inf, np.sqrt(square / len(places)))
        if (odd := ~constant & ~((deviation > 0) & np.isfinite(deviation))).any():
            place = int(odd.argmax())
            raise InputError(
                f"the feature {features[place]!r} cannot be standardised, found values from {least[place]:.4g} to "
                f"{most[place]:.4g}: scale it, or leave it out of data.features"
            )
        if constant.any():
            names = [repr(name) for name, same in zip(features, constant, strict=True) if same]
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            rank_zero_info(f"train: {len(names):,} of {len(features):,} features are constant and become 0: {shown}")
        return cls(np.where(constant, least, mean), deviation)

    @classmethod
    def from_plain(cls, values: dict[str, list[float]]) -> "Scaling":
        """What :meth:`plain` has made."""
        return cls(*(np.array([np.inf if x is None else x for x in values[name]]) for name in ("mean", "deviation")))

    def plain(self) -> dict[str, list[float | None]]:
        """As plain values, with ``None`` for an infinite deviation, which JSON does not have."""
        deviation = [value if np.isfinite(value) else None for value in self.deviation.tolist()]
        return {"mean": self.mean.tolist(), "deviation": deviation}

    def __call__(self, column: Any) -> Tensor:
        """``[B, F]`` float32 of a column of lists of F numbers."""
        return torch.from_numpy(((_matrix(column) - self.mean) / self.deviation).astype(np.float32))


def _read(table: Dataset, places: Integers) -> Iterator[Numbers]:
    """The features of rows, some at a time."""
    column = table.data.column("features")
    for start in range(0, len(column), _ROWS):
        first, last = np.searchsorted(places, [start, start + _ROWS])
        if first < last:
            yield _matrix(column.slice(start, _ROWS))[places[first:last] - start]


def _matrix(column: Any) -> Numbers:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: Numbers = array.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(array), -1) if len(array) else values.reshape(0, array.type.list_size)
