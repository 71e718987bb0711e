import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from data import make_data
from projects import Heads
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from sklearn.metrics import adjusted_rand_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ncmtl import NCMTL, HardShare
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback
from lightning_ncmtl.callbacks._tables import cluster_table, evidence_line
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import SyntheticAssays
from lightning_ncmtl.encoders import NGram
from lightning_ncmtl.errors import InputError


def test_report(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clustering = NetworkClusteringCallback(warmup="apart", warmup_epochs=0, freeze_after_epochs=1)
    trainer = make_trainer(max_epochs=2, callbacks=[ClusterReport(), clustering])
    model = make_model(task_names=datamodule.domains)
    trainer.fit(model, datamodule=datamodule)

    report = json.loads((tmp_path / "clusters.json").read_text())
    assert report.keys() == {"layers", "evidence", "planted", "ari"}
    assert report["evidence"] is None
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
    shown = capsys.readouterr().out
    assert "not clustered" in shown
    assert "None" not in shown


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

    callbacks = [NetworkClusteringCallback(warmup="apart", warmup_epochs=0), ClusterReport(), Crash()]
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
    callbacks = [NetworkClusteringCallback(warmup="apart", warmup_epochs=0), ClusterReport()]
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
    clustering = NetworkClusteringCallback([2, 6], ["heads.*.0", "heads.*.2"], warmup="apart", warmup_epochs=1)
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


def test_evidence_is_told_drawn_and_written(
    make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    clustering = NetworkClusteringCallback(targets="heads", warmup_epochs=1)
    trainer = make_trainer(max_epochs=2, callbacks=[clustering, ClusterReport()])
    trainer.fit(Heads())
    report = json.loads((tmp_path / "clusters.json").read_text())
    found, evidence = report["evidence"], clustering.clusters.evidence
    assert evidence is not None
    assert found.keys() == {"num_clusters", "p_value", "agreement", "agreement_error", "gains"}
    assert {int(number): gain for number, gain in found.pop("gains").items()} == evidence.gains
    assert found == {name: getattr(evidence, name) for name in found}
    assert (tmp_path / "pictures" / "evidence.png").read_bytes().startswith(b"\x89PNG")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Clusters {evidence_line(report)} " in shown


def a_report(found: int, num_clusters: list[int], tasks: int = 14, **changes: Any) -> dict[str, Any]:
    assignment = {str(task): 0 for task in range(tasks)}
    layers = {str(k): {"num_clusters": k, "assignment": assignment} for k in num_clusters}
    evidence = {"num_clusters": found, "p_value": 0.001, "agreement": 0.621, "agreement_error": 0.049}
    return {"layers": layers, "evidence": evidence | changes}


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (a_report(3, [3, 3]), "evidence for 3 clusters, agreement of halves 0.62 ± 0.05, p = 0.001"),
        (a_report(14, [14]), "evidence that every task differs, agreement of halves 0.62 ± 0.05, p = 0.001"),
        (
            a_report(1, [1, 1], p_value=0.452, agreement=-0.03),
            "no evidence for clusters (agreement of halves -0.03 ± 0.05, p = 0.452): all tasks share",
        ),
        # Whose number was given
        (
            a_report(1, [3, 10]),
            "no evidence for clusters (agreement of halves 0.62 ± 0.05, p = 0.001; tasks differ, but each in its own "
            "way)",
        ),
        (a_report(1, [1], agreement_error=None, p_value=1.0), "no evidence for clusters (agreement of halves 0.62, "
         "p = 1): all tasks share"),
    ],
)  # fmt: skip
def test_evidence_in_a_line(report: dict[str, Any], line: str) -> None:
    assert evidence_line(report) == line


def test_no_pictures(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """When they are not wanted, when nothing was clustered, and in a trial run."""
    for warmup, report, settings in (
        (0, ClusterReport(pictures=False), {}),
        (99, ClusterReport(), {}),
        (0, ClusterReport(), {"fast_dev_run": True}),
    ):
        clustering = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=warmup)
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

    report, clustering = (
        ClusterReport(pictures=False),
        NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=0),
    )
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
    clustering = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=0)
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
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    values = {" ".join(words[:-1]): words[-1] for words in lines if words and words[-1][:1].isdigit()}
    assert values.keys() == {"ant", "bee", "cat", "average", "average without copies"}
    for label, name in (("ant", "accuracy/ant"), ("average without copies", "accuracy_clean")):
        assert values[label] == f"{float(trainer.callback_metrics[f'val/{name}']):.3f}"


def many_tasks(tasks: int) -> tuple[NCMTL, torch.utils.data.DataLoader[Any]]:
    torch.manual_seed(0)
    names = [f"task{task}" for task in range(tasks)]
    model = NCMTL(torch.nn.Linear(3, 4), tasks, cluster_features=(4,), num_clusters=(5,), task_names=names)
    # Of the last task there is no label
    rows = [
        {"inputs": torch.randn(3), "task_ids": number % tasks, "labels": -1 if number % tasks == tasks - 1 else 1}
        for number in range(3 * tasks)
    ]
    return model, torch.utils.data.DataLoader(rows, batch_size=32)


def test_values_of_many_tasks_go_to_a_file(
    make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, loader = many_tasks(60)
    tensorboard = TensorBoardLogger(tmp_path, name="", version="")
    clustering = NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
    report = ClusterReport(pictures=False)
    trainer = make_trainer(max_epochs=2, callbacks=[clustering, report], logger=tensorboard, log_every_n_steps=1)

    trainer.fit(model, loader, loader)
    assert not any("task" in name for name in trainer.callback_metrics)
    trainer.test(model, loader, verbose=False)
    table = pd.read_csv(tmp_path / "tasks-val.csv")
    assert list(table) == ["task", "count", "accuracy", "loss", "cluster_layers.0"]
    assert table["task"].tolist() == [f"task{task}" for task in range(60)]
    assert table["count"].tolist() == [3] * 59 + [0]
    assert table["cluster_layers.0"].tolist() == model.cluster_layers[0].assignment.tolist()
    assert table["accuracy"].mean() == pytest.approx(float(trainer.callback_metrics["test/accuracy"]), abs=1e-6)
    assert table[["accuracy", "loss"]].isna().sum().tolist() == [1, 1]
    assert (tmp_path / "tasks-test.csv").read_text() == (tmp_path / "tasks-val.csv").read_text()

    shown = capsys.readouterr().out
    assert "the worst of 60 tasks" in shown
    assert "average of these 10" in shown
    worst = table.sort_values("accuracy", kind="stable")["task"][:10].tolist()
    listed = [line.split()[1] for line in shown.split("Validation")[1].splitlines() if line.startswith("│ task")]
    assert listed == worst
    sizes = model.cluster_layers[0].assignment.bincount().tolist()
    assert all(f"{size} task" in shown for size in sizes)
    assert shown.count("task") < 60
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()  # all of them
    assert events.Tags()["histograms"] == ["val/accuracy_of_tasks", "test/accuracy_of_tasks"]
    assert [event.histogram_value.num for event in events.Histograms("val/accuracy_of_tasks")] == [59, 59]
    assert len(events.Tags()["scalars"]) < 20


@pytest.mark.parametrize("tasks", [3, 60])
def test_metrics_stand_beside_accuracies(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], tasks: int
) -> None:
    torch.manual_seed(0)
    model = HardShare(torch.nn.Linear(3, 3), tasks, metrics=["AUROC", "CalibrationError"])
    rows = [
        {"inputs": torch.randn(3), "task_ids": task, "labels": number % 2 if task != 1 else 0}  # task 1 is skipped
        for task in range(tasks)
        for number in range(4)
    ]
    loader = torch.utils.data.DataLoader(rows, batch_size=6)
    trainer = make_trainer(max_epochs=1, callbacks=[ClusterReport()])
    trainer.fit(model, loader, loader)
    shown = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    values = {name.strip(): [cell.strip() for cell in cells] for name, *cells in shown}
    names = ["accuracy", "AUROC", "CalibrationError"]
    assert values["average"] == [f"{float(trainer.callback_metrics[f'val/{name}']):.3f}" for name in names]
    for name, cells in values.items():
        if name.isdigit():
            expected = [float(model.metrics.per_task[metric][int(name)]) for metric in names]
            assert cells == ["" if value != value else f"{value:.3f}" for value in expected]
    assert len(values) == (3 if tasks == 3 else 10) + (1 if tasks == 3 else 2)


def test_of_few_tasks_or_in_a_trial_run_there_is_no_file(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    for tasks, settings in ((50, {}), (51, {"fast_dev_run": True})):
        model, loader = many_tasks(tasks)
        make_trainer(**{"max_epochs": 1, "callbacks": [ClusterReport(pictures=False)], **settings}).fit(
            model, loader, loader
        )
        assert list(tmp_path.glob("tasks*")) == []


def test_the_file_tells_the_planted_group(
    make_trainer: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SyntheticAssays(num_assays=51, assay_groups=3, train_molecules=80, test_molecules=20, assay_imbalance=1)
    data = make_data(source, batch_size=40, validation_size=20, vocab_size=200, min_frequency=1)
    encoder = NGram(200, 8, n=1, num_buckets=1)
    model = NCMTL(encoder, 51, cluster_features=(4,), num_clusters=(3,), task_names=data.domains)
    callbacks = [NetworkClusteringCallback(warmup="apart", warmup_steps=0), ClusterReport(pictures=False)]
    make_trainer(max_epochs=1, callbacks=callbacks).fit(model, datamodule=data)
    table = pd.read_csv(tmp_path / "tasks-val.csv")
    assert list(table) == ["task", "count", "accuracy", "loss", "accuracy_clean", "planted", "cluster_layers.0"]
    assert dict(zip(table["task"], table["planted"], strict=True)) == source.planted_groups
    labels = [task for batch in data.val_dataloader() for task in batch["task_ids"].tolist()]
    assert table["count"].tolist() == [labels.count(task) for task in range(51)]
    shown = capsys.readouterr().out
    found = adjusted_rand_score(table["planted"], table["cluster_layers.0"])
    assert f"ARI {found:.3f}" in shown
    assert "assay50" not in shown.split("Validation")[0]


def test_many_clusters_are_shown_in_part() -> None:
    assignment = {f"task{task}": min(task, 70) for task in range(100)}
    layer = {"num_clusters": 71, "assignment": assignment, "frozen_at_step": None, "trace": []}
    console = Console(width=100, record=True, file=StringIO())
    console.print(cluster_table({"layers": {"layer": layer}, "evidence": None, "ari": None}))
    shown = console.export_text()
    assert "70  30 tasks  task70, task71, task72, task73, task74, ..." in shown
    assert "0   1 task    task0 " in shown
    assert "and 21 clusters that are no larger" in shown
    assert len(shown.splitlines()) < 60
