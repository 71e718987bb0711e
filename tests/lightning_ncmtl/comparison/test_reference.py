from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge

from lightning_ncmtl.comparison.reference import Reference, _labelled
from lightning_ncmtl.errors import InputError

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((90, 4))
TASKS = np.arange(90) % 3
LABELS = (FEATURES[:, 0] * np.where(TASKS == 0, 1, -1) + RNG.standard_normal(90) > 0).astype(int)


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("LogisticRegression", {"C": 0.1}, LogisticRegression),
        ("RandomForestClassifier", {"n_estimators": 7}, RandomForestClassifier),
    ],
)
def test_as_scikit_learn_by_hand(name: str, settings: dict[str, Any], kind: Any, per_task: bool) -> None:
    model = Reference(name, per_task, seed=5, **settings).fit(FEATURES, TASKS, LABELS)
    found = model.logits(FEATURES, TASKS, 2)
    parts = [task == TASKS for task in range(3)] if per_task else [TASKS >= 0]
    for rows in parts:
        expected = kind(**settings, random_state=5).fit(FEATURES[rows], LABELS[rows])
        np.testing.assert_allclose(np.exp(found[rows]), expected.predict_proba(FEATURES[rows]), atol=1e-9)
    assert np.isfinite(found).all()
    if name == "LogisticRegression":
        assert model.parameters == (3 if per_task else 1) * 5
    else:
        assert model.parameters > 7 * len(parts)


def test_a_task_of_one_class_says_this_class() -> None:
    labels = np.where(TASKS == 1, 2, LABELS)
    model = Reference("LogisticRegression", per_task=True).fit(FEATURES, TASKS, labels)
    logits = model.logits(FEATURES, TASKS, 4)
    assert set(logits[TASKS == 1].argmax(1)) == {2}
    assert set(logits[TASKS == 0].argmax(1)) == {0, 1}
    assert (np.exp(logits[:, 3]) < 1e-9).all()
    assert model.parameters == 2 * 5


def test_models_without_weights_or_trees_are_not_counted() -> None:
    assert np.isnan(Reference("KNeighborsClassifier").fit(FEATURES, TASKS, LABELS).parameters)


def test_what_scikit_learn_does_not_know_is_told() -> None:
    for name in ("Forest", "RidgeClassifier"):  # the latter has no probabilities
        with pytest.raises(InputError, match=f"reference.model '{name}' is no classifier of scikit-learn that tells"):
            Reference(name)
    with pytest.raises(TypeError, match="degree"):
        Reference("LogisticRegression", degree=2)
    with pytest.raises(InputError, match="LogisticRegression cannot be fitted: The 'C' parameter"):
        Reference("LogisticRegression", C=-1).fit(FEATURES, TASKS, LABELS)


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("Ridge", Ridge), ("RandomForestRegressor", RandomForestRegressor)])
def test_regressors_as_scikit_learn_by_hand(name: str, kind: Any, per_task: bool) -> None:
    values = 100 + 5 * FEATURES[:, 1] + RNG.standard_normal(90)
    model = Reference(name, per_task, seed=5).fit(FEATURES, TASKS, values)
    assert model.is_regressor
    found = model.logits(FEATURES, TASKS, 0)
    assert found.shape == (90, 1)
    for rows in [task == TASKS for task in range(3)] if per_task else [TASKS >= 0]:
        expected = kind(random_state=5).fit(FEATURES[rows], values[rows]).predict(FEATURES[rows])
        np.testing.assert_allclose(found[rows, 0], expected)
    assert model.parameters >= (3 if per_task else 1) * 5


def test_numbers_of_a_task_without_training_rows_are_not_made_up() -> None:
    model = Reference("Ridge", per_task=True).fit(FEATURES[TASKS < 2], TASKS[TASKS < 2], FEATURES[TASKS < 2, 0])
    with pytest.raises(InputError, match="Ridge cannot predict task 2, which has no training rows: pool the tasks"):
        model.logits(FEATURES, TASKS, 0)


def data(**columns: Any) -> Any:
    return SimpleNamespace(documents=lambda split: Dataset.from_dict(columns))


def test_references_are_of_documents_with_a_label() -> None:
    columns = {"text": ["a", "b", "c"], "task_ids": [[0], [0], [1]], "labels": [[1], [-1], [0]], "index": [3, 5, 7]}
    documents = _labelled(data(**columns), "train")
    assert documents.to_dict("list") == {"text": ["a", "c"], "task_ids": [0, 1], "labels": [1, 0], "index": [3, 7]}


def test_a_document_of_several_labels_is_there_once_for_each() -> None:
    columns = {"text": ["a", "b", "c"], "task_ids": [[1, 0], [0], []], "labels": [[1, 0], [1], []], "index": [3, 5, 7]}
    documents = _labelled(data(**columns), "train")
    expected = {"text": ["a", "a", "b"], "task_ids": [0, 1, 0], "labels": [0, 1, 1], "index": [3, 3, 5]}
    assert documents.to_dict("list") == expected


def test_numbers_are_labels_too() -> None:
    nan = float("nan")
    columns = {"text": ["a", "b", "c"], "task_ids": [[0], [0], [1]], "labels": [[-1], [-1], [2]], "index": [3, 5, 7]}
    documents = _labelled(data(**columns, values=[[0.5], [nan], [nan]]), "train")
    assert documents["index"].tolist() == [3, 7]
    assert documents["values"].tolist() == pytest.approx([0.5, nan], nan_ok=True)
