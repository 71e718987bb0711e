import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from sklearn.metrics import adjusted_rand_score

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule


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
