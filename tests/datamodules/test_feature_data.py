"""A source of features through the data module: splits, batches, checkpoints, rows to predict."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import make_data
from table_files import Row, write_csv

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import FeatureTables
from lightning_ncmtl.errors import InputError

SHARES: dict[str, Any] = {"validation_size": 0.25, "test_size": 0.2, "batch_size": 8}


def rows(count: int = 60, tasks: int = 3, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        {
            "name": f"row{n}",
            "age": rng.normal(50, 9),
            "flat": 3,
            "size": rng.normal(),
            "kind": f"t{n % tasks}",
            "label": n // 3 % 2,
        }
        for n in range(count)
    ]


def write(folder: Path, table: list[Row], name: str = "all.csv") -> str:
    write_csv(folder / name, table)
    return str(folder / name)


def make(folder: Path, table: list[Row] | None = None, **settings: Any) -> MultiDomainDataModule:
    source = FeatureTables(write(folder, rows() if table is None else table), task="kind", id="name")
    return make_data(source, **{**SHARES, **settings})


def test_batches_are_standardised_rows_of_all_parts(tmp_path: Path) -> None:
    table = rows()
    data = make(tmp_path, table)
    data.setup("fit")
    data.setup("test")
    assert data.features == ["age", "flat", "size"]
    assert (data.num_features, data.num_tasks, data.num_classes) == (3, 3, 2)
    values = np.array([[row["age"], row["flat"], row["size"]] for row in table])
    train = sorted(data.documents("train")["index"])
    mean, deviation = values[train].mean(0), values[train].std(0)
    seen: list[int] = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            index = batch["index"]
            expected = (values[index] - mean) / np.where(deviation > 0, deviation, 1)
            assert batch["inputs"].dtype == torch.float32
            np.testing.assert_allclose(batch["inputs"], expected, atol=1e-6)
            assert batch["task_ids"].tolist() == [int(table[place]["kind"][1]) for place in index]
            assert batch["labels"].tolist() == [table[place]["label"] for place in index]
            seen += index.tolist()
    assert sorted(seen) == list(range(60))
    assert data.counts["train"] == {"documents": 36}
    assert [len(data.documents(stage)) for stage in ("validation", "test")] == [12, 12]  # type: ignore[arg-type]


def test_shares_of_each_task_and_label_are_drawn_by_the_seed(tmp_path: Path) -> None:
    parts = []
    for seed in (0, 0, 1):
        data = make(tmp_path, fold_seed=seed)
        data.setup("fit")
        data.setup("test")
        parts.append({stage: data.documents(stage)["index"][:] for stage in ("train", "validation", "test")})  # type: ignore[arg-type]
        for stage in ("validation", "test"):
            documents = data.documents(stage)  # type: ignore[arg-type]
            pairs = [
                (task, label) for (task,), (label,) in zip(documents["task_ids"], documents["labels"], strict=True)
            ]
            assert sorted(pairs) == sorted((task, label) for task in range(3) for label in (0, 1) for _ in range(2))
    assert parts[0] == parts[1] != parts[2]


def test_rows_with_the_same_id_stay_together(tmp_path: Path) -> None:
    """Each molecule is in all three tasks; rows without an id, and those that only look alike, are no copies."""
    table = [{**row, "name": f"mol-{number // 3}"} for number, row in enumerate(rows(90))]
    data = make(tmp_path, table)
    data.setup("fit")
    data.setup("test")
    found = [set(data.documents(stage)["text"]) for stage in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert sum(map(len, found)) == len(set.union(*found)) == 30
    same = [{**row, "name": "", "age": 1, "size": number % 2} for number, row in enumerate(rows(90))]
    data = make(tmp_path, same)
    data.setup("fit")
    assert all(data.documents("validation")["clean"])


@pytest.mark.parametrize("settings", [{"halves": True}, {"quota": 2, "batch_size": 6}, {"balance": "uniform"}])
def test_batches_are_drawn_as_those_of_texts(tmp_path: Path, settings: dict[str, Any]) -> None:
    data = make(tmp_path, **settings)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sum(len(batch["labels"]) for batch in batches) >= 36
    halves: list[set[int]] = [set(), set()]
    for batch in batches:
        assert batch["inputs"].shape == (len(batch["labels"]), 3)
        if "halves" in settings:
            halves[batch["half"]] |= set(batch["index"].tolist())
        if "quota" in settings:
            assert batch["task_ids"].bincount().min() >= 2
    assert not halves[0] & halves[1]


def test_wide_tables_have_an_entry_for_each_known_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table: list[Row] = [
        {"x": rng.normal(), **{f"y{t}": (n + t) % 2 if rng.random() < 0.5 else None for t in range(4)}}
        for n in range(50)
    ]
    data = make_data(FeatureTables(write(tmp_path, table), label=["y*"]), **SHARES)
    data.setup("fit")
    known = {(n, int(name[1])): row[name] for n, row in enumerate(table) for name in row if name != "x"}
    found = {}
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert len(batch["inputs"]) >= batch["rows"].max() + 1
            entries = zip(batch["index"].tolist(), batch["task_ids"].tolist(), batch["labels"].tolist(), strict=True)
            found |= {(index, task): label for index, task, label in entries}
    assert found == {entry: label for entry, label in known.items() if label is not None and entry in found}
    assert len({index for index, _ in found}) > 30


def test_features_are_chosen_and_ordered_by_name(tmp_path: Path) -> None:
    data = make(tmp_path, features=["size", "age"])
    data.setup("fit")
    assert data.num_features == 2
    first = data.documents("train")[0]
    table = rows()[first["index"]]
    assert first["features"] == [table["size"], table["age"]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["age", "depth"], "FeatureTables has no feature 'depth', but 'age', 'flat', 'size': set data.features"),
        ([], "data.features must be one or more different names, found []"),
        (["age", "age"], "data.features must be one or more different names, found ['age', 'age']"),
    ],
)
def test_features_that_are_not_there(tmp_path: Path, features: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make(tmp_path, features=features)


def test_texts_have_no_features(tmp_path: Path, source: Any) -> None:
    with pytest.raises(InputError, match="Synthetic has no feature 'age', but texts: set data.features"):
        make_data(source, features=["age"])
    with pytest.raises(InputError, match="FeatureTables has features, and no words: unset data.text.vectors"):
        make(tmp_path, vectors="glove.txt").vectors()


def test_a_checkpoint_does_without_the_files(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup("fit")
    state, settings = data.state_dict(), dict(data.hparams)
    expected = [batch["inputs"] for batch in data.val_dataloader()]
    places = [batch["index"].tolist() for batch in data.val_dataloader()]
    table = [rows()[place] for batch in places for place in batch]
    (tmp_path / "all.csv").unlink()
    new = write(
        tmp_path, [{name: row[name] for name in ("kind", "size", "flat", "age", "name")} for row in table], "new.csv"
    )
    source = FeatureTables(str(tmp_path / "all.csv"), task="kind", id="name")
    again = MultiDomainDataModule(source, **{**settings, "predict_path": new})
    again.load_state_dict(state)
    again.setup("predict")
    batches = list(again.predict_dataloader())
    torch.testing.assert_close(torch.cat([batch["inputs"] for batch in batches]), torch.cat(expected))
    assert list(again.predict_rows()) == [({"name": row["name"]}, row["kind"]) for row in table]
    other = MultiDomainDataModule(source, **{**settings, "features": ["age", "size"]})
    with pytest.raises(InputError, match="was trained on the features .*; the data has .*'size'.*: set data.features"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": "old"}, "new.csv:2: expected a finite number in the feature 'age' .*; predict needs all features"),
        ({"kind": "t9"}, "new.csv:2: predict needs a domain out of t0, t1, t2, found 't9'"),
        ({"kind": ""}, "new.csv:2: expected a domain in 'kind', found ''; predict needs all features of every row"),
    ],
)
def test_rows_that_cannot_be_predicted(tmp_path: Path, change: Row, message: str) -> None:
    data = make(tmp_path)
    data.predict_path = write(tmp_path, [{**rows()[0], **change}], "new.csv")
    with pytest.raises(InputError, match=message):
        data.setup("predict")


def test_wide_rows_are_predicted_in_every_task(tmp_path: Path) -> None:
    table: list[Row] = [{"x": n, "a": n % 2, "b": n // 2 % 2, "id": f"n{n}"} for n in range(20)]
    path = write(tmp_path, table)
    data = make_data(FeatureTables(path, label=["b", "a"], id="id"), predict_path=path, **SHARES)
    data.setup("predict")
    assert list(data.predict_rows()) == [({"id": f"n{n}"}, ["a", "b"]) for n in range(20)]
    batches = list(data.predict_dataloader())
    assert sum(len(batch["inputs"]) for batch in batches) == 20  # each row once
    entries = [pair for batch in batches for pair in zip(batch["index"], batch["task_ids"], strict=True)]
    assert sorted((int(index), int(task)) for index, task in entries) == [(n, t) for n in range(20) for t in (0, 1)]


def test_rows_without_an_id_have_a_number(tmp_path: Path) -> None:
    table = rows()
    path = write(tmp_path, table)
    data = make_data(FeatureTables(path, task="kind", features=["age", "size"]), predict_path=path, **SHARES)
    data.setup("predict")
    assert list(data.predict_rows()) == [({"row": number}, row["kind"]) for number, row in enumerate(table)]


def test_an_id_cannot_be_called_as_what_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, [{"domain": row["name"], **row} for row in rows()])
    data = make_data(
        FeatureTables(path, features=["age", "size"], task="kind", id="domain"), predict_path=path, **SHARES
    )
    with pytest.raises(InputError, match="predictions have a 'domain' of their own beside that of data.source.id: "):
        data.setup("predict")


def told(folder: Path, caplog: pytest.LogCaptureFixture, table: list[Row], **settings: Any) -> list[str]:
    with caplog.at_level("INFO"):
        make(folder, table, **settings).setup("fit")
    return caplog.messages


def test_damaged_rows_are_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = rows()
    table[4]["age"], table[7]["size"] = "unknown", "inf"
    lines = told(tmp_path, caplog, table)
    what = "expected a finite number in the feature"
    assert lines[:2] == [
        f"train: {tmp_path}/all.csv:6: {what} 'age' (data.source.features), found 'unknown'",
        f"train: {tmp_path}/all.csv:9: {what} 'size' (data.source.features), found 'inf'",
    ]


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"age": "x"}, {}, "there are no documents in the train split; .*all.csv:2: expected a finite number"),
        ({"label": ""}, {}, "there are no documents in the train split; 't0' has no labels: the domain is left out"),
        ({"kind": "same"}, {"domains": ["t0"]}, "unknown domain 't0'"),
    ],
)
def test_where_nothing_remains(tmp_path: Path, change: Row, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path, [{**row, **change} for row in rows()], **settings).setup("fit")


def test_a_wide_table_without_any_label(tmp_path: Path) -> None:
    table: list[Row] = [{"x": n, "a": None, "b": None} for n in range(20)]
    with pytest.raises(InputError, match="there are no labels in the train split"):
        make_data(FeatureTables(write(tmp_path, table), label=["a", "b"]), **SHARES)


def test_a_task_with_a_single_row_trains_with_it(tmp_path: Path) -> None:
    data = make(tmp_path, [*rows(), {**rows()[0], "kind": "alone", "name": "x"}])
    data.setup("fit")
    task = data.domains.index("alone")
    assert [(batch["task_ids"] == task).sum() for batch in data.val_dataloader()].count(0) == len(data.val_dataloader())
    assert sum(int((batch["task_ids"] == task).sum()) for batch in data.train_dataloader()) == 1


def test_labels_that_are_none_of_the_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = rows()
    table[3]["label"] = 7
    lines = told(tmp_path, caplog, table, classes=[0, 1])
    assert lines[0] == f"train: {tmp_path}/all.csv:5: the label 7 of 't0' is none of its classes 0, 1: set data.classes"
