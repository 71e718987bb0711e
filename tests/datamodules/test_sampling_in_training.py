"""How documents are drawn and divided: from the command line to the weights."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from data import group_settings, make_data
from pytorch_lightning import Trainer
from table_files import Row, write_csv

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback, ResumableCheckpoint, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Synthetic, Tables
from lightning_ncmtl.encoders import NGram
from lightning_ncmtl.main import main

SIZES = {"large": 60, "middle": 20, "small": 6}
TOTAL = sum(SIZES.values()) + 3 * 4 + 8  # with those that validate, and copies
BATCH = 8
MODES: list[dict[str, Any]] = [
    {"balance": 3},
    {"balance": 1.5, "quota": 1},
    {"balance": "uniform", "quota": 2},
    {"balance": float("inf"), "replacement": True, "quota": 2},
]
SETTINGS: dict[str, Any] = {"batch_size": BATCH, "validation_size": 4, "min_frequency": 1, "vocab_size": 200}
Seen = dict[str, list[dict[str, list[int]]]]


def rows() -> list[Row]:
    """With copies, without some labels, and with a domain that has none at all."""
    rng = random.Random(0)
    made: list[Row] = [{"text": f"nothing {number}", "label": "", "of": "bare"} for number in range(7)]
    for domain, size in SIZES.items():
        for number in range(size + 4):
            text = " ".join(f"{'good' if number % 2 else 'bad'}{rng.randrange(5)}" for _ in range(rng.randrange(3, 30)))
            made.append({"text": text, "label": "" if number == 5 else number % 2, "of": domain})
    rng.shuffle(made)
    return made + [row for row in made if row["of"] != "bare"][-8:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a table, and a configuration that reads it."""
    folder = tmp_path_factory.mktemp("sampling")
    write_csv(folder / "all.csv", rows())
    tables = {"class_path": "Tables", "init_args": {"train": str(folder / "all.csv"), "domain": "of"}}
    ngram = {"class_path": "NGram", "init_args": {"embedding_dim": 8, "num_buckets": 32}}
    settings = {
        "data": {"source": tables, **{name: asdict(group) for name, group in group_settings(**SETTINGS).items()}},
        "model": {"init_args": {"encoder": ngram, "cluster_features": [6], "num_clusters": [2]}},
        "clustering": {"warmup_epochs": 1, "freeze_after_epochs": 3},
        "trainer": {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def ncmtl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command line in this process."""
    monkeypatch.chdir(folder)
    return lambda *arguments: main(list(arguments))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Documents and tasks of each batch that a model sees, by stage."""
    found: Seen = {"training": [], "validation": []}

    def record(stage: str) -> None:
        step = getattr(NCMTL, f"{stage}_step")

        def recording(self: NCMTL, batch: Any, batch_idx: int) -> Any:
            found[stage].append({name: batch[name].tolist() for name in ("index", "task_ids")})
            return step(self, batch, batch_idx)

        monkeypatch.setattr(NCMTL, f"{stage}_step", recording)

    for stage in found:
        record(stage)
    return found


def data_of(folder: Path, **mode: Any) -> MultiDomainDataModule:
    source = Tables(str(folder / "all.csv"), domain="of")
    return make_data(source, **{**SETTINGS, **mode})


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_batches_are_those_asked_for(
    mode: dict[str, Any], folder: Path, seen: Seen, make_trainer: Callable[..., Trainer]
) -> None:
    records = []
    for options in ({}, {"use_distributed_sampler": False}):
        model = NCMTL(NGram(200, 8, num_buckets=32), 3, cluster_features=(6,), num_clusters=(2,))
        make_trainer(max_epochs=2, num_sanity_val_steps=0, **options).fit(model, datamodule=data_of(folder, **mode))
        records.append(list(seen["training"]))
        seen["training"].clear()
    assert records[0] == records[1]

    total, quota = TOTAL - 12, mode.get("quota", 0)
    steps = len(records[0]) // 2
    assert steps == -(-total // BATCH)
    first, second = (sorted(batch["index"] for batch in part) for part in (records[0][:steps], records[0][steps:]))
    assert first != second
    assert min(min(batch["task_ids"].count(task) for task in range(3)) for batch in records[0]) >= quota
    assert {len(batch["index"]) for batch in records[0]} <= {BATCH - 1, BATCH}
    drawn = [sum(batch["task_ids"].count(task) for batch in records[0][:steps]) for task in range(3)]
    assert sum(drawn) == total
    assert drawn[2] > 1.5 * SIZES["small"]
    assert drawn[0] < SIZES["large"]
    assert len(seen["validation"]) == 2 * 2 * 2  # of 12 documents: twice two epochs


def test_the_command_line_draws_the_same(folder: Path, ncmtl: Callable[..., None], seen: Seen, tmp_path: Path) -> None:
    mode = {"balance": "1.5", "quota": "2", "replacement": "true"}
    arguments = [part for name, value in mode.items() for part in (f"--data.batches.{name}", value)]
    ncmtl("fit", "--config", "small.yaml", *arguments, "--run_dir", str(tmp_path / "run"))
    data = data_of(folder, balance=1.5, quota=2, replacement=True, seed=1)
    data.setup("fit")
    expected = [batch["index"].tolist() for batch in data.train_dataloader()]
    assert [batch["index"] for batch in seen["training"]][: len(expected)] == expected
    assert all(min(batch["task_ids"].count(task) for task in range(3)) >= 2 for batch in seen["training"])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert {name: config["data"]["batches"][name] for name in mode} == {"balance": 1.5, "quota": 2, "replacement": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.batches.quota", "3"], "set batch_size (data.batches.size) to at least 9, or lower quota"),
        (["--data.split.test_size", "1.5"], "data.split.test_size must be a share between 0 and 1, found 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: list[str], message: str, ncmtl: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        ncmtl("fit", "--config", "small.yaml", *arguments)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ncmtl: error: ")]
    assert message in line


RESUMED: list[dict[str, Any]] = [
    {"quota": 1},
    {"replacement": True},
    {"balance": 2.0, "quota": 2, "num_workers": 1},
    {"balance": "uniform", "replacement": True, "quota": 1, "validation_size": 0.2},
]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("mode", RESUMED, ids=str)
def test_a_training_continues_in_the_middle_of_an_epoch(
    mode: dict[str, Any], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    source = Synthetic(num_domains=3, num_groups=2, train_documents=20, imbalance=5, opinion_words=12)
    settings = {"batch_size": BATCH, "validation_size": 3, "vocab_size": 200, "min_frequency": 1, **mode}

    def run(ckpt_path: Path | None = None) -> tuple[dict[str, Any], int, Any]:
        data = make_data(source, **settings)
        torch.manual_seed(0 if ckpt_path is None else 1)
        model = NCMTL(NGram(200, 8, num_buckets=32, dropout=0.3), 3, cluster_features=(6,), num_clusters=(2,))
        saving = ResumableCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            max_epochs=3,
            callbacks=[NetworkClusteringCallback(warmup_epochs=1), StepSeed(), *([] if ckpt_path else [saving])],
            enable_checkpointing=ckpt_path is None,
        )
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return model.state_dict(), trainer.global_step, trainer.optimizers[0].state_dict()["state"]

    weights, steps, moments = run()
    for step in (2, steps // 3 + 2):
        theirs, their_steps, their_moments = run(tmp_path / f"step={step}.ckpt")
        assert their_steps == steps
        torch.testing.assert_close(theirs, weights, rtol=0, atol=0)
        torch.testing.assert_close(their_moments, moments, rtol=0, atol=0)


ALONE = """
import json, sys
from lightning_ncmtl import NCMTL
from lightning_ncmtl.main import main

found, step = [], NCMTL.test_step
def recording(self, batch, batch_idx):
    found.extend(batch["index"].tolist())
    return step(self, batch, batch_idx)
NCMTL.test_step = recording
main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps(found))
"""


def test_shares_of_the_training_split(folder: Path, ncmtl: Callable[..., None], seen: Seen, tmp_path: Path) -> None:
    shares = ["--data.split.validation_size", "0.2", "--data.split.test_size", "0.1"]
    ncmtl("fit", "--config", "small.yaml", *shares, "--run_dir", str(tmp_path / "run"))
    # Alone, in a process that knows nothing but the checkpoint and the files
    arguments = [
        "--ckpt_path",
        str(tmp_path / "run" / "checkpoints" / "last.ckpt"),
        "--run_dir",
        str(tmp_path / "alone"),
    ]
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "found.json"), "test", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    tested = json.loads((tmp_path / "found.json").read_text())
    trained, validated = ({index for batch in seen[stage] for index in batch["index"]} for stage in seen)
    assert sorted([*trained, *validated, *tested]) == list(range(TOTAL))
    assert len(validated) / TOTAL == pytest.approx(0.2, abs=0.05)
    assert len(tested) / TOTAL == pytest.approx(0.1, abs=0.05)

    data = data_of(folder, validation_size=0.2, test_size=0.1)
    data.setup("fit")
    data.setup("test")
    parts: list[Any] = [data.documents(stage) for stage in ("train", "validation", "test")]
    assert [set(part["index"]) for part in parts] == [trained, validated, set(tested)]
    texts = [set(part["text"]) for part in parts]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    assert all(
        sum(counts[f"{stage} copies"] for counts in data.copies.values()) == 0 for stage in ("validation", "test")
    )
    assert {sum(counts[stage] for counts in data.copies.values()) for stage in ("train", "validation", "test")} == {
        len(part) for part in parts
    }
    with (tmp_path / "alone" / "metrics.csv").open() as file:
        (metrics,) = csv.DictReader(file)
    assert metrics["test/accuracy"] == metrics["test/accuracy_clean"]
