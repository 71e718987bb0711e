import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_files import WRITERS, Row, compress, write_csv

from lightning_ncmtl.datamodules.sources import Document, Problem, Source, Tables
from lightning_ncmtl.datamodules.sources.tables import read_rows

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


def test_json_that_is_damaged_or_strange(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "half \\ud83d", "label": "\\udc00"}',
        b"",
        b'{"text": "cut',
        b"[" * 100_000,
        b'{"text": "", "label": ' + b"9" * 5000 + b"}",
        b'{"text": "bad \xff byte", "label": 1, "\\ud800": 0}\r',
    ]
    file.write_bytes(b"\n".join(lines))
    items = list(Tables(str(file)).read("train"))
    assert items[0] == Document("half ?", {"a": "?"}, f"{file}:1")
    assert items[-1] == Document("bad \ufffd byte", {"a": 1}, f"{file}:6")
    assert [item.where for item in items[1:-1]] == [f"{file}:{line}" for line in (3, 4, 5)]
    assert all(isinstance(item, Problem) and item.what.startswith("not JSON: ") for item in items[1:-1])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_that_is_damaged_or_strange(tmp_path: Path, end: str) -> None:
    file = tmp_path / "a.csv"
    lines = [
        "label,text",
        "1,one",
        "",
        '0,"over',
        'two lines"',
        "0,too,many",
        "1",
        '1,"a"b',
        "1,nul \0 and \ufffe",
        '0,"never closed',
        "1,swallowed",
    ]
    file.write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode() + end.encode())
    items = list(Tables(str(file)).read("train"))
    assert items == [
        Document("one", {"a": 1}, f"{file}:2"),
        Document(f"over{end}two lines", {"a": 0}, f"{file}:4"),
        Problem(f"{file}:6", "expected 2 fields, found 3"),
        Problem(f"{file}:7", "expected 2 fields, found 1"),
        Problem(f"{file}:8", "cannot be read as CSV: ',' expected after '\"'"),
        Document("nul \ufffd and \ufffe", {"a": 1}, f"{file}:9"),
        Problem(f"{file}:10", "a quote is not closed in this line, which is left out"),
        Document("swallowed", {"a": 1}, f"{file}:11"),
    ]


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\nbad \xff byte\t1\n")
    assert documents(Tables(f"{tmp_path}/a.tsv"))[0].text == "bad \ufffd byte"


def test_files_without_the_columns_are_skipped(tmp_path: Path) -> None:
    for kind, writer in WRITERS.items():
        writer(tmp_path / f"{kind}.{kind}", [{"text": "", "stars": 1}] * 2)
    write_csv(tmp_path / "fine.csv", [{"text": "", "label": 1}])
    (tmp_path / "twice.csv").write_text("text,text,label\na,b,1\n")
    (tmp_path / "unclosed.csv").write_text('text,"label\na,1\n')
    items = list(Tables(f"{tmp_path}/*.*").read("train"))
    found = [item for item in items if isinstance(item, Problem)]
    assert len([item for item in found if item.kind == "cause"]) == len(WRITERS) + 2
    assert [str(item).removeprefix(f"{tmp_path}/") for item in found if item.kind == "left out"] == [
        "csv.csv:1: no column 'label' among 'text', 'stars'; the file is skipped",
        "jsonl.jsonl:1: no column 'label' among 'text', 'stars'",
        "jsonl.jsonl:2: no column 'label' among 'text', 'stars'",
        "parquet.parquet:1: no column 'label' among 'text', 'stars'; the file is skipped",
        "tsv.tsv:1: no column 'label' among 'text', 'stars'; the file is skipped",
        "twice.csv:1: 2 columns 'text' among 'text', 'text', 'label'; the file is skipped",
        "unclosed.csv:1: cannot be read as CSV: unexpected end of data; the file is skipped",
    ]
    assert [item.labels for item in items if isinstance(item, Document)] == [{"fine": 1}]


def test_empty_files_are_told(tmp_path: Path) -> None:
    for name in ("a.csv", "b.tsv", "c.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "d.csv").write_text("text,label\n\n")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b" \n\n"))
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int8())}), tmp_path / "f.parquet"
    )
    pq.write_table(pa.table({}), tmp_path / "g.parquet")
    source = Tables(f"{tmp_path}/*.*")
    assert source.domains() == list("abcdefg")
    found = problems(source)
    assert len(found) == 7
    assert all(problem.endswith(":1: empty: the file has no rows") for problem in found[:6])
    assert found[6].endswith("g.parquet:1: no column 'text' among none; the file is skipped")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_of_a_gz_that_breaks_off_the_start_is_read(tmp_path: Path, kind: str) -> None:
    rows = [{"text": f"document {number * 7919 % 10007}", "label": number % 2} for number in range(3000)]
    WRITERS[kind](tmp_path / f"a.{kind}", rows)
    file = compress(tmp_path / f"a.{kind}")
    file.write_bytes(file.read_bytes()[:-2000])
    write_csv(tmp_path / "b.csv", [{"text": "", "label": 1}])
    *items, problem, last = Tables(f"{tmp_path}/*").read("train")
    assert 500 < len(items) < 3000
    assert [item.text for item in items if isinstance(item, Document)] == [row["text"] for row in rows[: len(items)]]
    assert isinstance(problem, Problem)
    assert problem.where == f"{file}:{len(items) + (1 if kind == 'jsonl' else 2)}"
    assert problem.what.startswith("cannot be read from here on, perhaps a broken download: ")
    assert isinstance(last, Document)
    file.write_bytes(b"no gzip")
    assert "Not a gzipped file" in problems(Tables(str(file)))[0]


def test_of_a_damaged_parquet_file_the_other_row_groups_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text {number}" for number in range(30)], "label": range(30)})
    pq.write_table(table, file, row_group_size=10, use_dictionary=False, compression="none")
    damaged = bytearray(file.read_bytes())
    place = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    damaged[place : place + 40] = b"\xff" * 40
    file.write_bytes(damaged)
    items = list(Tables(str(file)).read("train"))
    assert [item.text for item in items if isinstance(item, Document)] == [
        f"text {number}" for number in range(30) if number // 10 != 1
    ]
    assert items[20].where == f"{file}:30"
    assert len(found := problems(Tables(str(file)))) == 1
    assert "a.parquet:11: the rest of row group 1 is damaged" in found[0]
    for bad in (b"", b"PAR1", bytes(damaged[:-1])):
        file.write_bytes(bad)
        assert len(found := problems(Tables(str(file)))) == 1
        assert "a.parquet:1: cannot be read from here on" in found[0]


def test_rows_of_parquet_that_python_cannot_hold_are_left_out(tmp_path: Path) -> None:
    strings = pa.array([b"fine", b"bad \xff", b"good"]).view(pa.string())
    pq.write_table(pa.table({"text": strings, "label": [1, 2, 3]}), tmp_path / "a.parquet")
    items = list(Tables(f"{tmp_path}/*").read("train"))
    assert [type(item) for item in items] == [Document, Problem, Document]
    assert items[2] == Document("good", {"a": 3}, f"{tmp_path}/a.parquet:3")
    times = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a"], "label": times}), tmp_path / "a.parquet")
    assert "row cannot be read" in problems(Tables(f"{tmp_path}/*"))[0]


def test_rows_may_be_read_with_all_their_columns(tmp_path: Path) -> None:
    for kind, writer in WRITERS.items():
        file = tmp_path / f"a.{kind}"
        writer(file, ROWS[:1])
        row, where = next(read_rows(file))
        assert row == {**ROWS[0], "id": row["id"]}
        assert where == f"{file}:{2 if kind in ('csv', 'tsv') else 1}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_document_of_a_million_words(tmp_path: Path, kind: str) -> None:
    text = "word, " * 1_000_000
    WRITERS[kind](tmp_path / f"a.{kind}", [{"text": text, "label": 1}, {"text": "", "label": 0}])
    first, second = documents(Tables(f"{tmp_path}/a.*"))
    assert first.text == text
    assert second.text == ""
