"""The shared warm-up: own ways by halves of the data, then clusters with evidence."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from projects import Heads, data, rows_of, unshared
from pytorch_lightning import Trainer
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ncmtl import ClusterLinear, TaskLinear, TaskModule
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.clustering import NetworkClustering
from lightning_ncmtl.clustering.layer_state import FADING, MEMORY, STEP
from lightning_ncmtl.errors import InputError

TASKS, FEATURES = 12, 6
Batch = tuple[Tensor, Tensor, Tensor, int]


class Network(nn.Module):
    """Two layers per task, without anything that all share."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = ClusterLinear(TASKS, FEATURES, 8, num_clusters=2)
        self.head = TaskLinear(TASKS, 8, 1)

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        return self.head(self.first(x, task_ids).tanh(), task_ids).squeeze(1)


def examples(groups: int, seed: int = 0, rows: int = 2400, noise: float = 0.3) -> list[Batch]:
    """Batches that take turns between the halves; task t follows the rule of group t % groups."""
    generator = torch.Generator().manual_seed(seed)
    rules = torch.randn(groups, FEATURES, generator=generator)
    x = torch.randn(rows, FEATURES, generator=generator)
    task_ids = torch.arange(rows) % TASKS
    y = (x * rules[task_ids % groups]).sum(1).tanh() + noise * torch.randn(rows, generator=generator)
    halves = [torch.arange(rows)[(torch.arange(rows) // TASKS) % 2 == half] for half in (0, 1)]
    parts = [zip(*(values[half].split(60) for values in (x, y, task_ids)), strict=True) for half in halves]
    return [(*part, half) for pair in zip(*parts, strict=True) for half, part in enumerate(pair)]


def train(
    model: Network,
    optimizer: torch.optim.Optimizer,
    clusters: NetworkClustering,
    batches: list[Batch],
    steps: range,
) -> None:
    for step in steps:
        x, y, task_ids, half = batches[step % len(batches)]
        clusters.start_step(half)
        optimizer.zero_grad()
        F.mse_loss(model(x, task_ids), y).backward()
        clusters.before_step()
        optimizer.step()
        clusters.step()


def fit(groups: int, seed: int = 0, steps: int = 220, **settings: Any) -> tuple[Network, NetworkClustering]:
    model = Network(seed)
    clusters = NetworkClustering(model, **{"num_clusters": "auto", "warmup": "shared", "warmup_steps": 200, **settings})
    train(model, torch.optim.Adam(model.parameters(), lr=0.01), clusters, examples(groups, seed), range(steps))
    return model, clusters


@pytest.mark.parametrize("groups", [2, 3])
def test_planted_groups_are_found_with_evidence(groups: int, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(4):
        with caplog.at_level("INFO", logger="lightning_ncmtl"):
            model, clusters = fit(groups, seed)
        found = clusters.summarize()["first"]
        assert found["num_clusters"] == groups == model.first.num_clusters
        assert adjusted_rand_score(torch.arange(TASKS) % groups, found["assignment"]) == 1
        assert found["evidence"]["p_value"] < 0.01
        assert found["evidence"]["agreement"] > 0.3
        assert found["frozen_at_step"] == 201
        assert unshared(model.first.weight.detach().flatten(1), clusters.assignments["first"]) == 0
        assert model.first.frozen_clusters is not None
        heads = model.head.weight.detach().flatten(1)
        assert unshared(heads, torch.arange(TASKS)) == 0  # each its own
        assert f"first: {groups} clusters of {TASKS} tasks (agreement of halves" in caplog.text


def test_one_group_has_no_evidence(caplog: pytest.LogCaptureFixture) -> None:
    alone = 0
    for seed in range(6):
        with caplog.at_level("INFO", logger="lightning_ncmtl"):
            model, clusters = fit(1, seed)
        alone += clusters.summarize()["first"]["num_clusters"] == 1
        if clusters.summarize()["first"]["num_clusters"] == 1:
            weight = model.first.weight.detach()
            assert weight.eq(weight[0]).all()
    assert alone >= 5
    assert "first: no evidence for clusters, all tasks share" in caplog.text


def test_the_optimizer_moves_all_tasks_alike_and_halves_move_each_by_itself() -> None:
    """The first two steps by hand."""
    model = Network()
    clusters = NetworkClustering(model, "auto", warmup="shared", warmup_steps=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = torch.cat([model.first.weight.flatten(1), model.first.bias], 1).detach()  # type: ignore[list-item]
    assert start.eq(start[0]).all()  # a shared start, of the head, too
    assert model.head.weight.eq(model.head.weight[0]).all()
    own, squares, mean = torch.zeros(2, *start.shape), torch.zeros(0), start[0]
    for (x, y, task_ids, half), first in zip(examples(2)[:3], (True, False, False), strict=True):
        clusters.start_step(half)
        placed = torch.cat([model.first.weight.flatten(1), model.first.bias], 1).detach()  # type: ignore[list-item]
        torch.testing.assert_close(placed, mean + own[half])
        optimizer.zero_grad()
        F.mse_loss(model(x, task_ids), y).backward()
        gradient = torch.cat([model.first.weight.grad.flatten(1), model.first.bias.grad], 1)  # type: ignore[union-attr]
        gradient = gradient.clone()
        clusters.before_step()
        optimizer.step()
        clusters.step()
        now = gradient.square().mean(0)
        squares = now if first else MEMORY * squares + (1 - MEMORY) * now
        size = STEP * mean.square().mean().sqrt()
        own[half] += size * (gradient.mean(0) - gradient) / squares.sqrt()
        own[half] *= 1 - FADING
        mean = mean - 0.1 * gradient.mean(0)
        between = torch.cat([model.first.weight.flatten(1), model.first.bias], 1).detach()  # type: ignore[list-item]
        torch.testing.assert_close(between, mean + own.mean(0))


def test_one_cluster_is_truly_one_network() -> None:
    """What a single network learns that all tasks share, with the sum of their gradients."""
    model, single = Network(), nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
    clusters = NetworkClustering(model, 1, warmup="shared", warmup_steps=5, targets=["first", "head"])
    with torch.no_grad():
        for layer, other in ((single[0], model.first), (single[2], model.head)):
            layer.weight.copy_(other.weight[0])
            layer.bias.copy_(other.bias[0])  # type: ignore[index]
    batches = examples(2)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1 * TASKS), clusters, batches, range(12))
    optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
    for x, y, _, _ in batches[:12]:
        optimizer.zero_grad()
        F.mse_loss(single(x).squeeze(1), y).backward()
        optimizer.step()
    torch.testing.assert_close(model.first.weight, single[0].weight.expand_as(model.first.weight))
    torch.testing.assert_close(model.head.weight, single[2].weight.expand_as(model.head.weight))


@pytest.mark.parametrize("half", [3, 60, 61, 70])  # in the warm-up, before and behind the decision, and later
def test_it_resumes_exactly(half: int) -> None:
    settings: dict[str, Any] = {"num_clusters": "auto", "warmup": "shared", "warmup_steps": 60}
    batches = examples(2)

    def start() -> tuple[Network, torch.optim.Optimizer, NetworkClustering]:
        model = Network()
        return model, torch.optim.Adam(model.parameters(), lr=0.01), NetworkClustering(model, **settings)

    whole, optimizer, clusters = start()
    train(whole, optimizer, clusters, batches, range(half))
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict(), clusters.state_dict()], file)
    train(whole, optimizer, clusters, batches, range(half, 80))
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    again, optimizer, resumed = start()
    again.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    resumed.load_state_dict(state)
    train(again, optimizer, resumed, batches, range(half, 80))
    assert resumed.summarize() == clusters.summarize()
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_plain_loop_is_the_callback(make_trainer: Callable[..., Trainer]) -> None:
    settings: dict[str, Any] = {"num_clusters": 2, "targets": "heads", "warmup_steps": 9, "warmup": "shared"}

    def heads() -> Heads:
        torch.manual_seed(0)
        return Heads()

    def batches() -> Iterator[list[Tensor]]:
        while True:
            yield from DataLoader(data(), batch_size=16)

    by_hand = heads()
    clusters = NetworkClustering(by_hand, **settings)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.05)
    for _, (x, y, task_ids) in zip(range(18), batches(), strict=False):
        clusters.start_step()
        optimizer.zero_grad()
        F.mse_loss(by_hand(x, task_ids), y).backward()
        clusters.before_step()
        optimizer.step()
        clusters.step()
    with_lightning = heads()
    callback = NetworkClusteringCallback(**settings)
    with pytest.warns(UserWarning, match="batches do not say of which half of the data they are"):
        make_trainer(callbacks=[callback], max_epochs=3).fit(with_lightning)
    assert torch.equal(rows_of(by_hand), rows_of(with_lightning))
    assert unshared(rows_of(by_hand), clusters.assignments["heads"]) == 0
    assert clusters.summarize() == callback.clusters.summarize()
    assert clusters.summarize()["heads"]["trace"][0][0] == 10


def test_accumulated_gradients_are_one_step(make_trainer: Callable[..., Trainer]) -> None:
    model, callback = Heads(), NetworkClusteringCallback(2, "heads", warmup_epochs=1, warmup="shared")
    make_trainer(callbacks=[callback], max_epochs=2, accumulate_grad_batches=3).fit(model)
    assert callback.clusters.steps == 4
    assert callback.clusters.summarize()["heads"]["frozen_at_step"] == 3


def test_specific_parts_can_be_named() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = nn.ModuleList(nn.Linear(3, 4) for _ in range(TASKS))
            self.out = nn.Parameter(torch.randn(TASKS, 4))
            self.module = TaskModule(nn.Linear(2, 2), TASKS)

    model = Towers()
    clusters = NetworkClustering(model, 2, "towers", warmup="shared", warmup_steps=2, specific="out")
    assert model.out.eq(model.out[0]).all()
    for half in (0, 1, 0):
        clusters.start_step(half)
        model.zero_grad()
        heights = torch.stack([tower.weight.sum() for tower in model.towers])
        (heights * torch.arange(TASKS) + model.out.sum(1) * torch.arange(TASKS)).sum().backward()
        clusters.before_step()
        assert (model.out.grad == model.out.grad[0]).all() == (clusters.steps < 2)  # type: ignore[index]
        clusters.step()
    assert set(clusters.assignments) == {"towers"}
    assert clusters.state_dict()["specific"] == {}
    with pytest.raises(InputError, match="targets must differ"):
        NetworkClustering(model, 2, "towers", warmup="shared", specific=["towers"])


def test_absent_tasks_move_with_the_others() -> None:
    model = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(3, 1) for _ in range(4))})
    clusters = NetworkClustering(model, 2, "heads", warmup="shared", warmup_steps=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model["heads"][0].weight.detach().clone()  # type: ignore[index]
    clusters.start_step(0)
    model["heads"][1](torch.ones(1, 3)).sum().backward()  # type: ignore[index]
    clusters.before_step()
    optimizer.step()
    mean = torch.stack([head.weight for head in model["heads"]]).mean(0)  # type: ignore[union-attr]
    torch.testing.assert_close(mean, before - 0.1 / 4)


def test_what_it_needs_is_said() -> None:
    model = Network()
    clusters = NetworkClustering(model, 2, warmup="shared", warmup_steps=3)
    with pytest.raises(InputError, match="call start_step.. before the forward pass and before_step.. before that of"):
        clusters.step()
    clusters = NetworkClustering(model, 2, warmup="shared", warmup_steps=0)
    with pytest.raises(InputError, match="has seen no steps of one half of the data"):
        clusters.step()
    batches = [batch for batch in examples(2) if batch[3] == 0]
    clusters = NetworkClustering(model, 2, warmup="shared", warmup_steps=3)
    with pytest.raises(InputError, match="has seen no steps of one half of the data"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), clusters, batches, range(4))
    with pytest.raises(InputError, match="unknown warmup 'none': choose 'shared' or 'apart'"):
        NetworkClustering(model, 2, warmup="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="need a shared start"):
        NetworkClustering(model, 2, warmup="shared", shared_start=False)


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = Network()
    clusters = NetworkClustering(model, "auto", warmup="shared", warmup_steps=4)
    batches = examples(2)
    batches[2][1][:] = torch.nan
    with pytest.raises(InputError, match="weights that are not finite .* after the warm-up, of 12 tasks: a lower"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), clusters, batches, range(6))
