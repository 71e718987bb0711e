"""What the page says of clusters, for each way in which a training can end."""

from dataclasses import replace
from typing import Any

import pytest
from pages import make_content

from lightning_ncmtl.callbacks.page import words
from lightning_ncmtl.callbacks.page.content import Best, Content


def ended(found: int | None, numbers: list[int], p_value: float = 0.001, ari: float | None = None) -> Content:
    """Of 6 tasks: what there is evidence for, and the clusters of the layers."""
    content = make_content(6, 2)
    layers = {}
    for place, number in enumerate(numbers):
        clusters = [task % number for task in range(6)]
        assignment = dict(zip(content.tasks, clusters, strict=True))
        layers[str(place)] = {
            "num_clusters": number, "assignment": assignment, "frozen_at_step": 9, "trace": [[9, clusters]]
        }  # fmt: skip
    evidence: dict[str, Any] | None = None
    if found is not None:
        gains = {"2": 0.2 if found > 1 or p_value > 0.01 else -0.2, "3": 0.1, "6": -0.5}
        evidence = {
            "num_clusters": found,
            "p_value": p_value,
            "agreement": 0.5,
            "agreement_error": None,
            "gains": gains,
        }
    report = {"layers": layers, "evidence": evidence, "planted": None, "ari": None if ari is None else {"0": ari}}
    return replace(content, report=report)


SHARE = "No clusters: all 6 tasks share one set of weights."


@pytest.mark.parametrize(
    ("content", "result", "why"),
    [
        (ended(2, [2, 2]), "6 tasks in 2 clusters.", "Two disjoint halves of the data agree on 2 clusters (p = 0.001: "
         "tasks in random order do as well in about 1 of 1,000 cases)."),
        (ended(2, [2], ari=1.0), "6 tasks in 2 clusters.", "They are the planted groups (adjusted Rand index 1)."),
        (ended(2, [2], ari=0.54), "6 tasks in 2 clusters.", "Adjusted Rand index with the planted groups: 0.54"),
        (ended(6, [6]), "No clusters: each of 6 tasks keeps weights of its own.", "agree that every task differs"),
        (ended(1, [1, 1], 0.4), SHARE, "There is no evidence for clusters"),
        (ended(1, [1], 0.001), SHARE, "Tasks differ, but each in its own way"),
        (ended(1, [2, 3], 0.4), "6 tasks in 2 and 3 clusters, layer by layer.", "it was given as 2 and 3."),
        (ended(None, [2]), "6 tasks in 2 clusters.", "No evidence was weighed for them"),
        (ended(None, [1]), SHARE, "No evidence was weighed: their number"),
        (ended(None, []), "Tasks were not clustered.", "no network clustering took part"),
    ],
)  # fmt: skip
def test_the_result_in_words(content: Content, result: str, why: str) -> None:
    assert words.tell_result(content) == result
    assert why in words.tell_why(content)


@pytest.mark.parametrize(
    ("p_value", "said"),
    [
        (0.001, "in about 1 of 1,000 cases"),
        (0.175, "in about 1 of 6 cases"),
        (0.62, "in 62 % of the cases"),
        (1.0, "always"),
    ],
)
def test_p_values_in_words(p_value: float, said: str) -> None:
    assert said in words.tell_p(p_value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ended(2, [2]), "2 clusters have the best gain, 0.20."),
        (
            ended(3, [3]),
            "2 clusters have the best gain, 0.20; 3 are the fewest within a standard error of that, with 0.10.",
        ),
        (ended(1, [1], 0.4), "2 clusters would have the best gain, 0.20, but chance does as well too often"),
    ],
)
def test_gains_in_words(content: Content, said: str) -> None:
    assert said in words.tell_gains(content)


def test_no_gain_in_words() -> None:
    content = ended(1, [1], 0.4)
    content.report["evidence"]["gains"] = {"2": -0.1, "6": -0.4}
    assert "No number of clusters has a gain" in words.tell_gains(content)


def test_the_best_epoch_may_lie_before_the_clusters() -> None:
    content = replace(ended(2, [2]), best=Best("val/accuracy", 0.91234, 8, 4))
    assert words.tell_best(content) == (
        "Epoch 4 was the best by val/accuracy: 0.9123. It is of a time before tasks were clustered: only the last "
        "checkpoint has the clusters."
    )
    assert "before" not in words.tell_best(replace(content, best=Best("val/accuracy", 0.9, 9, 5)))
    assert words.tell_best(replace(content, best=Best("acc", 0.9))) == "The best checkpoint was chosen by acc: 0.9."
    assert words.tell_best(replace(content, best=None)) == ""
