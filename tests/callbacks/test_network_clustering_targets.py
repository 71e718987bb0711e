"""The callback in projects that know nothing of this package."""

import importlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from projects import Heads, Stacked, rows_of, unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_ncmtl import ClusterLinear, compact
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.errors import InputError

MakeTrainer = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")
of_both_kinds = pytest.mark.parametrize("warmup", ["apart", "shared"])


@of_both_kinds
def test_a_layer_per_part_of_the_heads(make_trainer: MakeTrainer, warmup: Any) -> None:
    """Each with its own number of clusters; what is not named stays apart."""
    model = Heads()
    model.heads = nn.ModuleDict({key: nn.Sequential(*head, nn.Linear(1, 1)) for key, head in model.heads.items()})
    callback = NetworkClusteringCallback([2, 3], ["heads.*.0", "heads.*.2"], warmup=warmup, warmup_steps=2)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    assert list(callback.assignments) == ["heads.*.0", "heads.*.2"]
    for (name, assignment), clusters in zip(callback.assignments.items(), (2, 3), strict=True):
        part = name.rsplit(".", 1)[1]
        rows = torch.stack(
            [nn.utils.parameters_to_vector(h.get_submodule(part).parameters()) for h in model.heads.values()]
        )
        assert len(assignment.unique()) == clusters
        assert unshared(rows.detach(), assignment) == 0
    rest = torch.stack([nn.utils.parameters_to_vector(head[3].parameters()) for head in model.heads.values()])
    assert len(rest.unique(dim=0)) == 6


@of_both_kinds
def test_stacked_parameters(make_trainer: MakeTrainer, warmup: Any) -> None:
    model = Stacked()
    callback = NetworkClusteringCallback(2, ["experts", "binary"], warmup=warmup, warmup_steps=2)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    binary = torch.cat([model.binary.weight, model.binary.bias.unsqueeze(1)], 1).detach()
    assert unshared(model.experts.detach().flatten(1), callback.assignments["experts"]) == 0
    assert unshared(binary, callback.assignments["binary"]) == 0
    assert callback.tasks == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("settings", [{"warmup": "apart", "shared_start": False}, {}], ids=str)
def test_heads_and_a_stack_of_the_same_weights_train_alike(make_trainer: MakeTrainer, settings: dict[str, Any]) -> None:
    """A container of modules and a stacked parameter are two ways to write one network."""

    class One(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(6))

        def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
            x = self.backbone(x).relu()
            every = torch.cat([head(x) for head in self.heads], 1)
            return every.gather(1, task_ids.unsqueeze(1)).squeeze(1)

    class Other(One):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.Linear(8, 6)  # type: ignore[assignment]

        def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
            return self.heads(self.backbone(x).relu()).gather(1, task_ids.unsqueeze(1)).squeeze(1)

    torch.manual_seed(1)
    one, other = One(), Other()
    other.backbone.load_state_dict(one.backbone.state_dict())
    with torch.no_grad():
        other.heads.weight.copy_(torch.cat([head.weight for head in one.heads]))
        other.heads.bias.copy_(torch.cat([head.bias for head in one.heads]))
    found = []
    for model in (one, other):
        callback = NetworkClusteringCallback(2, "heads", warmup_steps=3, **settings)
        make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
        found.append(callback.assignments["heads"])
    assert torch.equal(*found)
    torch.testing.assert_close(rows_of(one)[:, :8], other.heads.weight.detach())


def test_stacks_and_modules_together(make_trainer: MakeTrainer) -> None:
    """Targets of both forms, and a third part that is specific."""

    class Mix(Stacked):
        def __init__(self) -> None:
            super().__init__()
            del self.experts
            self.experts = nn.ModuleList(nn.Linear(8, 5) for _ in range(6))
            self.scale = nn.Parameter(torch.ones(6, 1))

        def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
            x = self.backbone(x).relu()
            hidden = torch.stack([expert(x) for expert in self.experts], 1)[torch.arange(len(x)), task_ids].tanh()
            return self.binary(hidden).gather(1, task_ids.unsqueeze(1)).squeeze(1) * self.scale[task_ids, 0]

    model = Mix()
    callback = NetworkClusteringCallback([2, 3], ["experts", "binary"], specific="scale", warmup_steps=4)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    binary = torch.cat([model.binary.weight, model.binary.bias.unsqueeze(1)], 1).detach()
    assert unshared(rows_of(model, "experts"), callback.assignments["experts"]) == 0
    assert unshared(binary, callback.assignments["binary"]) == 0
    for part in range(3):  # one hierarchy
        assert len(callback.assignments["experts"][callback.assignments["binary"] == part].unique()) == 1
    assert len(model.scale.unique()) == 6


@of_both_kinds
def test_layers_that_are_made_late(make_trainer: MakeTrainer, tmp_path: Path, warmup: Any) -> None:
    """In configure_model and in setup; also when a checkpoint is loaded."""

    class Late(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.late_heads, self.heads = self.heads, None  # type: ignore[assignment]
            del self.late_heads
            self.cluster: ClusterLinear | None = None

        def setup(self, stage: str) -> None:
            if self.cluster is None:
                self.cluster = ClusterLinear(6, 8, 8, num_clusters=3)

        def configure_model(self) -> None:
            if self.heads is None:
                self.heads = Heads().heads

        def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
            assert self.cluster is not None
            x = self.cluster(self.backbone(x).relu(), task_ids)
            return torch.cat([head(x) for head in self.heads.values()], 1).gather(1, task_ids.unsqueeze(1)).squeeze(1)

    def run(epochs: int, ckpt_path: Path | None = None) -> tuple[Trainer, NetworkClusteringCallback, Late]:
        callback = NetworkClusteringCallback([2, 3], ["heads", "cluster"], warmup=warmup, warmup_epochs=1)
        trainer = make_trainer(max_epochs=epochs, callbacks=[callback])
        torch.manual_seed(0)
        model = Late()
        trainer.fit(model, ckpt_path=ckpt_path, weights_only=True)
        return trainer, callback, model

    trainer, _, _ = run(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, model = run(4, tmp_path / "half.ckpt")
    _, whole, expected = run(4)
    assert resumed.clusters.summarize() == whole.clusters.summarize()
    assert resumed.tasks == ["ant", "bee", "cat", "dog", "eel", "fox"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert torch.equal(model.cluster.assignment, resumed.assignments["cluster"])  # type: ignore[union-attr]


class Start(Callback):
    """The heads as training finds them."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = rows_of(pl_module)


@of_both_kinds
def test_shared_start(make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture, warmup: Any) -> None:
    model, start = Heads(), Start()
    first = rows_of(model)[0]
    callback = NetworkClusteringCallback(2, "heads", warmup=warmup, warmup_steps=2)
    with caplog.at_level(logging.INFO):
        make_trainer(max_steps=3, callbacks=[callback, start]).fit(model)
    assert start.rows.eq(first).all()
    assert "shared start: all tasks of heads start from the weights of 'ant'" in caplog.text
    assert "heads: 2 clusters of 6 tasks with 51 parameters each" in caplog.text


@pytest.mark.parametrize("settings", [{"shared_start": False}, {"preset": "literal"}])
def test_own_start(make_trainer: MakeTrainer, settings: dict[str, Any]) -> None:
    model, start = Heads(), Start()
    rows = rows_of(model)
    callback = NetworkClusteringCallback(2, "heads", **{"warmup": "apart", "warmup_steps": 1, **settings})
    make_trainer(max_steps=2, callbacks=[callback, start]).fit(model)
    assert torch.equal(start.rows, rows)


@of_both_kinds
def test_no_shared_start_when_training_resumes(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, warmup: Any
) -> None:
    """Neither with the callback's state in the checkpoint, nor when it is added to a training that began without.

    (The latter is for a warm-up apart alone, and a warning says what it does not do.)
    """
    before = NetworkClusteringCallback(2, "heads", warmup=warmup, warmup_steps=99)
    for number, callbacks in enumerate([[before]] if warmup == "shared" else [[before], []]):
        model, start = Heads(), Start()
        trainer = make_trainer(max_epochs=1, callbacks=callbacks)
        trainer.fit(model)
        trainer.save_checkpoint(tmp_path / f"{number}.ckpt")
        caplog.clear()
        callback = NetworkClusteringCallback(2, "heads", warmup=warmup, warmup_steps=3)
        told = pytest.warns(UserWarning, match="the tasks of heads differ by now") if number else nullcontext()
        with caplog.at_level(logging.INFO), told:
            make_trainer(max_epochs=2, callbacks=[callback, start]).fit(Heads(), ckpt_path=tmp_path / f"{number}.ckpt")
        assert torch.equal(start.rows, rows_of(model))
        assert len(start.rows.unique(dim=0)) == 6
        assert "shared start" not in caplog.text
        assert callback.assignments


@of_both_kinds
def test_task_names(make_trainer: MakeTrainer, warmup: Any) -> None:
    names = ["Ant", "Bee", "Cat", "Dog", "Eel", "Fox"]
    callback = NetworkClusteringCallback(2, "heads", task_names=names, warmup=warmup, warmup_steps=2)
    make_trainer(max_steps=3, callbacks=[callback]).fit(Heads())
    assert callback.tasks == names
    for wrong in (names[:5], ["Ant"] * 6):
        callback = NetworkClusteringCallback(2, "heads", task_names=wrong, warmup=warmup)
        with pytest.raises(InputError, match="task_names must be 6 different names, one per task, found"):
            make_trainer(max_steps=2, callbacks=[callback]).fit(Heads())


@pytest.mark.parametrize("names", ["abcdef", [1, 2, 3, 4, 5, 6]])
def test_task_names_that_are_no_list_of_strings(names: Any) -> None:
    with pytest.raises(InputError, match="task_names must be a list of strings, found"):
        NetworkClusteringCallback(2, "heads", task_names=names)


@of_both_kinds
@pytest.mark.parametrize("warmup_steps", [2, 99])
def test_tasks_in_another_order_are_refused(
    make_trainer: MakeTrainer, tmp_path: Path, warmup: Any, warmup_steps: int
) -> None:
    """Weights are loaded by name, clusters and residuals by place."""
    settings = {"warmup": warmup, "warmup_steps": warmup_steps}
    trainer = make_trainer(max_epochs=1, callbacks=[NetworkClusteringCallback(2, "heads", **settings)])
    trainer.fit(Heads())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    model = Heads()
    model.heads = nn.ModuleDict(reversed(model.heads.items()))
    other = make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(2, "heads", **settings)])
    with pytest.raises(InputError, match="the checkpoint has the tasks ant, .*fox; the module fox, .*ant"):
        other.fit(model, ckpt_path=tmp_path / "it.ckpt")


def test_freezing_right_after_the_first_clustering_warns(make_trainer: MakeTrainer) -> None:
    """The warm-up in steps may outlast the epochs after which clusters are frozen."""
    callback = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=13, freeze_after_epochs=1)
    with pytest.warns(UserWarning, match="heads is frozen right after its first clustering: freeze clusters later"):
        make_trainer(max_epochs=3, callbacks=[callback]).fit(Heads())
    assert callback.clusters.summarize()["heads"]["frozen_at_step"] == 15


def test_not_finite_weights_stop_the_training_and_leave_the_last_good_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Diverge(Heads):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if self.trainer.global_step == 8:
                with torch.no_grad():
                    self.heads["dog"][0].weight[0, 0] = torch.inf
            return super().training_step(batch, batch_idx)

    last = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    callback = NetworkClusteringCallback(2, "heads", warmup="apart", warmup_steps=2)
    trainer = make_trainer(max_epochs=3, callbacks=[last, callback], enable_checkpointing=True)
    with pytest.raises(InputError, match=r"heads has weights .* after step 9, of the tasks .*dog"):
        trainer.fit(Diverge())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 8
    assert all(value.isfinite().all() for value in content["state_dict"].values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "haeds"}, "the target 'haeds' names nothing in the module: no 'haeds' in Heads"),
        ({"targets": "heads", "num_clusters": 2.0}, "must be 'auto' or in 1 .. 6 tasks, found 2.0"),
        ({"targets": "heads", "num_clusters": 7}, "num_clusters of heads must be 'auto' or in 1 .. 6 tasks, found 7"),
        ({"targets": ["heads.*.0", "heads.*.2"], "num_clusters": [2]}, "each of the 2 targets heads.*.0, heads.*.2"),
        ({"targets": None}, "Heads has no ClusterLinear layer .* name its per-task modules in targets"),
        ({"targets": ["heads", "heads"]}, "targets must differ, found"),
        ({"targets": []}, "Heads has no ClusterLinear layer"),
    ],
)
def test_bad_targets_are_refused_before_training(
    make_trainer: MakeTrainer, settings: dict[str, Any], message: str
) -> None:
    start = Start()
    callback = NetworkClusteringCallback(**{"num_clusters": 2, **settings})
    with pytest.raises(InputError, match=message):
        make_trainer(max_steps=2, callbacks=[callback, start]).fit(Heads())
    assert not hasattr(start, "rows")


@of_both_kinds
@pytest.mark.parametrize("warmup_steps", [2, 99])
def test_a_checkpoint_with_other_clusters_is_refused(
    make_trainer: MakeTrainer, tmp_path: Path, warmup: Any, warmup_steps: int
) -> None:
    settings = {"warmup": warmup, "warmup_steps": warmup_steps}
    trainer = make_trainer(max_epochs=1, callbacks=[NetworkClusteringCallback(2, "heads", **settings)])
    trainer.fit(Heads())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    other = make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(3, "heads", **settings)])
    with pytest.raises(InputError, match="it has the clusters {'heads': 2}, this model {'heads': 3}"):
        other.fit(Heads(), ckpt_path=tmp_path / "it.ckpt")
    settings["warmup"] = "apart" if warmup == "shared" else "shared"
    other = make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(2, "heads", **settings)])
    with pytest.raises(InputError, match=f"was trained with warmup='{warmup}', found '{settings['warmup']}'"):
        other.fit(Heads(), ckpt_path=tmp_path / "it.ckpt")


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_strategies_that_shard_are_refused(package: str, name: str) -> None:
    strategy = getattr(importlib.import_module(f"{package}.strategies"), name)
    trainer = SimpleNamespace(strategy=strategy.__new__(strategy), global_step=0)  # they need devices that tests lack
    with pytest.raises(InputError, match=f"does not support {name}, .*: use ModelParallelStrategy"):
        NetworkClusteringCallback(2, "heads").setup(trainer, Heads(), "fit")  # type: ignore[arg-type]


@of_both_kinds
@pytest.mark.parametrize("when", [1, 3])
def test_heads_that_are_replaced_during_training_are_refused(make_trainer: MakeTrainer, warmup: Any, when: int) -> None:
    """As by schedules of fine-tuning: in the warm-up, and later."""

    class Replace(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == when:
                pl_module.heads["cat"] = Heads().heads["cat"]

    callback = NetworkClusteringCallback(2, "heads", warmup=warmup, warmup_epochs=2)
    trainer = make_trainer(max_epochs=5, callbacks=[Replace(), callback])
    with pytest.raises(InputError, match="heads.cat.0.weight is another parameter .* begin a new training with a new"):
        trainer.fit(Heads())
    assert trainer.current_epoch == when
    assert trainer.fit_loop.epoch_loop.batch_idx == 0


def test_a_compact_model_is_refused() -> None:
    model = Heads()
    with torch.no_grad():
        for head in model.heads.values():
            head.load_state_dict(model.heads["ant"].state_dict())
    small = compact(model, {"heads": torch.zeros(6, dtype=torch.int64)})
    for targets, message in ((None, "the model is compact, its tasks share for good"), ("heads", "one and the same")):
        with pytest.raises(InputError, match=message):
            NetworkClusteringCallback(2, targets).on_fit_start(Trainer(logger=False), small)
