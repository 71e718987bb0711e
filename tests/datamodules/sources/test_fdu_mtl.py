import os
from pathlib import Path

import pytest
from data import make_data

from lightning_ncmtl.datamodules import SplitSettings
from lightning_ncmtl.datamodules.sources import FDUMTL, Document, Problem
from lightning_ncmtl.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "books.task.train").write_bytes(b"1\tgood book\r\n0\tbad \xff byte\n1\t\n")
    (tmp_path / "books.task.test").write_bytes(b"0\ta test\n")
    (tmp_path / "books.task.unlabel").write_bytes(b"no label\n")
    (tmp_path / "dvd.task.train").write_text("1\tfine\x85film\n", encoding="utf-8")
    return tmp_path


def test_reads_documents_in_order(folder: Path) -> None:
    source = FDUMTL(str(folder))
    assert source.domains() == ["books", "dvd"]
    books = [
        Document("good book", {"books": 1}, f"{folder}/books.task.train:1"),
        Document("bad \ufffd byte", {"books": 0}, f"{folder}/books.task.train:2"),
        Document("", {"books": 1}, f"{folder}/books.task.train:3"),
    ]
    dvd = [Document("fine\x85film", {"dvd": 1}, f"{folder}/dvd.task.train:1")]
    assert list(source.read("train")) == books + dvd
    assert list(source.read("train", ["dvd", "books"])) == dvd + books
    assert list(source.read("test", ["books"])) == [Document("a test", {"books": 0}, f"{folder}/books.task.test:1")]
    assert list(source.read("unlabel", ["books"])) == [
        Document("no label", {"books": None}, f"{folder}/books.task.unlabel:1")
    ]
    assert source.planted_groups is None
    assert not source.multi_label


def test_splits_are_those_of_any_domain(folder: Path) -> None:
    assert FDUMTL(str(folder)).splits() == {"train", "test", "unlabel"}
    (folder / "books.task.test").unlink()
    assert FDUMTL(str(folder)).splits() == {"train", "unlabel"}
    with pytest.raises(InputError, match="nowhere' does not exist"):
        FDUMTL("nowhere").splits()


def test_domains_without_a_file_are_told(folder: Path) -> None:
    told = Problem(f"{folder}/dvd.task.test", "there is no such file, so 'dvd' has no test documents")
    assert list(FDUMTL(str(folder)).read("test", ["dvd"])) == [told]
    (folder / "cars.task.test").write_text("1\tof no training domain\n")
    assert FDUMTL(str(folder)).domains() == ["books", "dvd"]
    labels = [item.labels for item in FDUMTL(str(folder)).read("test") if isinstance(item, Document)]
    assert labels == [{"books": 0}, {"cars": 1}]


def test_missing_folders_and_domains_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown domain 'cars'.*books, dvd"):
        next(FDUMTL(str(folder)).read("train", ["cars"]))
    with pytest.raises(InputError, match="nowhere' does not exist: set data.source.path"):
        FDUMTL("nowhere").domains()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        FDUMTL(str(tmp_path / "empty")).domains()


@pytest.mark.parametrize("line", ["no label", "x\tletter", "1.5\tfraction", "\tnothing", "9" * 19 + "\tlarge", ""])
def test_damaged_lines_are_left_out(folder: Path, line: str) -> None:
    (folder / "books.task.train").write_text(f"1\tfine\n{line}\n-1\talso\n")
    first, problem, last = FDUMTL(str(folder)).read("train", ["books"])
    where = f"{folder}/books.task.train:2"
    assert problem == Problem(where, f"expected 'label<TAB>text', found {line[:40]!r}")
    assert [item.labels for item in (first, last) if isinstance(item, Document)] == [{"books": 1}, {"books": -1}]


def test_the_fingerprint_changes_with_the_files(folder: Path) -> None:
    first = FDUMTL(str(folder)).fingerprint()
    assert FDUMTL(str(folder)).fingerprint() == first
    (folder / "dvd.task.unlabel").write_text("more\n")
    assert FDUMTL(str(folder)).fingerprint() != first


@pytest.mark.skipif("FDU_MTL" not in os.environ, reason="set FDU_MTL to the folder of the real corpus")
def test_the_real_corpus() -> None:
    source = FDUMTL(os.environ["FDU_MTL"])
    items = list(source.read("train"))
    texts = [item.text for item in items if isinstance(item, Document)]
    assert len(source.domains()) == 14
    assert len(texts) == len(items) == 22_180
    assert sum("\ufffd" in text for text in texts) == 2


@pytest.mark.skipif("FDU_MTL" not in os.environ, reason="set FDU_MTL to the folder of the real corpus")
def test_the_real_corpus_in_batches() -> None:
    data = make_data(FDUMTL(os.environ["FDU_MTL"]), vectors=os.environ.get("VECTORS"))
    data.setup("fit")
    loader = data.train_dataloader()
    assert data.counts["train"]["documents"] == 22_180 - 14 * 200
    batches = [batch for _, batch in zip(range(100), loader, strict=False)]
    assert all(len(batch["task_ids"].unique()) > 2 for batch in batches)
    assert all(batch["inputs"]["sentence_lengths"].min() >= 1 for batch in batches)
    if (vectors := data.vectors()) is not None:
        assert vectors.shape[1] == 200
        assert float(vectors.isnan().any(1).float().mean()) < 0.1


@pytest.mark.skipif("FDU_MTL" not in os.environ, reason="set FDU_MTL to the folder of the real corpus")
def test_copies_in_the_real_corpus() -> None:
    source = FDUMTL(os.environ["FDU_MTL"])
    data = make_data(source, validation_size=200)
    data.setup("validate")
    assert data.copies["magazines"] == {
        "train": 1370,
        "train copies": 293,
        "validation": 200,
        "validation copies": 95,
    }
    assert sum(counts["validation copies"] for counts in data.copies.values()) == 280
    data.split = SplitSettings(deduplicate=True)  # by the same search
    data.setup("validate")
    assert sum(counts["train"] for counts in data.copies.values()) == 19_380 - 387
    assert sum(counts["validation copies"] for counts in data.copies.values()) == 0
    data.split = SplitSettings(folds=10)
    data.setup("validate")
    assert all(140 < counts["validation"] < 170 for counts in data.copies.values())
    assert sum(counts["validation copies"] for counts in data.copies.values()) == 0


def test_a_test_split_alone_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "books.task.test").write_text("1\tgood\n")
    (tmp_path / "dvd.task.test").symlink_to(tmp_path / "nowhere")
    source = FDUMTL(str(tmp_path))
    assert source.splits() == {"test"}
    assert source.fingerprint()
    good, missing = source.read("test", ["books", "dvd"])
    assert good == Document("good", {"books": 1}, f"{tmp_path / 'books.task.test'}:1")
    assert "there is no such file" in str(missing)
    with pytest.raises(InputError, match=r"holds no file DOMAIN.task.unlabel"):
        list(source.read("unlabel"))
