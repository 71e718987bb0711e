"""The shared warm-up: two views of each task by halves of the data, then clusters with evidence."""

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
from lightning_ncmtl.clustering import NetworkClustering, find_targets, warmup
from lightning_ncmtl.clustering.evidence import multiply_halves, weigh_evidence
from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.clustering.warmup import ALIKE, FADING, FIRST, MEMORY, STEP, SharedWarmup
from lightning_ncmtl.errors import InputError

TASKS, FEATURES = 12, 6
Batch = tuple[Tensor, Tensor, Tensor, int]


class Network(nn.Module):
    """Two layers per task, without anything that all share."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = ClusterLinear(TASKS, FEATURES, 8)
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
    clusters = NetworkClustering(model, **{"warmup_steps": 160, **settings})
    train(model, torch.optim.Adam(model.parameters(), lr=0.01), clusters, examples(groups, seed), range(steps))
    return model, clusters


@pytest.mark.parametrize("groups", [2, 3])
def test_planted_groups_are_found_with_evidence(groups: int) -> None:
    for seed in range(4):
        model, clusters = fit(groups, seed)
        found = clusters.summarize()["first"]
        assert found["num_clusters"] == groups == model.first.num_clusters
        assert adjusted_rand_score(torch.arange(TASKS) % groups, found["assignment"]) == 1
        assert clusters.evidence is not None
        assert clusters.evidence.num_clusters == groups
        assert clusters.evidence.p_value < 0.01
        assert clusters.evidence.agreement > 0.3
        assert found["frozen_at_step"] == 161
        assert unshared(model.first.weight.detach().flatten(1), clusters.assignments["first"]) == 0
        assert model.first.frozen_clusters is not None
        heads = model.head.weight.detach().flatten(1)
        assert unshared(heads, torch.arange(TASKS)) == 0  # each its own


def test_one_group_has_no_evidence() -> None:
    alone = 0
    for seed in range(6):
        model, clusters = fit(1, seed)
        if clusters.summarize()["first"]["num_clusters"] == 1:
            alone += 1
            weight = model.first.weight.detach()
            assert weight.eq(weight[0]).all()
    assert alone >= 5


def test_it_ends_by_itself_when_the_same_clusters_are_found_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "EVERY", 10)
    monkeypatch.setattr(warmup, "FIRST", 20)
    _, clusters = fit(2, steps=200, warmup_steps=10**9)
    found = clusters.summarize()["first"]
    assert 20 + ALIKE <= found["frozen_at_step"] <= 200
    assert adjusted_rand_score(torch.arange(TASKS) % 2, found["assignment"]) == 1
    _, clusters = fit(1, steps=200, warmup_steps=10**9)  # one cluster never does
    assert clusters.assignments == {}
    assert clusters.evidence is None


@pytest.mark.parametrize(("change", "ends"), [(False, True), (True, False)])
def test_clusters_that_change_do_not_end_it(change: bool, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def group(*_: Any, **__: Any) -> Tensor:
        found.append(torch.arange(TASKS) % (2 + (len(found) % ALIKE == ALIKE - 1) * change))
        return found[-1]

    monkeypatch.setattr(warmup, "group_tasks", group)
    monkeypatch.setattr(warmup, "FIRST", 4)
    _, clusters = fit(2, steps=60, warmup_steps=10**9)
    assert len(found) >= ALIKE
    assert bool(clusters.assignments) == ends


def test_the_optimizer_moves_all_tasks_alike_and_halves_move_each_by_itself() -> None:
    """The first steps by hand."""
    model = Network()
    clusters = NetworkClustering(model, warmup_steps=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (target,) = find_targets(model, ["first"])
    start = target.read()
    assert start.eq(start[0]).all()  # a shared start, of the head, too
    assert model.head.weight.eq(model.head.weight[0]).all()
    own, squares, mean = torch.zeros(2, *start.shape), torch.zeros(0), start[0]
    for (x, y, task_ids, half), first in zip(examples(2)[:3], (True, False, False), strict=True):
        clusters.start_step(half)
        torch.testing.assert_close(target.read(), mean + own[half])
        optimizer.zero_grad()
        F.mse_loss(model(x, task_ids), y).backward()
        gradient = target.gradients().read()
        clusters.before_step()
        optimizer.step()
        clusters.step()
        now = gradient.square().mean(0)
        squares = now if first else MEMORY * squares + (1 - MEMORY) * now
        size = STEP * mean.square().mean().sqrt()
        own[half] += size * (gradient.mean(0) - gradient) / squares.sqrt()
        own[half] *= 1 - FADING
        mean = mean - 0.1 * gradient.mean(0)
        torch.testing.assert_close(target.read(), mean + own.mean(0))


def make_towers() -> tuple[nn.Module, list[Target]]:
    """Per-task parts of three kinds."""
    torch.manual_seed(0)
    model = nn.Module()
    model.towers = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(TASKS))
    model.out = nn.Parameter(torch.randn(TASKS, 5))
    model.layer = ClusterLinear(TASKS, 2, 3)
    targets = find_targets(model, ["towers", "out", "layer"])
    for target in targets:
        target.write(target.read()[:1].expand(TASKS, -1))
    return model, targets


def push(targets: list[Target], seed: int) -> None:
    """Gradients at random."""
    torch.manual_seed(seed)
    for target in targets:
        gradients = target.gradients()
        gradients.write(torch.randn_like(gradients.read()))


def test_many_layers_at_once_are_each_as_alone() -> None:
    """Stacked parameters and modules, of which each is measured by its own weights."""
    (_, targets), (_, alone) = make_towers(), make_towers()
    names = [target.name for target in targets]
    together = SharedWarmup(dict(zip(names, targets, strict=True)), ["towers", "layer"], 20, 2, 0)
    each = [SharedWarmup({target.name: target}, ["towers", "layer"], 20, 2, 0) for target in alone]
    for step in range(4):
        for one in (together, *each):
            one.enter(step % 2)
        for target, expected in zip(targets, alone, strict=True):
            torch.testing.assert_close(target.read(), expected.read())
            assert bool(target.is_alike()) == (step < 2)
        for parts in (targets, alone):
            push(parts, step)
        for one in (together, *each):
            one.learn(step % 2)
        for target, expected in zip(targets, alone, strict=True):
            torch.testing.assert_close(target.gradients().read(), expected.gradients().read())
            assert target.gradients().is_alike()
        for one in (together, *each):
            one.leave()
    evidence = together.weigh()
    assert evidence is not None
    assert each[1].weigh() is None  # it is not one that evidence is taken from
    found = [one.save()["views"][0]["halves"] for one in each]
    products = [4 * multiply_halves(*found[number]) for number in (0, 2)]
    expected = weigh_evidence(products, restarts=2)
    torch.testing.assert_close(evidence.products, expected.products)
    torch.testing.assert_close(evidence.similarities, expected.similarities)


def test_products_are_averaged_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: measured every second step, and now; in proportion to the step."""
    monkeypatch.setattr(warmup, "EVERY", 2)
    _, targets = make_towers()
    shared = SharedWarmup({"towers": targets[0]}, ["towers"], 20, 2, 0)
    total = torch.zeros(2 * TASKS, 2 * TASKS, dtype=torch.float64)
    for step in range(1, 6):
        shared.enter(step % 2)
        push(targets, step)
        shared.learn(step % 2)
        shared.leave()
        if step in (2, 4, 5):
            total += step * multiply_halves(*shared.save()["views"][0]["halves"])
    expected = weigh_evidence([total], restarts=2)
    for _ in range(2):  # looking changes nothing
        evidence = shared.weigh()
        assert evidence is not None
        torch.testing.assert_close(evidence.products, expected.products)
        assert evidence.gains == pytest.approx(expected.gains)


def test_infinite_gradients_leave_no_trace() -> None:
    """As of a step that a gradient scaler leaves out, be it the first; of all layers of a kind."""
    _, targets = make_towers()
    shared = SharedWarmup({target.name: target for target in targets}, ["towers"], 20, 2, 0)
    _, others = make_towers()
    expected = SharedWarmup({target.name: target for target in others}, ["towers"], 20, 2, 0)
    for step, value in enumerate([torch.inf, 0.0, 0.0, torch.nan, -torch.inf, 0.0]):
        for one, parts in ((shared, targets), (expected, others)):
            if value and one is expected:  # only time passes
                state = expected.save()
                for views in state["views"]:
                    views["halves"][step % 2] *= 1 - FADING
                expected.load(state)
                continue
            one.enter(step % 2)
            push(parts, step)
            if value:
                for target in parts:
                    gradients = target.gradients().read()
                    gradients[3, 1] = value
                    target.gradients().write(gradients)
            one.learn(step % 2)
            one.leave()
    for views, theirs in zip(shared.save()["views"], expected.save()["views"], strict=True):
        assert views["halves"].isfinite().all()
        assert views["halves"].any()
        torch.testing.assert_close(views["halves"], theirs["halves"])


def test_one_cluster_is_truly_one_network() -> None:
    """What a single network learns that all tasks share, with the sum of their gradients."""
    model, single = Network(), nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
    clusters = NetworkClustering(model, 1, warmup_steps=5, targets=["first", "head"])
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


@pytest.mark.parametrize("half", [3, 31, 60, 61, 70])  # in the warm-up, before and behind the decision, and later
@pytest.mark.parametrize("ends", [False, True])
def test_it_resumes_exactly(half: int, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the warm-up ends at its last step, and where it ends by itself."""
    monkeypatch.setattr(warmup, "EVERY", 10)
    monkeypatch.setattr(warmup, "FIRST", 15)
    settings: dict[str, Any] = {"warmup_steps": 1000 if ends else 60}
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
    assert clusters.summarize()["first"]["frozen_at_step"] is not None
    torch.testing.assert_close(resumed.state_dict()["evidence"], clusters.state_dict()["evidence"], rtol=0, atol=0)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_warm_up_is_refused() -> None:
    state = NetworkClustering(Network(), 2, warmup="apart").state_dict()
    with pytest.raises(InputError, match="trained with warmup='apart', found 'shared': choose the same"):
        NetworkClustering(Network(), 2).load_state_dict(state)


def test_a_plain_loop_is_the_callback(make_trainer: Callable[..., Trainer]) -> None:
    settings: dict[str, Any] = {"num_clusters": 2, "targets": "heads", "warmup_steps": 9}

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


def test_by_default_the_callback_ends_it_at_half_of_the_training(make_trainer: Callable[..., Trainer]) -> None:
    assert FIRST > 4 * 6 / 2
    model, callback = Heads(), NetworkClusteringCallback(targets="heads")
    with pytest.warns(UserWarning, match="batches do not say of which half of the data they are"):
        make_trainer(callbacks=[callback], max_epochs=4).fit(model)
    summary = callback.clusters.summarize()["heads"]
    assert summary["frozen_at_step"] == summary["trace"][0][0] == 13
    evidence = callback.clusters.evidence
    assert evidence is not None
    assert summary["num_clusters"] == evidence.num_clusters


def test_accumulated_gradients_are_one_step(make_trainer: Callable[..., Trainer]) -> None:
    model, callback = Heads(), NetworkClusteringCallback(2, "heads", warmup_epochs=1)
    make_trainer(callbacks=[callback], max_epochs=2, accumulate_grad_batches=3).fit(model)
    assert callback.clusters.steps == 4
    assert callback.clusters.summarize()["heads"]["frozen_at_step"] == 3


def test_gradients_of_both_halves_tell_nothing_of_either() -> None:
    """Weights move by them, views do not: else each half would know of the other."""
    batches = examples(1)
    model = Network()
    clusters = NetworkClustering(model, warmup_steps=60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(*numbers: int) -> dict[str, Any]:
        optimizer.zero_grad()
        for number in numbers:
            x, y, task_ids, half = batches[number]
            clusters.start_step(half)
            F.mse_loss(model(x, task_ids), y).backward()
        clusters.before_step()
        optimizer.step()
        clusters.step()
        saved: dict[str, Any] = clusters.state_dict()["warmup"]
        return saved

    step(0, 2)
    before, weight = step(1, 3), model.first.weight.detach().clone()
    for mixed in ((4, 5), (5, 4), (4, 5, 6)):
        torch.testing.assert_close(step(*mixed), before, rtol=0, atol=0)
    assert not torch.equal(model.first.weight, weight)
    assert clusters.steps == 5
    assert step(6)["seen"] == [2, 1]


def test_of_gradients_of_both_halves_alone_nothing_is_concluded(make_trainer: Callable[..., Trainer]) -> None:
    class Halves(Heads):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["batch"], batch_idx)

    def loader(turn: int) -> DataLoader[Any]:
        batches = [*DataLoader(data(), batch_size=16)][:4]
        halves: Any = [{"batch": batch, "half": place // turn % 2} for place, batch in enumerate(batches)]
        return DataLoader(halves, batch_size=None)

    settings: dict[str, Any] = {"max_epochs": 4, "accumulate_grad_batches": 2}
    callback = NetworkClusteringCallback(2, "heads")
    make_trainer(callbacks=[callback], **settings).fit(Halves(), loader(turn=2))
    assert callback.clusters.summarize()["heads"]["frozen_at_step"] == 5
    with pytest.raises(InputError, match=r"no steps of one half of the data: .* accumulate .* of the same half only"):
        make_trainer(callbacks=[callback], **settings).fit(Halves(), loader(turn=1))


def test_specific_parts_can_be_named() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.towers = nn.ModuleList(nn.Linear(3, 4) for _ in range(TASKS))
            self.out = nn.Parameter(torch.randn(TASKS, 4))
            self.module = TaskModule(nn.Linear(2, 2), TASKS)

    model = Towers()
    clusters = NetworkClustering(model, 2, "towers", warmup_steps=2, specific="out")
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
    with pytest.raises(InputError, match="targets must differ"):
        NetworkClustering(model, 2, "towers", specific=["towers"])


def test_evidence_comes_from_layers_with_clusters_alone() -> None:
    """Not from heads, which would drown it, nor from layers with one cluster or a cluster per task."""
    model, targets = make_towers()
    clusters = NetworkClustering(
        model, ["auto", TASKS], ["layer", "out"], warmup_steps=100, specific="towers", max_clusters=5
    )
    for step in range(8):
        clusters.start_step()
        push(targets, step)
        clusters.before_step()
        clusters.step()
    views = clusters.state_dict()["warmup"]["views"]
    sizes = [sum(target.size for target in targets if target.name in names) for names in (("layer", "out"), ("towers"))]
    assert sorted(view["halves"].shape[2] for view in views) == sorted(sizes)
    clusters.start_step(0, warmup=False)
    (halves,) = (view["halves"] for view in views if view["halves"].shape[2] == sizes[0])
    expected = weigh_evidence([multiply_halves(*halves[..., : targets[2].size])], max_clusters=5)
    assert clusters.evidence is not None
    torch.testing.assert_close(clusters.evidence.products, expected.products)
    assert list(clusters.evidence.gains) == [2, 3, 4, 5, TASKS]
    assert sorted(clusters.assignments["out"].tolist()) == list(range(TASKS))


def test_tasks_that_learn_the_same_are_one_cluster() -> None:
    """There is nothing by which they differ, and so no evidence."""
    model, _ = make_towers()
    clusters = NetworkClustering(model, targets="towers", warmup_steps=4)
    for _ in range(6):
        clusters.start_step()
        for tower in model.towers:  # type: ignore[union-attr]
            for parameter in tower.parameters():
                parameter.grad = torch.ones_like(parameter)
        clusters.before_step()
        clusters.step()
    assert clusters.assignments["towers"].tolist() == [0] * TASKS
    assert clusters.evidence is not None
    assert clusters.evidence.p_value == 1


def test_absent_tasks_move_with_the_others() -> None:
    model = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(3, 1) for _ in range(4))})
    clusters = NetworkClustering(model, 2, "heads", warmup_steps=5)
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
    clusters = NetworkClustering(model, 2, warmup_steps=3)
    with pytest.raises(InputError, match="call start_step.. before the forward pass and before_step.. before that of"):
        clusters.step()
    with pytest.raises(InputError, match="has seen no steps of one half of the data"):
        NetworkClustering(model, 2).step(warmup=False)
    batches = [batch for batch in examples(2) if batch[3] == 0]
    clusters = NetworkClustering(model, 2, warmup_steps=3)
    with pytest.raises(InputError, match="has seen no steps of one half of the data"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), clusters, batches, range(4))
    for settings, message in (
        ({"warmup": "none"}, "unknown warmup 'none': choose 'shared' or 'apart'"),
        ({"shared_start": False}, "need a shared start"),
        ({"warmup_steps": 1}, "a shared warm-up needs 2 steps or more, found 1"),
        ({"metric": "cosine"}, "metric is not for a shared warm-up: choose warmup='apart'"),
        ({"commitment": 0.1, "every_n_steps": 2}, "every_n_steps, commitment is not for a shared warm-up"),
    ):
        with pytest.raises(InputError, match=message):
            NetworkClustering(model, 2, **settings)  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = Network()
    clusters = NetworkClustering(model, "auto", warmup_steps=4)
    batches = examples(2)
    batches[2][1][:] = torch.nan
    with pytest.raises(InputError, match="weights that are not finite .* in the warm-up, of 12 tasks: a lower"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), clusters, batches, range(6))
