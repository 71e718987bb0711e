"""Damaged and unusual files, from the source to the batches: a line each, and the rest of the corpus is used."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data import make_data
from table_files import compress

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Tables
from lightning_ncmtl.errors import InputError, find_message, forget_left_out

FEW: dict[str, Any] = {"validation_size": 2, "min_frequency": 1, "batch_size": 4}
ROWS = [f"word{number} fine,{number % 2}" for number in range(8)]


def table(file: Path, *rows: str, header: str = "text,label") -> Path:
    """A CSV file of the rows as they are."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return file


def truncated(file: Path, keep: float) -> Path:
    """Packed, of which the first part is left."""
    packed = compress(file)
    content = packed.read_bytes()
    packed.write_bytes(content[: int(keep * len(content))])
    return packed


def module(folder: Path, **settings: Any) -> MultiDomainDataModule:
    """Each file is a domain; those in ``test/``, if there are any, test."""
    test = f"{folder}/test/*" if (folder / "test").exists() else None
    return make_data(Tables(f"{folder}/*.csv*", test), **{**FEW, **settings})


def use(data: MultiDomainDataModule) -> dict[str, list[str]]:
    """Set up all there is, and look at all batches: the texts of each stage by domain are those of the table."""
    data.setup("fit")
    loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader()}
    if "test" in data.source.splits():
        data.setup("test")
        loaders["test"] = data.test_dataloader()
    found = {}
    for stage, loader in loaders.items():
        documents = data.documents(stage)  # type: ignore[arg-type]
        batches = list(loader)
        assert sorted(int(index) for batch in batches for index in batch["index"]) == documents["index"][:]
        assert all(batch["inputs"]["sentence_lengths"].sum() == len(batch["inputs"]["tokens"]) for batch in batches)
        found[stage] = [f"{data.domains[row['task_ids'][0]]}: {row['text']}" for row in documents]
    return found


def refused(data: Callable[[], Any]) -> str:
    """The one line with which it is."""
    with pytest.raises(InputError) as info:
        data()
    assert "\n" not in str(info.value)
    return str(info.value)


def lines(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    """Messages about something, each of one line."""
    assert not [message for message in caplog.messages if "\n" in message]
    return [message for message in caplog.messages if part in message]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO")
    return caplog


def test_a_truncated_file(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    table(tmp_path / "good.csv", *ROWS)
    long = [f"word{number**5} fine,{number % 2}" for number in range(2000)]
    packed = truncated(table(tmp_path / "short.csv", *long), 0.5)
    train = use(module(tmp_path))["train"]
    (line,) = lines(log, "broken download")
    found = re.fullmatch(rf"train: {re.escape(str(packed))}:(\d+): cannot be read from here on, .*", line)
    assert found is not None
    kept = [text for text in train if text.startswith("short")]
    assert len(train) - len(kept) == 6
    assert 500 < len(kept) < 1800
    assert int(found[1]) == len(kept) + 2 + 2  # behind the header, those that validate and the last that is whole
    assert kept == [f"short: {row.split(',')[0]}" for row in long[: len(kept)]]


def test_nothing_but_a_truncated_file(tmp_path: Path) -> None:
    packed = truncated(table(tmp_path / "short.csv", *ROWS), 0.1)
    message = refused(lambda: use(module(tmp_path)))
    assert message.startswith(f"there are no documents in the train split; {packed}:1: cannot be read from here on")


def test_a_wrong_column_in_one_of_several_files(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    table(tmp_path / "good.csv", *ROWS)
    other = table(tmp_path / "other.csv", *ROWS, header="body,label")
    data = module(tmp_path)
    assert len(use(data)["train"]) == 6
    assert data.domains == ["good"]
    assert lines(log, "no column") == [f"train: {other}:1: no column 'text' among 'body', 'label'; the file is skipped"]
    assert lines(log, "left out") == ["train: 'other' has no documents: the domain is left out"]
    assert "has no documents in its train split" in refused(lambda: use(module(tmp_path, domains=["good", "other"])))


@pytest.mark.parametrize(
    ("rows", "header", "cause"),
    [
        (ROWS, "body,label", "1: no column 'text' among 'body', 'label'; the file is skipped"),
        ([], "text,label", "1: empty: the file has no rows"),
        ([f"{row},more" for row in ROWS], "text,label", "2: expected 2 fields, found 3"),
    ],
)
@pytest.mark.parametrize("domain", [None, "label"])
def test_a_later_error_names_the_file_that_gave_nothing(
    tmp_path: Path, rows: list[str], header: str, cause: str, domain: str | None
) -> None:
    forget_left_out()
    table(tmp_path / "good.csv", *ROWS)
    other = table(tmp_path / "other.csv", *rows, header=header)
    use(make_data(Tables(f"{tmp_path}/*.csv", domain=domain), **FEW))
    assert find_message(InputError("too few tasks")) == f"too few tasks; left out before: {other}:{cause}"
    forget_left_out()


def test_nothing_but_a_wrong_column(tmp_path: Path) -> None:
    file = table(tmp_path / "other.csv", *ROWS, header="body,label")
    assert f"{file}:1: no column 'text' among 'body', 'label'" in refused(lambda: use(module(tmp_path)))


def test_bytes_that_are_no_text(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    file = table(tmp_path / "a.csv", *ROWS)
    file.write_bytes(file.read_bytes().replace(b"word1", b"caf\xe9").replace(b"word3", b"\xff\xfe"))
    table(tmp_path / "b.csv", *ROWS)
    data = module(tmp_path)
    assert use(data)["train"][:4] == ["a: word0 fine", "a: caf\ufffd fine", "a: word2 fine", "a: \ufffd\ufffd fine"]
    assert data.counts["train"]["with invalid characters"] == 2
    assert data.counts["validation"]["with invalid characters"] == 0
    assert lines(log, "train:") == [
        "train: 12 documents, 2 with invalid characters, 0 empty, 0 truncated",
    ]


def test_nothing_but_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(bytes(range(128, 256)) * 100)
    assert refused(lambda: use(module(tmp_path))).startswith(
        f"there are no documents in the train split; {file}:1: no column 'text' among"
    )


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n", "\ufeff"])
def test_an_empty_file(tmp_path: Path, log: pytest.LogCaptureFixture, content: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(content, encoding="utf-8")
    assert refused(lambda: use(module(tmp_path))) == (
        f"there are no documents in the train split; {file}:1: empty: the file has no rows"
    )
    table(tmp_path / "b.csv", *ROWS)
    log.clear()
    data = module(tmp_path)
    assert len(use(data)["train"]) == 6
    assert data.domains == ["b"]
    assert lines(log, "train: ")[:2] == [
        f"train: {file}:1: empty: the file has no rows",
        "train: 'a' has no documents: the domain is left out",
    ]


def test_empty_documents(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", ",0", '"",1', '" \n ",1', *ROWS)
    data = module(tmp_path)
    assert use(data)["train"][:3] == ["a: ", "a: ", "a:  \n "]
    assert data.counts["train"] == {"documents": 9, "with invalid characters": 0, "empty": 3, "truncated": 0}


def test_nothing_but_empty_documents_becomes_unknown_words(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", *[f'"",{number % 2}' for number in range(8)])
    data = module(tmp_path)
    use(data)
    assert data.counts["train"]["empty"] == 6
    assert all((batch["inputs"]["tokens"] == 1).all() for batch in data.train_dataloader())


def test_labels_outside_the_classes(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    file = table(tmp_path / "a.csv", *ROWS, "other,7", "kept,1", "none,")
    test = table(tmp_path / "test" / "a.csv", "fine,1", "other,8", "fine,0")
    data = module(tmp_path, classes=[0, 1])
    found = use(data)
    assert found["train"] == [*(f"a: word{number} fine" for number in range(7)), "a: none"]
    assert found["validation"] == ["a: word7 fine", "a: kept"]  # the last that have labels
    assert found["test"] == ["a: fine", "a: fine"]
    assert lines(log, "none of") == [
        f"train: {file}:10: the label 7 of 'a' is none of its classes 0, 1: set data.classes",
        f"test: {test}:3: the label 8 of 'a' is none of its classes 0, 1: set data.classes",
    ]


def test_nothing_but_labels_outside_the_classes(tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", *ROWS)
    assert refused(lambda: use(module(tmp_path, classes=["bad", "good"]))) == (
        f"there are no documents in the train split; {file}:2: the label 0 of 'a' is none of its classes 'bad', "
        "'good': set data.classes"
    )
    test = table(tmp_path / "test" / "a.csv", "fine,7")
    assert refused(lambda: use(module(tmp_path))) == (
        f"there are no documents in the test split; {test}:2: the label 7 of 'a' is none of its classes 0, 1: "
        "set data.classes"
    )


def test_two_files_of_the_same_domain(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    first, second = table(tmp_path / "a.csv", *ROWS[:4]), table(tmp_path / "a.more.csv", *ROWS[4:])
    assert use(module(tmp_path))["train"] == [f"a: word{number} fine" for number in range(6)]
    assert lines(log, "together") == [f"train: {first}: taken together with {str(second)!r} as the domain 'a'"]
    for file in (first, second):
        table(file)
    assert refused(lambda: use(module(tmp_path))).startswith("there are no documents in the train split; ")


def test_a_domain_with_one_class(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    table(tmp_path / "a.csv", *[f"word{number},good" for number in range(8)])
    table(tmp_path / "b.csv", *[row.replace(",0", ",good").replace(",1", ",bad") for row in ROWS])
    data = module(tmp_path)
    assert len(use(data)["train"]) == 12
    assert data.task_classes == [[1], [0, 1]]
    (line,) = lines(log, "only one class")
    assert line.startswith("train: 'a' has only one class (good): there is nothing to learn")


def test_nothing_but_documents_without_labels(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    table(tmp_path / "a.csv", *["no label,"] * 8)
    assert refused(lambda: use(module(tmp_path))) == (
        "there are no documents in the train split; 'a' has no labels: the domain is left out"
    )
    assert "domain 'a' has no labels in its train split" in refused(lambda: use(module(tmp_path, domains=["a"])))


def test_a_document_of_a_million_words(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", "so long . " * 333_333 + "end,1", *ROWS)
    start = time.monotonic()
    data = module(tmp_path)
    use(data)
    assert data.counts["train"]["truncated"] == 1
    longest = max((batch["inputs"]["tokens"] for batch in data.train_dataloader()), key=len)
    assert 40 * 3 < len(longest) < 40 * 3 + 10
    whole = module(tmp_path, max_words=None, max_sentences=None)
    use(whole)
    assert whole.counts["train"]["truncated"] == 0
    assert max(len(batch["inputs"]["tokens"]) for batch in whole.train_dataloader()) >= 1_000_000
    assert time.monotonic() - start < 30


def test_newlines_in_fields(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Later lines keep the numbers that an editor shows."""
    rows = ['"one\ntwo\n\nthree",1', "too,many,0", '"four\r\nfive",0', "few", '"six ""quoted""\n",9', *ROWS]
    file = table(tmp_path / "a.csv", *rows)
    train = use(module(tmp_path, classes=[0, 1]))["train"]
    assert train == ["a: one\ntwo\n\nthree", "a: four\r\nfive", *[f"a: word{number} fine" for number in range(6)]]
    assert lines(log, f"{file}") == [
        f"train: {file}:6: expected 2 fields, found 3",
        f"train: {file}:9: expected 2 fields, found 1",
        f"train: {file}:10: the label 9 of 'a' is none of its classes 0, 1: set data.classes",
    ]


def test_nothing_but_rows_that_are_too_long(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    file = table(tmp_path / "a.csv", *['"a\nb",1,2'] * 8)
    assert refused(lambda: use(module(tmp_path))) == (
        f"there are no documents in the train split; {file}:2: expected 2 fields, found 3, over 2 lines"
    )
    assert not any(line.startswith("train: ") for line in log.messages)  # the error says it


def test_a_quote_that_is_never_closed(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    table(tmp_path / "good.csv", *ROWS)
    file = table(tmp_path / "open.csv", *ROWS, '"never closed,1', *ROWS)
    assert sum(text.startswith("open") for text in use(module(tmp_path))["train"]) == 14
    assert lines(log, "quote") == [f"train: {file}:10: a quote is not closed in this line, which is left out"]


def test_a_domain_without_training(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        table(tmp_path / f"{name}.csv", *ROWS)
    for name in "ac":
        table(tmp_path / "test" / f"{name}.csv", *ROWS[:3])
    assert use(module(tmp_path))["test"] == ["a: word0 fine", "a: word1 fine", "a: word2 fine"]
    assert lines(log, "test: ")[:2] == [
        "test: left out 3 documents of 'c', which has no training documents",
        "test: no documents with labels of b",
    ]
    (tmp_path / "test" / "a.csv").unlink()
    assert refused(lambda: use(module(tmp_path))) == (
        "there are no documents in the test split; left out 3 documents of 'c', which has no training documents"
    )


def test_the_same_by_a_column(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """Domains in a column: one that is new in the test split, and rows without any."""
    file = table(tmp_path / "all.csv", *[f"{row},a" for row in ROWS], "lost,1,", header="text,label,of")
    test = table(tmp_path / "new.csv", "fine,1,a", "fine,1,c", "lost,1, ", header="text,label,of")
    data = make_data(Tables(str(file), str(test), domain="of"), **FEW)
    assert use(data)["test"] == ["a: fine"]
    assert data.domains == ["a"]
    assert lines(log, f"{tmp_path}") + lines(log, "left out") == [
        f"train: {file}:10: expected a domain in 'of', found ''",
        f"test: {test}:4: expected a domain in 'of', found ' '",
        "test: left out 1 documents of 'c', which has no training documents",
    ]
