"""The command line."""

import csv
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from html_pages import Page
from ranks import on_ranks
from tokenizers import Tokenizer, models, pre_tokenizers

import lightning_ncmtl
from lightning_ncmtl import NCMTL, load
from lightning_ncmtl.compaction import count_bytes
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.batches import collate
from lightning_ncmtl.datamodules.text import Encoder
from lightning_ncmtl.main import main
from lightning_ncmtl.modules import MultiTaskModule

# The default experiment with a small corpus and few epochs.
SMALL = {
    "data": {
        "source": {
            "class_path": "lightning_ncmtl.datamodules.sources.Synthetic",
            "init_args": {"num_domains": 4, "num_groups": 2, "train_documents": 40, "test_documents": 21},
        },
        "batches": {"size": 8},
        "split": {"validation_size": 11},
    },
    "model": {
        "init_args": {
            "encoder": {"init_args": {"embedding_dim": 8, "hidden_size": 4}},
            "cluster_features": [8, 6],
            "num_clusters": [2, 3],
        }
    },
    "clustering": {"warmup_epochs": 1, "freeze_after_epochs": 3},
    "trainer": {"max_epochs": 4, "enable_progress_bar": False, "enable_model_summary": False},
}


def ncmtl(folder: Path, *arguments: str) -> None:
    """Run the command line in this process."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        main(list(arguments))
    finally:
        os.chdir(before)


def ncmtl_process(folder: Path, *arguments: str) -> None:
    """Run the command line in a new process."""
    result = subprocess.run(
        [sys.executable, "-m", "lightning_ncmtl", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def on_rank(rank: int, folder: Path, *arguments: str) -> None:
    ncmtl(folder, *arguments)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small configuration and the run ``whole``."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    ncmtl(folder, "fit", "--config", "small.yaml", "--run_dir", "whole")
    return folder


def test_a_run_directory_holds_everything(folder: Path) -> None:
    run = folder / "whole"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["num_clusters"] == [2, 3]
    assert config["seed_everything"] == 1
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(run.glob("events.out.tfevents*"))
    pictures = {"flow.png", "history.png", "evidence.png"}
    pictures |= {f"coclustering-cluster_layers.{layer}.png" for layer in (0, 1)}
    assert {file.name for file in (run / "pictures").iterdir()} == pictures
    report = json.loads((run / "clusters.json").read_text())
    assert list(report["layers"]) == ["cluster_layers.0", "cluster_layers.1"]
    assert report["layers"]["cluster_layers.1"]["frozen_at_step"] is not None
    page = Page.read(run / "report.html")
    assert page.unclosed == []
    checkpoints = (run / "checkpoints").resolve()
    assert f"ncmtl test --ckpt_path {checkpoints / 'best.ckpt'}" in page.words
    assert f"ncmtl fit --ckpt_path {checkpoints / 'last.ckpt'} --trainer.max_epochs 8" in page.words
    assert (run / "config.yaml").read_text().strip() in page.text
    rows = metrics(run)
    assert len([row for row in rows if row["val/accuracy"]]) == 4
    assert all(f"val/accuracy/domain{number:02d}" in rows[0] for number in range(4))
    assert any(row["clustering/cluster_layers.0/loss"] for row in rows)


def test_the_saved_configuration_reproduces_the_run(folder: Path) -> None:
    ncmtl(folder, "fit", "--config", "whole/config.yaml", "--run_dir", "again")
    assert metrics(folder / "again") == metrics(folder / "whole")


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_needs_the_checkpoint_alone(folder: Path, stage: str) -> None:
    ncmtl(folder, stage, "--ckpt_path", "whole/checkpoints/last.ckpt", "--run_dir", f"only_{stage}")
    row = metrics(folder / f"only_{stage}")[-1]
    page = Page.read(folder / f"only_{stage}" / "report.html")
    assert page.headings[0] == Page.read(folder / "whole/report.html").headings[0]
    assert "checkpoint whole/checkpoints/last.ckpt" in page.words
    if stage == "validate":
        last = [row for row in metrics(folder / "whole") if row["val/accuracy"]][-1]
        assert row["val/accuracy"] == last["val/accuracy"]
        assert row["val/loss"] == last["val/loss"]
    else:
        assert 0 <= float(row["test/accuracy"]) <= 1


@pytest.mark.parametrize(
    ("kind", "labels"), [("FDUMTL", ["0", "1"]), ("Tables", ["-1", "0.5"]), ("Tables", ["1000", "yes"])]
)
def test_nothing_but_the_checkpoint_is_read(folder: Path, tmp_path: Path, kind: str, labels: list[str]) -> None:
    """A corpus of files that are gone when predicting, with domains and classes found in them, some like numbers."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for domain in "ab":
        words = [f"word{number % 2} and {number} more ." for number in range(20)]
        if kind == "FDUMTL":
            lines = [f"{labels[number % 2]}\t{text}" for number, text in enumerate(words)]
            (corpus / f"{domain}.task.train").write_text("\n".join(lines))
        else:
            lines = [f"{labels[number % 2]},{text}" for number, text in enumerate(words)]
            (corpus / f"{domain}.csv").write_text("\n".join(["label,text", *lines]))
    place = ["--data.source.path", str(corpus)] if kind == "FDUMTL" else ["--data.source.train", f"{corpus}/*.csv"]
    settings = ["--data.source", kind, *place, "--data.split.validation_size", "4"]
    settings += ["--model.num_clusters", "[1,2]", "--trainer.max_epochs", "2", "--run_dir", str(tmp_path / "run")]
    ncmtl(folder, "fit", "--config", "small.yaml", *settings)
    shutil.rmtree(corpus)
    (tmp_path / "in.jsonl").write_text('{"text": "word1", "domain": "b"}\n\n')
    path = str(tmp_path / "run/checkpoints/last.ckpt")
    predict = ["--data.predict_path", str(tmp_path / "in.jsonl"), "--predictions.path", str(tmp_path / "out.jsonl")]
    ncmtl(folder, "predict", "--ckpt_path", path, "--run_dir", str(tmp_path / "predict"), *predict)
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["domain"] == "b"
    assert list(json.loads(line)["probabilities"]) == labels
    assert NCMTL.load_from_checkpoint(path, weights_only=True).hparams.task_names == ["a", "b"]
    assert MultiDomainDataModule.load_from_checkpoint(path, weights_only=True).domains == ["a", "b"]


def test_prediction_needs_the_checkpoint_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes((folder / "whole/checkpoints/last.ckpt").read_bytes())
    (tmp_path / "in.csv").write_text("text,domain\nw1 opinion3 w2 .,domain02\n,domain00\n")
    ncmtl(tmp_path, "predict", "--ckpt_path", "last.ckpt", "--data.predict_path", "in.csv", "--run_dir", "out")
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(line["domain"], line["text"]) for line in lines] == [("domain02", "w1 opinion3 w2 ."), ("domain00", "")]

    # The same from Python, by hand.
    model = NCMTL.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    data = MultiDomainDataModule.load_from_checkpoint(
        tmp_path / "last.ckpt", weights_only=True, predict_path=str(tmp_path / "in.csv")
    )
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        probabilities = model.predict_step(batch, 0)["probabilities"]
    for index, row in zip(batch["index"].tolist(), probabilities, strict=True):
        assert list(lines[index]["probabilities"].values()) == pytest.approx(row.tolist(), abs=1e-6)


def test_export(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exported folder predicts what the checkpoint predicts, on raw text."""
    ncmtl(folder, "export", "--ckpt_path", "whole/checkpoints/last.ckpt", "--output", str(tmp_path / "small"))
    shown = capsys.readouterr().out
    model = load(tmp_path / "small")
    assert isinstance(model, NCMTL)
    whole = NCMTL.load_from_checkpoint(folder / "whole/checkpoints/last.ckpt", weights_only=True)
    sizes = [sum(p.numel() for p in m.cluster_layers.parameters()) for m in (whole, model)]
    first, second = (sum(p.numel() for p in layer.parameters()) for layer in whole.cluster_layers)
    assert sizes[1] == first * 2 // 4 + second * 3 // 4
    assert all(f"{size:,}" in shown for size in sizes)
    assert all(f"{count_bytes(m) / 2**20:.2f} MiB" in shown for m in (whole, model))

    (tmp_path / "in.csv").write_text("text,domain\nw1 opinion3 w2 .,domain02\nw3 . opinion1,domain00\n")
    arguments = ["--data.predict_path", str(tmp_path / "in.csv"), "--run_dir", str(tmp_path / "out")]
    ncmtl(folder, "predict", "--ckpt_path", "whole/checkpoints/last.ckpt", *arguments)
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    data = json.loads((tmp_path / "small/settings.json").read_text())["data"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "small/tokenizer.json"))
    columns = Encoder(tokenizer, data["text"]["max_words"], data["text"]["max_sentences"])(
        [line["text"] for line in lines]
    )
    tasks = [data["domains"].index(line["domain"]) for line in lines]
    for name, values in {"task_ids": [[task] for task in tasks], "labels": [[-1], [-1]], "index": [0, 1]}.items():
        columns = columns.append_column(name, pa.array(values))
    batch = collate(columns)
    with torch.no_grad():
        probabilities = model(batch["inputs"], batch["task_ids"]).softmax(1)
    assert probabilities.tolist() == [pytest.approx(list(line["probabilities"].values()), abs=1e-6) for line in lines]

    # And so does the command line, on a machine that has nothing but the folder
    shutil.move(tmp_path / "small", tmp_path / "elsewhere/small")
    shutil.copy(tmp_path / "in.csv", tmp_path / "elsewhere")
    arguments = ["--data.predict_path", "in.csv", "--predictions.path", "out.jsonl"]
    ncmtl(tmp_path / "elsewhere", "predict", "--model", "small", *arguments)
    again = [json.loads(line) for line in (tmp_path / "elsewhere/out.jsonl").read_text().splitlines()]
    assert_same_predictions(again, lines)


def assert_same_predictions(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert ours == [{**line, "probabilities": pytest.approx(line["probabilities"], rel=0, abs=1e-6)} for line in theirs]


@pytest.mark.parametrize("warmup", ["shared", "apart"])
def test_export_of_named_targets(folder: Path, tmp_path: Path, warmup: str) -> None:
    """The clusters of what was named stand in the checkpoint's callback alone."""
    targets = ["--clustering.targets", "[cluster_layers.0,{name: head}]", "--clustering.num_clusters", "[2,2]"]
    settings = ["--run_dir", str(tmp_path / "run"), "--clustering.warmup", warmup]
    ncmtl(folder, "fit", "--config", "small.yaml", *settings, *targets)
    path = str(tmp_path / "run/checkpoints/last.ckpt")
    ncmtl(folder, "export", "--ckpt_path", path, "--output", str(tmp_path / "small"))
    model = load(tmp_path / "small")
    assert sum(p.numel() for p in model.head.parameters()) == 2 * (6 * 2 + 2)
    settings = json.loads((tmp_path / "small/settings.json").read_text())
    assert settings["clusters"].keys() == {"cluster_layers.0", "head"}
    (tmp_path / "in.jsonl").write_text('{"text": "w1", "domain": "domain01", "id": 7}\n')
    predict = ["predict", "--data.predict_path", str(tmp_path / "in.jsonl"), "--predictions.path"]
    ncmtl(tmp_path, *predict, "one.jsonl", f"--model={tmp_path / 'small'}")
    ncmtl(tmp_path, *predict, "two.jsonl", "--ckpt_path", path)
    one, two = (json.loads((tmp_path / f"{name}.jsonl").read_text()) for name in ("one", "two"))
    assert list(one) == ["id", "text", "domain", "prediction", "probabilities"]
    assert_same_predictions([one], [two])


def test_a_best_epoch_before_tasks_were_clustered_is_told_and_exported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, warmup = tmp_path / "run", ["--clustering.warmup_epochs", "2", "--clustering.warmup", "shared"]
    first = ["--checkpoint.monitor", "epoch", "--checkpoint.mode", "min"]
    with caplog.at_level("INFO"):
        ncmtl(folder, "fit", "--config", "small.yaml", "--run_dir", str(run), *warmup, *first)
    assert "the best epoch, 1, is of a time before tasks were clustered; last.ckpt has the clusters" in caplog.text
    (tmp_path / "in.csv").write_text("text,domain\nw1 opinion3 w2 .,domain02\nw3 . opinion1,domain00\n")
    found = {}
    for name in ("best", "last"):
        caplog.clear()
        path = str(run / f"checkpoints/{name}.ckpt")
        with caplog.at_level("INFO"):
            ncmtl(folder, "export", "--ckpt_path", path, "--output", str(tmp_path / name))
        assert ("each keeps its own weights" in caplog.text) == (name == "best")
        predict = ["predict", "--data.predict_path", str(tmp_path / "in.csv"), "--predictions.path"]
        ncmtl(tmp_path, *predict, "one.jsonl", "--model", str(tmp_path / name))
        ncmtl(tmp_path, *predict, "two.jsonl", "--ckpt_path", path)
        one, two = (
            [json.loads(line) for line in (tmp_path / f"{each}.jsonl").read_text().splitlines()]
            for each in ("one", "two")
        )
        assert_same_predictions(one, two)
        found[name] = sum(p.numel() for p in load(tmp_path / name).parameters())
    assert found["best"] > found["last"]


@pytest.mark.parametrize("tokenizer", ["bpe", "ready"])
def test_an_exported_model_keeps_its_vocabulary(folder: Path, tmp_path: Path, tokenizer: str) -> None:
    """Whatever it came from; and texts with labels in several domains are predicted in all."""
    rows = ["text,a,b,c", *(f"word{n % 2} and {n} more .,{n % 2},{n // 2 % 2},{n % 3}" for n in range(60))]
    (tmp_path / "all.csv").write_text("\n".join(rows))
    (tmp_path / "labels.yaml").write_text("data: {source: {init_args: {label: {a: a, b: b, c: c}}}}")
    if tokenizer == "ready":
        ready = Tokenizer(models.WordLevel({"[UNK]": 0, "word0": 1, "word1": 9}, unk_token="[UNK]"))
        ready.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        ready.save(str(tmp_path / "tokenizer.json"))
    name = "bpe" if tokenizer == "bpe" else str(tmp_path / "tokenizer.json")
    settings = ["--data.source", "Tables", "--data.source.train", str(tmp_path / "all.csv"), "--config"]
    settings += [str(tmp_path / "labels.yaml"), "--data.text.tokenizer", name, "--data.text.keep", "end"]
    settings += ["--data.text.max_tokens", "4", "--model.num_clusters", "[2,2]", "--report.pictures", "false"]
    ncmtl(folder, "fit", "--config", "small.yaml", *settings, "--run_dir", str(tmp_path / "run"))
    path = str(tmp_path / "run/checkpoints/last.ckpt")
    ncmtl(tmp_path, "export", "--ckpt_path", path, "--output", "small")
    (tmp_path / "in.csv").write_text("text\nword1 and more .\nmore of word0 .\n")
    predict = ["predict", "--data.predict_path", "in.csv", "--predictions.path"]
    ncmtl(tmp_path, *predict, "two.jsonl", "--ckpt_path", path)
    for file in ("all.csv", "tokenizer.json"):
        (tmp_path / file).unlink(missing_ok=True)
    ncmtl(tmp_path, *predict, "one.jsonl", "--model", "small")
    one, two = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    assert [(line["text"], list(line["predictions"])) for line in one] == [
        ("word1 and more .", ["a", "b", "c"]),
        ("more of word0 .", ["a", "b", "c"]),
    ]
    for ours, theirs in zip(one, two, strict=True):
        assert_same_predictions(list(ours["predictions"].values()), list(theirs["predictions"].values()))
    assert str(tmp_path) not in (tmp_path / "small/settings.json").read_text()


SYSTEMS = {
    "SingleTask": {"features": [6]},
    "SoftShare": {"features": [6], "strength": 0.1},
    "HardShare": {"features": [6]},
    "ASPMTL": {"adversarial": 0.1},
    "MMoE": {"num_experts": 2},
    "PLE": {"expert_features": [6, 5]},
    "CrossStitch": {"own_weight": 0.7},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_without_cluster_layers(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    encoder = SMALL["model"]["init_args"]["encoder"]
    model = {"class_path": f"lightning_ncmtl.{name}", "init_args": {"encoder": encoder, **SYSTEMS[name]}}
    (tmp_path / "it.yaml").write_text(yaml.safe_dump({**SMALL, "model": model}))
    ncmtl(tmp_path, "fit", "--config", "it.yaml", "--run_dir", "run", "--trainer.max_epochs", "1")
    assert f"{name} has no cluster layers: nothing is clustered" in caplog.messages
    files = {file.name.split(".")[0] for file in (tmp_path / "run").iterdir()}
    assert files == {"checkpoints", "config", "events", "hparams", "metrics", "report"}  # no clusters.json, no pictures
    saved = checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert "NetworkClusteringCallback" not in saved["callbacks"]

    ncmtl(tmp_path, "test", "--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "test")
    (row,) = metrics(tmp_path / "test")
    assert 0 <= float(row["test/accuracy"]) <= 1
    (tmp_path / "in.csv").write_text("text,domain\nw1 opinion3 w2 .,domain02\n,domain00\n")
    ncmtl(tmp_path, "predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--data.predict_path", "in.csv")
    (path,) = tmp_path.glob("runs/*/predictions.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    # The same from Python: all arguments stand in the checkpoint.
    loaded = getattr(lightning_ncmtl, name).load_from_checkpoint(
        tmp_path / "run/checkpoints/last.ckpt", weights_only=True
    )
    hparams = saved["hyper_parameters"]
    arguments = {key for key in hparams if not key.startswith("_")}  # _instantiator, _class_path
    classes = [cls for cls in inspect.getmro(type(loaded)) if issubclass(cls, MultiTaskModule)]
    assert arguments == {name for cls in classes for name in inspect.signature(cls).parameters} - {"settings"}
    assert {key: hparams[key] for key in SYSTEMS[name]} == SYSTEMS[name]
    assert loaded.hparams.task_names == [f"domain{number:02d}" for number in range(4)]
    data = MultiDomainDataModule.load_from_checkpoint(
        tmp_path / "run/checkpoints/last.ckpt", weights_only=True, predict_path=str(tmp_path / "in.csv")
    )
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    with torch.no_grad():
        outputs = loaded.eval().predict_step(batch, 0)
    for index, probabilities in zip(outputs["index"].tolist(), outputs["probabilities"].tolist(), strict=True):
        assert lines[index]["probabilities"] == pytest.approx(dict(zip("01", probabilities, strict=True)), abs=1e-6)


def test_named_targets_need_no_cluster_layers(tmp_path: Path) -> None:
    targets = ["--clustering.targets", "networks.*.layers", "--clustering.num_clusters", "2"]
    settings = ["--model", "lightning_ncmtl.SingleTask", "--run_dir", str(tmp_path / "run"), *targets]
    config = {key: SMALL[key] for key in ("data", "clustering", "trainer")}
    (tmp_path / "it.yaml").write_text(yaml.safe_dump(config))
    ncmtl(tmp_path, "fit", "--config", "it.yaml", *settings)
    report = json.loads((tmp_path / "run/clusters.json").read_text())
    assert list(report["layers"]) == ["networks.*.layers"]
    assert set(report["layers"]["networks.*.layers"]["assignment"].values()) == {0, 1}


def assert_same_training(one: Path, other: Path) -> None:
    """Bitwise equal weights, optimizer, vocabulary and clusters."""
    left, right = (checkpoint(run / "checkpoints/last.ckpt") for run in (one, other))
    assert (left["state_dict"]["cluster_layers.0._extra_state"] >= 0).all()
    assert left["MultiDomainDataModule"] == right["MultiDomainDataModule"]
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(left[key], right[key], rtol=0, atol=0)
    ours, theirs = (side["callbacks"]["NetworkClusteringCallback"] for side in (left, right))
    torch.testing.assert_close(ours["layers"], theirs["layers"], rtol=0, atol=0)
    assert (ours["steps"], ours["tasks"]) == (theirs["steps"], theirs["tasks"])


def test_resuming_in_a_new_process_continues_exactly(folder: Path) -> None:
    ncmtl(folder, "fit", "--config", "small.yaml", "--run_dir", "half", "--trainer.max_epochs", "2")
    settings = ["--ckpt_path", "half/checkpoints/last.ckpt", "--trainer.max_epochs", "4"]
    ncmtl_process(folder, "fit", "--run_dir", "resumed", *settings)
    assert_same_training(folder / "resumed", folder / "whole")
    resumed, whole = metrics(folder / "resumed"), metrics(folder / "whole")
    assert resumed == [row for row in whole if int(row["step"]) >= int(resumed[0]["step"])]


def test_an_interrupted_training_goes_on_by_the_command_that_it_prints(folder: Path) -> None:
    arguments = ["fit", "--config", "small.yaml", "--run_dir", "it's", "--trainer.max_epochs", "10000"]
    # In the background of a shell, where the tests may run, processes ignore the signal.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "lightning_ncmtl", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    ) as process:
        while not (folder / "it's" / "checkpoints" / "last.ckpt").exists():  # it trains
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        line = process.communicate()[0].splitlines()[-1]
    assert process.returncode == 130
    command = line.removeprefix("Interrupted. To go on: ncmtl ")
    assert shlex.split(command) == ["fit", "--ckpt_path", "it's/checkpoints/last.ckpt"]
    stopped = checkpoint(folder / "it's/checkpoints/last.ckpt")
    epochs = stopped["epoch"] + 2
    ncmtl(folder, *shlex.split(command), "--run_dir", "on", "--trainer.max_epochs", str(epochs))
    steps = checkpoint(folder / "whole/checkpoints/last.ckpt")["global_step"]  # of 4 epochs
    assert (
        checkpoint(folder / "on/checkpoints/last.ckpt")["global_step"] == epochs * steps // 4 > stopped["global_step"]
    )


def test_a_refused_run_does_not_take_its_directory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", "small.yaml", "--run_dir", "corrected", "--trainer.max_epochs", "2"]
    with pytest.raises(SystemExit, match="2"):
        ncmtl(folder, *arguments, "--clustering.targets", "[nowhere]")
    assert "nowhere" in capsys.readouterr().err
    assert (folder / "corrected/config.yaml").exists()
    ncmtl(folder, *arguments)
    assert "nowhere" not in (folder / "corrected/config.yaml").read_text()
    with pytest.raises(SystemExit, match="2"):
        ncmtl(folder, *arguments)
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize("run_dir", ["small.yaml", "small.yaml/run", "/dev/null/run", "/proc/run"])
def test_a_run_directory_that_cannot_be_made(folder: Path, run_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ncmtl(folder, "fit", "--config", "small.yaml", "--run_dir", run_dir)
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"ncmtl: error: the run directory '{run_dir}' cannot be made: ")


def test_two_processes(folder: Path) -> None:
    """DDP: fit and test from the command line; ranks agree, and test metrics equal those of one process."""
    ddp = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ncmtl_process(folder, "fit", "--config", "small.yaml", "--run_dir", "ddp", *ddp)
    saved = checkpoint(folder / "ddp/checkpoints/last.ckpt")
    report = json.loads((folder / "ddp/clusters.json").read_text())
    for name, layer in report["layers"].items():
        weight = saved["state_dict"][f"{name}.weight"]
        assignment = saved["state_dict"][f"{name}._extra_state"]
        assert assignment.tolist() == list(layer["assignment"].values())
        for cluster in assignment.unique():
            members = weight[assignment == cluster]
            assert members.eq(members[0]).all()
    ncmtl(folder, "test", "--ckpt_path", "ddp/checkpoints/last.ckpt", "--run_dir", "test1")
    on_ranks(2, on_rank, folder, "test", "--ckpt_path", "ddp/checkpoints/last.ckpt", "--run_dir", "test2", *ddp)
    assert metrics(folder / "test1") == metrics(folder / "test2")
    assert len(metrics(folder / "test1")[0]) > 8


BAD = [
    (["fit", "--data.domains", "[cars,domain01,domain02]"], "unknown domain 'cars'"),
    (["fit", "--model.num_clusters", "[2,5]"], "between 1 and the number of tasks 4, found 5"),
    (["fit", "--data.source", "FDUMTL", "--data.source.path", "nowhere"], "folder 'nowhere' does not exist"),
    (
        ["fit", "--data.source", "FDUMTL", "--data.source.path", "bad", "--data.classes", "[0,1]"],
        "none of its classes 0, 1: set data.classes",
    ),
    (["fit", "--data.source", "FDUMTL", "--data.source.path", "none"], "'a' has no documents: the domain is left out"),
    (["fit", "--data.text.vectors", "wide.txt"], "do not fit the encoder's embedding table"),
    (["fit", "--clustering.commitment", "2"], "commitment must be a number between 0 and 1, found 2"),
    (["fit", "--run_dir", "whole"], "already holds a run"),
    (["test", "--ckpt_path", "nothing.ckpt"], "'nothing.ckpt' does not exist"),
    (["test", "--ckpt_path", "small.yaml"], "is not a checkpoint"),
    (["test", "--ckpt_path", "whole/checkpoints/best.ckpt", "--model.cluster_features", "[8,7]"], "of another model"),
    (["test", "--ckpt_path", "whole/checkpoints/best.ckpt", "--data.domains", "[domain00,domain01,domain02]"], "of"),
    (["predict", "--ckpt_path", "whole/checkpoints/best.ckpt"], "set data.predict_path"),
    (["fit", "--ckpt_path", "whole/checkpoints/best.ckpt", "--model.num_clusters", "[2,2]"], "has the clusters"),
    (["fit", "--config", "ckpt.yaml"], "give --ckpt_path on the command line"),
    (["test", "--ckpt_path", "tensor.pt"], "is not a checkpoint of a Lightning trainer"),
    (["fit", "--data.text.max_sentences", "0"], "max_sentences must be at least 1, found 0"),
    (["fit", "--model.encoder.dropout", "2"], "dropout must be at least 0 and less than 1, found 2"),
    (["fit", "--trainer.enable_checkpointing", "false"], "enable_checkpointing=False"),
    (["export"], "export needs a trained model: set --ckpt_path"),
    (
        ["fit", "--data.domains=[domain01]", "--model.num_clusters=auto"],
        "there is one domain, 'domain01', and clusters need two: name files or",
    ),
    (["validate"], "validate needs a trained model: set --ckpt_path to a checkpoint"),
    (["test"], "test needs a trained model: set --ckpt_path to a checkpoint"),
    (["export", "--ckpt_path", "nothing.ckpt"], "'nothing.ckpt' does not exist"),
    (["export", "--ckpt_path", "whole/checkpoints/best.ckpt", "--output", "."], "is not empty: choose another one"),
    (["predict"], "predict needs a trained model: set --ckpt_path to a checkpoint, or --model to a folder that 'ncmtl"),
    (
        ["predict", "--model", "nowhere"],
        "--model 'nowhere' is no exported model, with a settings.json: set --ckpt_path",
    ),
    (["predict", "--model", "whole"], "--model 'whole' is no exported model, with a settings.json: set --ckpt_path"),
    (["predict", "--model", "plain"], "'plain/settings.json' does not say how to read data: take a folder that 'ncmtl"),
    (
        ["predict", "--model", "broken"],
        "'broken/settings.json' cannot be read (JSONDecodeError): export the model anew",
    ),
    (
        ["predict", "--model", "plain", "--ckpt_path", "whole/checkpoints/best.ckpt"],
        "and --ckpt_path 'whole/checkpoints",
    ),
    (["test", "--model", "plain"], "only predict takes an exported model, found --model 'plain': set --ckpt_path"),
    (["export", "--ckpt_path", "foreign.ckpt"], "'foreign.ckpt' was not written by 'ncmtl fit'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_in_one_line(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, line in (("bad", "7\tword"), ("none", "")):
        (folder / name).mkdir(exist_ok=True)
        for domain in "abcd":
            (folder / name / f"{domain}.task.train").write_text(line)
    for name, content in (("plain", '{"class": "A", "hyper_parameters": {}, "data": {}}'), ("broken", "{")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "settings.json").write_text(content)
    (folder / "ckpt.yaml").write_text("ckpt_path: whole/checkpoints/best.ckpt\n")
    torch.save(torch.zeros(2), folder / "tensor.pt")
    foreign = checkpoint(folder / "whole/checkpoints/best.ckpt")
    del foreign["MultiDomainDataModule"]
    torch.save(foreign, folder / "foreign.ckpt")
    (folder / "wide.txt").write_text("w1 1 2 3\nw2 4 5 6\n")
    config = [] if {"--ckpt_path", "predict"}.intersection(arguments) else ["--config", "small.yaml"]
    with pytest.raises(SystemExit, match="2"):
        ncmtl(folder, arguments[0], *config, *arguments[1:])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("ncmtl: error: ")]
    assert message in line
