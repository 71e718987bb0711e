"""What training labels say beside what is learned from them: the scale of numbers, and weights of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from lightning_ncmtl.datamodules.copies import Integers
from lightning_ncmtl.datamodules.document_table import sort_labels
from lightning_ncmtl.datamodules.features import Numbers
from lightning_ncmtl.datamodules.settings import ClassWeights, ValueScale
from lightning_ncmtl.datamodules.sources import Label
from lightning_ncmtl.datamodules.sources.base import plain_label
from lightning_ncmtl.errors import InputError


def learn_scale(table: Dataset, places: Integers, domains: Sequence[str], how: ValueScale) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of the numbers that each task is to predict.

    Args:
        table: The training split (see :meth:`lightning_ncmtl.datamodules.corpus.Corpus.read`).
        places: ``[n]``, its rows that train.
        domains: Names of the N tasks.
        how: Of each ``task``, or of ``all`` numbers together.

    Returns:
        ``[N]`` each; 0 and 1 of tasks without numbers, and a deviation of 1 where all numbers are equal.

    Raises:
        InputError: If numbers are too large for their squares, or too close to each other.
    """
    tasks, values = _entries(table, places, "values")
    known = ~np.isnan(values)
    tasks, values = tasks[known], values[known]
    groups = tasks if how == "task" else np.zeros_like(tasks)
    counts = np.maximum(np.bincount(groups, minlength=len(domains)), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.bincount(groups, values, len(domains)) / counts
        deviation = np.sqrt(np.bincount(groups, (values - mean[groups]) ** 2, len(domains)) / counts)
    if how == "all":
        mean, deviation = np.where(np.bincount(tasks, minlength=len(domains)) > 0, [[mean[0]], [deviation[0]]], 0)
    if not np.isfinite(deviation).all():
        domain = domains[int(np.isfinite(deviation).argmin())]
        raise InputError(f"the numbers of {domain!r} are too large for their squares: scale them")
    deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, 0)  # means of equal numbers may be off a little
    if (odd := (deviation > 0) & (deviation < 1e-5 * np.abs(mean))).any():
        task = int(odd.argmax())
        raise InputError(
            f"the numbers of {domains[task]!r} are too close to each other for 32 bits, found {mean[task]:.8g} with a "
            f"standard deviation of {deviation[task]:.2g}: subtract a constant"
        )
    return mean, np.where(deviation > 0, deviation, 1.0)


def weigh_classes(
    table: Dataset, places: Integers, domain_classes: Mapping[str, Sequence[Label]], how: ClassWeights
) -> Numbers:
    """The weight of each class of each task in the loss.

    Args:
        table: As for :func:`learn_scale`.
        places: As for :func:`learn_scale`.
        domain_classes: The classes of each task.
        how: ``balanced``: classes of a task weigh the same in all, and a label weighs 1 on average; or the weight of
            each class that does not have the weight 1.

    Returns:
        ``[N, C]``, for all classes in the order of their numbers.

    Raises:
        InputError: If there is no such class, or a weight is not positive.
    """
    names = sort_labels({name for of_task in domain_classes.values() for name in of_task})
    if how == "balanced":
        tasks, labels = _entries(table, places, "labels")
        pairs = tasks[labels >= 0] * len(names) + labels[labels >= 0]
        shape = len(domain_classes), len(names)
        counts = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
        present = np.maximum((counts > 0).sum(1, keepdims=True), 1)
        return np.where(counts > 0, counts.sum(1, keepdims=True) / present / np.maximum(counts, 1), 1.0)
    weights = np.ones((len(domain_classes), len(names)))
    for name, weight in ((plain_label(name), weight) for name, weight in how.items()):
        if name not in names:
            raise InputError(f"data.labels.weights has {name!r}, which is none of the classes {names}")
        if not 0 < weight < np.inf:
            raise InputError(f"data.labels.weights must be positive, found {weight} for {name!r}")
        weights[:, names.index(name)] = weight
    return weights


def _entries(table: Dataset, places: Integers, column: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Task and label of all entries of some rows."""
    tasks, labels = (table.data.column(name).take(places) for name in ("task_ids", column))
    return pc.list_flatten(tasks).to_numpy().astype(np.int64), pc.list_flatten(labels).to_numpy()
