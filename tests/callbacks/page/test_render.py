"""The page from plain values: whole, in order, and safe whatever tasks are called."""

import base64
import hashlib
import re
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from html_pages import Page
from pages import HOSTILE, make_content

from lightning_ncmtl.callbacks.page.content import Content
from lightning_ncmtl.callbacks.page.render import render_page

NOTHING: dict[str, Any] = {"layers": {}, "evidence": None, "planted": None, "ari": None}
SECTIONS = ["What was trained", "Tasks", "Clusters", "The way of the tasks through the layers", "How sure is that?",
            "Curves", "What to do next", "Settings"]  # fmt: skip


def check(html: str) -> Page:
    """A page is one file, is closed as HTML has to be, and can be read with the ears."""
    page = Page(html)
    assert page.unclosed == []
    assert page.references == ["data:,"]
    assert not re.search(r"url\(|@import|https?://", html)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert all(new <= old + 1 for old, new in pairwise(levels))
    assert levels.count(1) == 1
    for tag, given in page.tags:
        if tag == "svg":
            assert "aria-labelledby" in given or "aria-label" in given or given.get("aria-hidden") == "true"
        if tag == "th":
            assert given["scope"] in ("row", "col")
    assert "nan" not in page.words.split()
    assert "None" not in page.words
    return page


@pytest.mark.parametrize("count", [2, 4, 29, 200])
def test_a_page_is_whole(count: int) -> None:
    content = make_content(count, min(3, count))
    page = check(render_page(content))
    assert [text for level, text in page.headings if level == 2] == SECTIONS
    assert all(task in page.text for task in content.tasks)
    assert len(page.rows) == count + 2  # head and average
    accuracy = [float(row[1].split()[0]) for row in page.rows[1:-1]]
    assert accuracy == sorted(accuracy)
    assert sorted(accuracy) == sorted(content.scores["val"]["accuracy"])


def test_names_of_tasks_are_text() -> None:
    html = render_page(
        make_content(12, 2, HOSTILE, facts={"data": HOSTILE[0]}, config=HOSTILE[0], directory=HOSTILE[0])
    )
    page = check(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<b>" not in html
    assert "49" not in page.words.split()
    rows = {row[0] for row in page.rows}
    assert rows >= {name.strip() for name in HOSTILE}


def test_only_the_script_of_the_page_may_run() -> None:
    html = render_page(make_content(4))
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:" in html


def test_a_page_of_many_tasks_is_small_and_made_at_once() -> None:
    content = make_content(200, 6)
    began = time.process_time()
    html = render_page(content)
    assert time.process_time() - began < 2
    assert len(html.encode()) < 2e6
    # Cells of the map are of several tasks beyond 250
    assert len(render_page(make_content(600, 6)).encode()) < 3e6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"report": NOTHING, "similarities": None}, ["Tasks were not clustered.", "no network clustering took part"]),
        ({"scores": {}, "headline": None, "averages": {}}, ["What each task reached is not known"]),
        ({"headline": None}, ["Tasks are in their own order"]),
        ({"curves": {}, "epochs": [], "best": None}, ["There are no curves"]),
        ({"curves": {"val/loss": [(1, float("nan")), (2, float("inf"))]}}, ["There are no curves"]),
        ({"commands": {}, "config": "", "facts": {}}, ["No checkpoint was kept", "The settings are not known"]),
        ({"epochs": []}, ["step"]),
    ],
)
def test_what_there_is_not_is_said_in_a_line(changes: dict[str, Any], words: list[str]) -> None:
    page = check(render_page(make_content(6, 2, **changes)))
    for each in words:
        assert each in page.words


def test_nothing_at_all_is_a_page() -> None:
    page = check(render_page(Content("Model: 0 tasks", "fit", "/runs", [], NOTHING)))
    assert "No tasks are known" in page.words
    assert "Tasks were not clustered." in page.words


def with_layers(content: Content, evidence: dict[str, Any] | None, **layers: list[int]) -> Content:
    made = {
        name: {
            "num_clusters": len(set(clusters)),
            "assignment": dict(zip(content.tasks, clusters, strict=True)),
            "frozen_at_step": None,
            "trace": [[5, clusters]] if clusters else [],
        }
        for name, clusters in layers.items()
    }
    report = {"layers": made, "evidence": evidence, "planted": None, "ari": None}
    return replace(content, report=report, similarities=content.similarities if evidence else None)


@pytest.mark.parametrize("clusters", [[0] * 6, [0, 1, 2, 3, 4, 5]])
def test_without_groups_there_is_no_flow(clusters: list[int]) -> None:
    content = make_content(6, 2)
    for evidence in (None, content.report["evidence"]):
        page = check(render_page(with_layers(content, evidence, heads=clusters)))
        assert "no layer divides the tasks into groups" in page.words
        assert page.words.count("share one set of weights" if len(set(clusters)) == 1 else "weights of") > 0


def test_before_any_clustering() -> None:
    content = make_content(6, 2)
    layer = {"num_clusters": None, "assignment": {}, "frozen_at_step": None, "trace": []}
    report = {"layers": {"heads": layer}, "evidence": None, "planted": None, "ari": {}}
    page = check(render_page(replace(content, report=report, similarities=None)))
    assert page.words.count("The training ended within the warm-up") == 2


def test_numbers_of_a_regression() -> None:
    score = {"count": [3.0] * 4, "rmse": [10.5, 0.25, float("nan"), 3e5], "loss": [0.1, 0.2, float("nan"), 1.0]}
    averages = {"val": {"rmse": float("nan"), "loss": float("inf")}}
    page = check(
        render_page(make_content(4, 2, scores={"val": score}, headline=("rmse", False), averages=averages, curves={}))
    )
    assert [row[1] for row in page.rows] == ["rmse", "3e+05", "10.5", "0.25", ""]
    assert "of which less is better" in page.words


def test_test_figures_stand_first_and_rank() -> None:
    content = make_content(4, 2)
    scores = {"val": content.scores["val"], "test": {"count": [9.0] * 4, "accuracy": [0.4, 0.3, 0.2, 0.1]}}
    page = check(render_page(replace(content, scores=scores)))
    assert [row[1].split()[0] for row in page.rows[1:-1]] == ["0.100", "0.200", "0.300", "0.400"]
    assert page.rows[0][1:5] == ["accuracytest", "accuracyvalidation", "counttest", "countvalidation"]


def test_clusters_that_change_are_shown_as_they_settle() -> None:
    content = make_content(6, 2)
    trace = [[3, [0, 0, 0, 1, 1, 1]], [7, [0, 0, 1, 1, 1, 1]], [9, [0, 1, 0, 1, 0, 1]]]
    layers = {"heads": {"num_clusters": 2, "assignment": dict(zip(content.tasks, trace[-1][1], strict=True)),
                        "frozen_at_step": 12, "trace": trace}}  # fmt: skip
    report = {"layers": layers, "evidence": None, "planted": None, "ari": None}
    losses = {"heads": [(step, 1 / step) for step in range(3, 12)]}
    html = render_page(replace(content, report=report, similarities=None, losses=losses))
    page = check(html)
    assert "How clusters settled" in page.words
    assert "changes of cluster so far: heads from 0 to 4" in page.words
    assert "frozen" in page.words
    assert "found after a warm-up apart" in page.words


def test_large_and_equal_values_have_charts() -> None:
    curves = {"val/loss": [(1, 1e308), (2, -1e308)], "val/a": [(1, 5.0), (2, 5.0)], "val/b": [(1, 1e-320), (2, 0.0)],
              "val/c": [(1, 1e12), (2, 1e12 + 1)], "val/d": [(1, -1e38), (2, 1e38)]}  # fmt: skip
    check(render_page(make_content(4, 2, curves=curves)))


def test_tasks_that_are_all_alike_or_all_apart() -> None:
    for value in (0.0, 1.0, -1.0):
        check(render_page(make_content(5, 2, similarities=np.full((2, 5, 5), value))))
