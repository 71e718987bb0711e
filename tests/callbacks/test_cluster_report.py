import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Heads
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.metrics import adjusted_rand_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ncmtl import NCMTL, HardShare
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError


def test_report(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clustering = NetworkClusteringCallback(warmup_epochs=0, freeze_after_epochs=1)
    trainer = make_trainer(max_epochs=2, callbacks=[ClusterReport(), clustering])
    model = make_model(task_names=datamodule.domains)
    trainer.fit(model, datamodule=datamodule)

    report = json.loads((tmp_path / "clusters.json").read_text())
    assert report.keys() == {"layers", "planted", "ari"}
    assert report["planted"] == {"domain00": 0, "domain01": 1, "domain02": 0, "domain03": 1}
    for number, layer in enumerate(model.cluster_layers):
        found = report["layers"][f"cluster_layers.{number}"]
        assert found.keys() == {"num_clusters", "assignment", "frozen_at_step", "trace"}
        assert found["num_clusters"] == layer.num_clusters
        assert list(found["assignment"]) == datamodule.domains
        assert list(found["assignment"].values()) == layer.assignment.tolist()
        assert found["frozen_at_step"] == len(datamodule.train_dataloader()) + 1
        expected = adjusted_rand_score([0, 1, 0, 1], layer.assignment)
        assert report["ari"][f"cluster_layers.{number}"] == pytest.approx(expected, abs=1e-6)

    shown = capsys.readouterr().out
    assert "cluster_layers.1" in shown
    assert "3 clusters" in shown
    assert f"{float(trainer.callback_metrics['val/accuracy']):.3f}" in shown
    assert str(tmp_path) in shown
    assert all(domain in shown for domain in datamodule.domains)


def test_report_before_any_clustering(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clustering = NetworkClusteringCallback(warmup_steps=100)
    make_trainer(max_epochs=1, callbacks=[clustering, ClusterReport()]).fit(make_model(), datamodule=datamodule)
    report = json.loads((tmp_path / "clusters.json").read_text())
    assert report["layers"]["cluster_layers.0"] == {
        "num_clusters": 2,
        "assignment": {},
        "frozen_at_step": None,
        "trace": [],
    }
    assert report["ari"] == {}
    assert "not clustered" in capsys.readouterr().out


def test_an_interrupted_training_leaves_its_clusters(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:
    class Crash(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("lightning strikes")

    callbacks = [NetworkClusteringCallback(warmup_epochs=0), ClusterReport(), Crash()]
    with pytest.raises(RuntimeError, match="lightning strikes"):
        make_trainer(max_epochs=1, callbacks=callbacks).fit(make_model(), datamodule=datamodule)
    report = json.loads((tmp_path / "clusters.json").read_text())
    assert list(report["layers"]["cluster_layers.0"]["assignment"]) == datamodule.domains


def test_report_without_a_data_module_or_planted_groups(
    make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = NCMTL(torch.nn.Linear(3, 4), num_tasks=3, cluster_features=(4,), num_clusters=(2,))
    rows = [{"inputs": torch.randn(3), "task_ids": task, "labels": task % 2} for task in range(3)] * 4
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    callbacks = [NetworkClusteringCallback(warmup_epochs=0), ClusterReport()]
    trainer = make_trainer(max_epochs=1, callbacks=callbacks)
    trainer.fit(model, loader, loader)
    report = json.loads((tmp_path / "clusters.json").read_text())
    assert report["planted"] is None
    assert report["ari"] is None
    assert report["layers"]["cluster_layers.0"]["assignment"].keys() == {"0", "1", "2"}
    assert isinstance(model, LightningModule)


def test_pictures(make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the end and on demand after epochs, in files and for TensorBoard; with the table."""
    tensorboard = TensorBoardLogger(tmp_path, name="", version="")
    clustering = NetworkClusteringCallback([2, 6], ["heads.*.0", "heads.*.2"], warmup_epochs=1)
    report = ClusterReport(every_n_epochs=2)
    trainer = make_trainer(max_epochs=4, callbacks=[clustering, report], logger=tensorboard, log_every_n_steps=2)
    trainer.fit(Heads())
    assert capsys.readouterr().out.count("heads.*.2") == 3
    names = {"flow.png", "coclustering-heads._.0.png", "history.png"}  # none for a layer with a cluster per task
    for folder in ("pictures", "pictures/epoch-2", "pictures/epoch-4"):
        files = {file.name: file for file in (tmp_path / folder).glob("*.png")}
        assert files.keys() == names
        assert all(file.read_bytes().startswith(b"\x89PNG") for file in files.values())
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = [f"clusters/{name.removesuffix('.png')}" for name in names]
    assert set(events.Tags()["images"]) == set(tags)
    assert [event.step for event in events.Images("clusters/flow")] == [12, 24, 24]
    losses = report.state_dict()["losses"]["heads.*.0"]
    assert [step for step, _ in losses] == list(range(8, 25, 2))
    saved = json.loads((tmp_path / "clusters.json").read_text())
    assert list(saved["layers"]["heads.*.0"]["assignment"]) == ["ant", "bee", "cat", "dog", "eel", "fox"]


def test_no_pictures(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """When they are not wanted, when nothing was clustered, and in a trial run."""
    for warmup, report, settings in (
        (0, ClusterReport(pictures=False), {}),
        (99, ClusterReport(), {}),
        (0, ClusterReport(), {"fast_dev_run": True}),
    ):
        clustering = NetworkClusteringCallback(2, "heads", warmup_steps=warmup)
        make_trainer(**{"max_epochs": 1, "callbacks": [clustering, report], **settings}).fit(Heads())
        assert not (tmp_path / "pictures").exists()
    with pytest.raises(InputError, match="every_n_epochs must be at least 1, found 0"):
        ClusterReport(every_n_epochs=0)


def test_a_resumed_training_draws_all_of_its_history(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Trainer, ClusterReport]:
        torch.manual_seed(0)
        report = ClusterReport(pictures=False)
        clustering = NetworkClusteringCallback(2, "heads", warmup_steps=2)
        trainer = make_trainer(max_epochs=epochs, callbacks=[clustering, report], log_every_n_steps=1)
        trainer.fit(Heads(), ckpt_path=ckpt_path)
        return trainer, report

    trainer, _ = run(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = run(2, tmp_path / "half.ckpt")
    _, whole = run(2)
    assert resumed.state_dict() == whole.state_dict()
    assert [step for step, _ in whole.state_dict()["losses"]["heads"]] == list(range(3, 13))


@pytest.mark.parametrize("first", [True, False])
def test_a_loss_belongs_to_its_step(make_trainer: Callable[..., Trainer], first: bool) -> None:
    """Whichever callback comes first; and a second training begins anew."""

    class Log(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            logged[trainer.global_step] = float(trainer.logged_metrics["clustering/heads/loss"])

    report, clustering = ClusterReport(pictures=False), NetworkClusteringCallback(2, "heads", warmup_steps=0)
    callbacks = [report, clustering] if first else [clustering, report]
    for _ in range(2):
        logged: dict[int, float] = {}
        trainer = make_trainer(max_epochs=1, callbacks=[*callbacks, Log()], log_every_n_steps=1)
        trainer.fit(Heads())
        losses = dict(report.state_dict()["losses"]["heads"])
        assert list(losses) == list(range(1, 6 if first else 7))
        assert losses == {step: logged[step] for step in losses}


def test_a_long_history_is_thinned(make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_ncmtl.callbacks.cluster_report._MAX_POINTS", 10)
    report = ClusterReport(pictures=False)
    clustering = NetworkClusteringCallback(2, "heads", warmup_steps=0)
    make_trainer(max_epochs=8, callbacks=[clustering, report], log_every_n_steps=1).fit(Heads())
    steps = [step for step, _ in report.state_dict()["losses"]["heads"]]
    assert len(steps) <= 10
    assert steps[0] == 1
    assert steps[-1] == 48
    assert steps == sorted(set(steps))


def test_without_clustering_it_shows_accuracies_alone(
    make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = HardShare(torch.nn.Linear(3, 3), 3, task_names=["ant", "bee", "cat"])
    rows = [
        {"inputs": torch.randn(3), "task_ids": task, "labels": 0, "clean": number > 0}
        for task in range(3)
        for number in range(2)
    ]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    trainer = make_trainer(max_epochs=1, callbacks=[ClusterReport(every_n_epochs=1)])
    trainer.fit(model, loader, loader)
    assert list(tmp_path.iterdir()) == []
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    values = {" ".join(words[:-1]): words[-1] for words in lines if words and words[-1][:1].isdigit()}
    assert values.keys() == {"ant", "bee", "cat", "average", "average without copies"}
    for label, name in (("ant", "accuracy/ant"), ("average without copies", "accuracy_clean")):
        assert values[label] == f"{float(trainer.callback_metrics[f'val/{name}']):.3f}"
