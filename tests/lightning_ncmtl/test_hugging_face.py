"""The callback for Hugging Face's Trainer: in a whole training, gone on with, under DDP."""

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hugging_face_fit import Model, make_trainer
from projects import data, rows_of, unshared
from torch import Tensor
from transformers import Trainer, TrainerCallback

from lightning_ncmtl import compact, hugging_face, load, save
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.clustering import HalvesSampler
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.hugging_face import NetworkClusteringTrainerCallback

PROGRAM = Path(hugging_face.__file__).parents[1] / "tests/support/hugging_face_fit.py"


class Shared(TrainerCallback):  # type: ignore[misc]
    """Checks after every step from the first clustering on that clusters share, and nobody else."""

    def __init__(self, clustering: NetworkClusteringTrainerCallback) -> None:
        self.clustering, self.steps = clustering, 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Model, **kwargs: Any) -> None:
        for assignment in self.clustering.assignments.values():
            assert unshared(rows_of(model, "net.heads"), assignment) == 0
            self.steps += 1


def check_halves(steps: list[list[int]], per_epoch: int, rows: int = 96) -> None:
    """Steps take turns, no example is ever in both halves, and each epoch has all of them."""
    seen: list[set[int]] = [set(), set()]
    for number, step in enumerate(steps):
        seen[number % per_epoch % 2].update(step)
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(rows))
    for first in range(0, len(steps), per_epoch):
        assert sorted(chain(*steps[first : first + per_epoch])) == list(range(rows))


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("warmup", ["shared", "apart"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("saved_at", [7, 18])  # in the warm-up, and behind; both inside of an epoch
def test_a_training_that_goes_on_ends_as_if_it_had_not_stopped(
    tmp_path: Path, warmup: Any, accumulate: int, saved_at: int
) -> None:
    def run(name: str, checkpoint: Path | None = None) -> tuple[NetworkClusteringTrainerCallback, Model, int]:
        callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup_steps=13, warmup=warmup)
        check = Shared(callback)
        settings = {"per_device_train_batch_size": 8 // accumulate + 1, "gradient_accumulation_steps": accumulate}
        trainer = make_trainer(tmp_path / name, callback, check, save_strategy="steps", save_steps=saved_at, **settings)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return callback, trainer.model, check.steps

    whole, expected, steps = run("whole")
    assert steps > 20
    shutil.move(tmp_path / "whole" / f"checkpoint-{saved_at}", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "whole")
    resumed, model, _ = run("resumed", tmp_path / "elsewhere")
    assert resumed.clusters.summarize() == whole.clusters.summarize()
    assert equal(model.state_dict(), expected.state_dict())
    assert model.seen == expected.seen[-len(model.seen) :]
    assert 0 < len(model.seen) < len(expected.seen)
    if warmup == "shared" and accumulate == 1:
        check_halves(expected.seen, per_epoch=11)

    small = compact(model.eval(), resumed.assignments)
    save(small, tmp_path / "small")
    x, _, task_ids = data(seed=5)[:]
    for each in (small, load(tmp_path / "small", Model())):
        assert torch.equal(each.net(x, task_ids), expected.eval().net(x, task_ids))  # type: ignore[operator]


@pytest.mark.parametrize(("rows", "drop_last"), [(96, False), (91, False), (91, True), (33, False)])
def test_halves_never_mix_with_gradient_accumulation(tmp_path: Path, rows: int, drop_last: bool) -> None:
    """Also where epochs have an odd number of steps, and the last one is small."""
    callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup_steps=2)
    settings = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 3, "dataloader_drop_last": drop_last}
    trainer = make_trainer(tmp_path, callback, rows=rows, **settings)
    trainer.train()
    seen = trainer.model.seen
    batches = rows // 5 if drop_last else -(-rows // 5)
    epochs = [seen[first : first + batches] for first in range(0, len(seen), batches)]
    steps = [[list(chain(*epoch[first : first + 3])) for first in range(0, batches, 3)] for epoch in epochs]
    halves = [{row for epoch in steps for step in epoch[half::2] for row in step} for half in (0, 1)]
    assert not halves[0] & halves[1]
    assert len(epochs) == 4
    assert epochs[0] != epochs[1]


def test_the_half_of_a_step_is_that_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a training goes on in the middle of an epoch, too, with the data of its beginning or of its middle."""
    callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup_steps=1000)
    make_trainer(tmp_path, callback, save_strategy="steps", save_steps=7).train()
    for skip in (False, True):
        halves: list[int] = []
        callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup_steps=1000)
        monkeypatch.setattr(callback.clusters, "start_step", halves.append)
        monkeypatch.setattr(callback.clusters, "before_step", lambda: None)
        monkeypatch.setattr(callback.clusters, "step", lambda: None)
        trainer = make_trainer(tmp_path / "again", callback, ignore_data_skip=not skip)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
        # 12 steps an epoch
        assert trainer.model.seen[:12] != trainer.model.seen[12:24]
        of_half: list[set[int]] = [set(), set()]
        for step, half in zip(trainer.model.seen, halves, strict=True):
            of_half[half].update(step)
        assert not of_half[0] & of_half[1]
        assert halves[:2] == ([1, 0] if skip else [0, 1])


def test_a_fresh_training_with_the_same_trainer_begins_anew(tmp_path: Path) -> None:
    callback = NetworkClusteringTrainerCallback(2, "net.heads")
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    first = callback.clusters.summarize()
    assert callback.clusters.warmup_steps == trainer.state.max_steps / 2
    trainer.train()
    assert callback.clusters.steps == trainer.state.max_steps
    assert callback.clusters.summarize()["net.heads"]["trace"][0][0] == first["net.heads"]["trace"][0][0]


def test_figures_are_logged(tmp_path: Path) -> None:
    callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup_steps=12, warmup="apart", freeze_after_epochs=3)
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    logs = {log["step"]: log for log in trainer.state.log_history}
    assert "clustering/net.heads/loss" not in logs[10]
    assert logs[15]["clustering/net.heads/loss"] > 0
    assert logs[45]["clustering/net.heads/changed"] == 0
    assert callback.clusters.summarize()["net.heads"]["frozen_at_step"] == 37


def test_bfloat16(tmp_path: Path) -> None:
    callback = NetworkClusteringTrainerCallback(2, "net.heads")
    trainer = make_trainer(tmp_path, callback, Shared(callback), bf16=True)
    trainer.train()
    assert callback.assignments["net.heads"].tolist() in ([0, 1] * 3, [1, 0] * 3)


def test_two_sets_of_tasks(tmp_path: Path) -> None:
    def make(name: str) -> Trainer:
        callbacks = [NetworkClusteringTrainerCallback(2, f"net.heads.*.{n}", warmup_steps=20) for n in (0, 2)]
        return make_trainer(tmp_path / name, *callbacks, save_strategy="steps", save_steps=9, max_steps=30)

    whole = make("whole")
    whole.train()
    resumed = make("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-9"))
    assert equal(resumed.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("warmup", ["shared", "apart"])
def test_clusters_are_those_of_the_best_model(tmp_path: Path, warmup: Any) -> None:
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    for best in ("least", "greatest"):  # the last epoch, and the first, within the warm-up
        callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup_steps=20, warmup=warmup)
        greater = {"metric_for_best_model": "loss", "greater_is_better": best == "greatest"}
        trainer = make_trainer(tmp_path / best, callback, **settings, **greater)
        trainer.train()
        assert trainer.state.best_global_step == (12 if best == "greatest" else 48)
        assert list(callback.assignments) == ([] if best == "greatest" else ["net.heads"])
        if best == "least":
            compact(trainer.model, callback.assignments)
    callback = NetworkClusteringTrainerCallback(2, "net.heads", warmup=warmup, warmup_steps=20)
    trainer = make_trainer(tmp_path / "only", callback, **settings, save_only_model=True)
    with pytest.warns(UserWarning, match=r"the best model is of step 48, but .* not in .*checkpoint-48/optimizer.pt"):
        trainer.train()


@pytest.mark.parametrize("only_model", [False, True])
def test_a_checkpoint_without_clusters_is_refused(tmp_path: Path, only_model: bool) -> None:
    callbacks = [NetworkClusteringTrainerCallback(2, "net.heads")] if only_model else []
    make_trainer(tmp_path, *callbacks, save_strategy="epoch", save_only_model=only_model).train()
    trainer = make_trainer(tmp_path, NetworkClusteringTrainerCallback(2, "net.heads"))
    with pytest.raises(InputError, match="the checkpoint has no state of these clusters, .* save_only_model=True"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-24"))


def test_examples_in_an_order_of_their_own(tmp_path: Path) -> None:
    """A sampler that the Trainer was given stays; one of ours has halves."""
    trainer = make_trainer(tmp_path, NetworkClusteringTrainerCallback(2, "net.heads"))
    trainer.args.train_sampling_strategy = "sequential"
    with pytest.warns(UserWarning, match="order of SequentialSampler .* so that the evidence for clusters is too good"):
        trainer.train()
    assert trainer.model.seen[0] == list(range(8))

    class Halved(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> HalvesSampler:
            return HalvesSampler(96, 8, seed=7)

    plain = make_trainer(tmp_path, callback := NetworkClusteringTrainerCallback(2, "net.heads"))
    halved = Halved(Model(), plain.args, train_dataset=plain.train_dataset, callbacks=[callback])
    halved.train()
    check_halves(halved.model.seen, per_epoch=12)
    assert halved.model.seen[:12] == [list(HalvesSampler(96, 8, seed=7))[first:][:8] for first in range(0, 96, 8)]


def test_sharded_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(distributed_type=SimpleNamespace(name="FSDP"))
    monkeypatch.setattr(hugging_face, "AcceleratorState", lambda: state)
    trainer = make_trainer(tmp_path, NetworkClusteringTrainerCallback(2, "net.heads"))
    with pytest.raises(InputError, match="does not support FSDP, .*: use one device, or DDP"):
        trainer.train()


def test_a_step_that_takes_all_examples_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, NetworkClusteringTrainerCallback(2, "net.heads"), per_device_train_batch_size=96)
    with pytest.raises(InputError, match="takes 96 of 96 examples: .* two steps in an epoch"):
        trainer.train()


@pytest.mark.parametrize("value", ["3", -1, float("nan"), True])
def test_epochs_of_another_kind(value: Any) -> None:
    with pytest.raises(InputError, match="freeze_after_epochs must be a number from 0, found"):
        NetworkClusteringTrainerCallback(2, "heads", freeze_after_epochs=value)


def test_the_callback_of_lightning_says_which_one_to_take(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for Lightning: .*hugging_face.NetworkClusteringTrainerCallback"):
        make_trainer(tmp_path, NetworkClusteringCallback(2, "net.heads"))


def test_two_ranks_are_equal_and_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(PROGRAM)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*command, str(tmp_path)], env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    whole = ranks[0][0]
    for other in (ranks[1][0], ranks[0][1], ranks[1][1]):
        assert equal(whole["weights"], other["weights"])
        assert whole["clusters"] == other["clusters"]
    assert sorted(whole["clusters"]["net.heads"]["assignment"]) == [0, 0, 0, 1, 1, 1]
    check_halves([a + b for a, b in zip(whole["seen"], ranks[1][0]["seen"], strict=True)], per_epoch=12)
