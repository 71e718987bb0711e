"""Domains with classes of their own, several labels or none, and each kind of tokenizer: through whole trainings."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data import make_data
from pytorch_lightning import Trainer
from table_files import Row, write_csv
from tiny_models import save_model
from torch import nn

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import PredictionWriter
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Source, Tables
from lightning_ncmtl.encoders import HAN, NGram, Transformer
from lightning_ncmtl.errors import InputError

CLASSES = {"films": ["bad", "good"], "mails": ["good", "spam"], "news": ["art", "sport", "war"]}
NAMES = sorted({name for names in CLASSES.values() for name in names})
WORDS = {name: f"w{5 + number}" for number, name in enumerate(NAMES)}  # that tell the class
FEW: dict[str, Any] = {"validation_size": 15, "min_frequency": 1, "batch_size": 16, "vocab_size": 400}
Trainers = Callable[..., Trainer]


def text(rng: random.Random, *labels: str, before: int = 4) -> str:
    """Words without meaning, among the last those of the labels."""
    words = [f"w{rng.randrange(20, 50)}" for _ in range(before)]
    return " ".join([*words, *(WORDS[label] for label in labels), "."])


def write_domains(folder: Path, documents: int = 60, **settings: Any) -> Source:
    """A file for each domain."""
    rng = random.Random(0)
    for domain, names in CLASSES.items():
        labels = [names[number % len(names)] for number in range(documents)]
        rows = [{"text": text(rng, label, **settings), "label": label} for label in labels]
        write_csv(folder / f"{domain}.csv", rows)
    return Tables(f"{folder}/*.csv")


def write_one_file(folder: Path, documents: int = 300) -> Source:
    """A column for each domain, in which half of the cells are empty."""
    rng = random.Random(0)
    rows: list[Row] = []
    for _ in range(documents):
        chosen = {domain: rng.choice(names) for domain, names in CLASSES.items() if rng.random() < 0.5}
        rows.append({"text": text(rng, *chosen.values()), **dict.fromkeys(CLASSES, ""), **chosen})
    write_csv(folder / "all.csv", rows)
    return Tables(f"{folder}/all.csv", label={domain: domain for domain in CLASSES})


def make(data: MultiDomainDataModule, encoder: nn.Module | None = None) -> NCMTL:
    torch.manual_seed(0)
    encoder = encoder or NGram(400, 16, num_buckets=64, dropout=0)
    return NCMTL(
        encoder,
        data.num_tasks,
        num_classes=data.num_classes,
        cluster_features=(8,),
        num_clusters=(2,),
        task_names=data.domains,
        task_classes=data.task_classes,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    )


def fit(data: MultiDomainDataModule, trainers: Trainers, encoder: nn.Module | None = None, epochs: int = 8) -> Any:
    """Train; the accuracy of each domain comes from a validation of its own."""
    model = make(data, encoder)
    trainer = trainers(max_epochs=epochs, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    (metrics,) = trainers().validate(model, datamodule=data, verbose=False)
    return model, trainer, [metrics[f"val/accuracy/{domain}"] for domain in data.domains]


def predict(model: NCMTL, data: MultiDomainDataModule, folder: Path, trainers: Trainers) -> list[Row]:
    """What is written of each class's word in each domain."""
    rng = random.Random(1)
    rows = [{"text": text(rng, name), "domain": domain} for domain in CLASSES for name in CLASSES[domain]]
    write_csv(folder / "in.txt.csv", rows)
    data.predict_path = str(folder / "in.txt.csv")
    out = folder / "out.jsonl"
    batches = trainers(callbacks=[PredictionWriter(str(out))]).predict(model, datamodule=data)
    assert batches is not None
    for batch in batches:
        probabilities = batch["probabilities"]
        assert probabilities.sum(1).tolist() == pytest.approx([1] * len(probabilities))
        for index, row in zip(batch["index"].tolist(), probabilities, strict=True):
            absent = [name not in CLASSES[str(rows[index]["domain"])] for name in NAMES]
            assert (row[torch.tensor(absent)] == 0).all()
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("encoder", ["ngram", "han"])
@pytest.mark.parametrize("write", [write_domains, write_one_file])
def test_classes_of_each_domain_are_learned(
    write: Callable[[Path], Source], encoder: str, tmp_path: Path, make_trainer: Trainers, monkeypatch: Any
) -> None:
    several = write is write_one_file
    data = make_data(write(tmp_path), **{**FEW, "validation_size": 60 if several else 15, "halves": False})
    assert data.domain_classes == CLASSES
    assert data.class_names == NAMES
    assert data.task_classes == [[NAMES.index(name) for name in names] for names in CLASSES.values()]
    han = HAN(400, 8, 8, num_layers=1, dropout=0) if encoder == "han" else None
    model, trainer, accuracies = fit(data, make_trainer, han, epochs=15 if han else 8)
    assert min(accuracies) > 0.8
    lines = predict(model, data, tmp_path, make_trainer)
    assert [line["prediction"] for line in lines] == [name for names in CLASSES.values() for name in names]
    assert [list(line["probabilities"]) for line in lines] == [CLASSES[line["domain"]] for line in lines]

    # The checkpoint is enough: nothing is read.
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    monkeypatch.setattr(Tables, "read", lambda *args: pytest.fail("the corpus was read"))
    other = MultiDomainDataModule.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True, source=data.source)
    assert predict(model, other, tmp_path, make_trainer) == lines
    bare = make_data(data.source, domains=list(CLASSES), **FEW)
    bare.load_state_dict(json.loads(json.dumps(data.state_dict())))
    assert bare.class_names == NAMES
    assert predict(model, bare, tmp_path, make_trainer) == lines


def test_other_classes_than_those_of_the_checkpoint_are_refused(tmp_path: Path, make_trainer: Trainers) -> None:
    source = write_domains(tmp_path)
    data = make_data(source, **FEW)
    _, trainer, _ = fit(data, make_trainer, epochs=1)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    for domain, old, new, message in (
        ("news", "war", "zoo", r"\['art', 'sport', 'war'\] of 'news'; the data has \['art', 'sport', 'zoo'\]"),
        ("films", "good", "fine", r"of another model: it has head.bias of shape \[3, 6\], this model \[3, 7\]"),
    ):
        file = tmp_path / f"{domain}.csv"
        file.write_text(file.read_text().replace(old, new))
        changed = make_data(source, **FEW)
        with pytest.raises(InputError, match=message) as info:
            make_trainer(max_epochs=2).fit(make(changed), datamodule=changed, ckpt_path=tmp_path / "it.ckpt")
        assert "\n" not in str(info.value)
    given = {**CLASSES, "news": ["art", "war"]}
    with pytest.raises(InputError, match="of 'news'; the data has .*: set data.classes") as info:
        make_data(source, classes=given, **FEW).load_state_dict(data.state_dict())
    assert "\n" not in str(info.value)


def test_classes_may_be_given_in_any_order(tmp_path: Path, make_trainer: Trainers) -> None:
    source = write_domains(tmp_path)
    given = {domain: names[::-1] for domain, names in CLASSES.items()}
    found, other = make_data(source, **FEW), make_data(source, classes=given, **FEW)
    other.setup("fit")
    other.load_state_dict(other.state_dict())
    assert other.class_names == found.class_names
    assert other.domain_classes == found.domain_classes


@pytest.mark.parametrize("write", [write_domains, write_one_file])
def test_rows_without_labels_do_not_change_the_loss(
    write: Callable[..., Source], tmp_path: Path, make_trainer: Trainers
) -> None:
    source = write(tmp_path)
    settings = {**FEW, "batch_size": 1000, "halves": False}  # all in one batch
    plain = make_data(source, **settings)
    plain.setup("fit")
    for file in tmp_path.glob("*.csv"):
        header, *rows = file.read_text().splitlines()
        more = [f"w{number} and more .{',' * header.count(',')}" for number in range(30)]
        file.write_text("\n".join([header, *more, *rows, ""]))
    mixed = make_data(source, **settings)
    mixed.load_state_dict(plain.state_dict())
    model = make(plain).eval()
    model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # outside of a trainer
    losses, gradients, sizes = [], [], []
    for data in (plain, mixed):
        data.setup("fit")
        (batch,) = data.train_dataloader()
        loss = model.training_step(batch, 0)
        model.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
        sizes.append(len(batch["inputs"]["document_lengths"]))
    assert sizes[1] == sizes[0] + 30 * (len(CLASSES) if write is write_domains else 1)
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    mixed.batch_size = 8  # some batches without any label
    make_trainer(max_epochs=1).fit(model.train(), datamodule=mixed)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_documents_with_labels_validate(tmp_path: Path, make_trainer: Trainers) -> None:
    """Where the last documents have none, those before them."""
    source = write_domains(tmp_path)
    with (tmp_path / "news.csv").open("a") as file:
        file.writelines("w5 .,\n" for _ in range(15))
    data = make_data(source, **FEW)
    assert min(fit(data, make_trainer)[2]) > 0.8
    assert [-1] not in data.documents("validation")["labels"][:]
    assert data.documents("train")["labels"][:].count([-1]) == 15


@pytest.mark.parametrize(("keep", "learned"), [("start", False), ("end", True), ("both", True)])
def test_the_part_that_is_kept_is_what_is_learned(
    keep: str, learned: bool, tmp_path: Path, make_trainer: Trainers
) -> None:
    data = make_data(write_domains(tmp_path, before=30), **FEW, keep=keep, max_tokens=5)  # type: ignore[arg-type]
    _, _, accuracies = fit(data, make_trainer)
    assert data.counts["train"]["truncated"] == data.counts["train"]["documents"] == 135
    assert all(len(batch["inputs"]["tokens"]) == 5 * len(batch["labels"]) for batch in data.train_dataloader())
    assert (min(accuracies) > 0.9) == learned
    assert learned or max(accuracies) < 0.8


def test_parts_of_words_are_learned(tmp_path: Path, make_trainer: Trainers) -> None:
    settings: Any = {**FEW, "tokenizer": "bpe", "vocab_size": 280, "keep": "end", "max_tokens": 12}
    data = make_data(write_domains(tmp_path), **settings)
    model, _, accuracies = fit(data, make_trainer)
    assert data.tokenizer is not None
    assert data.tokenizer.get_vocab_size() == 280
    assert min(accuracies) > 0.9
    assert 2 * 16 < max(len(batch["inputs"]["tokens"]) for batch in data.train_dataloader()) <= 12 * 16
    lines = predict(model, data, tmp_path, make_trainer)
    assert [line["prediction"] for line in lines] == [name for names in CLASSES.values() for name in names]


@pytest.mark.parametrize("keep", ["start", "end", "both"])
def test_a_ready_tokenizer_puts_its_words_around_what_is_kept(tmp_path: Path, keep: Any) -> None:
    path = save_model(tmp_path)
    (tmp_path / "corpus").mkdir()
    source = write_domains(tmp_path / "corpus", before=30)
    data = make_data(source, **FEW, tokenizer=path, keep=keep, max_tokens=6)
    data.setup("fit")
    assert data.vocab_size == 50
    texts = {row["index"]: row["text"].split() for row in data.documents("train")}
    for batch in data.train_dataloader():
        rows = batch["inputs"]["tokens"].view(-1, 6).tolist()
        for index, row in zip(batch["index"].tolist(), rows, strict=True):
            words = texts[index]
            kept = {"start": words[:4], "end": words[-4:], "both": [*words[:2], *words[-2:]]}[keep]
            assert row == [2, *(4 if word == "." else int(word[1:]) for word in kept), 3]


def test_a_transformer_learns_from_its_own_tokens(tmp_path: Path, make_trainer: Trainers) -> None:
    path = save_model(tmp_path)
    (tmp_path / "corpus").mkdir()
    settings: Any = {**FEW, "tokenizer": path, "max_tokens": 20, "keep": "both"}
    data = make_data(write_domains(tmp_path / "corpus"), **settings)
    encoder = Transformer(path, dropout=0, vocab_size=data.vocab_size)
    model, trainer, accuracies = fit(data, make_trainer, encoder)
    assert min(accuracies) > 0.9
    lines = predict(model, data, tmp_path, make_trainer)
    assert [line["prediction"] for line in lines] == [name for names in CLASSES.values() for name in names]
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    settings["tokenizer"] = "words"  # the checkpoint has the right one
    other = make_data(data.source, domains=data.domains, **settings)
    state = torch.load(tmp_path / "it.ckpt", weights_only=True)
    other.load_state_dict(state["MultiDomainDataModule"])
    assert predict(model, other, tmp_path, make_trainer) == lines
