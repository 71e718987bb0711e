"""Of every system: tasks that predict numbers, beside tasks with classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ncmtl import ASPMTL, NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare
from lightning_ncmtl.errors import InputError

SYSTEMS: dict[Any, dict[str, Any]] = {
    NCMTL: {"cluster_features": (6,), "num_clusters": (2,)},
    SingleTask: {"features": (6,)},
    SoftShare: {"features": (6,), "strength": 0},
    HardShare: {"features": (6,)},
    ASPMTL: {"adversarial": 0, "orthogonality": 0},
    MMoE: {"expert_features": (6,)},
    PLE: {"expert_features": (6, 5)},
    CrossStitch: {"features": (6,)},
}
every = pytest.mark.parametrize("system", SYSTEMS)
NAN = float("nan")
# Tasks 0 and 2 have three and two classes, 1 and 3 predict numbers; one label of each kind is unknown
MIXED: dict[str, Any] = {"num_classes": 3, "task_classes": [[0, 1, 2], [], [0, 2], []], "regression_tasks": [1, 3]}
TASKS = torch.tensor([0, 1, 2, 3, 1, 0, 3])
LABELS = torch.tensor([1, -1, 2, -1, -1, -1, -1])
VALUES = torch.tensor([NAN, 130.0, NAN, -7.0, 90.0, NAN, NAN])
MEAN, SCALE = torch.tensor([0.0, 100.0, 0.0, -5.0]), torch.tensor([1.0, 20.0, 1.0, 0.5])


def make(system: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = system(nn.Linear(4, 5), 4, **{**SYSTEMS[system], **MIXED, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.log = lambda *args, **kwargs: None  # outside of a trainer
    model.value_mean.copy_(MEAN)
    model.value_scale.copy_(SCALE)
    return model


def batch() -> dict[str, Any]:
    torch.manual_seed(1)
    index = torch.arange(len(TASKS))
    return {"inputs": torch.randn(7, 4), "task_ids": TASKS, "labels": LABELS, "values": VALUES, "index": index}


def by_hand(model: Any, rows: dict[str, Any]) -> list[Tensor]:
    """The loss of each entry with a label, in order, from standardised outputs."""
    raw = model.logits(rows["inputs"], TASKS)
    cross_entropies = [F.cross_entropy(raw[0, :3], LABELS[0]), F.cross_entropy(raw[2, [0, 2]], torch.tensor(1))]
    squares = [(raw[row, 3] - target) ** 2 for row, target in ((1, 1.5), (3, -4.0), (4, -0.5))]
    return [cross_entropies[0], squares[0], cross_entropies[1], squares[1], squares[2]]


@every
def test_each_entry_has_the_loss_of_its_kind(system: Any) -> None:
    model, rows = make(system), batch()
    first, second, third, fourth, fifth = by_hand(model, rows)
    losses, known = model.losses(model(rows["inputs"], TASKS), rows)
    assert known.tolist() == [True, True, True, True, True, False, False]
    torch.testing.assert_close(losses[known], torch.stack([first, second, third, fourth, fifth]))
    assert losses[~known].tolist() == [0, 0]
    if issubclass(system, SingleTask):  # the sum over tasks of their means
        expected = first + (second + fifth) / 2 + third + fourth
    else:
        expected = (first + second + third + fourth + fifth) / 5
    torch.testing.assert_close(model.loss(rows), expected)
    gradients = torch.autograd.grad(model.loss(rows), list(model.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for parameter, found, right in zip(model.parameters(), gradients, wanted, strict=True):
        zeros = torch.zeros_like(parameter)
        right = zeros if right is None else right
        torch.testing.assert_close(zeros if found is None else found, right, rtol=1e-5, atol=1e-4)


@every
def test_weights_are_of_entries(system: Any) -> None:
    model, rows = make(system), batch()
    plain, known = model.losses(model(rows["inputs"], TASKS), rows)
    rows["weights"] = torch.arange(7.0)
    losses, _ = model.losses(model(rows["inputs"], TASKS), rows)
    torch.testing.assert_close(losses, plain * rows["weights"])
    if not issubclass(system, SingleTask):
        torch.testing.assert_close(model.loss(rows), losses.sum() / known.sum())


@every
def test_predictions_are_in_the_units_of_the_user(system: Any) -> None:
    model, rows = make(system).eval(), batch()
    raw = model.logits(rows["inputs"], TASKS)
    outputs = model(rows["inputs"], TASKS)
    numbers = torch.tensor([1, 3, 4, 6])
    torch.testing.assert_close(outputs[numbers, 3], raw[numbers, 3] * SCALE[TASKS[numbers]] + MEAN[TASKS[numbers]])
    found = model.predict_step(rows, 0)
    assert found["index"].tolist() == list(range(7))
    assert found["values"].isnan().tolist() == [True, False, True, False, False, True, False]
    torch.testing.assert_close(found["values"][numbers], outputs[numbers, 3])
    assert found["probabilities"].shape == (7, 3)
    assert found["probabilities"][numbers].isnan().all()
    torch.testing.assert_close(found["probabilities"][[0, 5]], raw[[0, 5], :3].softmax(1))
    torch.testing.assert_close(found["probabilities"][2, [0, 2]], raw[2, [0, 2]].softmax(0))
    assert found["probabilities"][2, 1] == 0


@every
def test_numbers_far_from_zero_need_more_than_16_bits(system: Any) -> None:
    """Of standardised outputs, all bits that these have."""
    model, rows = make(system).to(torch.bfloat16).eval(), batch()
    model.value_mean.fill_(4096)
    model.value_scale.fill_(4)
    raw = model.logits(rows["inputs"].to(torch.bfloat16), TASKS)
    outputs = model(rows["inputs"].to(torch.bfloat16), TASKS)
    numbers = [1, 3, 4, 6]
    torch.testing.assert_close(outputs[numbers, 3], 4 * raw[numbers, 3].float() + 4096, rtol=0, atol=1e-3)


@every
def test_evaluation_tells_what_is_known(system: Any) -> None:
    model, rows = make(system).eval(), batch()
    outcome = model.validation_step(rows, 0)
    assert outcome["index"].tolist() == [0, 1, 2, 3, 4]
    assert not outcome["correct"][[1, 3, 4]].any()
    result = model.metrics.compute()
    outputs = model(rows["inputs"], TASKS).detach()
    errors = outputs[[1, 4, 3], 3] - VALUES[[1, 4, 3]]
    assert float(result["rmse/1"]) == pytest.approx(float(errors[:2].square().mean().sqrt()))
    assert float(result["rmse/3"]) == pytest.approx(float(errors[2].abs()))
    assert float(result["rmse"]) == pytest.approx((float(result["rmse/1"]) + float(result["rmse/3"])) / 2)
    assert float(result["loss/1"]) == pytest.approx(float((errors[:2] / 20).square().mean()))
    assert {name for name in result if "/" in name} == {
        *("accuracy/0", "accuracy/2", "rmse/1", "rmse/3"),
        *(f"loss/{task}" for task in range(4)),
    }


def test_all_tasks_may_predict_numbers() -> None:
    model = make(NCMTL, num_classes=0, task_classes=None, regression_tasks=[0, 1, 2, 3])
    assert (model.num_outputs, model.output_mask) == (1, None)
    rows = batch() | {"labels": torch.full((7,), -1), "values": torch.arange(7.0)}
    raw = model.logits(rows["inputs"], TASKS)[:, 0]
    torch.testing.assert_close(model.loss(rows), (raw - (rows["values"] - MEAN[TASKS]) / SCALE[TASKS]).square().mean())
    assert model.predict_step(rows, 0)["probabilities"].shape == (7, 0)
    model.validation_step(rows, 0)
    assert not any("accuracy" in name for name in model.metrics.compute())


class Given(LightningDataModule):
    """One batch, and the scale of its numbers."""

    def value_scale(self) -> tuple[Tensor, Tensor]:
        return MEAN.double(), SCALE.double()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([batch()], batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def test_the_scale_is_that_of_the_data_and_stays(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def fresh() -> NCMTL:
        return NCMTL(nn.Linear(4, 5), 4, cluster_features=(6,), num_clusters=(1,), **MIXED)

    model, data = fresh(), Given()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, data)
    assert torch.equal(model.value_mean, MEAN)
    assert torch.equal(model.value_scale, SCALE)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    data.value_scale = lambda: (MEAN + 1, SCALE)  # type: ignore[method-assign]
    make_trainer(max_epochs=1).fit(model, data)
    assert torch.equal(model.value_mean, MEAN), "a trained head is of the scale that it was trained with"
    other = fresh()
    make_trainer(max_epochs=2).fit(other, data, ckpt_path=tmp_path / "it.ckpt")
    assert torch.equal(other.value_mean, MEAN)
    loaded = NCMTL.load_from_checkpoint(tmp_path / "it.ckpt", encoder=nn.Linear(4, 5))
    assert torch.equal(loaded.value_scale, SCALE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regression_tasks": [4]}, r"regression_tasks must be some of the tasks 0 .. 3, found 4"),
        ({"num_classes": 0, "task_classes": None}, r"need classes, found num_classes=0"),
        ({"task_classes": [[], [], [0], []]}, r"task_classes must list one class or more .*, found \[\] for task 0"),
        (
            {"regression_tasks": [0, 1, 2, 3], "num_classes": 0, "task_classes": None, "metrics": ["AUROC"]},
            "'AUROC', which is a metric of classes, and no task predicts any",
        ),
        (
            {"regression_tasks": None, "task_classes": None, "metrics": ["R2Score"]},
            "'R2Score', which is a metric of numbers, and no task predicts any",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NCMTL(nn.Linear(4, 5), 4, **{**MIXED, **settings})


@pytest.mark.parametrize(
    ("settings", "monitor", "mode", "message"),
    [
        (
            {},
            "val/rmse",
            "max",
            "ModelCheckpoint monitors 'val/rmse' with the mode 'max', which keeps the worst: set its",
        ),
        ({}, "val/loss", "max", "which keeps the worst: set its mode to min"),
        ({}, "val/accuracy/0", "min", "which keeps the worst: set its mode to max"),
        ({"metrics": ["R2Score"]}, "val/R2Score_pooled", "min", "which keeps the worst: set its mode to max"),
        (
            {"num_classes": 0, "task_classes": None, "regression_tasks": [0, 1, 2, 3]},
            *(
                "val/accuracy",
                "max",
                "and no task has classes: set its monitor, such as checkpoint.monitor, to another",
            ),
        ),
        ({"regression_tasks": None, "task_classes": None}, "val/rmse", "min", "and no task predicts numbers"),
    ],
)
def test_what_would_keep_the_worst_is_refused(
    make_trainer: Callable[..., Trainer], settings: dict[str, Any], monitor: str, mode: str, message: str
) -> None:
    model = NCMTL(nn.Linear(4, 5), 4, **{**MIXED, "num_clusters": [1, 1, 1], **settings})
    trainer = make_trainer(
        max_epochs=1, callbacks=[ModelCheckpoint(monitor=monitor, mode=mode)], enable_checkpointing=True
    )
    with pytest.raises(InputError, match=message):
        trainer.fit(model, Given())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_precisions_that_round_numbers_are_refused(
    make_trainer: Callable[..., Trainer], precision: Any, run: str
) -> None:
    model = NCMTL(nn.Linear(4, 5), 4, **MIXED)
    trainer = make_trainer(max_epochs=1, precision=precision)
    with pytest.raises(
        InputError, match=f"the precision {precision} rounds, in the data, too: set .* {precision[:-5]}-mixed"
    ):
        getattr(trainer, run)(model, datamodule=Given())


def test_what_a_user_logs_may_be_monitored(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    class Own(NCMTL):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.log("val/own", 1.0)

    model = Own(nn.Linear(4, 5), 4, **MIXED, num_clusters=[1, 1, 1])
    callbacks = [
        ModelCheckpoint(tmp_path, monitor=name, mode="min") for name in ("val/own", "train/loss", "val/rmse/1")
    ]
    make_trainer(max_epochs=1, callbacks=callbacks, enable_checkpointing=True).fit(model, Given())
    assert all(callback.best_model_path for callback in callbacks)
