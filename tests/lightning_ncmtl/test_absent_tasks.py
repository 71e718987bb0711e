"""The oracle is an optimizer for each task, which steps only when the task is there."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ncmtl import NCMTL, TaskLinear, TaskModule, compact
from lightning_ncmtl.absent_tasks import keep_absent_tasks
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.errors import InputError

STEPS = [[0, 1, 1], [1, 3], [0, 3, 3, 0], [1], [0, 1, 3], [3], [0, 0]]  # task 2 is always absent
Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov, in place": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam, AMSGrad": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
}


class Two(nn.Module):
    """Shared, then stacked layers; of the second kind one has three arrays a task."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 4)
        self.first = TaskModule(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4, bias=False)), 4)
        self.second = TaskLinear(4, 4, 2)

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(self.shared(x), task_ids).relu(), task_ids)
        return out


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(len(tasks), 3, generator=generator), torch.tensor(tasks)) for tasks in STEPS]


def stacked(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if not name.startswith("shared")}


def backward(model: Two, batch: tuple[Tensor, Tensor]) -> None:
    model(*batch).square().sum().backward()


def row_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    state = optimizer.state.get(parameter, {})
    return {k: v.clone() for k, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


@pytest.mark.parametrize("name", ["SGD", "SGD, Nesterov, in place", "Adam", "AdamW"])
def test_it_is_an_optimizer_for_each_task(name: str) -> None:
    """Which counts all steps, as one for all tasks does: the only thing they have in common."""
    torch.manual_seed(0)
    model = Two()
    optimizer = OPTIMIZERS[name](model.parameters())
    keep_absent_tasks(optimizer, model)
    tasks = [{n: nn.Parameter(p[task].detach().clone()) for n, p in stacked(model).items()} for task in range(4)]
    theirs = [OPTIMIZERS[name](list(task.values())) for task in tasks]
    if name.startswith("Adam"):
        for each, task in zip(theirs, tasks, strict=True):
            for p in task.values():
                each.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    for number, batch in enumerate(batches()):
        optimizer.zero_grad()
        backward(model, batch)
        for present in set(batch[1].tolist()):
            for n, p in tasks[present].items():
                p.grad = model.get_parameter(n).grad[present].clone()  # type: ignore[index]
                if name.startswith("Adam"):
                    theirs[present].state[p]["step"] = torch.tensor(float(number))
            theirs[present].step()
        optimizer.step()
        for task, reference in enumerate(tasks):
            for n, p in reference.items():
                torch.testing.assert_close(model.get_parameter(n)[task], p, rtol=0, atol=1e-7)


@pytest.mark.parametrize("way", ["closure", "keyword", "none", "zeros", "scaler"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_absent_rows_stay_bitwise_and_present_ones_step_as_ever(name: str, way: str) -> None:
    """However the optimizer is called: as Lightning does, or by hand, with gradients that are zeroed or scaled."""
    torch.manual_seed(0)
    model = Two()
    optimizer = OPTIMIZERS[name](model.parameters())
    keep_absent_tasks(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=way == "scaler", init_scale=4.0)
    for batch in batches():
        plain = copy.deepcopy(model)
        other = OPTIMIZERS[name](plain.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        states = {n: row_state(optimizer, p) for n, p in model.named_parameters()}
        other.zero_grad()
        backward(plain, batch)
        other.step()

        def closure(batch: tuple[Tensor, Tensor] = batch) -> float:
            optimizer.zero_grad()
            backward(model, batch)
            return 1.5

        if way == "closure":
            assert optimizer.step(closure) == 1.5
        elif way == "keyword":
            assert optimizer.step(closure=closure) == 1.5
        elif way == "scaler":
            optimizer.zero_grad()
            scaler.scale(model(*batch).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.zero_grad(set_to_none=way == "none")
            backward(model, batch)
            optimizer.step()
        absent = torch.tensor([task not in batch[1] for task in range(4)])
        for n, p in model.named_parameters():
            kept = absent if n in stacked(model) else torch.zeros(len(p), dtype=torch.bool)
            assert torch.equal(p[kept], before[n][kept])
            assert torch.equal(p[~kept], plain.get_parameter(n)[~kept])
            expected = row_state(other, plain.get_parameter(n))
            for key, values in row_state(optimizer, p).items():
                old = states[n].get(key, torch.zeros_like(values))
                assert torch.equal(values[kept], old[kept]), key
                assert torch.equal(values[~kept], expected[key][~kept]), key


def test_on_a_gpu_which_is_not_asked_how_many_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with whole tensors."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    for name in ("SGD", "AdamW", "Adam, AMSGrad"):
        test_absent_rows_stay_bitwise_and_present_ones_step_as_ever(name, "closure")


def test_without_it_absent_tasks_move() -> None:
    model = Two()
    optimizer = torch.optim.Adam(model.parameters())
    before = []
    for batch in batches()[:2]:
        before.append(model.state_dict()["second.bias"][0].clone())
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    assert not torch.equal(model.state_dict()["second.bias"][0], before[1])  # which is not in the second


def test_a_step_that_a_scaler_skips_changes_nothing() -> None:
    model = Two()
    optimizer = torch.optim.Adam(model.parameters())
    keep_absent_tasks(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = copy.deepcopy(model.state_dict())
    first, second = batches()[:2]
    scaler.scale(model(*first).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    optimizer.zero_grad()
    scaler.scale(model(*second).sum()).backward()
    scaler.step(optimizer)
    assert (model.state_dict()["second.bias"] != before["second.bias"]).any(1).tolist() == [False, True] * 2


def test_frozen_and_foreign_parameters_are_left_alone() -> None:
    model = Two()
    model.first.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.shared.parameters(), weight_decay=0.5)
    keep_absent_tasks(optimizer, model)
    before = copy.deepcopy(model.state_dict())
    backward(model, batches()[0])
    optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"shared.weight", "shared.bias"}


def test_clusters_of_a_compact_model_are_absent_each_by_its_layer() -> None:
    """Cluster 0 of one layer is not cluster 0 of another."""
    model = nn.ModuleDict({"a": TaskLinear(4, 3, 3), "b": TaskLinear(4, 3, 3)})
    for layer in model.values():
        layer.reset_parameters(shared=True)  # type: ignore[operator]
    small = compact(model, {"a": torch.tensor([0, 0, 1, 1]), "b": torch.tensor([0, 1, 0, 1])})
    optimizer = torch.optim.AdamW(small.parameters())
    keep_absent_tasks(optimizer, small)
    before = copy.deepcopy(small.state_dict())
    x, task_ids = torch.randn(2, 3), torch.tensor([1, 1])
    small["b"](small["a"](x, task_ids), task_ids).sum().backward()
    optimizer.step()
    moved = {n: (v != before[n]).flatten(1).any(1).tolist() for n, v in small.state_dict().items() if "weight" in n}
    assert moved == {"a.clusters.weight": [True, False], "b.clusters.weight": [False, True]}


CLUSTERS = torch.tensor([0, 1, 0, 1])  # of all tasks but 2, each is there without the other of its cluster


def freeze(model: Two) -> Two:
    """The first stacked layer; its tasks have equal weights from the start."""
    model.first.freeze_clusters(CLUSTERS)
    return model.double()


@torch.no_grad()
def share(model: Two) -> None:
    """As the callback does after each step."""
    for p in model.first.parameters():
        p.copy_(torch.stack([p[cluster == CLUSTERS].mean(0) for cluster in CLUSTERS]))


def test_frozen_clusters_take_the_same_plain_steps() -> None:
    """Which are those of the tasks that are there, whoever of a cluster that is."""
    torch.manual_seed(0)
    frozen = freeze(Two())
    plain = copy.deepcopy(frozen)
    plain.first.freeze_clusters(None)
    start = copy.deepcopy(frozen.state_dict())
    for model in (frozen, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        keep_absent_tasks(optimizer, model)
        for x, task_ids in batches():
            optimizer.zero_grad()
            backward(model, (x.double(), task_ids))
            optimizer.step()
            share(model)
    for name, value in frozen.named_parameters():
        torch.testing.assert_close(value, plain.get_parameter(name), rtol=1e-10, atol=1e-12)
        if name in stacked(frozen):  # task 2 has learned from its cluster alone
            moved = (value != start[name]).flatten(1).any(1).tolist()
            assert moved == [True, True, name.startswith("first"), True]


def test_frozen_clusters_are_absent_as_those_of_a_compact_model() -> None:
    """A cluster as a whole, with its momentum. The sum of two gradients at half the rate is their mean."""
    torch.manual_seed(0)
    frozen = freeze(Two())
    small = compact(frozen, {"first": CLUSTERS})
    for model in (frozen, small):
        halves = 1.0 if model is frozen else 2.0
        groups: list[dict[str, Any]] = [
            {"params": list(model.shared.parameters()) + list(model.second.parameters())},
            {"params": list(model.first.parameters()), "lr": 0.1 / halves, "weight_decay": 0.1 * halves},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1)
        keep_absent_tasks(optimizer, model)
        for x, task_ids in batches():
            optimizer.zero_grad()
            backward(model, (x.double(), task_ids))
            optimizer.step()
    theirs = dict(small.named_parameters())
    for name, p in frozen.named_parameters():
        if name.startswith("first"):
            found = theirs[name.replace("first", "first.clusters")]
            torch.testing.assert_close(p, found[CLUSTERS], rtol=1e-10, atol=1e-12)
        else:  # with a head for each task, of which it is still known whether it is there
            torch.testing.assert_close(p, theirs[name], rtol=1e-10, atol=1e-12)


def test_tasks_of_a_frozen_cluster_that_is_there_are_absent_elsewhere() -> None:
    """Clusters that freeze after the optimizer was made."""
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    keep_absent_tasks(optimizer, model)
    freeze(model)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 3, dtype=torch.float64)
    backward(model, (x, torch.tensor([3, 3, 3])))
    optimizer.step()
    for n, p in stacked(model).items():
        expected = [False, True] * 2 if n.startswith("first") else [False] * 3 + [True]
        assert (p != before[n]).flatten(1).any(1).tolist() == expected, n


def test_sharded_parameters_are_refused() -> None:
    model = Two()
    model.second.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(InputError, match="the parameters of second are sharded, .* leave update_absent_tasks at True"):
        keep_absent_tasks(torch.optim.SGD(model.parameters()), model)


class Halves(NCMTL):
    """Its training has tasks 0 and 1 first, then 2 and 3."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), 4, 2, (6,), (2,), optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
        self.encoder.out_features = 4

    def train_dataloader(self) -> Any:
        tasks = torch.tensor([0, 1]).repeat(8, 2) + 2 * (torch.arange(8) > 3).unsqueeze(1)
        generator = torch.Generator().manual_seed(0)
        rows = [{"inputs": torch.randn(4, 4, generator=generator), "task_ids": t, "labels": t % 2} for t in tasks]
        return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return self.train_dataloader()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            self.halfway = copy.deepcopy(self.state_dict())


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
@pytest.mark.parametrize("update", [True, False])
def test_models_in_training(update: bool, settings: dict[str, Any], make_trainer: Callable[..., Trainer]) -> None:
    model = Halves()
    model.update_absent_tasks = update
    make_trainer(max_epochs=1, **settings).fit(model)
    for name in ("cluster_layers.0.weight", "cluster_layers.0.bias", "head.weight", "head.bias"):
        moved = (model.state_dict()[name] != model.halfway[name]).flatten(1).any(1)
        assert moved.tolist() == [update, update, True, True], name


def test_with_clusters_a_task_moves_with_its_own(make_trainer: Callable[..., Trainer]) -> None:
    """Of tasks 0 and 2 in one cluster, 2 learns; task 0 follows in the shared layer, not in its head."""
    model = Halves()
    model.update_absent_tasks = False
    callback = NetworkClusteringCallback(num_clusters=1, warmup_steps=0)
    make_trainer(max_epochs=1, callbacks=[callback]).fit(model)
    shared, head = model.state_dict()["cluster_layers.0.weight"], model.state_dict()["head.weight"]
    assert shared.eq(shared[0]).all()
    assert not torch.equal(shared[0], model.halfway["cluster_layers.0.weight"][0])
    assert torch.equal(head[0], model.halfway["head.weight"][0])
