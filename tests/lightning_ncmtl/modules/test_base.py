"""What holds for every system."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ncmtl import ASPMTL, NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules import MultiTaskModule

SYSTEMS: list[Callable[..., Any]] = [NCMTL, SingleTask, SoftShare, HardShare, ASPMTL, MMoE, PLE, CrossStitch]
SMALL: dict[Any, dict[str, Any]] = {  # no value is the default
    NCMTL: {"cluster_features": (8,), "num_clusters": (2,), "dropout": 0.1},
    SingleTask: {"features": (8,), "dropout": 0.1},
    SoftShare: {"features": (8,), "strength": 0.5, "dropout": 0.1},
    HardShare: {"features": (8,), "share_layers": True, "dropout": 0.1},
    ASPMTL: {"adversarial": 0.5, "orthogonality": 0.25},
    MMoE: {"num_experts": 2, "expert_features": (8,), "features": (6,), "dropout": 0.1},
    PLE: {
        "num_shared_experts": 1,
        "num_task_experts": 2,
        "expert_features": (8, 7),
        "features": (6,),
        "dropout": 0.1,
    },
    CrossStitch: {"features": (8,), "own_weight": 0.7, "dropout": 0.1},
}


def batch(tasks: list[int], classes: int = 3, **more: Any) -> dict[str, Any]:
    task_ids = torch.tensor(tasks)
    return {"inputs": torch.randn(len(tasks), 4), "task_ids": task_ids, "labels": task_ids % classes, **more}


@pytest.mark.parametrize("system", SYSTEMS)
def test_hyperparameters_are_all_arguments(system: Callable[..., Any]) -> None:
    settings = {"num_tasks": 4, "num_classes": 3, "task_names": list("abcd"), **SMALL[system]}
    settings |= {"task_classes": [[0, 1], [2, 1], [0], [0, 1, 2]], "metrics": ["AUROC"], "regression_tasks": [2]}
    model = system(nn.Linear(4, 5), **settings)
    systems = [cls for cls in inspect.getmro(system) if issubclass(cls, MultiTaskModule)]  # type: ignore[arg-type]
    arguments = {name: p for cls in systems[::-1] for name, p in inspect.signature(cls).parameters.items()}
    del arguments["settings"]  # those of the class that it derives from
    assert {"encoder", "optimizer", "lr_scheduler", "aggregator"} < arguments.keys()
    assert dict(model.hparams) == settings
    assert settings.keys() == arguments.keys() - {"encoder", "optimizer", "lr_scheduler", "aggregator"}
    assert all(arguments[name].default != value for name, value in SMALL[system].items())


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_trains_and_its_checkpoint_loads(
    system: Callable[..., Any],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:
    def encoder() -> HAN:
        return HAN(vocab_size=400, embedding_dim=8, hidden_size=4, num_layers=1)

    model = system(encoder(), num_tasks=4, task_names=datamodule.domains, **SMALL[system])
    trainer = make_trainer(max_epochs=1, gradient_clip_val=0.5)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.fit(model, datamodule=datamodule)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    assert {f"val/accuracy/{domain}" for domain in datamodule.domains} < trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    cls: Any = system
    loaded = cls.load_from_checkpoint(tmp_path / "it.ckpt", encoder=encoder(), weights_only=True)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    (test,) = make_trainer().test(loaded, datamodule=datamodule, verbose=False)
    assert 0 <= test["test/accuracy"] <= 1


@pytest.mark.parametrize("metrics", [[], ["AUROC"]])
@pytest.mark.parametrize("first", ["validate", "test", "fit"])
def test_one_model_is_evaluated_and_trained_in_any_order(
    first: str, metrics: list[str], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    """Evaluation makes tensors that training may not change: none is kept."""
    model = NCMTL(HAN(400, 8, 4, num_layers=1), 4, metrics=metrics, task_names=datamodule.domains, **SMALL[NCMTL])
    for what in (first, "fit", "validate", "fit", "test", "fit"):
        trainer = make_trainer(max_epochs=1, limit_train_batches=2)
        getattr(trainer, what)(model, datamodule=datamodule)
    assert 0 <= trainer.callback_metrics["val/accuracy"] <= 1


@pytest.mark.parametrize("system", SYSTEMS)
def test_rows_may_come_in_any_order_and_number(system: Callable[..., Any]) -> None:
    model = system(nn.Linear(4, 5), num_tasks=4, num_classes=3, **SMALL[system]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    whole = batch([2, 0, 2, 3, 0, 2])
    logits = model(whole["inputs"], whole["task_ids"])
    for row in range(6):
        alone = model(whole["inputs"][row : row + 1], whole["task_ids"][row : row + 1])
        torch.testing.assert_close(alone[0], logits[row])
    other = model(whole["inputs"], torch.full((6,), 1))
    assert not torch.isclose(other, logits).all(1).any()  # each row with the weights of its task
    assert model(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize("system", SYSTEMS)
def test_task_ids_out_of_range_are_refused(system: Callable[..., Any]) -> None:
    model = system(nn.Linear(4, 5), num_tasks=4, **SMALL[system])
    for task in (-1, 4):
        with pytest.raises(InputError, match=f"task id {task} is out of range: .* tasks 0 to 3"):
            model(torch.zeros(2, 4), torch.tensor([0, task]))


def test_evaluation_gives_the_outcome_of_each_document() -> None:
    model = SingleTask(nn.Linear(4, 5), 2, features=())
    rows = batch([0, 1, 1], classes=2, index=torch.tensor([7, 3, 9]))
    rows["labels"] = model(rows["inputs"], rows["task_ids"]).argmax(1)
    rows["labels"][1] = 1 - rows["labels"][1]
    for step in (model.validation_step, model.test_step):
        outcome = step(rows, 0)
        assert torch.equal(outcome["index"], rows["index"])
        assert outcome["correct"].tolist() == [True, False, True]
    assert "accuracy_clean" not in model.metrics.compute()
    del rows["index"]
    assert model.validation_step({**rows, "clean": torch.tensor([True, True, False])}, 0)["index"] is None
    values = model.metrics.compute()
    assert (float(values["accuracy_clean/1"]), float(values["accuracy_clean"])) == (0, 0.5)


class Words(nn.Module):
    """An encoder that notes how often it was given vectors."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 2)
        self.embedding.weight.requires_grad = not frozen
        self.layer = nn.Linear(2, 3)
        self.out_features = 3

    def load_vectors(self, vectors: Tensor) -> None:
        HAN.load_vectors(self, vectors)  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_vectors_are_loaded_once_per_table(system: Callable[..., Any], frozen: bool) -> None:
    """A table that several encoders share would else be scaled several times."""
    encoder = Words(frozen)
    start = encoder.embedding.weight.detach().clone()
    model: MultiTaskModule = system(encoder, num_tasks=4, **SMALL[system])
    vectors = torch.tensor([[torch.nan, torch.nan], [1.0, 2.0], [3.0, 7.0]])
    fake: Any = SimpleNamespace(datamodule=SimpleNamespace(vectors=lambda: vectors))
    model.trainer = fake
    model.setup("fit")
    tables = {id(m): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    assert len({id(table) for table in tables.values()}) == (1 if frozen or system is not SingleTask else 4)
    for table in tables.values():
        assert table[1:3].tolist() == [[1, 2], [3, 7]]
        torch.testing.assert_close(table[[0, 3, 4]], start[[0, 3, 4]] * vectors[1:].std())


def test_of_encoders_side_by_side_those_of_the_right_width_take_vectors() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide, self.out_features = HAN(5, 2, 3), HAN(5, 4, 3), 12

    model = ASPMTL(Both(), 2)
    wide = model.encoder.wide.embedding.weight.clone()
    fake: Any = SimpleNamespace(datamodule=SimpleNamespace(vectors=lambda: torch.tensor([[1.0, 2.0], [3.0, 7.0]])))
    model.trainer = fake
    model.setup("fit")
    assert model.encoder.narrow.embedding.weight[1].tolist() == [3, 7]
    assert torch.equal(model.encoder.wide.embedding.weight, wide)
    for private in model.private_encoders:
        assert private.narrow.embedding is model.encoder.narrow.embedding
        assert private.wide.embedding is model.encoder.wide.embedding


def test_vectors_without_a_use_are_refused() -> None:
    model = HardShare(nn.Linear(4, 5), 4)
    fake: Any = SimpleNamespace(datamodule=SimpleNamespace(vectors=lambda: torch.ones(3, 2)))
    model.trainer = fake
    with pytest.raises(InputError, match="HardShare has no encoder that takes word vectors: unset data.text.vectors"):
        model.setup("fit")


@pytest.mark.parametrize("system", SYSTEMS)
def test_ddp_that_waits_for_absent_tasks_is_refused(system: Callable[..., Any]) -> None:
    model = system(nn.Linear(4, 5), num_tasks=4, **SMALL[system])
    for wrapped in (SimpleNamespace(find_unused_parameters=True), model):
        model.trainer = SimpleNamespace(strategy=SimpleNamespace(model=wrapped))
        model.on_train_start()
    model.trainer = SimpleNamespace(strategy=SimpleNamespace(model=SimpleNamespace(find_unused_parameters=False)))
    if system not in (SingleTask, SoftShare, ASPMTL):
        model.on_train_start()
        return
    with pytest.raises(InputError, match="--trainer.strategy ddp_find_unused_parameters_true"):
        model.on_train_start()


class WithState(nn.Linear):
    """Keeps more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def test_what_an_encoder_keeps_need_not_be_tensors(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    model = HardShare(WithState(4, 5), 3, num_classes=3)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, DataLoader([batch([0, 1, 2])], batch_size=None), DataLoader([batch([0])], batch_size=None))  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = HardShare.load_from_checkpoint(tmp_path / "it.ckpt", encoder=WithState(4, 5), weights_only=True)
    assert loaded.encoder.calls == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("system", SYSTEMS)
def test_tasks_that_cannot_be_told_apart_are_refused(system: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="num_tasks must be at least 1, found 0"):
        system(nn.Linear(4, 5), 0)
    with pytest.raises(InputError, match="task_names must differ, found 'b' twice"):
        system(nn.Linear(4, 5), 3, task_names=["a", "b", "b"])


@pytest.mark.parametrize("system", [NCMTL, HardShare, MMoE, PLE, CrossStitch])
@pytest.mark.parametrize("repeated", [False, True])
def test_torch_export_takes_any_number_of_documents(system: Callable[..., Any], repeated: bool) -> None:
    """With or without several entries of a document."""
    model = system(nn.Linear(4, 5), 4, **SMALL[system]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    documents, entries = (torch.export.Dim(name) for name in ("documents", "entries"))
    shapes = ({0: documents}, *[{0: entries if repeated else documents}] * (1 + repeated))
    example, other = (
        (torch.randn(number, 4), tasks, *([torch.arange(len(tasks)) % number] if repeated else []))
        for number, tasks in ((8, torch.arange(6 if repeated else 8) % 4), (5, torch.tensor([3, 3, 0, 1, 2])))
    )
    program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    torch.testing.assert_close(program.module()(*other), model(*other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=-1.0)}, "Invalid learning rate: -1"),
        ({"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1)}, "total_steps"),
    ],
)
def test_settings_that_an_optimizer_refuses(settings: dict[str, Any], message: str) -> None:
    model = HardShare(nn.Linear(4, 5), 3, **settings)
    with pytest.raises(InputError, match=f"model.lr_scheduler was refused: .*{message}"):
        model.configure_optimizers()
