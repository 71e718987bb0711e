"""Gaps, numbers and names of columns as R, pandas, SQL and spreadsheets write them, in all kinds of tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from data import make_data
from table_files import WRITERS, Row

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Document, FeatureTables, Label, Source, Tables
from lightning_ncmtl.errors import InputError

FEW: dict[str, Any] = {"validation_size": 2, "min_frequency": 1, "batch_size": 4}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


def write(folder: Path, name: str, labels: list[Any], kind: str = "csv", **others: Any) -> Path:
    """A table of texts, which may be read as features, with these labels."""
    rows: list[Row] = [{"text": f"{n}{n}", "x": n, "label": label, **others} for n, label in enumerate(labels)]
    WRITERS[kind](folder / f"{name}.{kind}", rows)
    return folder / f"{name}.{kind}"


def given(source: Source) -> list[Any]:
    return [next(iter(item.labels.values())) for item in source.read("train") if isinstance(item, Document)]


def known(data: MultiDomainDataModule) -> list[list[Label | None]]:
    """The labels of each domain, as the table of the training split has them."""
    table = data.corpus.read("train")
    found: list[list[Label | None]] = [[] for _ in data.domains]
    for tasks, labels in zip(table["task_ids"], table["labels"], strict=True):
        for task, label in zip(tasks, labels, strict=True):
            found[task].append(None if label < 0 else data.class_names[label])
    return found


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("source", [Tables, FeatureTables])
def test_words_for_gaps_are_missing_labels(tmp_path: Path, kind: str, source: Any, log: Any) -> None:
    words = ["NA", "n/a", " NaN ", "NULL", "none", "<NA>", "#N/A", "\\N", "?", "."]
    write(tmp_path, "a", ["no", "yes", *words, "no", "yes"], kind)
    data = make_data(source(f"{tmp_path}/*"), **FEW)
    assert known(data) == [["no", "yes", *[None] * len(words), "no", "yes"]]
    (line,) = [message for message in log.messages if "gaps" in message]
    assert line == (
        "train: 10 labels are words for gaps ('NA', 'n/a', 'NaN', 'NULL', 'none') and count as missing: name them in "
        "data.classes if they are classes"
    )


@pytest.mark.parametrize("value", ["", " ", None, float("nan")])
@pytest.mark.parametrize("kind", WRITERS)
def test_empty_cells_are_missing_labels(tmp_path: Path, kind: str, value: Any, log: Any) -> None:
    numbers = isinstance(value, float) and kind == "parquet"
    labels = [1.0, 2.0] if numbers else ["1", "2"]
    write(tmp_path, "a", [labels[0], value, labels[1]], kind)
    for source in (Tables, FeatureTables):
        assert known(make_data(source(f"{tmp_path}/*"), **FEW)) == [[1, None, 2]]


def test_classes_may_be_called_like_gaps(tmp_path: Path, log: Any) -> None:
    write(tmp_path, "a", ["for", "none", "NA", "against", "none"])
    data = make_data(Tables(f"{tmp_path}/*"), classes=["against", "for", "none"], **FEW)
    assert known(data) == [["for", "none", None, "against", "none"]]
    assert any("1 labels are words for gaps ('NA')" in message for message in log.messages)


def test_words_for_gaps_are_missing_numbers(tmp_path: Path, log: Any) -> None:
    write(tmp_path, "a", [0.5, "NA", "1.50", "nan", "-2"])
    data = make_data(FeatureTables(f"{tmp_path}/*"), regression=True, **FEW)
    assert str(data.corpus.read("train")["values"][:]) == "[[0.5], [nan], [1.5], [nan], [-2.0]]"
    assert any("2 labels are words for gaps ('NA', 'nan')" in message for message in log.messages)


def test_words_for_gaps_in_a_wide_table(tmp_path: Path, log: Any) -> None:
    rows: list[Row] = [{"x": n, "a": n % 2, "b": "NA" if n < 4 else "1.0"} for n in range(8)]
    for kind, writer in WRITERS.items():
        if kind != "parquet":
            writer(tmp_path / f"{kind}.{kind}", rows)
    data = make_data(FeatureTables(f"{tmp_path}/*", label=["A", "b "]), **FEW)
    assert data.domain_classes == {"a": [0, 1], "b": [1]}
    assert known(data) == [[0, 1] * 12, [1] * 12]


def test_rows_without_a_group_are_alone(tmp_path: Path) -> None:
    for number, gap in enumerate(["", "NA", float("nan")]):
        write(tmp_path, f"a{number}", [0, 1], "jsonl", of=gap)
    items = list(Tables(f"{tmp_path}/*", split_by="of").read("train"))
    assert {item.group for item in items if isinstance(item, Document)} == {""}


ONE: list[Any] = ["1", " 1 ", "1.0", "1.", "+1", "01", "1e0", 1, 1.0]


def test_numbers_of_the_same_value_are_one_class(tmp_path: Path) -> None:
    for kind in ("csv", "tsv", "jsonl"):
        write(tmp_path, kind, [0, *ONE], kind)
    write(tmp_path, "parquet", [0.0, 1.0], "parquet")
    write(tmp_path, "texts", ["0", "1.0"], "parquet")
    for source in (Tables, FeatureTables):
        data = make_data(source(f"{tmp_path}/*"), **FEW)
        assert set(map(tuple, data.domain_classes.values())) == {(0, 1)}


def test_fractions_of_the_same_value_are_one_class(tmp_path: Path) -> None:
    write(tmp_path, "a", ["0.50", ".5", "10.5", "2.5", 3])
    write(tmp_path, "b", [0.5, 10.5, 2.5, 3.0], "parquet")
    for classes in (None, [0.5, "2.50", 10.5, 3.0]):
        data = make_data(Tables(f"{tmp_path}/*"), classes=classes, **FEW)
        assert data.domain_classes == {"a": ["0.5", "2.5", 3, "10.5"], "b": ["0.5", "2.5", 3, "10.5"]}
    assert known(data)[0] == ["0.5", "0.5", "10.5", "2.5", 3]


def test_numbers_are_the_same_in_training_and_test(tmp_path: Path) -> None:
    """As pandas writes a column, without a gap and with one."""
    train, test = (tmp_path / name for name in ("train", "test"))
    for folder in (train, test):
        folder.mkdir()
    write(train, "a", [0, 1, 0, 1])
    write(test, "a", ["0.0", "", "1.0"])
    data = make_data(Tables(f"{train}/*", f"{test}/*"), **FEW)
    data.setup("fit")
    data.setup("test")
    assert [label for (label,) in data.documents("test")["labels"]] == [0, -1, 1]


def test_domains_are_the_same_in_training_and_prediction(tmp_path: Path) -> None:
    write(tmp_path, "a", [0, 1] * 4, "parquet", of=7.0)
    for source, wanted in ((Tables, {"domain": "of"}), (FeatureTables, {"task": "of"})):
        data = make_data(source(f"{tmp_path}/a.*", **wanted), **FEW)
        assert data.domains == ["7"]
    new = write(tmp_path, "new", [None], "csv", Domain="7.0")
    data = make_data(Tables(f"{tmp_path}/a.*", domain="of"), predict_path=str(new), **FEW)
    data.setup("predict")
    assert len(data.documents("predict")) == 1


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_of_the_file_to_predict(tmp_path: Path, kind: str, log: Any) -> None:
    write(tmp_path, "a", [0, 1] * 4)
    new = tmp_path / f"new.{kind}"
    WRITERS[kind](new, [{"ID": "i", " Text": "w1 x", "DOMAIN": "a", "X ": 3}])
    data = make_data(Tables(f"{tmp_path}/a.csv"), predict_path=str(new), **FEW)
    data.setup("predict")
    assert list(data.predict_rows()) == [({"id": "i", "text": "w1 x"}, "a")]


def test_the_file_to_predict_may_have_semicolons(tmp_path: Path, log: Any) -> None:
    write(tmp_path, "a", [0, 1] * 4)
    (tmp_path / "new.csv").write_text("text;domain\nw1, x;a\n", encoding="utf-16")
    data = make_data(Tables(f"{tmp_path}/a.csv"), predict_path=f"{tmp_path}/new.csv", **FEW)
    data.setup("predict")
    assert list(data.predict_rows()) == [({"text": "w1, x"}, "a")]
    assert (
        f"predict: {tmp_path}/new.csv:1: fields are separated by semicolons, and commas in numbers are decimal points"
        in log.messages
    )


def test_features_to_predict_are_found_by_their_names(tmp_path: Path, log: Any) -> None:
    write(tmp_path, "a", [0, 1] * 4, of="t")
    (tmp_path / "new.csv").write_text("Name;OF; X\nn;t;5\n")
    source = FeatureTables(f"{tmp_path}/a.csv", features="X", task="Of")
    data = make_data(source, predict_path=f"{tmp_path}/new.csv", **FEW)
    data.setup("predict")
    assert data.documents("predict")["features"][:] == [[5.0]]
    with pytest.raises(InputError, match=r"no column 'feature' among 'text', 'x', 'label', 'of': set data"):
        FeatureTables(f"{tmp_path}/a.csv", features="feature").features()
    with pytest.raises(InputError, match=r"no column 'labels' among .* \(is 'label' meant\?\): set data.source.label"):
        FeatureTables(f"{tmp_path}/a.csv", label="labels").features()


def test_files_of_one_table_may_write_names_differently(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("X1,x2,Label\n1,2,0\n3,4,1\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"x1 ": 5, "X2": 6, "label": 1}))
    for features in (["x1", "x2"], ["x1 ", "x2"], None):
        source = FeatureTables(f"{tmp_path}/*", features=features)
        items = list(source.read("train"))
        assert [item.features for item in items if isinstance(item, Document)] == [[1, 2], [3, 4], [5, 6]]
        assert given(source) == [0, 1, 1]


def test_patterns_match_without_case_only_where_nothing_is_written_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("X1,X2,xlabel\n1,2,0\n3,4,1\n")
    assert FeatureTables(f"{tmp_path}/a.csv", features="X*", label="xlabel").features() == ["X1", "X2"]
    (tmp_path / "a.csv").write_text("X1, X2,label\n1,2,0\n3,4,1\n")
    assert FeatureTables(f"{tmp_path}/a.csv", features="x*").features() == ["X1", " X2"]
