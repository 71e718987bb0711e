"""Clustering on a GPU: what can be known of it without one."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ncmtl import ClusterLinear, TaskModule
from lightning_ncmtl.clustering import (
    HalvesSampler,
    NetworkClustering,
    _gram,
    choose_num_clusters,
    kmeans,
    late,
    together,
)
from tests.support.device import DEVICE, DeviceCalls
from tests.support.many_targets import NUMBERS, make, train


class Refused(TorchDispatchMode):
    """Fails at what ``torch.use_deterministic_algorithms`` refuses on a GPU, of what clustering could use."""

    NAMES = ("kthvalue", "median", "histc", "put_", "scatter_reduce", "resize_")

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, given = func.overloadpacket.__name__, kwargs or {}
        sums_floats = name == "cumsum" and (given.get("dtype") or args[0].dtype).is_floating_point
        weighted = name == "bincount" and len(args) > 1 and args[1] is not None
        if sums_floats or weighted or name in self.NAMES:
            raise AssertionError(f"{name} has no deterministic kernel")
        return func(*args, **given)


@pytest.mark.parametrize("n", [30, 3000])  # by the products of all pairs, and of a sample
def test_k_means_has_deterministic_kernels(n: int) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    with Refused():
        found = kmeans(x, 4, restarts=3)
        kmeans(x, 4, init=found.assignment)
    with pytest.raises(AssertionError, match="cumsum has no deterministic"), Refused():
        x.cumsum(0)


def test_sums_of_k_means_plus_plus_are_those_of_floats() -> None:
    weights = torch.rand(5, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    weights[1] *= 1e-250
    weights[2] *= 1e250
    weights[3] = 0
    weights[4, 1:] = 0
    sums = _gram._accumulate(weights)
    expected = weights.cumsum(1)
    assert (sums.diff(dim=1) >= 0).all()
    for row in (0, 1, 2, 4):
        torch.testing.assert_close(sums[row].double() / sums[row, -1], expected[row] / expected[row, -1])
    assert not sums[3].any()


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Whatever does not say where it is made is made on the stand-in, where ``torch.set_default_device`` says so."""
    torch.set_default_device(DEVICE)
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 2},
        {"warmup_steps": 2, "num_clusters": None},
        {"preset": "literal"},
        *(
            {"warmup": "apart", "warmup_steps": 2, **more}
            for more in ({}, {"num_clusters": None}, {"metric": "cosine"})
        ),
    ],
    ids=str,
)
def test_the_default_device_does_not_matter(settings: dict[str, Any], request: pytest.FixtureRequest) -> None:
    found = []
    for change in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({"layer": ClusterLinear(6, 3, 2), "wide": nn.Linear(2, 12)})
        targets = ["layer", {"name": "wide", "rows_per_task": 2}]
        if change:
            request.getfixturevalue("elsewhere")
        clusters = NetworkClustering(model, targets=targets, **{"num_clusters": 2, **settings})
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            clusters.start_step()
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator, device="cpu")
            clusters.before_step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= parameter.grad  # type: ignore[arg-type]
            clusters.step()
        found.append((model.state_dict(), clusters.state_dict()["layers"]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.usefixtures("elsewhere")
def test_parts_do_not_depend_on_the_default_device() -> None:
    x = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0), device="cpu")
    for n, backend in ((30, "gram"), (3000, "gram"), (30, "faiss"), (3000, "faiss")):
        assert kmeans(x[:n], 4, restarts=3, backend=backend).assignment.is_cpu  # type: ignore[arg-type]
    assert 2 <= choose_num_clusters(x[:30]) <= 20
    assert sorted(HalvesSampler(10, 4)) == list(range(10))
    layer = ClusterLinear(6, 3, 2, num_clusters=2).to_empty(device="cpu")
    assert layer.assignment.is_cpu
    layer.freeze_clusters(torch.tensor([0, 1, 0, 1, 0, 1], device="cpu"))
    for each in (layer, TaskModule(nn.Linear(3, 2, device="cpu"), 6)):
        assert each(x[:4], torch.tensor([0, 1, 5, 1], device="cpu")).is_cpu


@pytest.mark.parametrize("init", [torch.arange(8) % 2, torch.zeros(2, 3)], ids=["assignment", "centres"])
def test_a_start_on_the_cpu_is_moved_to_the_points(init: Tensor) -> None:
    x = torch.ones(8, 3, device=DEVICE)
    with DeviceCalls() as calls, waits_at_the_end(init.ndim == 2):
        assert kmeans(x, 2, init=init).assignment.device == DEVICE
    assert not calls.mixed


@contextmanager
def waits_at_the_end(expected: bool) -> Iterator[None]:
    if not expected:
        yield
        return
    with pytest.raises((RuntimeError, NotImplementedError), match="item"):
        yield


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "AHEAD", {"meta"})


APART: dict[str, Any] = {"warmup": "apart", "warmup_steps": 2}
SHARED: dict[str, Any] = {"warmup": "shared", "warmup_steps": 2}


def on_device(model: nn.Module, clusters: NetworkClustering, **settings: Any) -> NetworkClustering:
    """The same training on the stand-in, where it goes on."""
    module = copy.deepcopy(model).to_empty(device=DEVICE)
    moved = NetworkClustering(None, clusters.num_clusters, clusters.targets, **settings)
    moved.load_state_dict(clusters.state_dict())
    moved.attach(module, fresh=False)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with DeviceCalls():  # moves what was loaded
        run(moved)
    return moved


def run(clusters: NetworkClustering) -> None:
    clusters.start_step()
    clusters.before_step()
    clusters.step()


def count(clusters: NetworkClustering) -> int:
    """The launches of a step, in which nothing waits."""
    with DeviceCalls() as calls:
        run(clusters)
    assert not calls.waits
    assert not calls.mixed
    return len(calls.launches)


def test_assignments_follow_the_weights() -> None:
    model, clusters = make()
    train(model, clusters, range(5))
    module = copy.deepcopy(model).to_empty(device=DEVICE)
    moved = NetworkClustering(None, clusters.num_clusters, clusters.targets, task_names=list("abcdef"), **APART)
    moved.load_state_dict(clusters.state_dict())
    assert {assignment.device.type for assignment in moved.assignments.values()} == {"cpu"}
    moved.attach(module, fresh=False)
    assert {assignment.device for assignment in moved.assignments.values()} == {DEVICE}


@pytest.mark.usefixtures("stand_in")
def test_averages_wait_for_nothing() -> None:
    model, clusters = make()
    train(model, clusters, range(5))
    moved = on_device(model, clusters, task_names=list("abcdef"), **APART)
    average = copy.deepcopy(model).to_empty(device=DEVICE)
    with DeviceCalls():
        moved.share_copy(average)
    with DeviceCalls() as calls:
        moved.share_copy(average)
    assert calls.launches
    assert not calls.waits
    assert not calls.mixed


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("small", [together.SMALL, 0], ids=["together", "each"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"every_n_steps": 2}, {"metric": "cosine"}, {"commitment": 1.0}, SHARED], ids=str
)
def test_a_step_waits_for_nothing(
    settings: dict[str, Any], frozen: bool, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "SMALL", small)
    settings = {**APART, **settings}
    names = list("abcdef")
    model, clusters = make(**settings, **({"commitment": 0.01} if settings["warmup"] == "shared" else {}))
    train(model, clusters, range(5))
    if frozen:
        clusters.freeze()
    moved = on_device(model, clusters, task_names=names, **settings)
    assert all(count(moved) for _ in range(3))
    assert moved.assignments.keys() == NUMBERS.keys()
    assert all(assignment.device == DEVICE for assignment in moved.assignments.values())
    assert all(loss.device == DEVICE for _, loss in moved.losses.values())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("small", [together.SMALL, 0], ids=["together", "each"])
def test_clusters_that_are_found_anew_wait_once_for_all_layers(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SMALL", small)
    model, clusters = make(preset="literal")
    train(model, clusters, range(5))
    moved = on_device(model, clusters, task_names=list("abcdef"), preset="literal")
    for _ in range(3):
        with DeviceCalls() as calls:
            run(moved)
        assert calls.waits == ["_to_copy.default"]
        assert not calls.mixed
    assert all(assignment.device == DEVICE for assignment in moved.assignments.values())


def containers(layers: int) -> nn.ModuleDict:
    lists = [nn.ModuleList(nn.Linear(3 + n, 2) for _ in range(6)) for n in range(layers)]
    return nn.ModuleDict({f"layer{n}": layer for n, layer in enumerate(lists)})


def stacks(layers: int) -> nn.ModuleDict:
    return nn.ModuleDict({f"layer{n}": ClusterLinear(6, 3 + n, 2, num_clusters=2) for n in range(layers)})


def heads(tasks: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"heads": nn.ModuleList(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)) for _ in range(tasks))}
    )


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("make_model", "few", "many", "more"),
    [
        (containers, 2, 20, 0),
        (heads, 6, 60, 0),
        (stacks, 2, 20, 36),  # a copy to each parameter that holds all tasks
    ],
)
@pytest.mark.parametrize(
    ("settings", "frozen", "most"), [(APART, False, 200), (APART, True, 60), (SHARED, False, 100)], ids=str
)
def test_launches_do_not_depend_on_the_number_of_layers_and_tasks(
    make_model: Callable[[int], nn.ModuleDict],
    few: int,
    many: int,
    more: int,
    settings: dict[str, Any],
    frozen: bool,
    most: int,
) -> None:
    launches = []
    for number in (few, many):
        model = make_model(number)
        clusters = NetworkClustering(model, 2, list(model), **settings)
        train(model, clusters, range(6))
        if frozen:
            clusters.freeze()
        launches.append(count(on_device(model, clusters, **settings)))
    assert launches[0] < most
    assert launches[1] <= launches[0] + more


@pytest.mark.usefixtures("stand_in")
def test_a_shared_warm_up_waits_for_nothing() -> None:
    settings = {"warmup": "shared", "warmup_steps": 90}
    launches = []
    for layers in (2, 20):
        model = stacks(layers)
        model["heads"] = nn.ModuleList(nn.Linear(3, 2) for _ in range(6))
        clusters = NetworkClustering(model, 2, list(model), **settings)
        train(model, clusters, range(5))
        moved = on_device(model, clusters, **settings)
        assert not moved.assignments
        launches.append(count(moved))
    assert launches[0] < 100
    assert launches[1] <= launches[0] + 3 * 36  # copies: before the forward pass, of gradients, after the step
