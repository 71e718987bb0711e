"""Layers per task on the device: outputs and gradients of the CPU, wherever task ids and routings come from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_device import CPU, DEVICE, assert_close, assert_same_as_cpu, draw_tasks, no_waits
from projects import Heads, Stacked
from torch import Tensor, nn

from lightning_ncmtl import ClusterLinear, TaskLinear, TaskModule, compact, route
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import CompactLayer

CASES = [(18, 32, "even"), (128, 1024, "even"), (128, 1024, "skewed"), (1024, 64, "even"), (200, 3000, "few")]
MODULES: dict[str, tuple[nn.Module, Callable[[int], Any]]] = {
    "mlp": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)), lambda n: torch.randn(n, 6)),
    "gru": (nn.GRUCell(6, 4), lambda n: (torch.randn(n, 6), torch.randn(n, 4))),
    "lstm": (nn.LSTMCell(6, 4), lambda n: (torch.randn(n, 6), (torch.randn(n, 4), torch.randn(n, 4)))),
}
CLUSTERS = torch.arange(6) % 3


@pytest.mark.parametrize("given", ["ids", "routing from the host", "routing from the device"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tasks", "rows", "kind"), CASES)
def test_task_linear(tasks: int, rows: int, kind: str, bias: bool, given: str) -> None:
    torch.manual_seed(0)
    ids, x = draw_tasks(rows, tasks, kind), torch.randn(rows, 24)

    def call(layer: nn.Module, inputs: Any) -> Tensor:
        x, there = inputs
        found: Tensor = layer(x, there if given == "ids" else route(ids if "host" in given else there, tasks))
        return found

    assert_same_as_cpu(TaskLinear(tasks, 24, 10, bias), (x, ids), call)


def test_no_rows() -> None:
    layer = TaskLinear(5, 4, 3).to(DEVICE)
    assert layer(torch.zeros(0, 4, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)).shape == (0, 3)


def test_a_routing_from_the_host_waits_for_nothing() -> None:
    """Planned before the step, as layers of one size do for each other."""
    layer, x = TaskLinear(18, 24, 10).to(DEVICE), torch.randn(64, 24, device=DEVICE)
    routing = route(draw_tasks(64, 18), 18)
    layer(x, routing).sum().backward()
    with no_waits():
        layer(x, routing).sum().backward()


@pytest.mark.parametrize("place", [CPU, DEVICE])
@pytest.mark.parametrize("make", [lambda: ClusterLinear(18, 24, 10, 3), lambda: TaskModule(nn.Linear(24, 10), 18)])
def test_frozen_clusters(make: Callable[[], Any], place: torch.device) -> None:
    """Frozen on the CPU or the device; then the layer moves."""
    torch.manual_seed(0)
    layer, clusters = make(), torch.arange(18) % 3
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(weight[clusters])
    layer.to(place).freeze_clusters(clusters.to(place))
    assert_same_as_cpu(layer, (torch.randn(64, 24), draw_tasks(64, 18)), lambda layer, inputs: layer(*inputs))
    assert {values.device for values in layer.frozen_clusters[:3]} <= {place, DEVICE}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("tasks", "rows", "kind"), [(7, 40, "even"), (50, 300, "skewed"), (50, 10, "even")])
def test_task_module(name: str, tasks: int, rows: int, kind: str) -> None:
    torch.manual_seed(0)
    module, draw = MODULES[name]

    def call(layer: nn.Module, inputs: Any) -> Tensor:
        out = layer(*inputs)
        return torch.cat(out, 1) if isinstance(out, tuple) else out

    assert_same_as_cpu(TaskModule(module, tasks), (draw(rows), draw_tasks(rows, tasks, kind)), call)


def test_task_module_with_a_routing_from_the_host() -> None:
    torch.manual_seed(0)
    layer, ids, x = TaskModule(MODULES["mlp"][0], 7).to(DEVICE), draw_tasks(40, 7), torch.randn(40, 6, device=DEVICE)
    assert_close(layer(x, route(ids, 7)), layer(x, ids.to(DEVICE)))


def test_gradients_are_repeatable() -> None:
    torch.manual_seed(0)
    x, ids = torch.randn(500, 20, device=DEVICE), draw_tasks(500, 40, "skewed").to(DEVICE)
    layer = TaskLinear(40, 20, 10).to(DEVICE)
    found = [torch.autograd.grad(layer(x, ids).square().sum(), list(layer.parameters())) for _ in range(5)]
    for other in found[1:]:
        assert all(torch.equal(one, again) for one, again in zip(found[0], other, strict=True))


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    layer, ids = TaskLinear(5, 4, 3).to(DEVICE).double(), draw_tasks(9, 5).to(DEVICE)
    x = torch.randn(9, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, ids))

    assert torch.autograd.gradgradcheck(call, (x, *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, ids, x = TaskLinear(18, 24, 10).to(DEVICE), draw_tasks(64, 18).to(DEVICE), torch.randn(64, 24, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype):
        out = layer(x, ids)
    assert out.dtype == dtype
    out.float().square().mean().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert_close(out, layer(x, ids), 0.05, 0.02)


@pytest.mark.parametrize("bad", [18, -1])
@pytest.mark.parametrize("make", [lambda: TaskLinear(18, 4, 2), lambda: TaskModule(nn.Linear(4, 2), 18)])
def test_ids_out_of_range_are_an_error_and_no_assert_of_the_device(make: Callable[[], nn.Module], bad: int) -> None:
    """After which the process would be of no use."""
    with pytest.raises(InputError, match=f"task id {bad} is out of range"):
        make().to(DEVICE)(torch.randn(3, 4, device=DEVICE), torch.tensor([0, bad, 1], device=DEVICE))
    assert torch.ones(2, device=DEVICE).sum() == 2


class WithTaskModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = TaskModule(MODULES["mlp"][0], 6)

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return self.layer(x, ids)


class WithClusterLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = ClusterLinear(6, 6, 4, 3)

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        return self.layer(x, ids)


@pytest.mark.parametrize("place", [CPU, DEVICE])
@pytest.mark.parametrize(
    ("make", "target", "features"),
    [(Heads, "heads", 4), (Stacked, "experts", 4), (WithTaskModule, "layer", 6), (WithClusterLinear, "layer", 6)],
)
def test_compact(make: Callable[[], nn.Module], target: str, features: int, place: torch.device) -> None:
    """The assignment is on the CPU, as in a checkpoint, or where training left it."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        if make is Heads:
            heads = list(model.heads.values())
            for head, cluster in zip(heads, CLUSTERS.tolist(), strict=True):
                head.load_state_dict(heads[cluster].state_dict())
        else:
            for name, weight in model.named_parameters():
                if name.startswith(target):
                    weight.copy_(weight[CLUSTERS])
    if isinstance(getattr(model, target), ClusterLinear):
        model.layer.assignment = CLUSTERS
    x, ids = torch.randn(40, features, device=DEVICE), draw_tasks(40, 6).to(DEVICE)
    model = model.to(DEVICE).eval()
    small = compact(model, {target: CLUSTERS.to(place)})
    assert {value.device for value in (*small.parameters(), *small.buffers())} == {DEVICE}
    assert_close(small(x, ids), model(x, ids))
    assert_close(small.cpu()(x.cpu(), ids.cpu()), model.cpu()(x.cpu(), ids.cpu()))


def test_a_compact_layer_exports() -> None:
    layer = CompactLayer(TaskLinear(6, 5, 4), CLUSTERS).to(DEVICE)
    args = (torch.randn(9, 5, device=DEVICE), draw_tasks(9, 6).to(DEVICE))
    program = torch.export.export(layer, args, strict=False)
    assert_close(program.module()(*args), layer(*args))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_training_is_that_of_the_cpu(optimizer: Callable[..., Any]) -> None:
    ends = []
    for device in (CPU, DEVICE):
        torch.manual_seed(0)
        layer = TaskLinear(12, 6, 3).to(device)
        stepper = optimizer(layer.parameters(), lr=0.01, weight_decay=0.01)
        for step in range(4):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            stepper.zero_grad()
            layer(x.to(device), draw_tasks(5, 12, seed=step).to(device)).square().sum().backward()
            stepper.step()
        ends.append(nn.utils.parameters_to_vector(layer.parameters()))
    assert_close(ends[1], ends[0])
