"""Controls: clusters that are given, and one network for all tasks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data import make_data
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError

MakeModel = Callable[..., NCMTL]
MakeTrainer = Callable[..., Trainer]
NAMES = ["cluster_layers.0", "cluster_layers.1", "head"]


class Watch(Callback):
    """Keeps which tasks have the same weights, after each step."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for name in NAMES:
            weight = pl_module.get_submodule(name).weight.detach().flatten(1)
            first = [next(i for i, row in enumerate(weight) if torch.equal(row, mine)) for mine in weight]
            self.seen.add(tuple(first))


def test_tasks_share_in_planted_groups_from_the_first_step(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    callback = NetworkClusteringCallback(groups="planted", targets=NAMES)
    watch, reporter = Watch(), ClusterReport(pictures=False)
    trainer = make_trainer(max_epochs=2, callbacks=[callback, watch, reporter])
    trainer.fit(make_model(num_clusters=("auto", "auto")), datamodule=datamodule)
    report = reporter.report(trainer)
    assert watch.seen == {(0, 1, 0, 1)}  # Synthetic: domain i is in group i % 2
    assert report["ari"] == dict.fromkeys(NAMES, 1.0)
    assert report["evidence"] is None
    for layer in report["layers"].values():
        assert (layer["num_clusters"], layer["frozen_at_step"], layer["trace"]) == (2, 1, [[1, [0, 1, 0, 1]]])


def test_random_groups_have_the_sizes_of_the_planted_ones_and_follow_the_seed(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = dict(zip(datamodule.domains, [7, 7, 5, 7], strict=True))
    monkeypatch.setattr(MultiDomainDataModule, "planted_groups", planted)
    found = []
    for seed in (0, 0, 1, 2, 3, 4):
        callback = NetworkClusteringCallback(groups="random", seed=seed)
        make_trainer(max_steps=1, callbacks=[callback]).fit(make_model(num_clusters="auto"), datamodule=datamodule)
        first, second = (assignment.tolist() for assignment in callback.assignments.values())
        assert sorted(first) == [0, 0, 0, 1]
        assert first == second
        found.append(tuple(first))
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_resuming_keeps_given_groups(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, tmp_path: Path
) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "it.ckpt")

    def run(ckpt_path: Path | None = None, *extra: Callback) -> tuple[NCMTL, dict[str, Any]]:
        data = make_data(datamodule.source, batch_size=16, validation_size=11, vocab_size=400)
        model, callback = make_model(num_clusters="auto"), NetworkClusteringCallback(groups="random", seed=1)
        trainer = make_trainer(max_epochs=2, callbacks=[callback, StepSeed(3), *extra])
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return model, callback.state_dict()

    model, state = run(None, Save())
    again, same = run(tmp_path / "it.ckpt")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(same["layers"], state["layers"], rtol=0, atol=0)


def test_one_cluster_in_all_layers_is_one_network_for_all_tasks(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    """As one without weights per task is: with the same start and batches, Adam leads both to the same weights."""
    model = make_model(num_clusters=(1, 1), optimizer=lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-30))
    plain = make_model(num_clusters=(1, 1), optimizer=lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-30))

    class Pooled(Callback):
        """One set of weights: all rows are of task 0."""

        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any) -> None:
            batch["task_ids"].zero_()

    callback = NetworkClusteringCallback(num_clusters=1, targets=NAMES)
    make_trainer(max_steps=6, callbacks=[callback, StepSeed(0)]).fit(model, datamodule=datamodule)
    for name in NAMES:  # the shared start is that of task 0
        assert model.get_submodule(name).weight.flatten(1).unique(dim=0).shape[0] == 1
    make_trainer(max_steps=6, callbacks=[Pooled(), StepSeed(0)]).fit(plain, datamodule=datamodule)
    for name in NAMES:
        ours, theirs = (each.get_submodule(name).weight.detach() for each in (model, plain))
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(theirs[0], theirs[1])  # it has learned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": "found"}, "groups must be 'planted', 'random' or none, found 'found'"),
        ({"warmup": "apart"}, "given clusters are for warmup='shared', found 'apart'"),
        ({"num_clusters": 3}, "cluster_layers.0 has 3 clusters, 2 are given: set it to auto"),
    ],
)
def test_settings_that_contradict_given_groups(
    settings: dict[str, Any],
    message: str,
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(max_steps=1, callbacks=[NetworkClusteringCallback(**{"groups": "planted", **settings})]).fit(
            make_model(num_clusters="auto"), datamodule=datamodule
        )


def test_unknown_groups_are_told(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MultiDomainDataModule, "planted_groups", None)
    trainer = make_trainer(max_steps=1, callbacks=[NetworkClusteringCallback(groups="random")])
    with pytest.raises(InputError, match="clustering.groups is 'random', but nothing is known of groups: tell them"):
        trainer.fit(make_model(num_clusters="auto"), datamodule=datamodule)
