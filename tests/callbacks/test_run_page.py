"""``report.html`` of real trainings: what it says is what was trained."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from html_pages import Page
from projects import Heads, data
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_ncmtl import NCMTL, HardShare
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback, ResumableCheckpoint, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule


def read(folder: Path) -> Page:
    page = Page.read(folder / "report.html")
    assert page.unclosed == []
    return page


def cells(page: Page, name: str) -> dict[str, str]:
    """A column of the table of tasks."""
    place = page.rows[0].index(name)
    return {row[0]: row[place] for row in page.rows[1:]}


def test_the_page_of_a_training_and_of_the_test_behind_it(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clustering = NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
    best = ModelCheckpoint(tmp_path / "my runs", "best", monitor="val/accuracy", mode="max")
    settings = {"logger": CSVLogger(tmp_path, "", ""), "enable_checkpointing": True}
    trainer = make_trainer(max_epochs=3, callbacks=[ClusterReport(pictures=False), clustering, best], **settings)
    model = make_model(num_clusters="auto")
    trainer.fit(model, datamodule=datamodule)

    assert f"Report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    page = read(tmp_path)
    assert page.headings[0][1].startswith("4 tasks in ")
    assert cells(page, "accuracy").keys() == {*datamodule.domains, "average"}
    for place, task in enumerate(datamodule.domains):
        found = float(model.metrics.per_task["accuracy"][place])
        assert cells(page, "accuracy")[task].startswith(f"{found:.3f}")
        assert cells(page, "cluster_layers.0")[task] == str(int(model.cluster_layers[0].assignment[place]))
        assert cells(page, "planted")[task] == str(place % 2)
    assert f"by val/accuracy: {float(best.best_model_score):.4g}" in page.words
    assert f"fit(model, dataloaders, ckpt_path={best.best_model_path!r})" not in page.words
    assert f"trainer.test(model, dataloaders, ckpt_path={best.best_model_path!r})" in page.words
    assert f"parameters {sum(each.numel() for each in model.parameters()):,}" in page.words
    steps = 3 * len(datamodule.train_dataloader())
    assert f"3 epochs, {steps} steps" in page.words
    assert "loss: validation from" in page.words

    trainer.test(model, datamodule=datamodule, ckpt_path="best", verbose=False)
    after = read(tmp_path)
    assert after.headings == page.headings
    for place, task in enumerate(datamodule.domains):
        found = float(model.metrics.per_task["accuracy"][place])
        assert cells(after, "accuracytest")[task].startswith(f"{found:.3f}")
    assert cells(after, "accuracyvalidation") == cells(page, "accuracy")
    assert f"tested {best.best_model_path}" in after.words


def test_a_test_alone_describes_the_test(
    make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:  # fmt: skip
    def callbacks() -> list[Any]:
        clustering = NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=2)
        return [ClusterReport(pictures=False), clustering]

    trainer = make_trainer(max_epochs=2, callbacks=callbacks(), default_root_dir=tmp_path / "one")
    trainer.fit(make_model(), datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    for stage in ("test", "validate"):
        other = make_trainer(callbacks=callbacks(), default_root_dir=tmp_path / stage)
        getattr(other, stage)(make_model(), datamodule=datamodule, ckpt_path=tmp_path / "end.ckpt", verbose=False)
        page = read(tmp_path / stage)
        assert page.headings[0] == read(tmp_path / "one").headings[0]
        assert f"checkpoint {tmp_path / 'end.ckpt'}" in page.words
        assert "2 epochs" in page.words
        assert "loss: validation from" in page.words
        assert cells(page, "accuracy").keys() == {*datamodule.domains, "average"}


def test_evidence_is_in_the_page(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    torch.manual_seed(0)
    clustering = NetworkClusteringCallback(targets="heads", warmup_epochs=1)
    make_trainer(max_epochs=2, callbacks=[clustering, ClusterReport(pictures=False)]).fit(Heads())
    page, evidence = read(tmp_path), clustering.clusters.evidence
    assert evidence is not None
    assert f"p = {evidence.p_value:.3g}" in page.words
    assert f"Agreement of the halves: {evidence.agreement:.2f} ± {evidence.agreement_error:.2f}" in page.words
    assert "similarity of" in page.words.lower()
    assert "the model logs no values of single tasks" in page.words
    assert "loss: validation from" in page.words


class Odd(Heads):
    """Logs as people do: with underscores, lists of values, of single tasks; and steps without a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 3, "thing": object(), "name": "</pre><script>"})
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_size", float(batch_idx), on_step=True, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_gain", float("nan"))
        self.log("valid_loss", 1.0 / (1 + self.global_step))
        self.log("val/score/ant", 0.25)
        self.log("lr", 0.1)


def test_a_project_of_another_shape(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    callbacks = [ClusterReport(), NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=1)]
    make_trainer(max_epochs=3, callbacks=callbacks).fit(Odd())
    page = read(tmp_path)
    assert cells(page, "score") == {"ant": "0.250"} | dict.fromkeys(["bee", "cat", "dog", "eel", "fox"], "")
    assert "size: training from 2.5 to 2.5" in page.words
    assert "loss: validation from" in page.words
    assert "gain: " not in page.words
    assert "'</pre><script>'" in page.words
    assert "No checkpoint was kept" in page.words


class Plain(LightningModule):
    """No tasks, no validation, no logs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    "settings", [{"max_epochs": 2}, {"max_steps": 3}, {"max_epochs": 0}, {"max_epochs": -1, "max_steps": 1}]
)
def test_a_module_without_anything(
    make_trainer: Callable[..., Trainer], tmp_path: Path, settings: dict[str, int]
) -> None:
    make_trainer(callbacks=[ClusterReport()], **settings).fit(Plain(), DataLoader(data(), batch_size=32))
    page = read(tmp_path)
    assert "Tasks were not clustered." in page.words
    assert "No tasks are known" in page.words


def test_values_of_single_tasks_are_no_curves(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = HardShare(torch.nn.Linear(3, 3), 40, task_names=[f"t{task}" for task in range(40)])
    rows = [{"inputs": torch.randn(3), "task_ids": task, "labels": task % 2} for task in range(40)]
    loader = DataLoader(rows, batch_size=20)
    make_trainer(max_epochs=2, callbacks=[report := ClusterReport()]).fit(model, loader, loader)
    assert report.state_dict()["history"]["curves"].keys() == {"train/loss", "val/loss", "val/accuracy"}
    assert "loss: validation from" in read(tmp_path).words


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_without_validation_tasks_are_known(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = HardShare(torch.nn.Linear(3, 3), 2, task_names=["ant", "bee"])
    rows = [{"inputs": torch.randn(3), "task_ids": task, "labels": task} for task in range(2)]
    make_trainer(max_epochs=2, callbacks=[ClusterReport()]).fit(model, DataLoader(rows, batch_size=2))
    page = read(tmp_path)
    assert [row[0] for row in page.rows] == ["task", "ant", "bee"]
    assert "nothing was evaluated" in page.words
    assert "loss: training from" in page.words


def test_no_page_of_a_trial_run(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer(callbacks=[ClusterReport()], fast_dev_run=True).fit(Plain(), DataLoader(data(), batch_size=32))
    assert not (tmp_path / "report.html").exists()


def test_names_that_are_not_unicode(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """As those of files may be."""
    names = ["caf\udce9", "null\0", "new\nline"]
    model = HardShare(torch.nn.Linear(3, 3), 3, task_names=names)
    rows = [{"inputs": torch.randn(3), "task_ids": task, "labels": task % 2} for task in range(3)]
    loader = DataLoader(rows, batch_size=3)
    make_trainer(max_epochs=1, callbacks=[ClusterReport()]).fit(model, loader, loader)
    assert len(read(tmp_path).rows) == 5


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_training_has_all_of_its_curves(
    make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The mean training loss of an epoch, too, that was interrupted in its middle."""

    reports = [ClusterReport(pictures=False) for _ in range(2)]
    assert len(datamodule.train_dataloader()) == 8
    for report, kept in zip(reports, ("one", "two"), strict=True):
        clustering = NetworkClusteringCallback(warmup="apart", warmup_epochs=1)
        keep = ResumableCheckpoint(tmp_path / kept, "{step}", monitor=None, every_n_train_steps=10)
        settings = {"callbacks": [report, clustering, StepSeed(), keep], "enable_checkpointing": True}
        file = None if kept == "one" else tmp_path / "one" / "step=10.ckpt"
        make_trainer(max_epochs=2, **settings).fit(make_model(), datamodule=datamodule, ckpt_path=file)
    expected, found = (report.state_dict()["history"] for report in reports)
    assert [epoch for epoch, _ in found["epochs"]] == [1, 2]
    assert found["epochs"] == expected["epochs"]
    assert found["curves"].keys() == expected["curves"].keys()
    for name in ("train/loss", "val/loss"):
        assert found["curves"][name] == [(step, pytest.approx(value)) for step, value in expected["curves"][name]]


def test_commands_can_be_typed(tmp_path: Path) -> None:
    """Paths with spaces are quoted."""
    from lightning_ncmtl.callbacks.page.next_steps import suggest

    class Made(Trainer):
        command = "ncmtl"

    trainer = Made(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    best, last = tmp_path / "my run" / "best.ckpt", tmp_path / "my run" / "it's last.ckpt"
    commands, note = suggest(trainer, "fit", str(best), str(last))
    words = [shlex.split(command) for command in commands.values()]
    assert [each[:4] for each in words] == [
        ["ncmtl", "test", "--ckpt_path", str(best)],
        ["ncmtl", "predict", "--ckpt_path", str(best)],
        ["ncmtl", "export", "--ckpt_path", str(best)],
        ["ncmtl", "fit", "--ckpt_path", str(last)],
    ]
    assert words[3][4:] == ["--trainer.max_epochs", "6"]
    assert str(Path.cwd()) in note
    assert suggest(trainer, "fit", "", "") == ({}, "")
