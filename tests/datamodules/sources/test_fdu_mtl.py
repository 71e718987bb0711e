import os
from pathlib import Path

import pytest

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import FDUMTL, Document
from lightning_ncmtl.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "books.task.train").write_bytes(b"1\tgood book\r\n0\tbad \xff byte\n1\t\n")
    (tmp_path / "books.task.test").write_bytes(b"0\ta test\n")
    (tmp_path / "books.task.unlabel").write_bytes(b"no label\n")
    (tmp_path / "dvd.task.train").write_bytes(b"1\tfine\x85film\n")
    return tmp_path


def test_reads_documents_in_order(folder: Path) -> None:
    source = FDUMTL(str(folder))
    assert source.domains() == ["books", "dvd"]
    assert list(source.read("books", "train")) == [
        Document("good book", 1),
        Document("bad \ufffd byte", 0),
        Document("", 1),
    ]
    assert list(source.read("books", "test")) == [Document("a test", 0)]
    assert list(source.read("books", "unlabel")) == [Document("no label", -1)]
    assert source.planted_groups is None


def test_splits_are_those_of_every_domain(folder: Path) -> None:
    assert FDUMTL(str(folder)).splits() == {"train"}  # of books alone, the others
    (folder / "dvd.task.test").write_bytes(b"0\ta test\n")
    assert FDUMTL(str(folder)).splits() == {"train", "test"}
    with pytest.raises(InputError, match="nowhere' does not exist"):
        FDUMTL("nowhere").splits()


def test_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown domain 'cars'.*books, dvd"):
        next(FDUMTL(str(folder)).read("cars", "train"))
    with pytest.raises(InputError, match=r"dvd\.task\.test', which the test split of 'dvd' needs"):
        next(FDUMTL(str(folder)).read("dvd", "test"))
    with pytest.raises(InputError, match="nowhere' does not exist: set data.source.path"):
        FDUMTL("nowhere").domains()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        FDUMTL(str(tmp_path / "empty")).domains()


@pytest.mark.parametrize("line", ["no label", "x\tletter", "1.5\tfraction", "\tnothing"])
def test_damaged_lines_are_refused(folder: Path, line: str) -> None:
    (folder / "books.task.train").write_text(f"1\tfine\n{line}\n")
    with pytest.raises(InputError, match=r"books.task.train:2: expected 'label<TAB>text', found"):
        list(FDUMTL(str(folder)).read("books", "train"))


@pytest.mark.skipif("FDU_MTL" not in os.environ, reason="set FDU_MTL to the folder of the real corpus")
def test_the_real_corpus() -> None:
    source = FDUMTL(os.environ["FDU_MTL"])
    texts = [text for domain in source.domains() for text, _ in source.read(domain, "train")]
    assert len(source.domains()) == 14
    assert len(texts) == 22_180
    assert sum("\ufffd" in text for text in texts) == 2


@pytest.mark.skipif("FDU_MTL" not in os.environ, reason="set FDU_MTL to the folder of the real corpus")
def test_the_real_corpus_in_batches() -> None:
    data = MultiDomainDataModule(FDUMTL(os.environ["FDU_MTL"]), vectors=os.environ.get("VECTORS"))
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
    data = MultiDomainDataModule(source, validation_size=200)
    data.setup("validate")
    assert data.copies["magazines"] == {
        "train": 1370,
        "train copies": 293,
        "validation": 200,
        "validation copies": 95,
    }
    assert sum(counts["validation copies"] for counts in data.copies.values()) == 280
    data.deduplicate = True  # by the same search
    data.setup("validate")
    assert sum(counts["train"] for counts in data.copies.values()) == 19_380 - 387
    assert sum(counts["validation copies"] for counts in data.copies.values()) == 0
    data.deduplicate = False
    data.folds = 10
    data.setup("validate")
    assert all(140 < counts["validation"] < 170 for counts in data.copies.values())
    assert sum(counts["validation copies"] for counts in data.copies.values()) == 0
