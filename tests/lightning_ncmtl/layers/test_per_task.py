"""Frozen clusters. The oracle is the layer by tasks, with the mean of gradients or weights over each cluster."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call

from lightning_ncmtl import ClusterLinear, TaskLinear, TaskModule, compact
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import _grouped_linear, routing, task_module
from lightning_ncmtl.layers.per_task import PerTask
from lightning_ncmtl.layers.routing import Routing, route

CLUSTERS = torch.tensor([5, 0, 5, 2, 0, 5, 2, 7])  # of 8 tasks: the first is not the lowest, and 1, 3, 4, 6 are empty
BATCHES = {
    "skewed": torch.tensor([3] * 40 + [0, 1, 1, 5, 6, 7, 7, 7]),  # tasks 2 and 4 are absent, their clusters are not
    "absent clusters": torch.tensor([0, 2, 5, 5, 0]),
    "one row": torch.tensor([6]),
    "large": torch.arange(600) * 7 % 8,
    "empty": torch.zeros(0, dtype=torch.int64),
}
BATCHES["ordered"] = BATCHES["large"].sort().values
LAYERS: dict[str, Callable[[], PerTask]] = {
    "linear": lambda: ClusterLinear(8, 4, 3, num_clusters=8),
    "no bias": lambda: ClusterLinear(8, 4, 3, num_clusters=8, bias=False),
    "module": lambda: TaskModule(nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)), 8),
}


@torch.no_grad()
def share(layer: nn.Module) -> None:
    """As the callback does after each step."""
    for parameter in layer.parameters():
        parameter.copy_(mean(parameter))


def mean(values: Tensor) -> Tensor:
    """``[N, ...]``, for each task the mean over its cluster."""
    return torch.stack([values[cluster == CLUSTERS].mean(0) for cluster in CLUSTERS])


def pair(layer: PerTask) -> tuple[PerTask, PerTask]:
    """The layer, with other weights for each cluster, by tasks and by clusters."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
            parameter.copy_(parameter[[int((cluster == CLUSTERS).nonzero()[0]) for cluster in CLUSTERS]])
    frozen = copy.deepcopy(layer)
    frozen.freeze_clusters(CLUSTERS)
    return layer, frozen


def gradients(layer: PerTask, x: Tensor, ids: Tensor | Routing, call: Any = None) -> list[Tensor]:
    """The output, and what it gives to ``x`` and the parameters."""
    leaf = x.clone().requires_grad_()
    out = (layer if call is None else call)(leaf, ids)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad(out, [leaf, *layer.parameters()], upstream)]


def assert_means(layer: PerTask, frozen: PerTask, x: Tensor, ids: Tensor) -> None:
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[x.dtype]
    out, of_x, *of_parameters = gradients(layer, x, ids)
    for given in (ids, route(ids, 8)):
        found = gradients(frozen, x, given)
        assert [each.dtype for each in found] == [out.dtype, of_x.dtype, *(each.dtype for each in of_parameters)]
        for ours, right in zip(found, (out, of_x, *map(mean, of_parameters)), strict=True):
            torch.testing.assert_close(ours, right, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("make", LAYERS)
def test_a_task_has_the_mean_gradient_of_its_cluster(make: str, batch: str) -> None:
    layer, frozen = pair(LAYERS[make]().double())
    ids = BATCHES[batch]
    x = torch.randn(len(ids), 4, dtype=torch.float64)
    assert_means(layer, frozen, x, ids)
    if batch in ("skewed", "large"):  # or the test could not fail
        assert not torch.allclose(gradients(layer, x, ids)[2], gradients(frozen, x, ids)[2], rtol=0.1)


@pytest.mark.parametrize("batch", ["skewed", "large"])
@pytest.mark.parametrize("make", ["linear", "module"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_types_of_less_precision(dtype: torch.dtype, tolerance: float, make: str, batch: str) -> None:
    _, frozen = pair(LAYERS[make]().to(dtype))
    exact = copy.deepcopy(frozen).double()
    ids = BATCHES[batch]
    x = torch.randn(len(ids), 4).to(dtype)
    for ours, right in zip(gradients(frozen, x, ids), gradients(exact, x.double(), ids), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=tolerance * float(right.detach().abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", ["skewed", "large"])
def test_autocast(batch: str, dtype: torch.dtype) -> None:
    layer, frozen = pair(LAYERS["linear"]())
    ids = BATCHES[batch]
    x = torch.randn(len(ids), 4)
    right = gradients(frozen, x, ids)
    outside = gradients(frozen, x, ids, torch.autocast("cpu", dtype)(frozen))
    with torch.autocast("cpu", dtype):
        inside = gradients(frozen, x, ids)
        assert torch.equal(frozen(x, ids).float(), layer(x, ids).float())
    assert outside[0].dtype == inside[0].dtype == dtype
    for exact, *found in zip(right[1:], outside[1:], inside[1:], strict=True):
        for one in found:
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, exact, rtol=2e-2, atol=2e-2 * float(exact.abs().max()))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", LAYERS)
def test_training_with_sgd_stays_the_same(make: str, optimizer: str) -> None:
    """Frozen in the middle, where the momentum of tasks differs; and some tasks are absent from each batch."""
    generator = torch.Generator().manual_seed(0)
    layer, other = (each.double() for each in pair(LAYERS[make]()))
    other.freeze_clusters(None)
    both = [(each, OPTIMIZERS[optimizer](each.parameters())) for each in (layer, other)]
    start = [p.detach().clone() for p in layer.parameters()]
    for step in range(20):
        if step == 5:
            other.freeze_clusters(CLUSTERS)
        ids = torch.randint(8, (4,), generator=generator)
        x = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        for each, sgd in both:
            sgd.zero_grad()
            (each(x, ids) - x[:, :3].cos() * ids.unsqueeze(1)).square().mean().backward()
            sgd.step()
            share(each)
    for ours, right, before in zip(other.parameters(), layer.parameters(), start, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-11)
        assert (right - before).abs().max() > 0.05
    assert not torch.allclose(both[0][1].param_groups[0]["params"][0].grad, mean(next(layer.parameters()).grad))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", ["linear", "module"])
def test_with_adam_clusters_move_as_in_a_compact_model(make: str) -> None:
    """In its steps the scale of a gradient cancels out, whether it is a sum or a mean."""
    _, frozen = pair(LAYERS[make]().double())
    model = nn.ModuleDict({"layer": frozen})
    small = compact(model, {"layer": CLUSTERS})
    both = [(each, torch.optim.Adam(each.parameters(), lr=0.01, eps=1e-30)) for each in (model, small)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
        for each, adam in both:
            adam.zero_grad()
            each["layer"](x, torch.arange(20) % 8).square().sum().backward()
            adam.step()
    for ours, theirs in zip(model.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(ours, mean(ours), rtol=1e-12, atol=1e-14)  # although nobody took their mean
        torch.testing.assert_close(ours[[1, 3, 0, 7]], theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch", ["skewed", "one row", "empty"])
@pytest.mark.parametrize("little", [0, 2**17])
def test_derivatives_equal_finite_differences(monkeypatch: pytest.MonkeyPatch, little: int, batch: str) -> None:
    """Of the weights of clusters, which all their tasks have."""
    monkeypatch.setattr(_grouped_linear, "_LITTLE", little)
    layer, ids = ClusterLinear(8, 3, 2, num_clusters=8).double(), BATCHES[batch][-9:]
    layer.freeze_clusters(CLUSTERS)
    x = torch.randn(len(ids), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = functional_call(layer, {"weight": weight[CLUSTERS], "bias": bias[CLUSTERS]}, (x, ids))
        return out

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("still", ["x", "weight", "bias", "both"])
def test_parts_without_gradients(still: str) -> None:
    _, frozen = pair(LAYERS["linear"]())
    ids = BATCHES["large"]
    x = torch.randn(len(ids), 4, requires_grad=True)
    parts = {"x": x, **dict(frozen.named_parameters())}
    every = dict(zip(parts, torch.autograd.grad(frozen(x, ids).square().sum(), list(parts.values())), strict=True))
    for name, part in parts.items():
        part.requires_grad_(name not in (["weight", "bias"] if still == "both" else [still]))
    frozen(x, ids).square().sum().backward()
    for name, part in parts.items():
        if part.requires_grad:
            torch.testing.assert_close(part.grad, every[name])
        else:
            assert part.grad is None


def test_a_parameter_that_is_not_used() -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    _, frozen = pair(TaskModule(Half(4, 3), 8))
    frozen(torch.randn(48, 4), BATCHES["skewed"]).sum().backward()
    weight, bias = frozen.parameters()
    assert weight.grad is not None
    assert bias.grad is None


def test_the_same_bits_every_time() -> None:
    _, frozen = pair(TaskLinear(8, 100, 32))
    torch.use_deterministic_algorithms(True)
    try:
        for ids in BATCHES.values():
            x = torch.randn(len(ids), 100)
            first = gradients(frozen, x, ids)
            for one, other in zip(first, gradients(frozen, x, ids), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_and_weights_are_those_of_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    _, linear = pair(LAYERS["linear"]())
    _, module = pair(LAYERS["module"]())
    seen: list[tuple[int, ...]] = []
    products, batched = _grouped_linear._multiply, TaskModule._batched

    def linear_spy(x: Tensor, padded: Tensor, weight: Tensor, *others: Any) -> Tensor:
        seen.append(tuple(weight.shape))
        return products(x, padded, weight, *others)

    def module_spy(self: TaskModule, weights: dict[str, Tensor], arguments: Any) -> Any:
        seen.append(tuple(weights["0.weight"].shape))
        return batched(self, weights, arguments)

    monkeypatch.setattr(_grouped_linear, "_LITTLE", 0)
    monkeypatch.setattr(_grouped_linear, "_multiply", linear_spy)
    monkeypatch.setattr(task_module.TaskModule, "_batched", module_spy)
    for layer in (linear, module):
        layer(torch.randn(600, 4), BATCHES["large"])
    assert seen == [(4, 3, 4), (4, 6, 4)]


def test_layers_with_the_same_clusters_share_the_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = [pair(LAYERS[make]())[1] for make in ("linear", "module", "linear")]
    frozen.append(copy.deepcopy(frozen[0]))
    frozen[-1].freeze_clusters(CLUSTERS.clamp(max=5))
    calls: list[int] = []
    sort = routing._sort
    monkeypatch.setattr(routing, "_sort", lambda ids, number: calls.append(number) or sort(ids, number))  # type: ignore[func-returns-value]
    monkeypatch.setattr(_grouped_linear, "_LITTLE", 0)
    shared = route(BATCHES["large"], 8)
    for layer in frozen * 2:
        layer(torch.randn(600, 4), shared)
    assert calls == [4, 3]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("routed", [False, True], ids=["task ids", "routing"])
def test_compiled_layers_are_compiled_anew(backend: str, routed: bool) -> None:
    torch._dynamo.reset()
    layer, frozen = pair(LAYERS["linear"]())
    call = copy.deepcopy(layer)
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    for by in (None, CLUSTERS, None):
        call.freeze_clusters(by)
        for batch in ("skewed", "large"):
            ids = BATCHES[batch]
            x = torch.randn(len(ids), 4)
            given = route(ids, 8) if routed else ids
            expected = gradients(layer if by is None else frozen, x, ids)
            for ours, right in zip(gradients(call, x, given, compiled), expected, strict=True):
                torch.testing.assert_close(ours, right)
        with pytest.raises(InputError, match="task id 8 is out of range: the layer has tasks 0 to 7"):
            compiled(torch.randn(6, 4), torch.arange(6) + 3)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # and this where a graph breaks
def test_a_compiled_stack() -> None:
    """In which the TaskModule breaks the graph, and so gets a routing that was made inside of one."""
    torch._dynamo.reset()
    linear, module = (pair(LAYERS[make]())[1] for make in ("linear", "module"))

    def call(x: Tensor, ids: Tensor) -> Tensor:
        shared = route(ids, 8)
        out: Tensor = linear(x, shared).sum() + module(x, shared)
        return out

    x, ids = torch.randn(600, 4), BATCHES["large"]
    torch.testing.assert_close(torch.compile(call, backend="eager")(x, ids), call(x, ids))


def test_functional_gradients() -> None:
    layer, frozen = pair(LAYERS["linear"]().double())
    x, ids = torch.randn(600, 4, dtype=torch.float64), BATCHES["large"]

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        out: Tensor = functional_call(frozen, parameters, (x, ids))
        return out.square().sum()

    found = torch.func.grad(loss)(dict(frozen.named_parameters()))
    layer(x, ids).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], mean(parameter.grad))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", ["linear", "module"])
def test_exported(make: str) -> None:
    if make == "module" and torch.__version__ < "2.11":
        pytest.skip("torch.export in 2.8 and before takes no functional calls of modules within modules")
    layer, frozen = pair(LAYERS[make]())
    rows = Dim("rows")
    x, ids = torch.randn(6, 4), torch.arange(6)
    program = torch.export.export(frozen, (x, ids), dynamic_shapes=({0: rows}, {0: rows}), strict=False)
    for ids in (BATCHES["skewed"], BATCHES["large"]):
        x = torch.randn(len(ids), 4)
        expected = layer(x, ids)
        torch.testing.assert_close(program.module()(x, ids), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("make", ["linear", "module"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled_it_can_be_evaluated(make: str, mode: Any) -> None:
    """In the middle of a training, and behind it."""
    layer, frozen = pair(LAYERS[make]())
    compiled = torch.compile(frozen, backend="eager")
    x, ids = torch.randn(48, 4), BATCHES["skewed"]
    for trains in (True, False, True):
        if trains:
            compiled(x, ids).sum().backward()
        with mode():
            torch.testing.assert_close(compiled(x, ids), layer(x, ids))
    torch._dynamo.reset()


@pytest.mark.parametrize("make", ["linear", "module"])
def test_a_compact_model_is_the_same(make: str) -> None:
    layer, frozen = pair(LAYERS[make]())
    plain, small = (compact(nn.ModuleDict({"layer": each}), {"layer": CLUSTERS}) for each in (layer, frozen))
    assert plain.state_dict().keys() == small.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(small.state_dict()[name], value)
    for ids in BATCHES.values():
        x = torch.randn(len(ids), 4)
        assert torch.equal(small["layer"](x, ids), plain["layer"](x, ids))


@pytest.mark.parametrize("make", ["linear", "module"])
def test_copies_stay_frozen(make: str) -> None:
    layer, frozen = pair(LAYERS[make]())
    assert frozen.state_dict().keys() == layer.state_dict().keys()
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert_means(layer, other, torch.randn(48, 4), BATCHES["skewed"])
        assert other.frozen_clusters is not None


@pytest.mark.parametrize("make", ["linear", "module"])
def test_other_weights_end_it(make: str) -> None:
    """Those of a state dict may be from the warm-up."""
    apart = LAYERS[make]()
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.normal_(std=0.5)
    _, frozen = pair(LAYERS[make]())
    frozen.load_state_dict(apart.state_dict())
    x, ids = torch.randn(48, 4), BATCHES["skewed"]
    assert torch.equal(frozen(x, ids), apart(x, ids))
    if isinstance(frozen, TaskLinear):
        frozen.freeze_clusters(CLUSTERS)
        frozen.reset_parameters()
        assert frozen.frozen_clusters is None


@pytest.mark.parametrize("make", ["linear", "module"])
def test_task_ids_are_those_of_tasks(make: str) -> None:
    _, frozen = pair(LAYERS[make]())
    for task in (-1, 8):
        with pytest.raises(InputError, match=f"task id {task} is out of range: the layer has tasks 0 to 7"):
            frozen(torch.randn(2, 4), torch.tensor([0, task]))
    with pytest.raises(InputError, match="found a routing for 4 tasks: the layer has 8"):
        frozen(torch.randn(2, 4), route(torch.tensor([0, 3]), 4))


def test_tasks_without_clusters_cannot_be_frozen() -> None:
    layer = ClusterLinear(3, 4, 2, num_clusters=2)
    for assignment in (layer.assignment, torch.tensor([0, 1]), torch.tensor([0, -1, 1]), torch.tensor([0, 0.5, 1])):
        with pytest.raises(InputError, match=r"once each of the 3 tasks has one, found \["):
            layer.freeze_clusters(assignment)
    assert layer.frozen_clusters is None


def test_a_cluster_for_each_task_is_nothing_new() -> None:
    layer = ClusterLinear(3, 4, 2, num_clusters=3)
    layer.freeze_clusters(torch.tensor([2, 0, 1]))
    assert layer.frozen_clusters is None
