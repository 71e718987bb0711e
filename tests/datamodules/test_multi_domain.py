import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import Fixed
from data import make_data
from pytorch_lightning import Trainer
from table_files import WRITERS, Row, write_csv, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers

from lightning_ncmtl import NCMTL
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.copies import find_pairs
from lightning_ncmtl.datamodules.sources import Synthetic, Tables
from lightning_ncmtl.errors import InputError


def numbered(count: int, domain: str = "a") -> list[tuple[str, int]]:
    return [(f"{domain}{number} word", number % 2) for number in range(count)]


def texts(data: MultiDomainDataModule, stage: str) -> list[str]:
    return data.documents(stage)["text"][:]  # type: ignore[arg-type]


def test_validation_is_the_last_documents_of_each_domain() -> None:
    source = Fixed({("a", "train"): numbered(5), ("b", "train"): numbered(4, "b")})
    data = make_data(source, validation_size=2)
    data.setup("fit")
    assert texts(data, "validation") == ["a3 word", "a4 word", "b2 word", "b3 word"]
    assert texts(data, "train") == ["a0 word", "a1 word", "a2 word", "b0 word", "b1 word"]
    assert source.was_read == ["train"]  # never the test split


def test_folds_are_disjoint_stratified_and_deterministic() -> None:
    source = Fixed({("a", "train"): numbered(40), ("b", "train"): numbered(21, "b")})
    folds = []
    for fold in range(10):
        data = make_data(source, folds=10, fold=fold)
        data.setup("fit")
        again = make_data(source, folds=10, fold=fold)
        again.setup("validate")
        held_out = texts(data, "validation")
        assert held_out == texts(again, "validation")
        assert not set(held_out) & set(texts(data, "train"))
        assert sum(text.startswith("a") for text in held_out) == 4
        labels = [
            label
            for text, (label,) in zip(held_out, data.documents("validation")["labels"], strict=True)
            if text[0] == "a"
        ]
        assert sorted(labels) == [0, 0, 1, 1]
        folds += held_out
    assert len(folds) == len(set(folds)) == 61


# With validation_size=2: training, validation and test share texts, within a domain and between the two.
COPIED = {
    ("a", "train"): [("a0 is fine", 0), ("copied once", 1), ("a2 is fine", 0), ("held out", 1), ("Copied: once!", 0)],
    ("b", "train"): [("copied once", 0), ("b1 is fine", 1), ("held out .", 1), ("b3 is fine", 0), ("b4 is fine", 0)],
    ("a", "test"): [("new", 1), ("copied once", 1), ("A2 is fine", 0)],
    ("b", "test"): [("B1 -- is fine", 1), ("b4 is fine", 0), ("new", 1)],
}


def clean_texts(data: MultiDomainDataModule, stage: str) -> dict[str, bool]:
    """What the batches of a stage say of each of its texts."""
    loader = data.val_dataloader() if stage == "validation" else data.test_dataloader()
    found = {}
    for batch in loader:
        assert batch["clean"].dtype == torch.bool
        found |= dict(zip(batch["index"].tolist(), batch["clean"].tolist(), strict=True))
    documents = data.documents(stage)  # type: ignore[arg-type]
    return {documents["text"][place]: found[index] for place, index in enumerate(documents["index"])}


def test_copies_fall_into_the_same_fold() -> None:
    rng = np.random.default_rng(0)
    documents = [(f"story {rng.integers(30)}", int(rng.integers(2))) for _ in range(200)]  # of both labels
    source = Fixed({("a", "train"): documents[:100], ("b", "train"): documents[100:]})
    places = []
    for fold in range(3):
        data = make_data(source, folds=3, fold=fold)
        data.setup("fit")
        assert not set(texts(data, "validation")) & set(texts(data, "train"))
        assert all(data.documents("validation")["clean"])
        places += data.documents("validation")["index"][:]
    assert sorted(places) == list(range(200))


def test_evaluation_tells_which_documents_are_clean() -> None:
    data = make_data(Fixed(COPIED), validation_size=2, batch_size=2)
    data.setup("fit")
    assert clean_texts(data, "validation") == {
        "held out": False,  # in training of the other domain
        "Copied: once!": False,
        "b3 is fine": True,
        "b4 is fine": True,
    }
    data.setup("test")
    assert texts(data, "test") == ["new", "copied once", "A2 is fine", "B1 -- is fine", "b4 is fine", "new"]
    assert data.documents("test")["clean"][:] == [True, False, False, False, True, True]  # b4 validates
    assert clean_texts(data, "test")["copied once"] is False
    assert data.counts["validation"]["with a copy in training"] == 2
    assert data.counts["test"]["with a copy in training"] == 3
    assert data.copies == {
        "a": {
            "train": 3,
            "train copies": 0,
            "validation": 2,
            "validation copies": 2,
            "test": 3,
            "test copies": 2,
        },
        "b": {
            "train": 3,
            "train copies": 1,
            "validation": 2,
            "validation copies": 0,
            "test": 3,
            "test copies": 1,
        },
    }


def test_other_batches_do_not_speak_of_copies(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "new", "domain": "a"}\n')
    data = make_data(Fixed(COPIED), validation_size=2, predict_path=str(tmp_path / "in.jsonl"))
    data.setup("fit")
    data.setup("predict")
    for loader in (data.train_dataloader(), data.predict_dataloader()):
        assert "clean" not in next(iter(loader))
    assert "with a copy in training" not in data.counts["train"]


@pytest.mark.parametrize("deduplicate", [False, True])
def test_testing_alone_finds_the_same_documents_clean(deduplicate: bool) -> None:
    def make() -> MultiDomainDataModule:
        return make_data(Fixed(COPIED), domains=["a"], folds=2, deduplicate=deduplicate)

    trained, other = make(), make()
    trained.setup("fit")
    trained.setup("test")
    other.load_state_dict(trained.state_dict())
    other.setup("test")
    assert texts(trained, "train") == texts(other, "train")
    assert clean_texts(trained, "test") == clean_texts(other, "test")
    assert all(clean_texts(trained, "test").values()) == deduplicate
    assert trained.copies == other.copies


def test_documents_copied_in_evaluation_can_be_kept_from_training(caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"validation_size": 2, "min_frequency": 1, "deduplicate": True}
    with_test = make_data(Fixed(COPIED), domains=["a"], **settings)
    with caplog.at_level("INFO"):
        with_test.setup("fit")
    assert texts(with_test, "train") == ["a0 is fine"]
    assert texts(with_test, "validation") == ["held out", "Copied: once!"]
    assert "train: dropped 2 of 3 documents, with a copy in validation or test" in caplog.text
    assert with_test.tokenizer is not None
    assert set(with_test.tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "a0", "is", "fine"}
    source = Fixed({place: documents for place, documents in COPIED.items() if "test" not in place})
    without = make_data(source, **settings)
    with caplog.at_level("INFO"):
        without.setup("fit")
    assert texts(without, "train") == ["a0 is fine", "a2 is fine", "b1 is fine"]
    assert all(clean_texts(without, "validation").values())
    assert "train: dropped 3 of 6 documents, with a copy in validation\n" in caplog.text
    with pytest.raises(
        InputError, match="document of 'b' has a copy in validation or test: set data.split.deduplicate"
    ):
        make_data(Fixed(COPIED), **settings).setup("fit")


def test_the_folds_do_not_depend_on_the_test_split() -> None:
    """Not even where a test document links two training documents that are no copies of each other."""
    words = [f"w{number}" for number in range(14)]
    train = [(" ".join(words[:10]), 0), (" ".join(words[4:]), 0), *[(f"filler {number}", 0) for number in range(8)]]
    linked = {("a", "train"): train, ("a", "test"): [(" ".join(words[2:12]), 0)]}
    held_out = []
    for documents in (linked, {("a", "train"): train}):
        data = make_data(Fixed(documents), folds=5, deduplicate=True)
        data.setup("validate")
        held_out.append(texts(data, "validation"))
    assert held_out[0] == held_out[1]


def test_without_a_training_split_nothing_is_said_to_be_clean(caplog: pytest.LogCaptureFixture) -> None:
    trained = make_data(Fixed(COPIED), validation_size=2)
    trained.setup("fit")
    data = make_data(Fixed({place: COPIED[place] for place in COPIED if "test" in place}))
    data.load_state_dict(trained.state_dict())
    with caplog.at_level("INFO"):
        data.setup("test")
    assert "clean" not in next(iter(data.test_dataloader()))
    assert "test: without a training split, nothing tells which documents have a copy in training" in caplog.text
    assert data.copies == {}


def test_copies_are_searched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    searched: list[int] = []

    def counting(documents: Iterator[str], near: bool) -> Any:
        searched.append(len(texts := list(documents)))
        return find_pairs(texts, near)

    monkeypatch.setattr("lightning_ncmtl.datamodules.division.find_pairs", counting)
    (tmp_path / "in.jsonl").write_text('{"text": "new", "domain": "a"}\n')
    source = Fixed(COPIED)
    data = make_data(source, validation_size=2, predict_path=str(tmp_path / "in.jsonl"))
    for stage in ("predict", "fit", "validate", "fit", "predict"):
        data.setup(stage)
        assert len(searched) == (stage != "predict" or bool(data.copies))
    data.setup("test")
    data.setup("test")
    assert searched == [10, 16]
    assert source.was_read == ["train", "test"]
    alone = make_data(Fixed(COPIED), validation_size=2)
    alone.setup("test")
    assert searched == [10, 16, 16]


def test_the_vocabulary_comes_from_training_documents_alone() -> None:
    source = Fixed({("a", "train"): [("seen seen", 0), ("seen", 1), ("held out", 1)], ("a", "test"): [("secret", 0)]})
    data = make_data(source, validation_size=1, min_frequency=1)
    data.setup("fit")
    assert data.tokenizer is not None
    assert set(data.tokenizer.get_vocab()) == {"[PAD]", "[UNK]", "seen"}


def test_batches_hold_the_documents(datamodule: MultiDomainDataModule) -> None:
    datamodule.setup("fit")
    documents = {row["index"]: row for row in datamodule.documents("train")}
    assert datamodule.tokenizer is not None
    seen = []
    for batch in datamodule.train_dataloader():
        assert len(batch["task_ids"].unique()) >= 2
        inputs = batch["inputs"]
        words = inputs["tokens"].split(inputs["sentence_lengths"].tolist())
        starts = [0, *inputs["document_lengths"].cumsum(0).tolist()]
        for row, index in enumerate(batch["index"].tolist()):
            document = documents[index]
            text = document["text"].split()
            sentences = words[starts[row] : starts[row + 1]]
            assert torch.cat(sentences).tolist() == [datamodule.tokenizer.token_to_id(word) for word in text]
            assert all(sentence[-1] == datamodule.tokenizer.token_to_id(".") for sentence in sentences)
            assert [batch["labels"][row]] == document["labels"]
            assert [batch["task_ids"][row]] == document["task_ids"]
            seen.append(index)
    assert sorted(seen) == sorted(documents)


def test_domains_choose_and_order_the_tasks() -> None:
    source = Synthetic(num_domains=4, num_groups=2, train_documents=10)
    data = make_data(source, domains=["domain03", "domain00"], validation_size=2)
    assert data.num_tasks == 2
    assert data.planted_groups == {"domain03": 1, "domain00": 0}
    data.setup("fit")
    assert texts(data, "train")[0] == next(source.read("train", ["domain03"])).text


def test_invalid_bytes_empty_and_long_documents_are_counted() -> None:
    documents = [("fine", 0), ("bad \ufffd byte", 1), ("", 0), ("so long . " * 9, 1), ("fine", 0)]
    data = make_data(Fixed({("a", "train"): documents}), validation_size=1, max_sentences=5)
    data.setup("fit")
    list(data.train_dataloader())
    assert data.counts["train"] == {"documents": 4, "with invalid characters": 1, "empty": 1, "truncated": 1}


def test_vectors_follow_the_vocabulary(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "v.txt").write_text("word 1 2\nother 3 4\n")
    data = make_data(
        Fixed({("a", "train"): numbered(4)}), validation_size=1, min_frequency=2, vectors=str(tmp_path / "v.txt")
    )
    data.setup("fit")
    with caplog.at_level("INFO"):
        vectors = data.vectors()
    assert "v.txt: vectors for 1 of 3 words (33.3%)" in caplog.text
    assert vectors is not None
    assert data.tokenizer is not None
    assert vectors[data.tokenizer.token_to_id("word")].tolist() == [1.0, 2.0]
    assert vectors[:2].isnan().all()


def test_state_carries_the_vocabulary(datamodule: MultiDomainDataModule, source: Synthetic) -> None:
    datamodule.setup("fit")
    other = make_data(source, batch_size=16, validation_size=11, min_frequency=1)
    other.load_state_dict(json.loads(json.dumps(datamodule.state_dict())))  # plain values
    other.setup("test")
    assert other.tokenizer is not None
    assert datamodule.tokenizer is not None
    assert other.tokenizer.get_vocab() == datamodule.tokenizer.get_vocab()
    with pytest.raises(
        InputError, match=r"was trained on the domains \['domain00', .*; the data has \['domain01'\]: set"
    ):
        make_data(source, domains=["domain01"]).load_state_dict(datamodule.state_dict())


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize(("validation_size", "told"), [(11, False), (12, True)])
def test_a_checkpoint_of_other_training_documents_is_told(
    datamodule: MultiDomainDataModule, source: Synthetic, stage: str, validation_size: int, told: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    datamodule.setup("fit")
    state = json.loads(json.dumps(datamodule.state_dict()))
    other = make_data(source, batch_size=16, validation_size=validation_size, min_frequency=1)
    other.setup(stage)
    with caplog.at_level("INFO"):
        other.load_state_dict(state)
        assert ("the checkpoint was trained on other documents" in caplog.text) == told
        caplog.clear()
        del state["documents"]  # of a checkpoint from before
        other.load_state_dict(state)
        assert "other documents" not in caplog.text


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predictions_read_texts(datamodule: MultiDomainDataModule, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"texts.{suffix}"
    if suffix == "csv":
        path.write_text('domain,text,note\ndomain02,"w1, w2",x\ndomain00,,y\n')
    else:
        path.write_text('{"domain": "domain02", "text": "w1, w2"}\n{"text": "", "domain": "domain00"}\n')
    datamodule.predict_path = str(path)
    datamodule.setup("fit")
    datamodule.setup("predict")
    assert list(datamodule.predict_rows()) == [({"text": "w1, w2"}, "domain02"), ({"text": ""}, "domain00")]
    batch = next(iter(datamodule.predict_dataloader()))
    assert sorted(zip(batch["index"].tolist(), batch["task_ids"].tolist(), strict=True)) == [(0, 2), (1, 0)]


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_predictions_keep_the_id_of_texts(datamodule: MultiDomainDataModule, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"texts.{suffix}"
    rows: list[Row] = [{"text": "w1", "domain": "domain02", "id": 17}, {"text": "w1", "domain": "domain00", "id": 4}]
    WRITERS[suffix](path, rows)
    datamodule.predict_path = str(path)
    datamodule.setup("predict")
    expected = [({"id": str(row["id"]), "text": "w1"}, row["domain"]) for row in rows]
    assert list(datamodule.predict_rows()) == expected
    assert [list(row) for row, _ in datamodule.predict_rows()] == [["id", "text"]] * 2


def test_some_texts_to_predict_have_no_id(datamodule: MultiDomainDataModule, tmp_path: Path) -> None:
    rows: list[Row] = [{"text": "w1", "domain": "domain02", "id": "half \ud83d"}, {"text": "w2", "domain": "domain00"}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    datamodule.predict_path = str(tmp_path / "in.jsonl")
    datamodule.setup("predict")
    assert [row["id"] for row, _ in datamodule.predict_rows()] == ["half ?", None]


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_texts_with_several_labels_are_predicted_in_all_domains(tmp_path: Path, suffix: str) -> None:
    write_csv(tmp_path / "all.csv", [{"text": f"{n} text", "a": n % 2, "b": n // 2 % 2} for n in range(16)])
    source = Tables(str(tmp_path / "all.csv"), label={"b": "b", "a": "a"})
    data = make_data(source, validation_size=2, min_frequency=1, predict_path=str(tmp_path / f"in.{suffix}"))
    data.setup("fit")
    WRITERS[suffix](tmp_path / f"in.{suffix}", [{"text": "1 text"}, {"text": "2 text"}])
    data.setup("predict")
    assert list(data.predict_rows()) == [({"text": text}, ["a", "b"]) for text in ("1 text", "2 text")]
    (batch,) = data.predict_dataloader()
    assert len(batch["inputs"]["document_lengths"]) == 2
    assert sorted(zip(batch["index"].tolist(), batch["task_ids"].tolist(), strict=True)) == [
        (index, task) for index in (0, 1) for task in (0, 1)
    ]
    WRITERS[suffix](tmp_path / f"in.{suffix}", [{"text": "1 text", "domain": "b"}])  # in one of them, if it says so
    data.setup("predict")
    assert list(data.predict_rows()) == [({"text": "1 text"}, "b")]
    WRITERS[suffix](tmp_path / f"in.{suffix}", [{"body": "1 text"}])
    with pytest.raises(InputError, match="no column 'text' among 'body'.*; predict needs a 'text' in every row"):
        data.setup("predict")


def test_another_file_to_predict_replaces_the_first(datamodule: MultiDomainDataModule, tmp_path: Path) -> None:
    datamodule.setup("fit")
    for texts_of_one in (["a b c", "d"], ["e"]):
        path = tmp_path / "in.jsonl"
        path.write_text("\n".join(json.dumps({"text": text, "domain": "domain00"}) for text in texts_of_one))
        datamodule.predict_path = str(path)
        datamodule.setup("predict")
        assert [row["text"] for row, _ in datamodule.predict_rows()] == texts_of_one
        assert sum(len(batch["index"]) for batch in datamodule.predict_dataloader()) == len(texts_of_one)


def test_unusual_texts_to_predict(datamodule: MultiDomainDataModule, tmp_path: Path) -> None:
    datamodule.setup("fit")
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbftext,domain\n" + b"word " * 50_000 + b",domain00\n")
    (tmp_path / "in.jsonl").write_text('{"text": "half \\ud83d", "domain": "domain00"}\n\n')
    for name in ("in.csv", "in.jsonl"):
        datamodule.predict_path = str(tmp_path / name)
        datamodule.setup("predict")
        assert len(list(datamodule.predict_dataloader())) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "x", r"cannot read '.*t.txt': tables are .csv, .tsv or .jsonl files"),
        ("t.jsonl", "{not json\n", r"t.jsonl:1: not JSON"),
        ("t.jsonl", '"text"\n', r"t.jsonl:1: expected a JSON object"),
        ("t.jsonl", '\n{"text": "x", "domain": "cars"}\n', r"t.jsonl:2: predict needs .* a 'domain' out of domain00"),
        ("t.jsonl", '{"domain": "domain00"}\n', r"t.jsonl:1: no column 'text' among 'domain'; predict needs a 'text'"),
        ("t.csv", "text,other\nx,y\n", r"t.csv:1: no column 'domain' among 'text', 'other'"),
        ("t.csv", "text,domain\n", r"t.csv:1: empty: the file has no rows"),
        ("t.csv", "", r"t.csv:1: empty: the file has no rows"),
        (None, "", r"does not exist: set data.predict_path"),
        (".", "", r"is a folder: set data.predict_path to one file"),
    ],
)
def test_bad_texts_to_predict_are_refused(
    datamodule: MultiDomainDataModule, tmp_path: Path, name: str | None, content: str, message: str
) -> None:
    if name not in (None, "."):
        (tmp_path / str(name)).write_text(content)
    datamodule.predict_path = str(tmp_path / (name or "nothing.csv"))
    with pytest.raises(InputError, match=message):
        datamodule.setup("predict")


def test_where_nothing_can_be_used_there_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    bad = Fixed({(domain, "train"): [("x", 2), ("y", 3)] for domain in "abc"})
    with caplog.at_level("INFO"), pytest.raises(InputError, match="no documents in the train split; a.train:1"):
        make_data(bad, classes=[0, 1])
    assert "train" not in caplog.text


def test_predict_without_a_file_is_refused(datamodule: MultiDomainDataModule) -> None:
    with pytest.raises(InputError, match="predict needs a table of texts or features: set data.predict_path"):
        datamodule.setup("predict")


@pytest.mark.parametrize(
    ("documents", "settings", "message"),
    [
        ({("a", "train"): numbered(3)}, {"validation_size": 3}, "between 1 and 2, .* of 'a', found 3"),
        ({("a", "train"): []}, {}, "no documents in the train split; 'a' has no documents: the domain is left out"),
        ({("a", "train"): []}, {"domains": ["a"]}, "there are no documents in the train split"),
        (
            {("a", "train"): numbered(3), ("b", "train"): []},
            {"domains": ["a", "b"]},
            "domain 'b' has no documents in its train split: leave it out of data.domains",
        ),
        (
            {("a", "train"): [("x", 2)]},
            {"classes": [0, 1]},
            "no documents in the train split; a.train:1: the label 2 of 'a' is none of its classes 0, 1: set data.cl",
        ),
        ({("a", "test"): [("x", 2)]}, {}, "there is no train split: Fixed has test"),
        (
            {("a", "train"): numbered(3)},
            {"domains": ["a"], "classes": {"b": [0]}},
            "data.classes has no classes for the domain 'a'",
        ),
        (
            {("a", "train"): numbered(9)},
            {"validation_size": 1.5},
            "data.split.validation_size must be a share",
        ),
        (
            {("a", "train"): numbered(9)},
            {"validation_size": 0.01},
            "holds 0 of the 9 documents of 'a', .* choose another",
        ),
        (
            {("a", "train"): numbered(9), ("a", "test"): numbered(9)},
            {"test_size": 0.3},
            "the source has a test split: unset data.split.test_size, found 0.3",
        ),
    ],
)
def test_bad_documents_are_refused(documents: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_data(Fixed(documents), **settings).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": []}, "one or more different names"),
        ({"domains": ["a", "a"]}, "one or more different names"),
        ({"folds": 10, "fold": 10}, "found folds=10, fold=10"),
        ({"folds": 1}, "found folds=1, fold=0"),
        ({"max_words": 0}, "max_words must be at least 1, found 0"),
        ({"vocab_size": -1}, "vocab_size must be at least 3, found -1"),
    ],
)
def test_bad_settings_are_refused(source: Synthetic, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_data(source, **settings)


def test_an_unknown_domain_is_refused(source: Synthetic) -> None:
    with pytest.raises(InputError, match="unknown domain 'cars'"):
        make_data(source, domains=["cars"]).setup("fit")


def test_the_order_changes_every_epoch(
    datamodule: MultiDomainDataModule, make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer]
) -> None:
    orders: list[list[list[int]]] = []

    class Recording(NCMTL):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 0:
                orders.append([])
            orders[-1].append(batch["index"].tolist())
            return super().training_step(batch, batch_idx)

    model = make_model()
    model.__class__ = Recording
    make_trainer(max_epochs=3).fit(model, datamodule=datamodule)
    flat = [sorted(index for batch in order for index in batch) for order in orders]
    assert flat[0] == flat[1] == flat[2]
    assert len({json.dumps(order) for order in orders}) == 3


def test_background_workers_give_the_same_batches(datamodule: MultiDomainDataModule) -> None:
    datamodule.setup("fit")
    alone = [batch["index"].tolist() for batch in datamodule.train_dataloader()]
    datamodule.num_workers = 2
    assert [batch["index"].tolist() for batch in datamodule.train_dataloader()] == alone


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_continues_in_the_middle_of_an_epoch(datamodule: MultiDomainDataModule, workers: int) -> None:
    datamodule.setup("fit")
    datamodule.num_workers = workers
    whole = [batch["index"].tolist() for batch in datamodule.train_dataloader()]
    loader = datamodule.train_dataloader()
    iterator = iter(loader)
    assert [next(iterator)["index"].tolist() for _ in range(3)] == whole[:3]
    resumed = datamodule.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert [batch["index"].tolist() for batch in resumed] == whole[3:]
    assert resumed.state_dict() == {"epoch": 0, "position": len(whole)}
    assert [batch["index"].tolist() for batch in resumed] == whole  # the next epoch is whole again


def test_domains_are_named_alike_in_training_and_prediction(tmp_path: Path) -> None:
    rows = [{"text": f"{n} text", "label": n % 2, "domain": n % 4 // 2} for n in range(16)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Tables(str(tmp_path / "in.jsonl"), domain="domain")
    data = make_data(source, validation_size=2, predict_path=str(tmp_path / "in.jsonl"))
    data.setup("fit")
    data.setup("predict")
    assert data.domains == ["0", "1"]
    assert [domain for _, domain in data.predict_rows()] == [str(row["domain"]) for row in rows]


def test_words_from_unlabelled_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"known {n},{n % 2}\n" for n in range(8)))
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.csv").write_text('text\nunseen unseen\n"never closed\n')
    source = Tables(str(tmp_path / "a.csv"), unlabel=str(tmp_path / "more/*"))
    vocabularies = []
    for unlabelled in (False, True):
        data = make_data(source, validation_size=2, unlabelled_words=unlabelled)
        with caplog.at_level("INFO"):
            data.setup("fit")
        assert data.tokenizer is not None
        vocabularies.append(set(data.tokenizer.get_vocab()) - {"[PAD]", "[UNK]"})
    assert vocabularies == [{"known"}, {"known", "unseen"}]
    assert sum("more/a.csv:3: cannot be read as CSV" in message for message in caplog.messages) == 1


def test_a_ready_vocabulary_may_have_gaps(tmp_path: Path) -> None:
    ready = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 9}, unk_token="[UNK]"))
    ready.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ready.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "v.txt").write_text("word 1 2\n")
    data = make_data(
        Fixed({("a", "train"): numbered(4)}),
        validation_size=1,
        tokenizer=str(tmp_path / "tokenizer.json"),
        vectors=str(tmp_path / "v.txt"),
    )
    data.setup("fit")
    assert data.vocab_size == 10
    vectors = data.vectors()
    assert vectors is not None
    assert vectors.shape == (10, 2)
    assert vectors[9].tolist() == [1, 2]


def test_batches_say_their_half_and_halves_stay_apart() -> None:
    data = make_data(Synthetic(num_domains=3, train_documents=60), validation_size=10, batch_size=16)
    data.setup("fit")
    loader = data.train_dataloader()
    seen: list[set[int]] = [set(), set()]
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found = [batch["half"] for batch in loader]
        assert found == [number % 2 for number in range(len(found))]
        for batch in loader:
            seen[batch["half"]].update(batch["index"].tolist())
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 150
    assert all("half" not in batch for batch in data.val_dataloader())
    plain = make_data(Synthetic(num_domains=3, train_documents=60), halves=False, validation_size=10)
    plain.setup("fit")
    assert all("half" not in batch for batch in plain.train_dataloader())
