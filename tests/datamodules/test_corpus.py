from pathlib import Path
from typing import Any

import pytest
from corpora import Fixed, Several

from lightning_ncmtl.datamodules.cache import Cache
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.document_table import first_entries, write_documents
from lightning_ncmtl.datamodules.sources import FDUMTL, Document, Problem, Source
from lightning_ncmtl.errors import InputError

# Three domains: some labels in common, in no order
DOCUMENTS: Any = {
    ("books", "train"): [("b0", "good"), ("b1", "bad"), ("b2", None)],
    ("cars", "train"): [("c0", "fast"), ("c1", "bad")],
    ("dvd", "train"): [],
    ("books", "test"): [("t0", "bad"), ("t1", "fast")],
    ("toys", "test"): [("t2", "bad"), ("t3", "bad")],
}


def corpus(source: Source, tmp_path: Path, domains: Any = None, classes: Any = None) -> Corpus:
    return Corpus(source, domains, classes, Cache(str(tmp_path / "cache")))


def test_domains_and_classes_are_found_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        found = corpus(Fixed(DOCUMENTS), tmp_path)
    assert found.domains == ["books", "cars"]
    assert found.domain_classes == {"books": ["bad", "good"], "cars": ["bad", "fast"]}
    assert found.class_names == ["bad", "fast", "good"]
    assert found.read("train")[:] == {
        "text": ["b0", "b1", "b2", "c0", "c1"],
        "group": [""] * 5,
        "task_ids": [[0], [0], [0], [1], [1]],
        "labels": [[2], [0], [-1], [1], [0]],
    }
    assert caplog.messages == ["train: 'dvd' has no documents: the domain is left out"]


def test_evaluation_keeps_to_domains_and_classes_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = corpus(Fixed(DOCUMENTS), tmp_path)
    with caplog.at_level("INFO"):
        assert found.read("test")["text"][:] == ["t0"]
    assert caplog.messages[-3:] == [
        "test: books.test:2: the label 'fast' of 'books' is none of its classes 'bad', 'good': set data.classes",
        "test: left out 2 documents of 'toys', which has no training documents",
        "test: no documents with labels of cars",
    ]


def test_given_domains_and_classes_need_no_training_split(tmp_path: Path) -> None:
    source = Fixed(DOCUMENTS)
    found = corpus(source, tmp_path, ["cars", "books"], {"books": ["bad", "fast"], "cars": ["slow"]})
    assert found.class_names == ["bad", "fast", "slow"]
    assert found.read("test")["labels"][:] == [[0], [1]]
    assert found.read("test")["task_ids"][:] == [[1], [1]]
    assert source.was_read == ["test"]


def test_classes_of_all_domains_fix_the_numbers(tmp_path: Path) -> None:
    documents: Any = {("a", "train"): [("x", 5), ("y", "bad"), ("z", 10), ("q", 7)]}
    found = corpus(Fixed(documents), tmp_path, classes=["bad", 10, 5])
    assert found.class_names == [5, 10, "bad"]  # numbers first
    assert found.read("train")["labels"][:] == [[0], [2], [1]]
    assert found.read("train")["text"][:] == ["x", "y", "z"]


def test_a_domain_with_one_class_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents: Any = {("a", "train"): [("x", 1)], ("b", "train"): [("x", 0), ("y", 1)], ("c", "train"): [("x", None)]}
    with caplog.at_level("INFO"):
        found = corpus(Fixed(documents), tmp_path)
    assert found.domain_classes["a"] == [1]
    assert "train: 'a' has only one class (1): there is nothing to learn" in caplog.text
    assert "train: 'c' has no labels: the domain is left out" in caplog.text
    assert found.domains == ["a", "b"]
    assert found.read("train")["text"][:] == ["x", "x", "y"]


def test_documents_with_several_labels(tmp_path: Path) -> None:
    texts: Any = [("x", {"b": 1, "a": 0}), ("y", {}), ("z", {"c": None}), ("w", {"c": 1})]
    found = corpus(Several(["a", "b", "c", "d"], texts), tmp_path)
    assert found.domains == ["a", "b", "c"]
    table = found.read("train")
    assert table["text"][:] == ["x", "y", "z", "w"]
    assert table["task_ids"][:] == [[1, 0], [], [], [2]]
    assert table["labels"][:] == [[1, 0], [], [], [1]]
    tasks, labels = first_entries(table)
    assert tasks.tolist() == [1, 0, 0, 2]
    assert labels.tolist() == [1, -1, -1, 1]


def test_tables_are_found_again_until_the_documents_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "books.task.train"
    file.write_text("1\tgood\nno label\n0\tbad\n")

    def read(**settings: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO"):
            found = corpus(FDUMTL(str(tmp_path)), tmp_path, **settings).read("train")
        assert "train: " + f"{file}:2: expected 'label<TAB>text', found 'no label'" in caplog.messages  # every time
        return list(found["text"])

    assert read() == ["good", "bad"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert read() == ["good", "bad"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    assert read(classes=[1, 2]) == ["good"]
    file.write_text("1\tbetter\nno label\n0\tbad\n")
    assert read() == ["better", "bad"]


def test_sources_that_nobody_can_recognise_are_not_kept(tmp_path: Path) -> None:
    for text in ("one", "two"):
        documents: Any = {("a", "train"): [(text, 0)]}
        assert corpus(Fixed(documents), tmp_path).read("train")["text"][:] == [text]
    assert not (tmp_path / "cache").exists()


def test_many_problems_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.task.train").write_text("bad\n" * 8 + "1\tgood\n")
    with caplog.at_level("INFO"):
        corpus(FDUMTL(str(tmp_path)), tmp_path)
    assert sum("expected 'label<TAB>text'" in line for line in caplog.messages) == 5
    assert "train: and 3 more problems" in caplog.messages


@pytest.mark.parametrize(
    ("documents", "settings", "message"),
    [
        ({("a", "train"): []}, {}, "there are no documents in the train split; 'a' has no documents"),
        ({("a", "test"): [("x", 0)]}, {}, "there is no train split: Fixed has test"),
        ({("a", "train"): [("x", 0)]}, {"domains": []}, "domains must be one or more different names, found"),
        ({("a", "train"): [("x", 0)]}, {"domains": ["a", "a"]}, "domains must be one or more different names"),
        ({("a", "train"): [("x", 0)]}, {"domains": ["a", "b"]}, "domain 'b' has no documents in its train split"),
        ({("a", "train"): [("x", 0)]}, {"classes": []}, "data.classes must name at least one class, found"),
        ({("a", "train"): [("x", 0)]}, {"classes": {"a": []}}, "data.classes must name at least one class, found"),
        ({("a", "train"): [("x", None)]}, {"domains": ["a"]}, "domain 'a' has no labels in its train split"),
        (
            {("a", "train"): [("x", 0)]},
            {"domains": ["a"], "classes": {"b": [0]}},
            "data.classes has no classes for the domain 'a'",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, documents: Any, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        corpus(Fixed(documents), tmp_path, **settings).read("train")


def test_large_documents_are_written_in_small_batches(tmp_path: Path) -> None:
    """Memory and the size of an Arrow array (2 GB of text) bound what is written at a time."""
    import pyarrow as pa

    items = [Document("x" * 6_000_000, {"a": 0}) for _ in range(4)] + [Problem("here", "what")]
    facts = write_documents(tmp_path / "t.arrow", items, ["a"], {"a": [0]})
    assert facts["counts"] == {"a": 4}
    assert facts["problems"] == ["here: what"]
    with pa.memory_map(str(tmp_path / "t.arrow")) as file, pa.ipc.open_stream(file) as batches:
        assert [len(batch) for batch in batches] == [3, 1]
