"""Tasks with numbers to predict through the data module: reading, splits, batches, checkpoints."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import make_data
from table_files import WRITERS, Row, write_csv

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import FeatureTables
from lightning_ncmtl.errors import InputError

SHARES: dict[str, Any] = {"validation_size": 0.25, "test_size": 0.2, "batch_size": 7}


def rows(count: int = 60) -> list[Row]:
    """Tasks in turn: t0 has numbers with a fraction, t1 whole ones, t2 classes; every tenth label is unknown."""
    rng = np.random.default_rng(0)
    labels: list[Any] = [round(rng.normal(50, 9), 3) if n % 3 == 0 else int(rng.integers(0, 2)) for n in range(count)]
    labels = ["" if n % 10 == 9 else label for n, label in enumerate(labels)]
    return [{"x": rng.normal(), "y": rng.normal(), "kind": f"t{n % 3}", "label": labels[n]} for n in range(count)]


def make(folder: Path, table: list[Row] | None = None, **settings: Any) -> MultiDomainDataModule:
    write_csv(folder / "all.csv", rows() if table is None else table)
    source = FeatureTables(str(folder / "all.csv"), task="kind")
    return make_data(source, **{"regression": ["t0", "t1"], **SHARES, **settings})


def test_batches_have_numbers_and_classes(tmp_path: Path) -> None:
    table = rows()
    data = make(tmp_path, table)
    data.setup("fit")
    data.setup("test")
    assert data.domain_classes == {"t0": [], "t1": [], "t2": [0, 1]}
    assert (data.num_classes, data.regression_tasks, data.task_classes) == (2, [0, 1], None)
    seen: list[int] = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert batch["values"].dtype == torch.float32
            for place, task, label, value in zip(
                *(batch[name].tolist() for name in ("index", "task_ids", "labels", "values")), strict=True
            ):
                given = table[place]["label"]
                assert task == place % 3
                assert label == (given if task == 2 and given != "" else -1)
                assert np.isnan(value) if task == 2 or given == "" else value == pytest.approx(given)
                seen.append(place)
    assert sorted(seen) == list(range(60))


def test_the_scale_is_that_of_the_rows_that_train(tmp_path: Path) -> None:
    table = rows()
    data = make(tmp_path, table)
    data.setup("fit")
    mean, deviation = data.value_scale()
    train = [table[place] for place in data.documents("train")["index"]]
    for task in (0, 1):
        numbers = [row["label"] for row in train if row["kind"] == f"t{task}" and row["label"] != ""]
        assert 5 < len(numbers) < 18
        assert float(mean[task]) == pytest.approx(np.mean(numbers))
        assert float(deviation[task]) == pytest.approx(np.std(numbers))
    assert (float(mean[2]), float(deviation[2])) == (0, 1)


@pytest.mark.parametrize("kind", WRITERS)
def test_all_tables_give_the_same_numbers(tmp_path: Path, kind: str) -> None:
    table = [{"x": n, "label": value} for n, value in enumerate([1.25, 3, -2e-3, 4.0, 1e6])]
    WRITERS[kind](tmp_path / f"a.{kind}", table)
    data = make_data(FeatureTables(f"{tmp_path}/a.{kind}"), regression=True, validation_size=1)
    data.setup("fit")
    assert data.corpus.read("train")["values"][:] == [[1.25], [3], [-2e-3], [4], [1e6]]
    assert (data.num_classes, data.regression_tasks, data.domain_classes) == (0, [0], {"a": []})


def test_wide_tables_have_tasks_of_both_kinds(tmp_path: Path) -> None:
    table = [{"x": n, "toxic": n % 2, "solubility": n / 4 if n % 5 else ""} for n in range(40)]
    write_csv(tmp_path / "a.csv", table)
    source = FeatureTables(f"{tmp_path}/a.csv", label=["toxic", "solubility"])
    data = make_data(source, regression=["solubility"], **SHARES)
    data.setup("fit")
    for batch in data.train_dataloader():
        places = batch["index"]
        numbers = batch["task_ids"] == data.domains.index("solubility")
        assert torch.equal(batch["values"][numbers], places[numbers] / 4)
        assert (places[numbers] % 5 != 0).all()
        assert torch.equal(batch["labels"][~numbers], places[~numbers] % 2)
        assert batch["values"][~numbers].isnan().all()


def test_rows_without_a_number_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = [{"x": n, "kind": "t0", "label": label} for n, label in enumerate([1, "much", 2, "inf", 3.5, "3,5"])]
    with caplog.at_level("INFO"):
        data = make(tmp_path, table, regression=True, validation_size=1, test_size=None)
        data.setup("fit")
    file = f"{tmp_path}/all.csv"
    for line, what in ((3, "much"), (5, "inf"), (7, "3,5")):
        message = f"{file}:{line}: expected a finite number for 't0' (data.labels.regression), found '{what}'"
        assert f"train: {message}" in caplog.messages
    assert data.corpus.read("train")["values"][:] == [[1], [2], [3.5]]


def test_fractions_among_classes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WRITERS["parquet"](tmp_path / "a.parquet", [{"x": n, "label": n + 0.5} for n in range(9)])
    with caplog.at_level("INFO"):
        data = make_data(FeatureTables(f"{tmp_path}/a.parquet"), validation_size=2)
        data.setup("fit")
    assert data.class_names == [f"{n}.5" for n in range(9)]
    assert (
        "train: 9 of the classes are fractions, such as 0.5 of 'a': set data.labels.regression where numbers are to be "
        "predicted"
    ) in caplog.messages


def test_a_checkpoint_does_without_the_rows(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup("fit")
    state = json.loads(json.dumps(data.state_dict()))
    assert state["regression"] == ["t0", "t1"]
    source = FeatureTables("gone.csv", task="kind")
    domains, features = data.domains, data.features
    for classes in (data.domain_classes, {"t2": [0, 1]}, [0, 1]):
        settings: dict[str, Any] = {"domains": domains, "features": features, "classes": classes}
        again = make_data(source, **settings, regression=["t0", "t1"])
        again.load_state_dict(state)
        assert (again.num_classes, again.regression_tasks) == (2, [0, 1])
    other = make_data(source, domains=domains, features=features, classes=[0, 1])
    with pytest.raises(
        InputError, match=r"trained on the regression \['t0', 't1'\]; the data has \[\]: set data.labels"
    ):
        other.load_state_dict(state)


def test_where_all_are_numbers_no_classes_are_needed(tmp_path: Path) -> None:
    source = FeatureTables("gone.csv", task="kind")
    data = make_data(source, domains=["t0", "t1"], features=["x"], regression=True)
    assert (data.num_classes, data.regression_tasks, data.task_classes) == (0, [0, 1], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regression": ["t3"]}, "data.labels.regression has 't3', which is none of the domains t0, t1, t2"),
        ({"regression": ["t0"], "domains": ["t1"]}, "data.labels.regression has 't0', which is none of the domains t1"),
        ({"regression": [], "classes": []}, "data.classes must name at least one class"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path, **settings).setup("fit")


def test_a_task_without_any_number_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = rows()
    for row in table:
        row["label"] = "" if row["kind"] == "t1" else row["label"]
    with caplog.at_level("INFO"):
        data = make(tmp_path, table)
    assert data.domains == ["t0", "t2"]
    assert "train: 't1' has no labels: the domain is left out" in caplog.messages
    assert data.regression_tasks == [0]
    with pytest.raises(InputError, match="domain 't1' has no labels in its train split: leave it out of data.domains"):
        make(tmp_path, table, domains=["t0", "t1"]).setup("fit")


@pytest.mark.parametrize("weights", ["balanced", {1: 4.0}])
def test_training_batches_have_weights(tmp_path: Path, weights: Any) -> None:
    table = [{"x": n, "kind": f"t{n % 2}", "label": int(n % 10 == 0) if n % 2 == 0 else n / 3} for n in range(200)]
    data = make(tmp_path, table, regression=["t1"], weights=weights)
    data.setup("fit")
    total = np.zeros(2)
    for batch in data.train_dataloader():
        assert batch["weights"].dtype == torch.float32
        assert (batch["weights"][batch["task_ids"] == 1] == 1).all()
        for label in (0, 1):
            chosen = batch["weights"][batch["labels"] == label]
            total[label] += float(chosen.sum())
            assert weights == "balanced" or (chosen == [1, 4][label]).all()
    if weights == "balanced":
        assert total[0] == pytest.approx(total[1])
    assert not any("weights" in batch for batch in data.val_dataloader())
