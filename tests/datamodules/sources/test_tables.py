import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from table_files import WRITERS, Row, compress, write_csv, write_jsonl

from lightning_ncmtl.datamodules.sources import Document, Problem, Source, Tables
from lightning_ncmtl.datamodules.sources.tables import read_rows
from lightning_ncmtl.errors import InputError

ROWS: list[Row] = [
    {"id": 7, "text": 'two\nlines, and a "quote"\t', "label": "1", "domain": "dvd"},
    {"id": 8, "text": "", "label": " bad ", "domain": " books "},
    {"id": 9, "text": "ünïcode \u2028 \x85", "label": "", "domain": "3"},
]


def documents(source: Source, domains: list[str] | None = None) -> list[Document]:
    items = list(source.read("train", domains))
    assert not [item for item in items if isinstance(item, Problem)]
    return [item for item in items if isinstance(item, Document)]


def problems(source: Source) -> list[str]:
    items = list(source.read("train"))
    return [str(item) for item in items if isinstance(item, Problem) and item.kind == "left out"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz", "CSV"])
def test_reads_each_format(tmp_path: Path, suffix: str) -> None:
    kind, _, packed = suffix.partition(".")
    file = tmp_path / f"books.{kind}"
    WRITERS[kind.lower()](file, ROWS)
    if packed:
        file = compress(file)
    source = Tables(str(file))
    lines = [2, 4, 5] if kind.lower() in ("csv", "tsv") else [1, 2, 3]
    texts = [row["text"] for row in ROWS]
    expected = [({"books": 1}, lines[0]), ({"books": "bad"}, lines[1]), ({"books": None}, lines[2])]
    assert documents(source) == [
        Document(text, labels, f"{file}:{line}") for text, (labels, line) in zip(texts, expected, strict=True)
    ]
    assert source.domains() == ["books"]
    assert source.splits() == {"train"}
    assert not source.multi_label
    assert source.planted_groups is None
    by_column = Tables(str(file), domain="domain")
    assert by_column.domains() == ["3", "books", "dvd"]
    assert [document.labels for document in documents(by_column)] == [{"dvd": 1}, {"books": "bad"}, {"3": None}]
    assert [document.text for document in documents(by_column, domains=["3", "dvd"])] == [texts[0], texts[2]]


def test_groups_of_training_documents_stand_in_a_column(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1, "author": name} for name in ("Ann", " Bob ", "", "Ann")]
    write_csv(tmp_path / "books.csv", rows)
    write_csv(tmp_path / "test.csv", [{"text": "a", "label": 1}])
    source = Tables(f"{tmp_path}/books.csv", test=f"{tmp_path}/test.csv", split_by="author")
    assert [document.group for document in documents(source)] == ["Ann", "Bob", "", "Ann"]
    assert [item.group for item in source.read("test", ["test"]) if isinstance(item, Document)] == [""]


def test_a_file_is_a_domain_and_domains_come_in_the_order_asked_for(tmp_path: Path) -> None:
    for name in ("b/dvd.train.jsonl", "a/books.csv.gz", "c.parquet"):
        file = tmp_path / name.removesuffix(".gz")
        file.parent.mkdir(exist_ok=True)
        WRITERS[file.suffix[1:]](file, [{"text": name, "label": 0}])
        if name.endswith(".gz"):
            compress(file)
    source = Tables(f"{tmp_path}/**/*.*")
    assert source.domains() == ["books", "c", "dvd"]
    assert [document.text for document in documents(source)] == ["a/books.csv.gz", "c.parquet", "b/dvd.train.jsonl"]
    assert [next(iter(document.labels)) for document in documents(source, domains=["dvd", "books"])] == ["dvd", "books"]
    one_by_one = Tables([str(tmp_path / "c.parquet"), f"{tmp_path}/a/*", f"{tmp_path}/*/books*"])
    assert one_by_one.domains() == ["books", "c"]
    assert len(documents(one_by_one)) == 2  # a file that two patterns match is one file


@pytest.mark.parametrize("kind", WRITERS)
def test_documents_may_have_labels_in_several_domains(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"all.{kind}"
    rows = [
        {"title": "A", "body": "one", "toxic": 1, "topic": "war"},
        {"title": "B", "body": "two", "toxic": None, "topic": "art"},
        {"title": "C", "body": "three", "toxic": None, "topic": None},
    ]
    WRITERS[kind](file, rows)
    source = Tables(str(file), unlabel=str(file), text=["title", "body"], label={"tox": "toxic", "genre": "topic"})
    assert source.multi_label
    assert source.domains() == ["genre", "tox"]
    assert [(item.text, item.labels) for item in documents(source)] == [
        ("A\none", {"genre": "war", "tox": 1}),
        ("B\ntwo", {"genre": "art"}),
        ("C\nthree", {}),
    ]
    assert [item.labels for item in documents(source, domains=["tox"])] == [{"tox": 1}, {}, {}]
    assert [item.labels for item in source.read("unlabel") if isinstance(item, Document)] == [{}, {}, {}]


def test_labels_of_json_and_parquet_keep_their_kind(tmp_path: Path) -> None:
    values = [3, True, 2.0, "07", "-1", "1.5", " x ", None, "9" * 19, "٣"]
    write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": value} for value in values])
    found = [document.labels["a"] for document in documents(Tables(f"{tmp_path}/a.jsonl"))]
    assert found == [3, 1, 2, 7, -1, "1.5", "x", None, "9" * 19, "٣"]
    assert all(type(label) is not bool for label in found)
    for number, column in enumerate([[1, None], [1.0, None], [True, None], ["1", None]]):
        pq.write_table(pa.table({"text": ["", ""], "label": column}), tmp_path / f"b{number}.parquet")
        assert [item.labels[f"b{number}"] for item in documents(Tables(f"{tmp_path}/b{number}.*"))] == [1, None]
    coded = pa.array(["x", "y"]).dictionary_encode()
    pq.write_table(pa.table({"text": coded, "label": coded}), tmp_path / "c.parquet")
    assert [(item.text, item.labels["c"]) for item in documents(Tables(f"{tmp_path}/c.*"))] == [("x", "x"), ("y", "y")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None, "label": 1}, "expected a text in 'text', found None"),
        ({"text": 5, "label": 1}, "expected a text in 'text', found 5"),
        ({"text": "", "label": float("inf")}, "expected a label in 'label', a number or a text, found inf"),
        ({"text": "", "label": 10**18}, "found 1000000000000000000"),
        ({"text": "", "label": [1]}, "found a list"),
        ({"text": "", "label": {"a": 1}}, "found a dict"),
        ({"text": ""}, "no column 'label' among 'text'"),
        ({}, "no column 'text' among none"),
        ([1], r"expected a JSON object, found '\[1\]"),
    ],
)
def test_rows_that_are_no_documents_are_left_out(tmp_path: Path, row: Any, message: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [row, {"text": "fine", "label": 1}])
    first, second = Tables(f"{tmp_path}/a.jsonl").read("train")
    assert isinstance(first, Problem)
    assert first.where == f"{tmp_path}/a.jsonl:1"
    assert re.search(message, first.what)
    assert second == Document("fine", {"a": 1}, f"{tmp_path}/a.jsonl:2")


@pytest.mark.parametrize("value", [None, "", "  ", 1.5, True, ["x"], 10**18])
def test_rows_without_a_domain_are_left_out(tmp_path: Path, value: object) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": 1, "of": value}, {"text": "", "label": 1, "of": 7}])
    source = Tables(f"{tmp_path}/a.jsonl", domain="of")
    assert source.domains() == ["7"]
    assert len(found := problems(source)) == 1
    assert "a.jsonl:1: expected a domain in 'of', found" in found[0]
    write_jsonl(tmp_path / "a.jsonl", [{"text": "", "label": 1, "of": value}])
    with pytest.raises(
        InputError, match="no training document names a domain in 'of': set data.source.domain.*:1: exp"
    ):
        source.domains()


def test_files_of_one_name_are_one_domain(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        write_csv(tmp_path / f"books.{number}.csv", [{"text": str(number), "label": number}])
    source = Tables(f"{tmp_path}/*")
    assert source.domains() == ["books"]
    problem, *rest = source.read("train")
    names = [f"{str(tmp_path / f'books.{number}.csv')!r}" for number in (1, 2)]
    assert problem == Problem(
        f"{tmp_path}/books.0.csv", f"taken together with {', '.join(names)} as the domain 'books'", "note"
    )
    assert [item.labels for item in rest if isinstance(item, Document)] == [{"books": label} for label in (0, 1, 2)]


def test_splits_may_have_domains_of_their_own(tmp_path: Path) -> None:
    for split, names in {"train": ["books", "dvd"], "test": ["books", "cars"]}.items():
        (tmp_path / split).mkdir()
        for name in names:
            write_csv(tmp_path / split / f"{name}.csv", [{"text": "", "label": 1, "of": name}])
    (tmp_path / "raw.csv").write_text("text\nno label\n")
    raw = str(tmp_path / "raw.csv")
    for domain in (None, "of"):
        source = Tables(f"{tmp_path}/train/*", f"{tmp_path}/test/*", raw, domain=domain)
        assert source.splits() == {"train", "test", "unlabel"}
        assert source.domains() == ["books", "dvd"]
        assert [item.labels for item in source.read("test") if isinstance(item, Document)] == [
            {"books": 1},
            {"cars": 1},
        ]
        items = list(source.read("test", source.domains()))
        assert [item.labels for item in items if isinstance(item, Document)] == [{"books": 1}]
        told = Problem("data.source.test", "no file is called 'dvd', so it has no test documents")
        assert [item for item in items if isinstance(item, Problem)] == ([] if domain else [told])
        with pytest.raises(InputError, match="unknown domain 'raw': the corpus has books, (cars, )?dvd"):
            list(source.read("test", ["raw"]))
    assert list(Tables(f"{tmp_path}/train/*", unlabel=raw).read("unlabel")) == [
        Document("no label", {"raw": None}, f"{raw}:2")
    ]


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.parquet.gz").touch()
    for pattern in (f"{tmp_path}/*.csv", f"{tmp_path}/none.csv", ""):
        with pytest.raises(InputError, match=f"no file matches {re.escape(repr(pattern))}: set data.source.train"):
            Tables(pattern).domains()
        with pytest.raises(InputError, match="set data.source.test"):
            next(Tables("", test=pattern).read("test"))
    with pytest.raises(InputError, match=f"'{tmp_path}' is a folder: set data.source.train to .* '{tmp_path}/.*csv'"):
        Tables(str(tmp_path)).domains()
    for name in ("a.txt", "a.parquet.gz"):
        with pytest.raises(InputError, match=f"cannot read .*{name}': tables are .csv, .tsv or .jsonl files"):
            next(Tables(f"{tmp_path}/{name}").read("train"))
    with pytest.raises(InputError, match="cannot read"):
        next(read_rows(tmp_path / "a.txt"))
    with pytest.raises(InputError, match="there are no files of the test split: set data.source.test"):
        next(Tables("x.csv").read("test"))
    with pytest.raises(InputError, match="there are no files of the train split"):
        Tables([]).domains()
    with pytest.raises(InputError, match="set data.source.domain to null, or data.source.label to one column"):
        Tables("x.csv", label={"a": "b"}, domain="c")
    for nothing in ({"text": []}, {"text": ""}, {"label": ""}, {"label": {}}):
        with pytest.raises(InputError, match="set data.source.text and data.source.label"):
            Tables("x.csv", **nothing)


def test_the_fingerprint_changes_with_files_and_settings(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"text": "", "label": 1, "of": "x"}])
    source = Tables(f"{tmp_path}/*", domain="of")
    first = source.fingerprint()
    assert source.domains() == ["x"]
    assert list(source.read("train"))
    assert source.fingerprint() == first == Tables(f"{tmp_path}/*", domain="of").fingerprint()
    assert Tables(f"{tmp_path}/*").fingerprint() != first
    assert Tables(f"{tmp_path}/*", f"{tmp_path}/*", domain="of").fingerprint() != first
    write_csv(tmp_path / "a.csv", [{"text": "", "label": 1, "of": "other"}])
    changed = source.fingerprint()
    assert changed != first
    assert source.domains() == ["other"]
    write_csv(tmp_path / "b.csv", [{"text": "", "label": 1, "of": "more"}])
    assert source.fingerprint() not in (first, changed)
    assert source.domains() == ["more", "other"]


def test_is_made_from_a_configuration() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Source, "source")
    init = {"train": "a/*.csv", "test": ["b.csv", "c.csv"], "text": ["title", "body"], "label": {"x": "is_x"}}
    made = {"class_path": "lightning_ncmtl.datamodules.sources.Tables", "init_args": init}
    source = parser.instantiate_classes(parser.parse_object({"source": made})).source
    assert isinstance(source, Tables)
    assert source.text == ("title", "body")
    assert source.label == {"x": "is_x"}


@pytest.mark.parametrize("kind", WRITERS)
def test_documents_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    file = tmp_path_factory.mktemp("tables") / f"a.{kind}"
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    label = st.integers(-(10**17), 10**17) | st.sampled_from(["good", "bad", "a, b"]) | st.none()

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(text, label, text.filter(str.strip)), min_size=1))
    def check(rows: list[tuple[str, int | str | None, str]]) -> None:
        written = [{"text": text, "label": label, "of": domain} for text, label, domain in rows]
        if kind == "parquet":  # a column has one type
            written = [{**row, "label": None if row["label"] is None else str(row["label"])} for row in written]
        WRITERS[kind](file, written)
        expected = [(text, {domain.strip(): label}) for text, label, domain in rows]
        assert [(item.text, item.labels) for item in documents(Tables(str(file), domain="of"))] == expected

    check()
