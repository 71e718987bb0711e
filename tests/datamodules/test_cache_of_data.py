"""What stays on disk is found again, is never stale, and survives processes that collide or die."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import whole_data
from corpora import Fixed
from data import make_data
from hypothesis import given, settings
from hypothesis import strategies as st
from table_files import Row, write_csv
from whole_data import SETTINGS, everything

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Source, Tables

WORDS = ["alpha", "beta", "gamma", "delta", "good", "bad", "so-so", "."]


def rows(domain: str, count: int = 24, shift: int = 0) -> list[Row]:
    """Some texts are there twice, others in another domain, too."""
    texts = [" ".join(WORDS[(n * n * k + k) % 7] + str(n % 5) for k in range(3 + n % 9)) for n in range(shift, count)]
    owned = [text if number % 4 else f"{text} of {domain} ." for number, text in enumerate(texts)]
    return [{"text": text, "label": ("no", "yes", "maybe")[number % 3]} for number, text in enumerate(owned)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 24), ("test", 9), ("unlabel", 12)):
        (folder / split).mkdir()
        for domain in ("a", "b", "c"):
            write_csv(folder / split / f"{domain}.csv", rows(domain, count, 3 * (split == "unlabel")))
    write_csv(folder / "in.csv", [{"text": row["text"], "domain": "b"} for row in rows("b")])
    return folder


def source_of(folder: Path, test: bool = True) -> Source:
    return Tables(f"{folder}/train/*", f"{folder}/test/*" if test else None, f"{folder}/unlabel/*")


def make(folder: Path, cache: Path, test: bool = True, **options: Any) -> MultiDomainDataModule:
    return make_data(source_of(folder, test), cache_dir=str(cache), **{**SETTINGS, **options})


def fresh(folder: Path, **options: Any) -> dict[str, Any]:
    """What comes out where there is no cache yet."""
    with tempfile.TemporaryDirectory() as cache:
        return everything(make(folder, Path(cache), **options))


def state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.iterdir() if path.suffix != ".lock"]  # which some versions of filelock write anew
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


@pytest.mark.parametrize("tokenizer", ["words", "bpe"])
def test_nothing_is_made_twice(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str) -> None:
    options: dict[str, Any] = {"tokenizer": tokenizer, "unlabelled_words": True, "predict_path": str(corpus / "in.csv")}
    cold = everything(make(corpus, tmp_path, **options))
    before = state(tmp_path)
    for place in ("sources.Tables.read", "text.train_tokenizer", "division.find_pairs", "text._encode_rows"):
        monkeypatch.setattr(f"lightning_ncmtl.datamodules.{place}", lambda *args: pytest.fail("made again"))
    for _ in range(2):
        assert everything(make(corpus, tmp_path, **options)) == cold
    assert state(tmp_path) == before
    assert len(cold["batches"]) == 4


OPTIONS: dict[str, Any] = {
    "vocab_size": st.sampled_from([258, 270, 400]),
    "min_frequency": st.integers(1, 3),
    "max_words": st.sampled_from([2, 5, None]),
    "max_sentences": st.sampled_from([1, 2, None]),
    "max_tokens": st.sampled_from([3, 4, None]),
    "keep": st.sampled_from(["start", "end", "both"]),
    "tokenizer": st.sampled_from(["words", "bpe"]),
    "folds": st.sampled_from([None, 2, 3]),
    "validation_size": st.sampled_from([3, 5, 0.2]),
    "fold_seed": st.integers(0, 1),
    "deduplicate": st.booleans(),
    "domains": st.sampled_from([None, ["a", "b", "c"], ["c", "a"], ["b"]]),
    "classes": st.sampled_from([None, ["no", "yes"], ["yes", "maybe", "no"], ["no", "yes", "maybe", "other"]]),
    "unlabelled_words": st.booleans(),
    "test": st.booleans(),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@settings(max_examples=15, deadline=None)
@given(options=st.fixed_dictionaries({}, optional=OPTIONS))
def test_other_settings_are_never_those_of_before(corpus: Path, shared: Path, options: dict[str, Any]) -> None:
    """One cache for all examples, against one for each."""
    assert everything(make(corpus, shared, **options)) == fresh(corpus, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 12},
        {"max_words": 2},
        {"max_tokens": 4},
        {"max_tokens": 4, "keep": "end"},
        {"max_tokens": 4, "keep": "both"},
        {"tokenizer": "bpe"},
        {"folds": 3},
        {"folds": 3, "fold": 1},
        {"folds": 3, "fold_seed": 1},
        {"deduplicate": True},
        {"domains": ["c", "b", "a"]},
        {"domains": ["a", "b"]},
        {"classes": ["no", "yes"]},
        {"unlabelled_words": True},
        {"validation_size": 0.2},
        {"min_frequency": 30},
        {"test": False, "test_size": 0.25},
        {"predict_path": "in.csv"},
    ],
    ids=str,
)
def test_each_setting_makes_a_difference(corpus: Path, shared: Path, options: dict[str, Any]) -> None:
    if "predict_path" in options:
        options = {"predict_path": str(corpus / options["predict_path"])}
    found = everything(make(corpus, shared, **options))
    assert "refused" not in found
    assert found == fresh(corpus, **options) != everything(make(corpus, shared))


@pytest.mark.parametrize("file", ["train/a.csv", "test/b.csv", "unlabel/c.csv", "in.csv", "train/d.csv"])
def test_changed_files_are_read_again(corpus: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    options: dict[str, Any] = {"unlabelled_words": True, "predict_path": str(folder / "in.csv")}
    before = everything(make(folder, tmp_path / "cache", **options))
    content = (folder / file).read_text() if (folder / file).exists() else (folder / "train/a.csv").read_text()
    (folder / file).write_text(content.replace("alpha", "gamma").replace("bad", "odd"))
    status = (folder / file).stat()  # of the same size, but later, however coarse the clock is
    os.utime(folder / file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    after = everything(make(folder, tmp_path / "cache", **options))
    assert after == fresh(folder, **options) != before


def test_a_file_that_was_changed_back_is_right(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    found = []
    for text in ("first", "other", "first"):
        write_csv(folder / "train/a.csv", [{"text": f"{text} {n}", "label": n % 2} for n in range(9)])
        os.utime(folder / "train/a.csv", ns=(0, 10**9 * len(found)))
        found.append(everything(make(folder, tmp_path / "cache")))
    assert found[0] == found[2] != found[1]


def test_a_pickled_data_module_gives_the_same_batches(corpus: Path, tmp_path: Path) -> None:
    """As processes that DDP spawns get it."""
    for data in (make(corpus, tmp_path), make_data(Fixed(documents()), **SETTINGS)):
        before = everything(data)
        copy = pickle.loads(pickle.dumps(data))
        loaders = (copy.train_dataloader(), copy.val_dataloader(), copy.test_dataloader())
        found = [[whole_data.plain(batch) for batch in loader] for loader in loaders]
        assert found == [before["batches"][stage] for stage in ("train", "validation", "test")]
        assert everything(copy) == before
        assert copy.domains == data.domains


def documents() -> Any:
    return {
        (domain, split): [(row["text"], row["label"]) for row in rows(domain, 12)]
        for domain in "ab"
        for split in ("train", "test")
    }


def test_what_nobody_can_recognise_is_not_kept(corpus: Path, tmp_path: Path) -> None:
    """But for the file to predict, which can be."""
    cache = tmp_path / "cache"
    data = make_data(Fixed(documents()), **SETTINGS, cache_dir=str(cache))
    assert len(everything(data)["batches"]) == 3
    assert not cache.exists()
    data.predict_path = str(corpus / "in.csv")
    assert len(everything(data)["batches"]) == 4
    assert {path.name.split("-")[0] for path in cache.iterdir()} == {"predict", "encoded"}


def test_processes_that_collide_or_die(tmp_path: Path) -> None:
    """One dies while it writes; two that wait for it, with an empty cache, make and find the same."""
    (tmp_path / "corpus").mkdir()
    for domain in "ab":  # more documents than are written at a time
        write_csv(tmp_path / "corpus" / f"{domain}.csv", [{"text": f"{domain}{n}", "label": n % 2} for n in range(600)])
    cache = tmp_path / "cache"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, whole_data.__file__, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as group:
        assert group.stdout is not None
        hanging = int(group.stdout.readline())
        try:
            end = time.monotonic() + 60
            while not all((tmp_path / f"{name}.there").exists() for name in ("hanging", "one", "two")):
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.3)  # they find that somebody is at it
            left = {path.name: path.stat().st_size for path in cache.iterdir()}
            assert [name for name, size in left.items() if name.startswith("unfinished-train-") and size > 0]
            assert not [name for name in left if name.startswith("train-") and not name.endswith(".lock")]
            assert not (tmp_path / "one.json").exists()
        finally:
            os.kill(hanging, signal.SIGKILL)
        assert json.loads(group.communicate(timeout=900)[0]) == [-signal.SIGKILL, 0, 0]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert one["counts"]["train"]["documents"] == 1192
    assert not list(cache.glob("unfinished-*"))

    before = state(cache)
    data = make_data(Tables(f"{tmp_path}/corpus/*.csv"), cache_dir=str(cache), **SETTINGS)
    assert json.loads(json.dumps(everything(data))) == one
    assert state(cache) == before


def test_part_of_a_cache_may_be_gone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"word{n} more,{n % 2}\n" for n in range(8)))
    cache = tmp_path / "cache"
    for pattern in ("train-*.arrow", "copies-*.npy", "vocabulary-*.json", "encoded-*.arrow", "*"):
        data = make_data(Tables(f"{tmp_path}/a.csv"), cache_dir=str(cache), validation_size=2)
        data.setup("fit")
        assert sum(len(batch["labels"]) for batch in data.train_dataloader()) == 6
        removed = list(cache.glob(pattern))
        assert removed
        for file in removed:
            file.unlink()
