"""The scale of numbers, and weights of classes, from the rows that train."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from lightning_ncmtl.datamodules.labels import learn_scale, weigh_classes
from lightning_ncmtl.errors import InputError

NAN = float("nan")
PLACES = np.array([0, 1, 2, 3, 5])


def numbers(*entries: tuple[list[int], list[float]]) -> Dataset:
    tasks, values = zip(*entries, strict=True)
    return Dataset.from_dict(
        {"task_ids": list(tasks), "labels": [[-1] * len(of) for of in tasks], "values": list(values)}
    )


TABLE = numbers(([0], [1.0]), ([0, 1], [3.0, 10.0]), ([1, 2], [30.0, NAN]), ([], []), ([0], [99.0]), ([3], [0.1]))


def test_numbers_of_each_task() -> None:
    mean, deviation = learn_scale(TABLE, PLACES, list("abcde"), "task")
    assert mean.tolist() == [2, 20, 0, 0.1, 0]
    assert deviation.tolist() == [1, 10, 1, 1, 1]


def test_numbers_of_all_tasks() -> None:
    mean, deviation = learn_scale(TABLE, PLACES, list("abcde"), "all")
    values = [1, 3, 10, 30, 0.1]
    np.testing.assert_allclose(mean, [np.mean(values)] * 2 + [0, np.mean(values), 0])
    np.testing.assert_allclose(deviation, [np.std(values)] * 2 + [1, np.std(values), 1])


def test_equal_numbers_are_not_blown_up() -> None:
    table = numbers(*[([0], [0.1])] * 7)
    mean, deviation = learn_scale(table, np.arange(7), ["a"], "task")
    assert (mean[0], deviation[0]) == (pytest.approx(0.1), 1)


def test_numbers_that_are_too_large_are_refused() -> None:
    table = numbers(([0], [1e300]), ([0], [-1e300]))
    with pytest.raises(InputError, match="the numbers of 'a' are too large for their squares: scale them"):
        learn_scale(table, np.arange(2), ["a"], "task")


def test_numbers_that_are_too_close_are_refused() -> None:
    table = numbers(([0], [1.0]), ([1], [1e9]), ([1], [1e9 + 1]))
    with pytest.raises(
        InputError, match="the numbers of 'b' are too close to each other for 32 bits, found 1e\\+09 with"
    ):
        learn_scale(table, np.arange(3), ["a", "b"], "task")


CLASSES: dict[str, Any] = {"a": [0, 1], "b": [1, "x"], "c": []}
LABELLED = Dataset.from_dict(
    {
        "task_ids": [[0], [0, 1], [0], [0], [1], [2], [0]],
        "labels": [[0], [0, 1], [0], [1], [-1], [-1], [1]],  # of the classes 0, 1, x
    }
)


def test_balanced_classes_weigh_the_same_in_all() -> None:
    weights = weigh_classes(LABELLED, np.arange(6), CLASSES, "balanced")
    np.testing.assert_allclose(weights, [[4 / 2 / 3, 2, 1], [1, 1, 1], [1, 1, 1]])
    counts = np.array([3, 1])
    assert (weights[0, :2] * counts).tolist() == [2, 2]
    assert weights[0, :2] @ counts == counts.sum()


def test_classes_have_the_weights_given() -> None:
    weights = weigh_classes(LABELLED, np.arange(6), CLASSES, {1: 10.0, "x": 0.5})
    assert weights.tolist() == [[1, 10, 0.5]] * 3
    assert weigh_classes(LABELLED, np.arange(6), CLASSES, {"1.0": 10.0}).tolist() == [[1, 10, 1]] * 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({2: 1.0}, r"data.labels.weights has 2, which is none of the classes \[0, 1, 'x'\]"),
        ({1: 0.0}, "data.labels.weights must be positive, found 0.0 for 1"),
        ({1: float("inf")}, "data.labels.weights must be positive, found inf for 1"),
        ({1: NAN}, "data.labels.weights must be positive, found nan for 1"),
    ],
)
def test_weights_that_cannot_be(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weigh_classes(LABELLED, np.arange(6), CLASSES, given)
