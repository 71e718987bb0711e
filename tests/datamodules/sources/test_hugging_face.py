import json
import time
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from jsonargparse import ArgumentParser

from lightning_ncmtl.datamodules.sources import Document, HuggingFace, Problem, Source
from lightning_ncmtl.datamodules.sources.base import Gap
from lightning_ncmtl.errors import InputError

ROWS: dict[str, list[Any]] = {
    "text": ["one", "two", "", "four"],
    "label": [1, 0, -1, None],
    "of": ["dvd", "books", " dvd ", "books"],
    "extra": [[1], [], [2], [3]],
}
FEATURES = Features(
    text=Value("string"), label=ClassLabel(names=["bad", "good"]), of=Value("string"), extra=[Value("int64")]
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    data = Dataset.from_dict(ROWS, features=FEATURES)
    raw = Dataset.from_dict({"text": ["raw"], "of": ["dvd"]})
    DatasetDict({"train": data, "test": data.select([3, 1]), "unsupervised": raw, "dev": data}).save_to_disk(
        tmp_path / "saved"
    )
    return str(tmp_path / "saved")


def texts(source: Source, split: Any = "train", domains: list[str] | None = None) -> list[str]:
    return [item.text for item in source.read(split, domains) if isinstance(item, Document)]


def test_reads_a_saved_dataset(saved: str) -> None:
    source = HuggingFace(saved, domain="of")
    assert source.domains() == ["books", "dvd"]
    assert source.splits() == {"train", "test", "unlabel"}
    assert list(source.read("train")) == [
        Document("one", {"dvd": "good"}, f"{saved}[train][0]"),
        Document("two", {"books": "bad"}, f"{saved}[train][1]"),
        Document("", {"dvd": None}, f"{saved}[train][2]"),
        Document("four", {"books": None}, f"{saved}[train][3]"),
    ]
    assert texts(source, domains=["books"]) == ["two", "four"]
    assert texts(source, "test") == ["four", "two"]
    assert list(source.read("unlabel")) == [Document("raw", {"dvd": None}, f"{saved}[unsupervised][0]")]
    assert source.planted_groups is None
    assert not source.multi_label


def test_splits_may_have_other_names(saved: str) -> None:
    source = HuggingFace(saved, domain="of", split_names={"test": "dev", "unlabel": "train"})
    assert source.splits() == {"train", "test", "unlabel"}
    assert len(texts(source, "test")) == 4
    assert [item.labels for item in source.read("unlabel", ["dvd"]) if isinstance(item, Document)] == [
        {"dvd": None}
    ] * 2
    with pytest.raises(
        InputError, match="no split 'none' but dev, test, train, unsupervised: set data.source.split_names"
    ):
        HuggingFace(saved, domain="of", split_names={"test": "none"}).splits()


def test_a_saved_dataset_without_splits_is_for_training(tmp_path: Path) -> None:
    Dataset.from_dict({"title": ["a"], "text": ["b"], "label": [2.0], "of": [7]}).save_to_disk(tmp_path / "one")
    source = HuggingFace(str(tmp_path / "one"), domain="of", text=["title", "text"])
    assert source.splits() == {"train"}
    assert list(source.read("train")) == [Document("a\nb", {"7": 2}, f"{tmp_path}/one[train][0]")]
    with pytest.raises(InputError, match="has no split 'test' but train"):
        next(source.read("test"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_reads_a_folder_of_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "corpus").mkdir()
    for split in ("train", "test"):
        data = Dataset.from_dict({"text": [split, "b"], "label": [1, 0], "of": ["x", "y"]})
        file = str(tmp_path / "corpus" / f"{split}.{kind}")
        {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[kind](file)
    source = HuggingFace(str(tmp_path / "corpus"), domain="of")
    assert source.splits() == {"train", "test"}
    assert source.domains() == ["x", "y"]
    assert texts(source) == ["train", "b"]
    assert [item.labels for item in source.read("test") if isinstance(item, Document)] == [{"x": 1}, {"y": 0}]


def test_words_for_gaps_are_missing_unless_the_dataset_names_them(tmp_path: Path) -> None:
    stance = ClassLabel(names=["none", "for"])
    named = Features(text=Value("string"), label=stance, of=Value("string"))
    columns = {"text": ["a", "b"], "label": ["none", "for"], "of": ["x", "x"]}
    for name, features in (("named", named), ("words", None)):
        Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / name)
        items = list(HuggingFace(str(tmp_path / name), domain="of").read("train"))
        labels = [item.labels["x"] for item in items if isinstance(item, Document)]
        assert labels == ["none", "for"]
        assert [isinstance(label, Gap) for label in labels] == [name == "words", False]


def test_configurations_may_be_domains(tmp_path: Path) -> None:
    card = {
        "configs": [
            {"config_name": "en", "data_files": [{"split": "train", "path": "en.jsonl"}]},
            {
                "config_name": "de",
                "data_files": [{"split": "train", "path": "de.jsonl"}, {"split": "test", "path": "en.jsonl"}],
            },
        ]
    }
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    for name in ("en", "de"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name, "label": 1}) + "\n")
    source = HuggingFace(str(tmp_path), configs=["en", "de"])
    assert source.domains() == ["de", "en"]
    assert source.splits() == {"train", "test"}
    assert texts(source) == ["de", "en"]
    assert list(source.read("test", ["en", "de"])) == [
        Problem(f"{tmp_path}/en", "the configuration has no split 'test'"),
        Document("en", {"de": 1}, f"{tmp_path}/de[test][0]"),
    ]
    with pytest.raises(InputError, match="unknown domain 'fr'"):
        next(source.read("train", ["fr"]))
    with pytest.raises(InputError, match="configuration 'fr': set data.source.path"):
        HuggingFace(str(tmp_path), configs=["fr"]).splits()
    one = HuggingFace(str(tmp_path), name="de", domain="text")
    assert one.domains() == ["de"]


def test_domains_and_labels_may_be_classes_of_any_order(tmp_path: Path) -> None:
    kinds = ClassLabel(names=["books", "2"])
    data = Dataset.from_dict(
        {"text": list("abcd"), "label": [0, 1, 0, 1], "of": [0, 1, -1, None]},
        features=Features(text=Value("large_string"), label=ClassLabel(names=["1", "0"]), of=kinds),
    )
    data.select([3, 1, 0, 2]).save_to_disk(tmp_path / "a")
    source = HuggingFace(str(tmp_path / "a"), domain="of")
    assert source.domains() == ["2", "books"]
    items = list(source.read("train"))
    assert [item.labels for item in items if isinstance(item, Document)] == [{"2": 0}, {"books": 1}]
    assert [item.where for item in items if isinstance(item, Problem)] == [f"{tmp_path}/a[train][{n}]" for n in (0, 3)]


def test_rows_that_are_no_documents_are_left_out(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {"text": ["a", None, "c"], "label": [float("nan"), 1.0, 1.0], "of": ["x", "x", "x"]}
    Dataset.from_dict(values).save_to_disk(tmp_path / "a")
    first, second, third = HuggingFace(str(tmp_path / "a"), domain="of").read("train")
    assert first == Document("a", {"x": None}, f"{tmp_path}/a[train][0]")
    assert str(second).endswith("[train][1]: expected a text in 'text', found None")
    assert third == Document("c", {"x": 1}, f"{tmp_path}/a[train][2]")


def test_what_cannot_be_loaded_is_refused(tmp_path: Path, saved: str) -> None:
    start = time.monotonic()
    for path in ("nowhere-at-all", "nobody/nothing", "./nowhere", str(tmp_path / "none")):
        with pytest.raises(InputError, match="cannot load the dataset.*set data.source.path") as caught:
            HuggingFace(path, domain="of").domains()
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text("text\na\n")
    for settings in ({"path": "empty"}, {"path": "damaged"}, {"path": "other", "name": "unknown"}):
        with pytest.raises(InputError, match="cannot load the dataset"):
            HuggingFace(**{**settings, "path": str(tmp_path / settings["path"])}, domain="of").splits()
    next(Path(saved, "train").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot load the dataset"):
        HuggingFace(saved, domain="of").domains()
    assert time.monotonic() - start < 10


def test_settings_that_cannot_work_are_refused(saved: str) -> None:
    for settings in ({}, {"domain": "a", "configs": ["b"]}, {"configs": ["b"], "name": "c"}, {"configs": []}):
        with pytest.raises(InputError, match="set either data.source.domain"):
            HuggingFace("x", **settings)  # type: ignore[arg-type]
    for path in ("", "csv"):
        with pytest.raises(InputError, match=f"expected a name on the hub or a folder, found '{path}'"):
            HuggingFace(path, domain="a")
    with pytest.raises(InputError, match="set data.source.text and data.source.label"):
        HuggingFace("x", domain="a", text=[])
    with pytest.raises(InputError, match="split_names knows train, test, unlabel, found dev"):
        HuggingFace("x", domain="a", split_names={"dev": "dev"})
    for columns in ({"domain": "none"}, {"domain": "of", "text": "none"}, {"domain": "of", "label": "none"}):
        with pytest.raises(InputError, match="has no column 'none' but text, label, of, extra: set data.source.text"):
            HuggingFace(saved, **columns).domains()
    with pytest.raises(InputError, match="the column 'extra' of .* names no domains: set data.source.domain"):
        HuggingFace(saved, domain="extra").domains()
    with pytest.raises(InputError, match="unknown domain 'cars': .* has books, dvd"):
        next(HuggingFace(saved, domain="of").read("train", ["cars"]))


def test_the_fingerprint_changes_with_the_data_and_the_settings(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "train.csv"
    file.write_text("text,label,of\na,1,x\n")
    source = HuggingFace(str(tmp_path / "a"), domain="of")
    first = source.fingerprint()
    assert list(source.read("train"))
    assert source.fingerprint() == first == HuggingFace(str(tmp_path / "a"), domain="of").fingerprint()
    assert HuggingFace(str(tmp_path / "a"), domain="text").fingerprint() != first
    file.write_text("text,label,of\nanother,1,x\n")
    assert HuggingFace(str(tmp_path / "a"), domain="of").fingerprint() != first


def test_is_made_from_a_configuration() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Source, "source")
    init = {"path": "a/b", "configs": ["x", "y"], "text": ["title", "body"], "split_names": {"test": "dev"}}
    made = {"class_path": "lightning_ncmtl.datamodules.sources.HuggingFace", "init_args": init}
    source = parser.instantiate_classes(parser.parse_object({"source": made})).source
    assert isinstance(source, HuggingFace)
    assert source.split_names == {"test": "dev"}
    assert source.domains() == ["x", "y"]
