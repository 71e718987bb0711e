"""What CONTRIBUTING says of encoders, sources and systems: one of each, from outside of the package."""

from pathlib import Path

import pytest

from lightning_ncmtl.main import main

GUIDE = '''
from collections.abc import Iterator
from torch import nn
from lightning_ncmtl.datamodules.sources import Document, Source
from lightning_ncmtl.datamodules.sources.base import fingerprint_files
from lightning_ncmtl.encoders import WordEncoder
from lightning_ncmtl.encoders._words import flatten
from lightning_ncmtl.modules import MultiTaskModule


class MyEncoder(WordEncoder):
    """The vector of a document's first word."""

    def __init__(self, vocab_size: int = 100, embedding_dim: int = 8) -> None:
        super().__init__(vocab_size, embedding_dim, dropout=0.0, freeze_embedding=False)
        self.out_features = embedding_dim

    def forward(self, documents):
        words, lengths = flatten(documents)
        return self.embedding(words[lengths.cumsum(0) - lengths])


class MySource(Source):
    """Two domains that agree on their first word."""

    def domains(self) -> list[str]:
        return ["one", "two"]

    def splits(self) -> set[str]:
        return {"train"}

    def read(self, split, domains=None) -> Iterator[Document]:
        for domain in self.domains() if domains is None else domains:
            for number in range(60):
                yield Document(f"{'good' if number % 2 else 'bad'} text {number} of {domain}", {domain: number % 2})

    def fingerprint(self) -> str:
        return fingerprint_files({"class": "MySource"}, [])


class MySystem(MultiTaskModule):
    """One linear layer for all tasks."""

    def __init__(self, encoder: nn.Module, num_tasks: int, **settings) -> None:
        super().__init__(num_tasks, **settings)
        self.encoder, self.head = encoder, nn.Linear(encoder.out_features, self.num_classes)

    def logits(self, inputs, task_ids, rows=None):
        encoded = self.encoder(inputs)
        return self.head(encoded if rows is None else encoded[rows])
'''

COMPARISON = """
output: out
seeds: [1]
common:
  data: {source: {class_path: guide.MySource}, split: {validation_size: 20}}
  model: {init_args: {encoder: {class_path: guide.MyEncoder}, optimizer: {class_path: Adam, init_args: {lr: 0.1}}}}
  trainer: {max_epochs: 8}
systems:
  Mine: {model: {class_path: guide.MySystem}}
"""


def test_an_encoder_a_source_and_a_system_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "guide.py").write_text(GUIDE)
    (tmp_path / "compare.yaml").write_text(COMPARISON)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    main(["compare", "--config", "compare.yaml"])
    assert "Mine, seed 1: 1.0000" in capfd.readouterr().out
    assert "| Mine" in (tmp_path / "out" / "report.md").read_text()
