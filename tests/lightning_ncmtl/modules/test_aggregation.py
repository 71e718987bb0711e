"""Gradients and losses of tasks, made one by TorchJD, against autograd and formulas for two tasks."""

import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchjd import Stateful
from torchjd.aggregation import MGDA, Constant, GradVac, Mean, PCGrad, Random, Sum, UPGrad
from torchjd.scalarization import DWA, UW

from lightning_ncmtl import ASPMTL, NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import Identity
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.main import main
from lightning_ncmtl.modules import MultiTaskModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
MakeTrainer = Callable[..., Trainer]
SYSTEMS: dict[Any, dict[str, Any]] = {
    NCMTL: {"cluster_features": (6,)},
    HardShare: {"features": (6,), "share_layers": True},
    MMoE: {"num_experts": 2, "expert_features": (6,)},
    PLE: {"num_shared_experts": 1, "expert_features": (6, 5)},
    CrossStitch: {"features": (6,)},
}


def new_model(aggregator: Any = None, system: Any = HardShare, num_tasks: int = 4, **settings: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    defaults = SYSTEMS.get(system, {"features": (6,)} if system is not ASPMTL else {})
    settings = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), **defaults, **settings}
    model: MultiTaskModule = system(nn.Linear(4, 5), num_tasks, num_classes=3, aggregator=aggregator, **settings)
    return model


def new_batch(tasks: list[int], seed: int = 1) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randn(len(tasks), 4, generator=draw),
        "task_ids": torch.tensor(tasks, dtype=torch.int64),
        "labels": torch.randint(0, 3, (len(tasks),), generator=draw),
    }


def by_name(model: nn.Module, grads: Any) -> dict[str, Tensor | None]:
    return dict(zip(dict(model.named_parameters()), grads, strict=True))


def found(model: MultiTaskModule, *batches: dict[str, Any]) -> dict[str, Tensor | None]:
    """The gradients that training would have."""
    model.zero_grad()
    for batch in batches:
        model.backward(model.loss(batch))
    return by_name(model, [parameter.grad for parameter in model.parameters()])


def of_tasks(model: MultiTaskModule, batch: dict[str, Any]) -> dict[int, dict[str, Tensor | None]]:
    """The gradients of the mean loss of each task with labels, by plain autograd."""
    losses = F.cross_entropy(model(batch["inputs"], batch["task_ids"]), batch["labels"].clamp(min=0), reduction="none")
    losses = losses * batch.get("weights", torch.ones(len(losses)))
    result = {}
    for task in batch["task_ids"][batch["labels"] >= 0].unique().tolist():
        mine = (batch["task_ids"] == task) & (batch["labels"] >= 0)
        grads = torch.autograd.grad(losses[mine].mean(), list(model.parameters()), retain_graph=True, allow_unused=True)
        result[task] = by_name(model, grads)
    return result


def total(rows: dict[int, dict[str, Tensor | None]], name: str) -> Tensor | None:
    grads = [row[name] for row in rows.values() if row[name] is not None]
    return torch.stack(grads).sum(0) if grads else None  # type: ignore[arg-type]


def shared_names(model: MultiTaskModule) -> set[str]:
    ids = {id(parameter) for parameter in model.shared_parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


@pytest.mark.parametrize("kind", [Mean, Sum])
@pytest.mark.parametrize("system", SYSTEMS)
def test_mean_and_sum_are_those_of_plain_autograd(system: Any, kind: Any) -> None:
    model = new_model(kind(), system)
    for parameter in model.parameters():  # tasks differ
        nn.init.normal_(parameter)
    batch = new_batch([0, 3, 1, 0, 0, 3, 1, 1, 0, 2])  # task 2 has no label
    batch["labels"][[3, 9]] = -1
    batch["weights"] = torch.rand(10) + 0.5
    rows = of_tasks(model, batch)
    shared = shared_names(model)
    assert {"encoder.weight"} < shared < {name for name, _ in model.named_parameters()}
    for name, grad in found(model, batch).items():
        expected = total(rows, name)
        assert expected is not None
        scale = 1 if kind is Sum and name in shared else 1 / 3
        torch.testing.assert_close(grad, expected * scale, msg=name)


def vector(row: dict[str, Tensor | None], names: set[str]) -> Tensor:
    return torch.cat([value.flatten() for name, value in row.items() if name in names])  # type: ignore[union-attr]


def pcgrad(g: Tensor, h: Tensor) -> Tensor:
    dot = min(float(g @ h), 0)
    return g - dot / (h @ h) * h + h - dot / (g @ g) * g


def upgrad(g: Tensor, h: Tensor) -> Tensor:
    return pcgrad(g, h) / 2


def mgda(g: Tensor, h: Tensor) -> Tensor:
    part = float((h - g) @ h / (g - h).square().sum())
    part = min(max(part, 0), 1)
    return part * g + (1 - part) * h


@pytest.mark.parametrize(
    ("aggregator", "formula", "tolerance"),
    [(PCGrad, pcgrad, 1e-5), (UPGrad, upgrad, 1e-3), (lambda: MGDA(epsilon=1e-7, max_iters=1000), mgda, 1e-3)],
)
@pytest.mark.parametrize("conflict", [False, True])
def test_two_tasks_against_a_formula(
    aggregator: Callable[[], Any], formula: Callable[[Tensor, Tensor], Tensor], tolerance: float, conflict: bool
) -> None:
    if aggregator is UPGrad:
        pytest.importorskip("quadprog")  # of TorchJD's extra quadprog_projector
    model = new_model(aggregator(), num_tasks=2)
    batch = new_batch([0, 1] * 4)
    # The same inputs with the same labels, or with others
    batch["inputs"][1::2] = batch["inputs"][::2] + 0.1
    batch["labels"][1::2] = (batch["labels"][::2] + conflict) % 3
    rows = of_tasks(model, batch)
    shared = shared_names(model)
    one, other = (vector(rows[task], shared) for task in (0, 1))
    assert (one @ other < 0) == conflict
    grads = found(model, batch)
    torch.testing.assert_close(vector(grads, shared), formula(one, other), rtol=tolerance, atol=tolerance)
    for name in grads.keys() - shared:  # the tasks' own
        expected = total(rows, name)
        assert expected is not None
        torch.testing.assert_close(grads[name], expected / 2)


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    model = new_model(PCGrad())
    model.encoder.bias.requires_grad = False
    model.unused = nn.Linear(2, 2)
    model.spare = nn.Linear(2, 2).requires_grad_(False)
    grads = found(model, new_batch([0, 1, 2]))
    none = {name for name, grad in grads.items() if grad is None}
    assert none == {"encoder.bias", "unused.weight", "unused.bias", "spare.weight", "spare.bias"}
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    assert {name for name, grad in found(model, new_batch([0, 1, 2])).items() if grad is not None} == {
        "head.weight",
        "head.bias",
    }


def test_batches_without_labels_have_gradients_of_zero() -> None:
    model = new_model(MGDA())
    batch = new_batch([0, 1])
    batch["labels"].fill_(-1)
    assert all(grad is not None and not grad.any() for grad in found(model, batch).values())
    empty = new_batch([])
    assert all(grad is not None and not grad.any() for grad in found(model, empty).values())


def train(
    trainer: Trainer, model: MultiTaskModule, batches: list[dict[str, Any]], **settings: Any
) -> dict[str, Tensor | None]:
    """How the parameters changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.fit(model, DataLoader(batches, batch_size=None), **settings)  # type: ignore[arg-type]
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


class TestTraining:
    def test_gradients_are_accumulated(self, make_trainer: MakeTrainer) -> None:
        batches = [new_batch([0, 1, 2, 3] * 2, seed) for seed in (1, 2)]
        model = new_model(MGDA())
        grads = [found(model, batch) for batch in batches]
        trainer = make_trainer(max_epochs=1, accumulate_grad_batches=2, log_every_n_steps=1)
        for name, change in train(trainer, model, batches).items():
            mean = (grads[0][name] + grads[1][name]) / 2  # type: ignore[operator]
            torch.testing.assert_close(change, -0.1 * mean)

    def test_gradients_are_clipped(self, make_trainer: MakeTrainer) -> None:
        trainer = make_trainer(max_epochs=1, gradient_clip_val=0.01, log_every_n_steps=1)
        changes = train(trainer, new_model(PCGrad()), [new_batch([0, 1, 2, 3])])
        norm = torch.cat([change.flatten() for change in changes.values()]).norm()  # type: ignore[union-attr]
        torch.testing.assert_close(norm, torch.tensor(0.1 * 0.01))

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
    def test_other_precisions(self, make_trainer: MakeTrainer, precision: Any) -> None:
        batch = new_batch([0, 1, 2, 3] * 4)
        expected = found(new_model(MGDA()), batch)
        trainer = make_trainer(max_epochs=1, precision=precision, log_every_n_steps=1)
        if precision != "bf16-mixed":
            batch["inputs"] = batch["inputs"].to(torch.bfloat16 if precision == "bf16-true" else torch.float64)
        changes = train(trainer, new_model(MGDA()), [batch])
        found_, wanted = (
            torch.cat([value.flatten().double() for value in each.values()])  # type: ignore[union-attr]
            for each in (changes, expected)
        )
        least = 0.9 if precision == "bf16-true" else 0.98  # the weights are rounded, too
        assert F.cosine_similarity(found_, -wanted, dim=0) > least

    @pytest.mark.parametrize("system", [SingleTask, SoftShare, ASPMTL])
    def test_systems_with_another_loss_are_refused(self, make_trainer: MakeTrainer, system: Any) -> None:
        with pytest.raises(InputError, match=f"{system.__name__} has a loss of its own.*unset model.aggregator"):
            train(make_trainer(max_epochs=1), new_model(PCGrad(), system), [new_batch([0, 1])])

    def test_uncertainties_are_learned(self, make_trainer: MakeTrainer) -> None:
        """d/ds of exp(-s) L / 2 + s / 2 at s = 0 is (1 - L) / 2."""
        batch = new_batch([0, 1, 2, 3])
        model = new_model(UW(4))
        losses, _ = model.losses(model(batch["inputs"], batch["task_ids"]), batch)
        torch.testing.assert_close(model.loss(batch), losses.sum() / 2)
        trainer = make_trainer(max_epochs=1, log_every_n_steps=1)
        train(trainer, model, [batch])
        weights: Tensor = next(iter(model._aggregation.parameters()))  # type: ignore[union-attr]
        torch.testing.assert_close(weights.detach(), -0.1 * (1 - losses.detach()) / 2)

    def test_weights_follow_the_losses_of_the_last_epochs(self, make_trainer: MakeTrainer) -> None:
        """Dynamic weight averaging (Liu, Johns & Davison, CVPR 2019, equation 7)."""
        batches = [new_batch([0, 1, 2, 3], seed) for seed in (1, 2)]
        model = new_model(DWA(temperature=2.0), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        seen: list[list[Tensor]] = []
        losses_of = model.losses

        def losses(*arguments: Any) -> tuple[Tensor, Tensor]:
            result = losses_of(*arguments)
            seen.append(result[0].detach())
            return result

        model.losses = losses  # type: ignore[method-assign]
        trainer = make_trainer(max_epochs=2, log_every_n_steps=1)
        train(trainer, model, batches)
        first, second = (torch.stack(seen[n : n + 2]).mean(0) for n in (0, 2))  # type: ignore[arg-type]
        model.__class__.current_epoch = property(lambda self: 2)  # type: ignore[assignment, method-assign]
        try:
            loss = model.loss(batches[0])
        finally:
            del model.__class__.current_epoch
        torch.testing.assert_close(loss.detach(), (4 * (second / first / 2).softmax(0) * seen[-1]).sum())  # type: ignore[operator]

    @pytest.mark.parametrize("aggregator", [PCGrad, Random, GradVac, DWA, lambda: UW(4)])
    @pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
    def test_it_resumes_exactly(self, make_trainer: MakeTrainer, tmp_path: Path, aggregator: Callable[[], Any]) -> None:
        """By what the aggregator remembers, and by seeds of what it draws at random."""

        def run(stop: int, **settings: Any) -> MultiTaskModule:
            model = new_model(aggregator(), optimizer=torch.optim.Adam)
            batches = [new_batch([0, 1, 2, 3] * 2, seed) for seed in range(2)]
            trainer = make_trainer(max_epochs=stop, log_every_n_steps=1, callbacks=[StepSeed(5)])
            train(trainer, model, batches, **settings)
            trainer.save_checkpoint(tmp_path / f"{stop}.ckpt")
            return model

        run(3)
        whole = run(5)
        resumed = run(5, ckpt_path=tmp_path / "3.ckpt", weights_only=True)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name

    @pytest.mark.parametrize("warmup", ["apart", "shared"])
    def test_clusters_share_weights_and_planted_groups_are_found(
        self, make_trainer: MakeTrainer, tmp_path: Path, warmup: Any
    ) -> None:
        """Tasks 0 and 1 answer in one way, 2 and 3 in the other."""
        draw = torch.Generator().manual_seed(0)
        batches = []
        for _ in range(20):
            tasks = torch.arange(32) % 4
            inputs = torch.randn(32, 4, generator=draw)
            labels = ((inputs[:, 0] > 0) ^ (tasks > 1)).long()
            batches.append({"inputs": inputs, "task_ids": tasks, "labels": labels, "half": len(batches) % 2})

        def run(epochs: int, **settings: Any) -> tuple[MultiTaskModule, NetworkClusteringCallback]:
            model = new_model(PCGrad(), NCMTL, num_clusters=(2,), optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
            callback = NetworkClusteringCallback(warmup=warmup, warmup_epochs=2)
            trainer = make_trainer(max_epochs=epochs, callbacks=[StepSeed(0), callback], log_every_n_steps=1)
            train(trainer, model, batches, **settings)
            trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
            return model, callback

        run(3)
        model, callback = run(5)
        layer: Any = model.cluster_layers[0]  # type: ignore[index]
        one, same, other, alike = layer.assignment.tolist()
        assert (one == same, other == alike, one == other) == (True, True, False)
        assert torch.equal(layer.weight[0], layer.weight[1])
        assert torch.equal(layer.weight[2], layer.weight[3])
        assert not torch.equal(layer.weight[0], layer.weight[2])
        resumed, again = run(5, ckpt_path=tmp_path / "3.ckpt", weights_only=True)
        for name, value in model.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        assert again.clusters.summarize() == callback.clusters.summarize()


def test_text_is_learned_with_an_aggregator(
    make_trainer: MakeTrainer, make_model: Callable[..., NCMTL], datamodule: MultiDomainDataModule, tmp_path: Path
) -> None:
    """From the class path, and what is trained needs no aggregator to be used."""
    model = make_model(aggregator={"class_path": "torchjd.aggregation.PCGrad"})
    trainer = make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(warmup_epochs=1)])
    trainer.fit(model, datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    for layer in model.cluster_layers:
        for cluster in layer.assignment.unique():  # type: ignore[operator, union-attr]
            weights = layer.weight[layer.assignment == cluster]  # type: ignore[index]
            assert (weights == weights[0]).all()
    plain = NCMTL.load_from_checkpoint(tmp_path / "it.ckpt", encoder=make_model().encoder, weights_only=True)
    assert plain._aggregation is None
    assert plain.state_dict().keys() == model.state_dict().keys() == make_model().state_dict().keys()


def start(model: MultiTaskModule, strategy: type = SingleDeviceStrategy, precision: str = "32-true") -> None:
    made: Any = object.__new__(strategy)
    if strategy is SingleDeviceStrategy:
        made._root_device = torch.device("cpu")
    fake: Any = SimpleNamespace(strategy=made, precision=precision, world_size=1, datamodule=None, callbacks=[])
    model._trainer = fake
    model.setup("fit")


def test_what_training_cannot_have_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    start(new_model(PCGrad()))
    start(new_model(UW(4)), precision="16-mixed")
    for strategy in (FSDPStrategy, type("DeepSpeedStrategy", (DDPStrategy,), {})):
        with pytest.raises(InputError, match=f"PCGrad needs whole batches.*{strategy.__name__}: set --trainer.devices"):
            start(new_model(PCGrad()), strategy)
    with pytest.raises(InputError, match="UW needs whole batches.*found the strategy DDPStrategy: set --trainer.dev"):
        start(new_model(UW(4)), DDPStrategy)
    with pytest.raises(InputError, match=r"PCGrad does not take scaled gradients.*set --trainer.precision bf16-mixed"):
        start(new_model(PCGrad()), precision="16-mixed")
    with pytest.raises(InputError, match="PCGrad works on parameters that tasks share, and there are none"):
        start(HardShare(Identity(4), 4, aggregator=PCGrad()))
    wrong = PCGrad()
    wrong.n_tasks = 3  # as NashMTL has it
    with pytest.raises(InputError, match="PCGrad is for 3 tasks, and there are 4"):
        start(new_model(wrong))
    frozen = new_model(PCGrad(), share_layers=False)
    frozen.encoder.requires_grad_(False)
    with pytest.warns(UserWarning, match="that tasks share are frozen: the aggregator PCGrad has none to work on"):
        start(frozen)


@pytest.mark.parametrize(
    ("aggregator", "message"),
    [
        (nn.ReLU(), "aggregator must be the class_path of an Aggregator .*, found ReLU"),
        (
            {"class_path": "torch.nn.ReLU"},
            "aggregator must be the class_path of .*, found {'class_path': 'torch.nn.ReLU",
        ),
        ({"trim_number": 2}, "aggregator must be the class_path of an Aggregator .*, found {'trim_number': 2}"),
        ({"class_path": "torchjd.aggregation.PCGard"}, "PCGard'} cannot be made: .*has no attribute 'PCGard'"),
        (
            {"class_path": "torchjd.aggregation.PCGrad", "init_args": {"c": 1}},
            "cannot be made: .*unexpected keyword argument 'c'",
        ),
        ({"class_path": "torchjd.scalarization.DWA", "init_args": {"temperature": 0}}, "cannot be made: .*temperature"),
        ({"class_path": "torchjd.scalarization.FAMO", "init_args": {"shape": 4}}, "FAMO needs each batch twice"),
    ],
)
def test_aggregators_that_cannot_be_made(aggregator: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_model(aggregator)


class Forgetful(PCGrad, Stateful):
    """It remembers what checkpoints cannot hold, as NashMTL does."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = object()

    def reset(self) -> None:
        pass


def test_what_cannot_be_saved_is_told() -> None:
    model = new_model(Forgetful())
    start(model)
    aggregation: Any = model._aggregation
    state = aggregation.state_dict()
    with pytest.warns(UserWarning, match="the aggregator Forgetful starts anew: what it remembers cannot be saved"):
        aggregation.load_state_dict(state)


def test_arguments_may_be_objects() -> None:
    tensor = {"class_path": "torch.tensor", "init_args": {"data": [1.0, 2.0, 3.0, 4.0]}}
    model = new_model({"class_path": "torchjd.aggregation.Constant", "init_args": {"weights": tensor}})
    batch = new_batch([0, 1, 2, 3])
    same = new_model(Constant(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert all(torch.equal(value, found(same, batch)[name]) for name, value in found(model, batch).items())  # type: ignore[arg-type]


def test_tasks_that_an_aggregator_needs_must_be_in_a_batch() -> None:
    batch = new_batch([0, 1, 3])
    for aggregator in (UW(4), DWA(), GradVac()):
        message = "remembers each task, and a batch has labels of 3 of 4: set data.batches.quota to 1"
        with pytest.raises(InputError, match=f"{type(aggregator).__name__} {message}"):
            new_model(aggregator).loss(batch)
    with pytest.raises(InputError, match="Constant found labels of 3 tasks: "):
        found(new_model(Constant(torch.ones(4))), batch)
    with pytest.raises(InputError, match="UW found labels of 4 tasks: .*shape"):
        new_model(UW(5)).loss(new_batch([0, 1, 2, 3]))


def hide_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchjd"]:
        monkeypatch.delitem(sys.modules, name)
    find_spec = PathFinder.find_spec

    def find_others(name: str, *args: Any) -> Any:
        return None if name == "torchjd" else find_spec(name, *args)

    monkeypatch.setattr(PathFinder, "find_spec", staticmethod(find_others))


def test_only_training_needs_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_torchjd(monkeypatch)
    model = new_model({"class_path": "torchjd.aggregation.PCGrad"})
    batch = new_batch([0, 1])
    assert model(batch["inputs"], batch["task_ids"]).shape == (2, 3)
    with pytest.raises(InputError, match=r"No module named 'torchjd': pip install 'lightning-ncmtl\[torchjd\]'"):
        start(model)


RANKS = [[new_batch([0, 1, 0, 2], 1), new_batch([0, 1, 2, 3], 3)], [new_batch([1, 1, 2], 2), new_batch([], 4)]]


def _train_on_rank(rank: int, folder: Path) -> None:
    for name, aggregator, steps in (("mgda", MGDA(), 1), ("random", Random(), 1), ("accumulated", MGDA(), 2)):
        model = new_model(aggregator)
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=1,
            accumulate_grad_batches=steps,
            use_distributed_sampler=False,
            callbacks=[StepSeed(0)],  # another on each rank
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(RANKS[rank], batch_size=None))  # type: ignore[arg-type]
        torch.save(model.state_dict(), folder / f"{name}{rank}.pt")


def test_two_ranks_are_one_with_both_their_batches(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    on_ranks(2, _train_on_rank, tmp_path)
    both = [{name: torch.cat([one[name], other[name]]) for name in one} for one, other in zip(*RANKS, strict=True)]
    results = {file.stem: torch.load(file, weights_only=True) for file in tmp_path.glob("*.pt")}
    for kind, steps in (("mgda", 1), ("accumulated", 2)):
        model = new_model(MGDA())
        train(make_trainer(max_epochs=1, log_every_n_steps=1, accumulate_grad_batches=steps), model, both)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(results[f"{kind}0"][name], value)
    for kind in ("mgda", "random", "accumulated"):
        assert all(torch.equal(value, results[f"{kind}1"][name]) for name, value in results[f"{kind}0"].items())


CONFIG = """
data:
  source:
    class_path: lightning_ncmtl.datamodules.sources.Synthetic
    init_args: {num_domains: 4, num_groups: 2, train_documents: 40, test_documents: 21}
  batches: {size: 8}
  split: {validation_size: 11}
model:
  init_args:
    encoder: {init_args: {embedding_dim: 8, hidden_size: 4}}
    aggregator: {class_path: torchjd.aggregation.PCGrad}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
report: {pictures: false}
"""


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)
    main(["fit", "--config", "config.yaml", "--run_dir", "fit"])
    wanted = {"class_path": "torchjd.aggregation.PCGrad"}
    assert yaml.safe_load(Path("fit/config.yaml").read_text())["model"]["init_args"]["aggregator"] == wanted
    checkpoint = "fit/checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert content["hyper_parameters"]["aggregator"] == wanted
    assert content["aggregator"]["name"] == "PCGrad"
    main(["fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2", "--run_dir", "more"])
    hide_torchjd(monkeypatch)
    main(["test", "--ckpt_path", checkpoint, "--run_dir", "test"])
    main(["export", "--ckpt_path", checkpoint, "--output", "compact"])
    assert isinstance(NCMTL.load_from_checkpoint(checkpoint, weights_only=True), NCMTL)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "config.yaml", "--run_dir", "again"])
