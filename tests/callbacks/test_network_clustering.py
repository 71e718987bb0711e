import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from data import make_data
from projects import Heads, rows_of
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from lightning_ncmtl import NCMTL, ClusterLinear
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.clustering import assign_tasks, late
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError

MakeModel = Callable[..., NCMTL]
MakeTrainer = Callable[..., Trainer]


class Watch(Callback):
    """Looks at the cluster layers after every optimizer step, behind the clustering."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.shared: list[bool] = []
        self.assignments: list[list[int]] = []
        self.rows: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        layer = pl_module.cluster_layers[0]
        if trainer.global_step in self.steps:
            return
        self.steps.append(trainer.global_step)
        self.assignments.append(layer.assignment.tolist())
        self.rows.append(rows(layer))
        self.shared.append(all_shared(pl_module))


def rows(layer: ClusterLinear) -> Tensor:
    return torch.cat([p.detach().flatten(1).clone() for p in (layer.weight, layer.bias)], 1)  # type: ignore[union-attr]


def all_shared(module: LightningModule) -> bool:
    """Whether the tasks of each cluster have bitwise equal weights, and different clusters different ones."""
    for layer in module.cluster_layers:
        values = rows(layer)
        for one in range(len(values)):
            for other in range(len(values)):
                if (layer.assignment[one] == layer.assignment[other]) != torch.equal(values[one], values[other]):
                    return False
    return True


def fit(
    callback: NetworkClusteringCallback,
    model: NCMTL,
    data: MultiDomainDataModule,
    trainer: MakeTrainer,
    **settings: Any,
) -> Watch:
    watch = Watch()
    trainer(callbacks=[callback, watch], **settings).fit(model, datamodule=data)
    return watch


def test_tasks_of_a_cluster_share_weights_after_every_step(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    model = make_model()
    callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=1, freeze_after_epochs=3)
    watch = fit(callback, model, datamodule, make_trainer, max_epochs=4)
    per_epoch = len(datamodule.train_dataloader())
    assert watch.steps == list(range(1, 4 * per_epoch + 1))
    assert not any(watch.shared[:per_epoch])  # warm-up
    assert all(watch.shared[per_epoch:])
    for number, layer in enumerate(model.cluster_layers):
        assert layer.assignment.unique().tolist() == list(range(layer.num_clusters))
        assert torch.equal(callback.assignments[f"cluster_layers.{number}"], layer.assignment)
    summary = callback.clusters.summarize()["cluster_layers.0"]
    assert summary["frozen_at_step"] == 3 * per_epoch + 1
    assert summary["trace"][0][0] == per_epoch + 1
    assert all(step <= 3 * per_epoch for step, _ in summary["trace"])
    assert summary["trace"][-1][1] == summary["assignment"] == model.cluster_layers[0].assignment.tolist()


def test_after_a_shared_warm_up_they_share_for_good(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    model = make_model()
    callback = NetworkClusteringCallback(warmup_epochs=1)
    watch = fit(callback, model, datamodule, make_trainer, max_epochs=2)
    per_epoch = len(datamodule.train_dataloader())
    assert watch.steps == list(range(1, 2 * per_epoch + 1))
    assert not any(watch.shared[:per_epoch])
    assert all(watch.shared[per_epoch:])
    for number, layer in enumerate(model.cluster_layers):
        assert layer.assignment.unique().tolist() == list(range(layer.num_clusters))
        summary = callback.clusters.summarize()[f"cluster_layers.{number}"]
        assert summary["trace"] == [[per_epoch + 1, layer.assignment.tolist()]]
        assert summary["frozen_at_step"] == per_epoch + 1


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_one_cluster_is_a_hard_layer_that_shares_from_the_first_step(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, warmup: Any
) -> None:
    model = make_model(num_clusters=(1, 3))
    callback = NetworkClusteringCallback(warmup=warmup, warmup_epochs=1)

    class Hard(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            assert rows(pl_module.cluster_layers[0]).unique(dim=0).shape[0] == 1
            assert warmup == "shared" or pl_module.cluster_layers[0].assignment.tolist() == [0] * 4

    make_trainer(max_epochs=2, callbacks=[callback, Hard()]).fit(model, datamodule=datamodule)
    first = 1 if warmup == "apart" else len(datamodule.train_dataloader()) + 1
    assert callback.clusters.summarize()["cluster_layers.0"]["trace"] == [[first, [0] * 4]]


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_assignments_stay_after_training(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, warmup: Any
) -> None:
    callback = NetworkClusteringCallback(warmup=warmup, warmup_steps=2)
    trainer = make_trainer(max_epochs=1, callbacks=[callback])
    model = make_model()
    trainer.fit(model, datamodule=datamodule)
    found = callback.assignments
    trainer.test(model, datamodule=datamodule, verbose=False)
    assert all(torch.equal(callback.assignments[name], assignment) for name, assignment in found.items())
    assert len(found) == 2


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_warmup_steps(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, warmup: Any
) -> None:
    callback = NetworkClusteringCallback(warmup=warmup, warmup_steps=3)
    watch = fit(callback, make_model(), datamodule, make_trainer, max_epochs=1)
    assert watch.shared[:4] == [False, False, False, True]


def test_gradient_accumulation_clusters_once_per_optimizer_step(
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[None] = []

    def counting(*args: Any, **settings: Any) -> Tensor:
        calls.append(None)
        return assign_tasks(*args, **settings)

    monkeypatch.setattr("lightning_ncmtl.clustering.layer_step.assign_tasks", counting)
    callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=0)
    watch = fit(callback, make_model(), datamodule, make_trainer, max_epochs=2, accumulate_grad_batches=3)
    steps = 2 * -(-len(datamodule.train_dataloader()) // 3)
    assert len(calls) == steps  # for both layers at once
    assert watch.steps == list(range(steps + 1))  # 0 before the first optimizer step
    assert all(watch.shared[1:])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, precision: str
) -> None:
    callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=1)
    model = make_model()
    watch = fit(callback, model, datamodule, make_trainer, max_epochs=2, precision=precision)
    assert watch.shared[-1]
    residual = callback.state_dict()["layers"]["cluster_layers.0"]["residual"]
    assert residual.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert residual.abs().sum() > 0


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize("move", [0.0, 5.0])
def test_equals_the_formulas_by_hand(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, precision: Any, move: float
) -> None:
    """Two steps of plain SGD, whose updates are known, with the assignments that the callback found."""

    class Before(Callback):
        """Weights as the optimizer leaves them; it runs before the clustering."""

        def __init__(self) -> None:
            self.rows: list[Tensor] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            pl_module.cluster_layers[0].weight.data[trainer.global_step % 4] += move  # so that tasks change cluster
            self.rows.append(rows(pl_module.cluster_layers[0]))

    before, watch = Before(), Watch()
    callback = NetworkClusteringCallback(warmup="apart", warmup_epochs=0, commitment=0.25)
    model = make_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    trainer = make_trainer(callbacks=[before, callback, watch], max_steps=4, precision=precision)
    trainer.fit(model, datamodule=datamodule)
    assert len(callback.clusters.summarize()["cluster_layers.0"]["trace"]) > 1 or not move
    residual = torch.zeros_like(before.rows[0])
    for optimized, shared, assignment in zip(before.rows, watch.rows, watch.assignments, strict=True):
        own = optimized + residual
        a = torch.tensor(assignment)
        centers = torch.stack([own[a == k].mean(0) for k in range(2)])
        torch.testing.assert_close(shared, centers[a])
        residual = 0.75 * (own - centers[a])
    torch.testing.assert_close(callback.state_dict()["layers"]["cluster_layers.0"]["residual"], residual)


def test_every_n_steps_clusters_less_often_but_always_shares(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    settings: dict[str, Any] = {"warmup": "apart", "warmup_epochs": 0, "freeze_after_epochs": None}
    callback = NetworkClusteringCallback(every_n_steps=4, commitment=0, **settings)
    watch = fit(callback, make_model(), datamodule, make_trainer, max_epochs=3)
    assert all(watch.shared)
    changes = [step for step, _ in callback.clusters.summarize()["cluster_layers.0"]["trace"]]
    assert changes[0] == 1
    assert all(step % 4 == 0 for step in changes[1:])


def test_literal_preset(make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule) -> None:
    model = make_model()
    callback = NetworkClusteringCallback(preset="literal", freeze_after_epochs=None)
    starts: list[Tensor] = []

    class Start(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            starts.extend([rows(model.cluster_layers[0]), model.head.weight.detach().clone()])

    watch = Watch()
    make_trainer(max_epochs=1, callbacks=[callback, Start(), watch]).fit(model, datamodule=datamodule)
    assert all(start.unique(dim=0).shape[0] == 4 for start in starts)  # independent random starts
    assert all(watch.shared)
    assert callback.state_dict()["layers"]["cluster_layers.0"]["residual"] is None


@pytest.mark.parametrize("warmup", ["apart", "shared"])
@pytest.mark.parametrize("numbers", [[4, 1], [3, 2]])
def test_num_clusters_overrides_the_layers(
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    warmup: Any,
    numbers: list[int | Literal["auto"]],
) -> None:
    model = make_model()
    callback = NetworkClusteringCallback(numbers, warmup=warmup, warmup_steps=2)
    fit(callback, model, datamodule, make_trainer, max_steps=3)
    assert [layer.num_clusters for layer in model.cluster_layers] == numbers
    assert [len(layer.assignment.unique()) for layer in model.cluster_layers] == numbers


@pytest.mark.parametrize("every", [1, 3])
def test_logs_where_the_logger_takes_them(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, tmp_path: Path, every: int
) -> None:
    trainer = make_trainer(
        max_epochs=2,
        log_every_n_steps=every,
        logger=CSVLogger(tmp_path, "", ""),
        callbacks=[NetworkClusteringCallback(warmup="apart", warmup_epochs=1)],
    )
    trainer.fit(make_model(), datamodule=datamodule)
    with open(tmp_path / "metrics.csv") as file:
        rows = [
            row for row in csv.DictReader(file) if row["train/loss_step" if "train/loss_step" in row else "train/loss"]
        ]
    per_epoch = len(datamodule.train_dataloader())
    clustered = [row for row in rows if int(row["step"]) >= per_epoch]
    assert len(clustered) >= 2
    for layer in ("cluster_layers.0", "cluster_layers.1"):
        assert all(0 <= float(row[f"clustering/{layer}/changed"]) <= 1 for row in clustered)
        assert all(float(row[f"clustering/{layer}/loss"]) > 0 for row in clustered)
        assert f"clustering/{layer}/changed" in trainer.callback_metrics  # also where an epoch ends in between


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup": "apart", "warmup_epochs": 1, "freeze_after_epochs": 4},
        {"warmup": "apart", "warmup_epochs": 2, "freeze_after_epochs": 4},
        {"warmup_epochs": 1},
        {},
    ],
    ids=str,
)
def test_resume_in_the_middle_of_an_epoch_is_exact(
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """Interrupted at a step during clustering or warm-up, with dropout and a stateful optimizer."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 14:
                trainer.save_checkpoint(tmp_path / "it.ckpt")

    def run(ckpt_path: Path | None = None, *extra: Callback) -> tuple[NCMTL, dict[str, Any], dict[str, float]]:
        data = make_data(datamodule.source, batch_size=16, validation_size=11, vocab_size=400)
        model = make_model(dropout=0.2)
        callback = NetworkClusteringCallback(**settings)
        trainer = make_trainer(max_epochs=5, callbacks=[callback, StepSeed(3), *extra])
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return model, callback.state_dict(), metrics

    model, state, metrics = run(None, Save())
    resumed_model, resumed_state, resumed_metrics = run(tmp_path / "it.ckpt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed_model.state_dict()[name]), name
    for name in ("layers", "evidence", "warmup"):
        torch.testing.assert_close(resumed_state[name], state[name], rtol=0, atol=0)
    assert resumed_metrics == metrics
    assert state["layers"]["cluster_layers.0"]["frozen_at_step"] is not None


def test_a_checkpoint_of_the_warm_up_can_be_evaluated_after_training(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, tmp_path: Path
) -> None:
    """By the same objects, which have chosen the number of clusters since: it may be the best one."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "it.ckpt")
                self.weights = copy.deepcopy(pl_module.state_dict())

    model, save = make_model(num_clusters="auto"), Save()
    callback = NetworkClusteringCallback(warmup="shared", warmup_epochs=1)
    trainer = make_trainer(max_epochs=2, callbacks=[callback, save])
    trainer.fit(model, datamodule=datamodule)
    assert model.cluster_layers[0].num_clusters != "auto"
    trainer.test(model, datamodule=datamodule, ckpt_path=tmp_path / "it.ckpt", verbose=False, weights_only=True)
    assert model.cluster_layers[0].num_clusters == "auto"
    for name in ("head.weight", "cluster_layers.0.weight"):
        assert torch.equal(model.state_dict()[name], save.weights[name])


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_state_survives_a_round_trip(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, tmp_path: Path, warmup: Any
) -> None:
    callback = NetworkClusteringCallback(warmup=warmup, warmup_steps=2)
    fit(callback, make_model(), datamodule, make_trainer, max_steps=3)
    state = callback.state_dict()
    torch.save(state, tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)  # tensors and plain values only
    other = NetworkClusteringCallback(warmup=warmup)
    other.load_state_dict(copy.deepcopy(loaded))
    for name in ("layers", "evidence"):
        torch.testing.assert_close(other.state_dict()[name], state[name], rtol=0, atol=0)
    assert other.tasks == callback.tasks == ["0", "1", "2", "3"]
    assert other.assignments.keys() == {"cluster_layers.0", "cluster_layers.1"}


def test_weights_that_are_not_finite_stop_training_before_they_spread(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    class Break(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 3:
                pl_module.cluster_layers[1].weight.data[2] = torch.nan

    model = make_model()
    callback = NetworkClusteringCallback(task_names=list("abcd"), warmup="apart", warmup_epochs=0)
    trainer = make_trainer(callbacks=[Break(), callback], max_steps=5)
    with pytest.raises(
        InputError, match=r"cluster_layers.1 has weights that are not finite .* after step 3, of the tasks c:"
    ):
        trainer.fit(model, datamodule=datamodule)
    assert model.cluster_layers[1].weight[[0, 1, 3]].isfinite().all()


def test_what_ended_a_training_is_told_rather_than_weights_of_its_last_step(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host is ahead of a device, these are known a step later."""

    class Break(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            if trainer.global_step == 2:
                pl_module.cluster_layers[1].weight.data[2] = torch.nan

        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("out of memory")

    monkeypatch.setattr(late, "AHEAD", {"cpu"})
    model = make_model()
    callback = NetworkClusteringCallback(task_names=list("abcd"), warmup="apart", warmup_epochs=0)
    trainer = make_trainer(callbacks=[Break(), callback], max_steps=5)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(model, datamodule=datamodule)
    assert not model.cluster_layers[1].weight[2].isfinite().any()
    assert model.cluster_layers[1].weight[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"commitment": 1.5}, "between 0 and 1, found 1.5"),
        ({"every_n_steps": 0}, "every_n_steps must be a whole number from 1, found 0"),
        ({"restarts": 0}, "restarts must be a whole number from 1, found 0"),
        ({"warmup_epochs": 0}, "warmup_epochs must be a whole number from 1, found 0"),
        ({"warmup": "apart", "warmup_epochs": -1}, "warmup_epochs must be a whole number from 0, found -1"),
        (
            {"warmup": "apart", "warmup_epochs": 4},
            "freeze_after_epochs 4 leaves no time to cluster after warmup_epochs 4",
        ),
        ({"preset": "magic"}, "unknown preset 'magic'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetworkClusteringCallback(**settings)


def test_bad_modules_are_refused_at_setup(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    for clusters, message in (([2], "each of the 2 targets"), (5, "must be 'auto' or in 1 .. 4 tasks, found 5")):
        with pytest.raises(InputError, match=message):
            fit(NetworkClusteringCallback(clusters), make_model(), datamodule, make_trainer, max_steps=1)  # type: ignore[arg-type]
    model = make_model(cluster_features=(), num_clusters=())
    with pytest.raises(InputError, match="NCMTL has no ClusterLinear layer"):
        fit(NetworkClusteringCallback(), model, datamodule, make_trainer, max_steps=1)


def test_missing_faiss_is_found_before_training(
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    datamodule: MultiDomainDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_ncmtl.clustering._faiss.faiss", None)
    watch = Watch()
    with pytest.raises(InputError, match="needs FAISS, which is not installed"):
        make_trainer(callbacks=[NetworkClusteringCallback(backend="faiss"), watch], max_epochs=3).fit(
            make_model(), datamodule=datamodule
        )
    assert watch.steps == []
    fit(NetworkClusteringCallback(), make_model(), datamodule, make_trainer, max_steps=3)


def test_training_shorter_than_the_warm_up_warns(
    make_model: MakeModel, make_trainer: MakeTrainer, datamodule: MultiDomainDataModule
) -> None:
    with pytest.warns(UserWarning, match="stops after 1 epochs, within the warm-up"):
        fit(NetworkClusteringCallback(warmup="apart"), make_model(), datamodule, make_trainer, max_epochs=1)
    with pytest.warns(UserWarning, match="stops after 2 steps, within the warm-up"):
        fit(
            NetworkClusteringCallback(warmup="apart", warmup_steps=2),
            make_model(),
            datamodule,
            make_trainer,
            max_steps=2,
        )


def test_a_training_that_began_without_it_is_not_averaged(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = Heads()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    before = rows_of(model)
    again = Heads()
    with pytest.raises(InputError, match="began without network clustering, and the tasks of heads differ by now"):
        make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(targets="heads")]).fit(
            again, ckpt_path=tmp_path / "it.ckpt"
        )
    assert torch.equal(rows_of(again), before)
    apart = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=1)
    with pytest.warns(UserWarning, match="began without network clustering, .* random start, .*: begin anew, or load"):
        make_trainer(max_epochs=2, callbacks=[apart]).fit(again, ckpt_path=tmp_path / "it.ckpt")
    assert apart.assignments
    # The ways out: the weights alone; and tasks that differ by nothing but their start, where that is wanted.
    for settings in ({}, {"warmup": "apart"}, {"warmup": "apart", "shared_start": False}):
        again = Heads()
        again.load_state_dict(torch.load(tmp_path / "it.ckpt", weights_only=True)["state_dict"])
        callback = NetworkClusteringCallback(2, "heads", warmup_steps=2, **settings)
        resume = None if "shared_start" not in settings else tmp_path / "it.ckpt"
        make_trainer(max_epochs=2, callbacks=[callback]).fit(again, ckpt_path=resume)
        assert callback.assignments
