import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from scipy import io
from table_files import WRITERS, Row, compress, write_csv, write_jsonl

from lightning_ncmtl.datamodules.sources import Document, FeatureTables, Problem, ShuffledDomains, Source
from lightning_ncmtl.errors import InputError

LONG: list[Row] = [
    {"id": 7, "age": 1.5, "field": "north", "size": 2, "label": 0},
    {"id": 8, "age": -3.0, "field": "south", "size": 4, "label": 1},
    {"id": 9, "age": 1e-3, "field": "north", "size": 0, "label": None},
]
WIDE: list[Row] = [
    {"mol": "CCO", "a-1": 1, "a-2": None, "bit1": 0, "bit2": 1},
    {"mol": "CC", "a-1": None, "a-2": 0, "bit1": 1, "bit2": 1},
    {"mol": "C", "a-1": None, "a-2": None, "bit1": 1, "bit2": 0},
]


def documents(source: Source, domains: list[str] | None = None, split: Any = "train") -> list[Document]:
    items = list(source.read(split, domains))
    assert not [item for item in items if isinstance(item, Problem)]
    return [item for item in items if isinstance(item, Document)]


def problems(source: Source) -> list[str]:
    items = list(source.read("train"))
    return [str(item) for item in items if isinstance(item, Problem) and item.kind == "left out"]


def plain(rows: list[Document]) -> list[tuple[Any, ...]]:
    return [(row.text, dict(row.labels), row.features) for row in rows]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
def test_long_tables_in_each_format(tmp_path: Path, suffix: str) -> None:
    kind, _, packed = suffix.partition(".")
    file = tmp_path / f"mines.{kind}"
    WRITERS[kind](file, LONG)
    file = compress(file) if packed else file
    source = FeatureTables(str(file), task="field", id="id")
    assert source.features() == ["age", "size"]
    assert source.domains() == ["north", "south"]
    assert source.splits() == {"train"}
    assert not source.multi_label
    first = 2 if kind in ("csv", "tsv") else 1
    assert documents(source) == [
        Document("7", {"north": 0}, f"{file}:{first}", [1.5, 2]),
        Document("8", {"south": 1}, f"{file}:{first + 1}", [-3, 4]),
        Document("9", {"north": None}, f"{file}:{first + 2}", [0.001, 0]),
    ]
    assert [row.text for row in documents(source, ["south"])] == ["8"]
    chosen = FeatureTables(str(file), task="field", features=["size", "age"])
    assert plain(documents(chosen))[1] == ("", {"south": 1}, [4, -3])
    assert FeatureTables(str(file), task="field", features="*ge").features() == ["age"]


@pytest.mark.parametrize("kind", WRITERS)
def test_wide_tables_in_each_format(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"assays.{kind}"
    WRITERS[kind](file, WIDE)
    for label in (["a-*"], ["a-2", "a-1"], {"a-1": "a-1", "a-2": "a-2"}):
        source = FeatureTables(str(file), label=label, id="mol")
        assert source.multi_label
        assert source.domains() == ["a-1", "a-2"]
        assert source.features() == ["bit1", "bit2"]
        assert plain(documents(source)) == [
            ("CCO", {"a-1": 1}, [0, 1]),
            ("CC", {"a-2": 0}, [1, 1]),
            ("C", {}, [1, 0]),
        ]
    assert plain(documents(source, ["a-2"]))[0] == ("CCO", {}, [0, 1])


def test_a_file_for_each_task(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write_csv(tmp_path / f"{name}.train.csv", [{"x": 1, "label": "yes"}, {"x": 2, "label": "no"}])
    write_csv(tmp_path / "south.test.csv", [{"label": "no", "x": 5}])  # in another order
    source = FeatureTables(f"{tmp_path}/*.train.csv", test_path=f"{tmp_path}/*.test.csv")
    assert source.domains() == ["north", "south"]
    assert source.splits() == {"train", "test"}
    assert plain(documents(source, ["south"])) == [("", {"south": "yes"}, [1]), ("", {"south": "no"}, [2])]
    assert plain(documents(source, split="test")) == [("", {"south": "no"}, [5])]


def test_cells_of_matlab(tmp_path: Path) -> None:
    """As in the Landmine data: nothing but the path is given."""
    rng = np.random.default_rng(0)
    feature, label = np.empty((1, 12), object), np.empty((1, 12), object)
    for task in range(12):
        feature[0, task] = rng.standard_normal((task + 2, 3))
        label[0, task] = rng.integers(2, size=(task + 2, 1)).astype(np.uint8)
    io.savemat(tmp_path / "mines.mat", {"feature": feature, "label": label})
    source = FeatureTables(str(tmp_path / "mines.mat"))
    assert source.domains() == [f"{task:02d}" for task in range(1, 13)]
    assert source.features() == ["feature1", "feature2", "feature3"]
    found = documents(source, ["03"])
    assert [row.where for row in found] == [f"{tmp_path}/mines.mat[3]:{row}" for row in (1, 2, 3, 4)]
    np.testing.assert_array_equal([row.features for row in found], feature[0, 2])  # type: ignore[arg-type]
    assert [row.labels["03"] for row in found] == label[0, 2].ravel().tolist()
    assert len(documents(source)) == sum(range(2, 14))
    wide = FeatureTables(str(tmp_path / "mines.mat"), label=["label", "feature3"])
    assert (wide.features(), wide.domains()) == (["feature1", "feature2"], ["feature3", "label"])


def test_a_column_of_a_table_may_be_called_cell(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"cell": 3, "label": 0}])
    assert plain(documents(FeatureTables(f"{tmp_path}/a.csv"))) == [("", {"a": 0}, [3])]


def test_arrays_of_numpy_long_and_wide(tmp_path: Path) -> None:
    matrix, task = np.arange(6.0).reshape(3, 2), np.array([2.0, 1, 2])
    np.savez(tmp_path / "long.npz", X=matrix, y=np.array([0, 1, 1]), task=task)
    source = FeatureTables(str(tmp_path / "long.npz"), label="y", task="task")
    assert source.features() == ["X1", "X2"]
    assert plain(documents(source)) == [("", {"2": 0}, [0, 1]), ("", {"1": 1}, [2, 3]), ("", {"2": 1}, [4, 5])]
    np.savez(tmp_path / "wide.npz", X=matrix, Y=np.array([[0, np.nan], [np.nan, 1], [1, 0]]))
    source = FeatureTables(str(tmp_path / "wide.npz"), features="X*", label=["Y*"])
    assert plain(documents(source)) == [
        ("", {"Y1": 0}, [0, 1]),
        ("", {"Y2": 1}, [2, 3]),
        ("", {"Y1": 1, "Y2": 0}, [4, 5]),
    ]


def test_gaps_do_not_make_other_classes_of_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,label\n1,1.0\n2,\n3,0.0\n4,nan.0\n")
    labels = [row.labels["a"] for row in documents(FeatureTables(str(tmp_path / "a.csv")))]
    assert labels == [1, None, 0, "nan.0"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("north,1,many", "expected a finite number in the feature 'size' (data.source.features), found 'many'"),
        ("north,1,", "expected a finite number in the feature 'size' (data.source.features), found ''"),
        ("north,1,nan", "expected a finite number in the feature 'size' (data.source.features), found 'nan'"),
        ("north,1,-inf", "expected a finite number in the feature 'size' (data.source.features), found '-inf'"),
        (",1,3", "expected a domain in 'field', found ''"),
        ("north,1", "expected 3 fields, found 2"),
    ],
)
def test_rows_that_cannot_be_used_are_told_and_left_out(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"field,label,size\nnorth,0,1.5\n{line}\nsouth,1,2\n")
    source = FeatureTables(str(file), task="field")
    assert problems(source) == [f"{file}:3: {problem}"]
    assert len([item for item in source.read("train") if isinstance(item, Document)]) == 2


def test_features_without_an_order_are_not_numbers(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"x": 1, "label": 0}, {"x": [1, 2], "label": 0}, {"x": None, "label": 1}])
    first, second = problems(FeatureTables(str(tmp_path / "a.jsonl")))
    assert first.endswith("a.jsonl:2: expected a finite number in the feature 'x' (data.source.features), found a list")
    assert second.endswith("found None")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "class"}, "a.csv:1: no column 'class' among 'x', 'y', 'label', 'field': set data.source.label"),
        (
            {"label": "lab*"},
            "no column 'lab*' among 'x', 'y', 'label', 'field': set data.source.label to a list for a pattern, [lab*]",
        ),
        ({"label": ["label", "t*"]}, "no column 't*' among 'x', 'y', 'label', 'field': set data.source.label"),
        ({"task": "where"}, "no column 'where' among"),
        ({"id": "name"}, "no column 'name' among 'x', 'y', 'label', 'field': set data.source.task and data.source.id"),
        ({"features": ["x", "z"]}, "no column 'z' among 'x', 'y', 'label', 'field': set data.source.features"),
        ({"features": "*"}, "the column 'label' of"),
        ({"label": ["x", "y", "label"], "id": "field"}, "has no columns but those of label, task and id"),
        ({"label": ["label"], "task": "field"}, "either the labels name the tasks, or the column 'field' does"),
        ({"label": []}, "rows need a column of labels: set data.source.label, found []"),
        ({"path": "no/*.csv"}, "no file matches 'no/*.csv': set data.source.path"),
        ({"test_path": "no.csv"}, "no file matches 'no.csv': set data.source.test_path"),
        ({"path": "{}/b.txt"}, "cannot read '{}/b.txt': tables are"),
        ({"path": "{}/empty.csv"}, "empty.csv:1: empty: the file has no rows"),
    ],
)
def test_settings_that_do_not_fit_the_files(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": 2, "label": 0, "field": "north"}])
    for name in ("b.txt", "empty.csv"):
        (tmp_path / name).touch()
    settings = {"path": f"{tmp_path}/a.csv", **settings}
    settings["path"] = settings["path"].format(tmp_path)
    with pytest.raises(InputError, match=re.escape(message.format(tmp_path))):
        FeatureTables(**settings).features()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": 1, "z": 2, "label": 0}, "b.csv has other features than {}/a.csv: 'y' is only in one of them"),
        ({"x": 1, "label": 0}, "b.csv has other features than {}/a.csv: 'y' is only in one of them"),
        ({"x": 1, "y": 1}, "b.csv:1: no column 'label' among 'x', 'y': set data.source.label"),
    ],
)
@pytest.mark.parametrize("test", [False, True])
def test_files_with_different_columns(tmp_path: Path, other: Row, message: str, test: bool) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": 2, "label": 0}])
    write_csv(tmp_path / "b.csv", [other])
    a, b = f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"
    source = FeatureTables(a, b) if test else FeatureTables([a, b])
    with pytest.raises(InputError, match=re.escape(message.format(tmp_path))):
        source.features()
    if other.get("z"):  # what both have can be named
        assert FeatureTables([a, b], features=["x"]).features() == ["x"]


def test_splits_and_tasks_that_are_not_there(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1, "label": 0, "field": ""}])
    with pytest.raises(InputError, match="there are no files of the test split: set data.source.test_path"):
        list(FeatureTables(f"{tmp_path}/a.csv").read("test"))
    with pytest.raises(InputError, match="unknown domain 'b': the table has a"):
        list(FeatureTables(f"{tmp_path}/a.csv").read("train", ["b"]))
    with pytest.raises(InputError, match="no row names a task in 'field': set data.source.task"):
        FeatureTables(f"{tmp_path}/a.csv", task="field").domains()


def test_new_rows_need_no_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "old.csv", LONG)
    source = FeatureTables(f"{tmp_path}/old.csv", task="field", id="id")
    (tmp_path / "old.csv").unlink()
    new = tmp_path / "new.csv"
    write_csv(new, [{"size": 1, "id": "first", "field": "south", "age": 2}])
    assert list(source.read_new(new, ["age", "size"], ["north", "south"])) == [
        Document("first", {"south": None}, f"{new}:2", [2, 1])
    ]
    with pytest.raises(InputError, match="no column 'depth' among .*: predict needs the columns that the model was"):
        list(source.read_new(new, ["age", "depth"], []))
    with pytest.raises(InputError, match="cannot read"):
        list(source.read_new(tmp_path / "new.txt", ["age"], []))


def test_new_rows_of_a_wide_table_are_in_all_tasks(tmp_path: Path) -> None:
    write_csv(tmp_path / "new.csv", WIDE[:2])
    source = FeatureTables("gone.csv", label=["a-*"], id="mol")
    found = list(source.read_new(tmp_path / "new.csv", ["bit2", "bit1"], ["a-1", "a-2"]))
    assert [(row.text, row.labels, row.features) for row in found if isinstance(row, Document)] == [
        ("CCO", {"a-1": None, "a-2": None}, [1, 0]),
        ("CC", {"a-1": None, "a-2": None}, [1, 1]),
    ]


def test_fingerprints_tell_files_and_settings_apart(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", LONG)
    path = f"{tmp_path}/a.csv"
    prints = [FeatureTables(path, task="field", id=id).fingerprint() for id in (None, "id")]
    source = FeatureTables(path, task="field", id="id")
    assert source.fingerprint() == prints[1] != prints[0]
    assert source.domains() == ["north", "south"]
    write_csv(tmp_path / "a.csv", [*LONG, {**LONG[0], "field": "west"}])
    assert source.fingerprint() != prints[1]
    assert source.domains() == ["north", "south", "west"]


def test_rows_dealt_to_other_tasks_keep_their_features(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", LONG)
    source = FeatureTables(f"{tmp_path}/a.csv", task="field", id="id")
    control = ShuffledDomains(source)
    assert control.features() == source.features()
    assert sorted(row.features or [] for row in documents(control)) == [[-3, 4], [0.001, 0], [1.5, 2]]
    new = list(control.read_new(tmp_path / "a.csv", ["age"], []))
    assert [row.features for row in new if isinstance(row, Document)] == [[1.5], [-3], [0.001]]


def test_the_command_line_builds_it() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Source, "source")
    path = "lightning_ncmtl.datamodules.sources.FeatureTables"
    for label in ("y", ["y*"], {"t": "y"}):
        settings = {"class_path": path, "init_args": {"path": "x.csv", "label": label, "features": ["a", "b*"]}}
        made = parser.instantiate_classes(parser.parse_object({"source": settings})).source
        assert (made.label, made.columns) == (label, ["a", "b*"])


@pytest.mark.parametrize("label", ["y", ["y", "z"]])
def test_known_groups_are_of_all_tasks(tmp_path: Path, label: Any) -> None:
    rows = [{"x": 1, "y": 0, "z": 1, "field": "y"}, {"x": 2, "y": 1, "z": 0, "field": "z"}]
    write_csv(tmp_path / "a.csv", rows)
    settings = {"path": f"{tmp_path}/a.csv", "features": "x", "label": label, "task": "field" if label == "y" else None}
    source = FeatureTables(**settings, groups={"wet": ["z"], "dry": ["y"]})
    assert source.domains() == ["y", "z"]
    assert source.planted_groups == {"z": 0, "y": 1}
    assert source.fingerprint() == FeatureTables(**settings).fingerprint()  # documents are the same
    assert FeatureTables(**settings).planted_groups is None
    with pytest.raises(InputError, match="data.source.groups must have each of the tasks y, z, found 'z' in none"):
        FeatureTables(**settings, groups={"dry": ["y"]}).domains()
    with pytest.raises(InputError, match="found 'w' among others"):
        FeatureTables(**settings, groups={"dry": ["y", "w", "z"]}).domains()
    with pytest.raises(InputError, match="a task is in one group, found 'y' twice in data.source.groups"):
        FeatureTables(**settings, groups={"dry": ["y"], "wet": ["y", "z"]})


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_groups_of_rows_stand_in_a_column(tmp_path: Path, suffix: str) -> None:
    rows: list[Row] = [{"x": n, "patient": patient, "y": 1, "z": 0} for n, patient in enumerate([7, 8, None, 7])]
    WRITERS[suffix](tmp_path / f"a.{suffix}", rows)
    for label in ("y", ["y", "z"]):
        settings: dict[str, Any] = {"label": label, "features": "x"}
        source = FeatureTables(f"{tmp_path}/a.{suffix}", **settings, split_by="patient")
        assert source.features() == ["x"]
        assert [row.group for row in documents(source)] == ["7", "8", "", "7"]
        assert source.fingerprint() != FeatureTables(f"{tmp_path}/a.{suffix}", **settings).fingerprint()
    assert "patient" not in FeatureTables(f"{tmp_path}/a.{suffix}", label="y", split_by="patient").features()
    with pytest.raises(InputError, match="no column 'doctor' among 'x', .*: set data.source.split_by"):
        FeatureTables(f"{tmp_path}/a.{suffix}", label="y", split_by="doctor").features()
    write_csv(tmp_path / "new.csv", [{"x": 1}])  # without the column
    new = FeatureTables("gone.csv", split_by="patient").read_new(tmp_path / "new.csv", ["x"], [])
    assert [row.group for row in new if isinstance(row, Document)] == [""]


def test_a_group_is_a_number_or_a_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"x": 1, "label": 0, "g": [1]}, {"x": 1, "label": 0, "g": " b "}])
    source = FeatureTables(f"{tmp_path}/a.jsonl", split_by="g")
    assert problems(source) == [f"{tmp_path}/a.jsonl:1: expected a group in 'g', a number or a text, found a list"]
    assert [row.group for row in source.read("train") if isinstance(row, Document)] == ["b"]


@pytest.mark.parametrize("name", ["", "  "])
def test_a_column_without_a_name_is_no_feature(tmp_path: Path, name: str) -> None:
    """As pandas writes its index, which would tell the order of the rows."""
    (tmp_path / "a.csv").write_text(f"{name},x,label\n0,1.5,1\n1,2.5,0\n")
    source = FeatureTables(f"{tmp_path}/a.csv")
    assert source.features() == ["x"]
    note, *rows = source.read("train")
    assert isinstance(note, Problem)
    assert (note.kind, note.where) == ("note", f"{tmp_path}/a.csv")
    assert "a column without a name, such as the index of a data frame, is no feature" in str(note)
    assert [row.features for row in rows if isinstance(row, Document)] == [[1.5], [2.5]]
