"""Network clustering in plain loops, without a Trainer."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from projects import Heads, data, rows_of, unshared
from pytorch_lightning import Trainer
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ncmtl import ClusterLinear
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.clustering import NetworkClustering
from lightning_ncmtl.errors import InputError

SETTINGS: dict[str, Any] = {"num_clusters": 2, "targets": "heads", "warmup_steps": 4}
APART: dict[str, Any] = {"warmup": "apart", "commitment": 0.1}
of_both_kinds = pytest.mark.parametrize("kind", [APART, {"warmup": "shared"}], ids=lambda kind: kind["warmup"])


def make() -> Heads:
    torch.manual_seed(0)
    return Heads()


def batches() -> Iterator[list[Tensor]]:
    while True:
        yield from DataLoader(data(), batch_size=16)


def train(model: Heads, optimizer: torch.optim.Optimizer, clusters: NetworkClustering, steps: range) -> None:
    for step, (x, y, task_ids) in zip(range(steps.stop), batches(), strict=False):
        if step in steps:
            clusters.start_step()
            optimizer.zero_grad()
            F.mse_loss(model(x, task_ids), y).backward()
            clusters.before_step()
            optimizer.step()
            clusters.step()


@of_both_kinds
def test_a_plain_loop_is_the_callback(make_trainer: Callable[..., Trainer], kind: dict[str, Any]) -> None:
    by_hand = make()
    clusters = NetworkClustering(by_hand, **SETTINGS, **kind)
    train(by_hand, torch.optim.Adam(by_hand.parameters(), lr=0.05), clusters, range(18))
    with_lightning = make()
    callback = NetworkClusteringCallback(**SETTINGS, **kind, freeze_after_epochs=None)
    make_trainer(callbacks=[callback], max_epochs=3).fit(with_lightning)
    assert torch.equal(rows_of(by_hand), rows_of(with_lightning))
    assert unshared(rows_of(by_hand), clusters.assignments["heads"]) == 0
    assert clusters.summarize() == callback.clusters.summarize()
    assert clusters.summarize()["heads"]["trace"][0][0] == 5
    ours, theirs = clusters.state_dict(), callback.state_dict()
    for name in ("tasks", "targets", "kind"):
        assert ours.pop(name) == theirs.pop(name)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert clusters.losses["heads"][0] == clusters.steps == 18


def test_a_warm_up_apart_does_without_two_of_the_calls() -> None:
    found = []
    for calls in (True, False):
        model = make()
        clusters = NetworkClustering(model, **SETTINGS, **APART)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _, (x, y, task_ids) in zip(range(8), batches(), strict=False):
            if calls:
                clusters.start_step()
            optimizer.zero_grad()
            F.mse_loss(model(x, task_ids), y).backward()
            if calls:
                clusters.before_step()
            optimizer.step()
            clusters.step()
        found.append(rows_of(model))
    assert torch.equal(*found)


@of_both_kinds
@pytest.mark.parametrize("half", [2, 4, 9, 15])  # within the warm-up, at its end, behind it, and frozen
def test_a_plain_loop_resumes_exactly(half: int, kind: dict[str, Any]) -> None:
    def run(model: Heads, optimizer: Any, clusters: NetworkClustering, steps: range) -> None:
        for step in steps:
            if step == 12:
                clusters.freeze()
            train(model, optimizer, clusters, range(step, step + 1))

    def start() -> tuple[Heads, torch.optim.Optimizer, NetworkClustering]:
        model = make()
        return model, torch.optim.Adam(model.parameters(), lr=0.05), NetworkClustering(model, **SETTINGS, **kind)

    whole, optimizer, clusters = start()
    run(whole, optimizer, clusters, range(half))
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict(), clusters.state_dict()], file)
    run(whole, optimizer, clusters, range(half, 18))
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    again, optimizer, resumed = start()
    again.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    resumed.load_state_dict(state)
    run(again, optimizer, resumed, range(half, 18))
    assert torch.equal(rows_of(again), rows_of(whole))
    assert resumed.summarize() == clusters.summarize()
    assert clusters.summarize()["heads"]["frozen_at_step"] == (13 if kind == APART else 5)


@of_both_kinds
@pytest.mark.parametrize("steps", [2, 9])
def test_weights_that_the_shared_start_has_overwritten_are_not_trained_on(steps: int, kind: dict[str, Any]) -> None:
    model = make()
    clusters = NetworkClustering(model, **SETTINGS, **kind)
    train(model, torch.optim.Adam(model.parameters(), lr=0.05), clusters, range(steps))
    again = make()
    again.load_state_dict(model.state_dict())
    too_late = NetworkClustering(again, **SETTINGS, **kind)
    with pytest.raises(InputError, match="all have the weights of the shared start: make NetworkClustering first"):
        too_late.load_state_dict(clusters.state_dict())
    again.load_state_dict(model.state_dict())
    too_late.load_state_dict(clusters.state_dict())  # the order that the message names


@of_both_kinds
def test_a_state_of_something_else_is_refused(kind: dict[str, Any]) -> None:
    clusters = NetworkClustering(make(), **SETTINGS, **kind)
    state = clusters.state_dict()
    names = NetworkClustering(make(), **SETTINGS, **kind, task_names=list("abcdef"))
    with pytest.raises(InputError, match="the checkpoint has the tasks ant, bee, .*; the module a, b"):
        names.load_state_dict(state)
    number = NetworkClustering(make(), **{**SETTINGS, **kind, "num_clusters": 3})
    with pytest.raises(InputError, match="the checkpoint is of another model: it has the clusters {'heads': 2}"):
        number.load_state_dict(state)
    other = "apart" if kind["warmup"] == "shared" else "shared"
    with pytest.raises(InputError, match=f"was trained with warmup='{kind['warmup']}', found '{other}': choose the sa"):
        NetworkClustering(make(), **SETTINGS, warmup=other).load_state_dict(state)  # type: ignore[arg-type]


@of_both_kinds
def test_by_default_the_number_is_chosen(kind: dict[str, Any]) -> None:
    """For parts that are no ClusterLinear: by evidence, of which six tasks give none, or by the silhouette."""
    model = make()
    clusters = NetworkClustering(model, **{**SETTINGS, **kind, "num_clusters": None})
    assert clusters.summarize()["heads"]["num_clusters"] is None
    train(model, torch.optim.Adam(model.parameters(), lr=0.05), clusters, range(6))
    assert clusters.summarize()["heads"]["num_clusters"] == (1 if kind["warmup"] == "shared" else 2)


def test_other_optimizers_are_not_what_a_shared_warm_up_waits_for() -> None:
    """The heads learn once in a step, be it that the other optimizer comes first, last, alone or several times."""
    found = []
    for others in ("", "before", "after", "between"):
        model = make()
        clusters = NetworkClustering(model, **SETTINGS)
        heads, backbone = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.heads, model.backbone))
        for _, (x, y, task_ids) in zip(range(3), batches(), strict=False):
            clusters.start_step()
            heads.zero_grad()
            F.mse_loss(model(x, task_ids), y).backward()
            if others in ("before", "between"):
                clusters.before_step(optimizer=backbone)
            if others == "between":
                clusters.step()  # of the other optimizer alone
                assert clusters.steps == sum(clusters.state_dict()["warmup"]["seen"])
                clusters.before_step(optimizer=backbone)
            clusters.before_step(optimizer=heads)
            heads.step()
            if others == "after":
                clusters.before_step(optimizer=backbone)
            clusters.step()
        assert clusters.steps == 3
        found.append(clusters.state_dict()["warmup"])
    for warmup in found[1:]:
        torch.testing.assert_close(warmup, found[0], rtol=0, atol=0)


def test_sparse_gradients_are_refused_where_tasks_share() -> None:
    def run(**settings: Any) -> NetworkClustering:
        heads = nn.ModuleList(nn.Embedding(5, 3, sparse=True) for _ in range(6))
        clusters = NetworkClustering(nn.ModuleDict({"heads": heads}), **{**SETTINGS, **settings})
        optimizer = torch.optim.SGD(heads.parameters(), lr=0.1)
        for _ in range(6):
            clusters.start_step()
            optimizer.zero_grad()
            torch.stack([n % 2 * head(torch.tensor([1, 3])) for n, head in enumerate(heads)]).sum().backward()
            clusters.before_step()
            optimizer.step()
            clusters.step()
        return clusters

    assert run(**APART).assignments["heads"].tolist() in ([0, 1] * 3, [1, 0] * 3)
    for number in (1, 2):
        with pytest.raises(InputError, match=r"heads.0.weight has sparse gradients, .* \(sparse=False\)"):
            run(num_clusters=number)


def test_a_step_of_several_optimizers_is_one() -> None:
    """Each moves some of the targets: the warm-up is as long as with one, whose clusters are found."""
    found = []
    for parts in ([0, 1], [0], [1, 0]):
        torch.manual_seed(0)
        model = nn.ModuleDict({f"layer{n}": nn.ModuleList(nn.Linear(4, 1) for _ in range(6)) for n in range(2)})
        clusters = NetworkClustering(model, 2, list(model), warmup_steps=5)
        groups = model.values() if len(parts) == 2 else [model]
        optimizers = [torch.optim.SGD(list(groups)[part].parameters(), lr=0.1) for part in parts]
        for step in range(8):
            clusters.start_step()
            model.zero_grad()
            sum((n % 2 + step) * head.weight.sum() for part in model.values() for n, head in enumerate(part)).backward()  # type: ignore[arg-type, union-attr, call-overload]
            for optimizer in optimizers:
                clusters.before_step(optimizer=optimizer)
                optimizer.step()
            clusters.step()
            if step < 5:
                assert sum(clusters.state_dict()["warmup"]["seen"]) == clusters.steps == step + 1
        assert clusters.summarize()["layer1"]["frozen_at_step"] == 6
        found.append(clusters.assignments["layer1"].tolist())
    assert all(clusters in ([0, 1] * 3, [1, 0] * 3) for clusters in found)


def test_without_a_module_there_is_nothing_to_step() -> None:
    clusters = NetworkClustering(**SETTINGS)
    assert clusters.assignments == {}
    with pytest.raises(InputError, match="give NetworkClustering a module, or attach one"):
        clusters.step()


def test_frozen_layers_compute_by_clusters_until_they_are_released() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": ClusterLinear(4, 3, 2, num_clusters=2)})
    clusters = NetworkClustering(model, warmup_steps=1, warmup="apart")
    layer = model["layer"]

    def move() -> None:
        with torch.no_grad():
            layer.weight += torch.tensor([1.0, 1.1, -1.0, -1.1]).view(4, 1, 1)  # type: ignore[union-attr, operator]

    for _ in range(3):
        move()
        clusters.step()
    assert layer.assignment.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert layer.frozen_clusters is None
    clusters.freeze()
    move()
    clusters.step()
    assert layer.frozen_clusters is not None
    clusters.release()
    assert layer.frozen_clusters is None


def test_freezing_right_after_the_first_clustering_warns() -> None:
    model = make()
    clusters = NetworkClustering(model, **SETTINGS, **APART)
    train(model, torch.optim.Adam(model.parameters(), lr=0.05), clusters, range(5))
    with pytest.warns(UserWarning, match="heads is frozen right after its first clustering"):
        clusters.freeze()


def _cluster_on_rank(rank: int, folder: Path, warmup: Literal["shared", "apart"]) -> None:
    """Rank 1's weights or gradients lie so that it would decide otherwise."""
    model = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(4))})
    apart: dict[str, Any] = {"warmup": "apart", "warmup_steps": 0, "shared_start": False}
    settings = apart if warmup == "apart" else {"warmup_steps": 2}
    clusters = NetworkClustering(model, num_clusters=2, targets="heads", **settings)
    values = [0.0, 0.1, 5.0, 5.1] if rank == 0 else [0.0, 5.0, 0.1, 5.1]
    for _ in range(1 if warmup == "apart" else 3):
        clusters.start_step()
        for head, value in zip(model["heads"], values, strict=True):  # type: ignore[arg-type]
            if warmup == "apart":
                nn.init.constant_(head.weight, value)
            head.weight.grad = torch.full_like(head.weight, value)
        clusters.before_step()
        clusters.step()
    torch.save(clusters.assignments["heads"], folder / f"{rank}")


@pytest.mark.parametrize("warmup", ["shared", "apart"])
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_rank_0_decides_for_all(tmp_path: Path, warmup: str) -> None:
    on_ranks(2, _cluster_on_rank, tmp_path, warmup)
    first, second = (torch.load(tmp_path / f"{rank}") for rank in range(2))
    assert torch.equal(first, second)
    assert first[0] == first[1] != first[2] == first[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1, "warmup": "apart"}, "warmup_steps must be a number from 0, found -1"),
        ({"task_names": "abc"}, "task_names must be a list of strings, found 'abc'"),
        ({"targets": ["heads", "heads"]}, "targets must differ"),
        ({"num_clusters": 0}, "num_clusters of heads must be 'auto' or in 1 .. 6 tasks, found 0"),
        ({"num_clusters": [2, 2]}, "must have one value for each of the 1 targets heads"),
        ({"task_names": ["a", "b"]}, "task_names must be 6 different names"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetworkClustering(make(), **{**SETTINGS, **settings})
