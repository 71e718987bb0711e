"""Tables of text as spreadsheets and other programs write them."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from lightning_ncmtl.datamodules.sources import Document, FeatureTables, Problem, Tables
from lightning_ncmtl.datamodules.sources.files import read_rows


def read(file: Path, text: str, *columns: str) -> tuple[list[Any], list[str]]:
    """The rows, and what is told."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        opened.write(text)
    items = list(read_rows(file, columns))
    told = [str(item).removeprefix(f"{file}:") for item in items if isinstance(item, Problem)]
    return [item[0] for item in items if not isinstance(item, Problem)], told


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("name", "mark", "word"),
    [
        ("a.csv", ";", "semicolons, and commas in numbers are decimal points"),
        ("a.csv", "\t", "tabs"),
        ("a.csv", "|", "bars"),
        ("a.tsv", ",", "commas"),
        ("a.csv", ",", None),
        ("a.tsv", "\t", None),
    ],
)
def test_separators_are_recognised(tmp_path: Path, name: str, mark: str, word: str | None, known: bool) -> None:
    text = f'text{mark}label\r\n"a{mark} b"{mark}1\r\n"c, d; e\n"{mark}0\r\n'
    rows, told = read(tmp_path / name, text, *(("text", "label") if known else ()))
    assert rows == [{"text": f"a{mark} b", "label": "1"}, {"text": "c, d; e\n", "label": "0"}]
    assert told == ([] if word is None else [f"1: fields are separated by {word}"])


@pytest.mark.parametrize("mark", [";", ",", "~"])
def test_the_line_in_which_a_spreadsheet_tells_the_separator(tmp_path: Path, mark: str) -> None:
    rows, told = read(tmp_path / "a.csv", f"sep={mark}\ntext{mark}label\nx{mark}1\nshort\n", "text", "label")
    assert rows == [{"text": "x", "label": "1"}]
    assert told[-1] == "4: expected 2 fields, found 1"


def test_separators_of_other_things_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    assert read(file, "text (a; b; c),label\nx,1\n", "label")[1] == []
    assert read(file, "my text; long\nx;1\n", "my text; long") == ([{"my text; long": "x;1"}], [])
    assert read(file, "text\na;b\n") == ([{"text": "a;b"}], [])
    rows, _ = read(file, "price, EUR;label\n0,5;1\n", "label")
    assert rows == [{"price, EUR": "0.5", "label": "1"}]
    assert read(file, "txt;label\nx;1\n", "text", "label")[1] == [
        "1: no column 'text' among 'txt', 'label' (is 'txt' meant?); the file is skipped"
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_decides_the_encoding(tmp_path: Path, encoding: str, packed: bool) -> None:
    for name, text in (
        ("a.csv", "text,label\r\nünï \u2028,1\r\n"),
        ("b.jsonl", '{"text": "ünï \u2028", "label": 1}\n'),
    ):
        mark = "\ufeff" if encoding.endswith("-be") else ""
        content = (mark + text).encode(encoding)
        file = tmp_path / (f"{name}.gz" if packed else name)
        file.write_bytes(gzip.compress(content) if packed else content)
        source = Tables(str(file))
        assert [item for item in source.read("train") if isinstance(item, Document)] == [
            Document("ünï \u2028", {name[0]: 1}, f"{file}:{2 if name == 'a.csv' else 1}")
        ]


ROWS = [f"text {number},{number % 2}" for number in range(4)]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('"never closed,1', "a quote is not closed in this line, which is left out"),
        ('x,"never closed', "a quote is not closed in this line, which is left out"),
        ('"closed" badly,1', "cannot be read as CSV: ',' expected after '\"'"),
    ],
)
@pytest.mark.parametrize(
    "behind", [[], ['"good, one",1'], ['"over\ntwo lines",0'], ['0,""'], ['again,"open'], ['"good, one",1', '"open,1']]
)
def test_a_quote_that_is_not_closed_takes_no_other_row(tmp_path: Path, line: str, what: str, behind: list[str]) -> None:
    lines = ["text,label", *ROWS, line, *ROWS, *behind, *ROWS, ""]
    rows, told = read(tmp_path / "a.csv", "\n".join(lines))
    alone, other = read(tmp_path / "a.csv", "\n".join(["text,label", *ROWS, "only", *ROWS, *behind, *ROWS, ""]))
    assert rows == alone
    assert told == [f"6: {what}", *other[1:]]
    assert len(rows) >= 12


def test_rows_over_several_lines_that_do_not_fit_say_how_many(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", 'text,label\n"a\nb\nc"\nx,1\n') == (
        [{"text": "x", "label": "1"}],
        ["2: expected 2 fields, found 1, over 3 lines"],
    )


def test_features_are_separated_by_semicolons_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x ;Y;Label\n1,5;2;0,0\n-3,25;4;1,0\n")
    (tmp_path / "b.csv").write_text("X,y,label\n5,6,1\n")
    source = FeatureTables(f"{tmp_path}/*.csv")
    assert source.features() == ["x ", "Y"]
    items = list(source.read("train"))
    assert [item.features for item in items if isinstance(item, Document)] == [[1.5, 2], [-3.25, 4], [5, 6]]
    assert [item.labels for item in items if isinstance(item, Document)] == [{"a": 0}, {"a": 1}, {"b": 1}]
    assert [str(item) for item in items if isinstance(item, Problem)] == [
        f"{tmp_path}/a.csv:1: fields are separated by semicolons, and commas in numbers are decimal points"
    ]
