from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_ncmtl import NCMTL, ClusterLinear, TaskLinear, TaskModule
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import CompactLayer, _grouped_linear, routing
from lightning_ncmtl.layers.routing import Routing, route


def loop(layer: TaskLinear, x: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor:
    """The oracle: one nn.functional.linear per row."""
    rows = [
        nn.functional.linear(row, layer.weight[task], None if layer.bias is None else layer.bias[task])
        for row, task in zip(x, task_ids, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "task_ids",
    [[0, 1, 2, 3, 4], [4, 4, 4, 4, 4], [3, 0, 3, 3, 1, 0, 3], [2], [1, 0, 1, 0]],
    ids=["each once", "one task", "mixed with absent", "single row", "alternating"],
)
def test_equals_a_loop_over_rows(task_ids: list[int], bias: bool) -> None:
    layer = TaskLinear(5, 7, 3, bias=bias).double()
    ids = torch.tensor(task_ids)
    x = torch.randn(len(ids), 7, dtype=torch.float64, requires_grad=True)
    out = layer(x, ids)
    torch.testing.assert_close(out, loop(layer, x, ids))

    weights = torch.randn_like(out)
    parameters = [x, *layer.parameters()]
    ours = torch.autograd.grad((out * weights).sum(), parameters)
    theirs = torch.autograd.grad((loop(layer, x, ids) * weights).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_random_batches_equal_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        tasks, batch = (int(n) for n in torch.randint(1, 20, (2,), generator=generator))
        layer = TaskLinear(tasks, 3, 2)
        ids = torch.randint(tasks, (batch,), generator=generator)
        x = torch.randn(batch, 3, generator=generator)
        torch.testing.assert_close(layer(x, ids), loop(layer, x, ids))


SKEWED = [3] * 40 + [0, 1, 1, 5, 6, 8, 8, 8, 9]  # of 10 tasks


@pytest.fixture(
    params=[None, (0, False), (1, False), (3, False), (40, False), (1, True), (3, True), (40, True)],
    ids=lambda way: "chosen" if way is None else f"depth {way[0]}" + ", copies" * way[1],
)
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of multiplying, whatever would be chosen."""
    if request.param is not None:
        depth, copied = request.param
        monkeypatch.setattr(routing, "_choose", lambda counts, *_: (min(depth, int(counts.max())), copied))
        monkeypatch.setattr(_grouped_linear, "_LITTLE", 0)


def gradients(layer: nn.Module, x: torch.Tensor, ids: Any, call: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """The output, and what it gives to ``x`` and the parameters."""
    leaf = x.clone().requires_grad_()
    out = call(leaf, ids)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=generator).to(out)
    return [out, *torch.autograd.grad(out, [leaf, *layer.parameters()], weights)]


@pytest.mark.parametrize("bias", [True, False])
def test_every_way_of_multiplying_equals_the_loop(every_way: None, bias: bool) -> None:
    layer, ids = TaskLinear(10, 7, 3, bias=bias).double(), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 7, dtype=torch.float64)
    ours = gradients(layer, x, ids, layer)
    theirs = gradients(layer, x, ids, lambda x, ids: loop(layer, x, ids))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    for parameter in layer.parameters():  # as the parameter lies in memory: optimizers need no copy
        layer.zero_grad()
        layer(x, ids).sum().backward()
        assert parameter.grad is not None
        assert parameter.grad.is_contiguous()


def test_second_derivatives_equal_finite_differences(every_way: None) -> None:
    layer, ids = TaskLinear(5, 3, 2).double(), torch.tensor([0, 4, 4, 4, 4, 2])
    x = torch.randn(len(ids), 3, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        values = dict(zip(["weight", "bias"], parameters, strict=False))
        return torch.func.functional_call(layer, values, (x, ids))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, *layer.parameters()))
    layer.bias = None
    assert torch.autograd.gradgradcheck(call, (x, layer.weight))


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "all but weight"])
def test_parts_without_gradients(every_way: None, frozen: str) -> None:
    layer, ids = TaskLinear(10, 4, 2), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 4, requires_grad=True)
    parts = {"x": x, **dict(layer.named_parameters())}
    every = dict(zip(parts, torch.autograd.grad(layer(x, ids).square().sum(), list(parts.values())), strict=True))
    for name, part in parts.items():
        part.requires_grad_(name != frozen if frozen in parts else name == "weight")
    layer(x, ids).square().sum().backward()
    for name, part in parts.items():
        if part.requires_grad:
            torch.testing.assert_close(part.grad, every[name])
        else:
            assert part.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_types_of_less_precision(every_way: None, dtype: torch.dtype, tolerance: float) -> None:
    layer, ids = TaskLinear(10, 16, 8).to(dtype), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 16, dtype=dtype)
    exact = TaskLinear(10, 16, 8).double()
    exact.load_state_dict(layer.state_dict())
    ours = gradients(layer, x, ids, layer)
    for mine, right in zip(ours, gradients(exact, x.double(), ids, exact), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(
            mine.double(), right, rtol=tolerance, atol=tolerance * right.detach().abs().max().item()
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(every_way: None, dtype: torch.dtype) -> None:
    layer, ids = TaskLinear(10, 16, 8), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 16)
    with torch.autocast("cpu", dtype):
        out = layer(x, ids)
        assert out.dtype == nn.functional.linear(x, layer.weight[0]).dtype == dtype
        assert layer.double()(x.double(), ids).dtype == torch.float64  # left alone, as by torch's own layers
    exact = gradients(layer.float(), x, ids, layer)[1:]
    outside = gradients(layer, x, ids, lambda x, ids: torch.autocast("cpu", dtype)(layer)(x, ids))[1:]
    with torch.autocast("cpu", dtype):
        inside = gradients(layer, x, ids, layer)[1:]
    for right, *found in zip(exact, outside, inside, strict=True):  # inside: as in manual optimisation
        for one in found:
            assert one.dtype == torch.float32
            torch.testing.assert_close(one, right, rtol=2e-2, atol=2e-2 * float(right.abs().max()))


def test_the_same_bits_every_time(every_way: None) -> None:
    layer, ids = TaskLinear(10, 100, 32), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 100)
    torch.use_deterministic_algorithms(True)
    try:
        first = gradients(layer, x, ids, layer)
        for _ in range(3):
            for one, other in zip(first, gradients(layer, x, ids, layer), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 6), max_size=60), st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_their_order(tasks: list[int], random: Any) -> None:
    layer, ids = TaskLinear(7, 5, 3).double(), torch.tensor(tasks, dtype=torch.int64)
    x = torch.randn(len(ids), 5, dtype=torch.float64)
    shuffled = list(range(len(ids)))
    random.shuffle(shuffled)
    out = layer(x, ids)
    torch.testing.assert_close(layer(x[shuffled], ids[shuffled]), out[shuffled])
    if tasks:
        torch.testing.assert_close(out, loop(layer, x, ids))


@pytest.mark.parametrize(
    ("tasks", "batch", "inside", "outside"),
    [(1, 1, 1, 1), (1, 9, 3, 2), (300, 5, 4, 4), (300, 400, 4, 4), (3, 400, 100, 32), (6, 90, 256, 256)],
)
def test_shapes(tasks: int, batch: int, inside: int, outside: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = TaskLinear(tasks, inside, outside).double()
    ids = torch.randint(tasks, (batch,), generator=generator)
    x = torch.randn(batch, inside, dtype=torch.float64)
    ours = gradients(layer, x, ids, layer)
    for mine, other in zip(ours, gradients(layer, x, ids, lambda x, ids: loop(layer, x, ids)), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_task_ids_of_any_integers(every_way: None, dtype: torch.dtype) -> None:
    layer, ids = TaskLinear(10, 4, 2), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 4)
    assert torch.equal(layer(x, ids.to(dtype)), layer(x, ids))


def test_one_task_with_most_rows_takes_no_padding_for_the_others() -> None:
    ids = torch.cat([torch.arange(1000), torch.full((5000,), 7)])
    for size in (3200, 2**16):
        plan = route(ids, 1000).plan(size, ids.device)
        assert len(plan.fill) + len(plan.rows) <= 2 * len(ids)
    assert len(route(ids, 1000).plan(3200, ids.device).large) == 1  # one product for it, one for all others


def test_layers_share_a_routing() -> None:
    layers = nn.ModuleList([TaskLinear(10, 4, 4), ClusterLinear(10, 4, 3, num_clusters=2), TaskLinear(10, 3, 2)])
    ids = torch.tensor(SKEWED)
    x = y = torch.randn(len(ids), 4)
    shared = route(ids, 10)
    for layer in layers:
        x, y = layer(x, shared), layer(y, ids)
    assert torch.equal(x, y)
    assert route(shared, 10) is shared


def test_network_sorts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = nn.Linear(4, 6)
    encoder.out_features = 6
    model = NCMTL(encoder, num_tasks=10, num_clusters=(2, 3, 10))
    calls = []
    sort = routing._sort
    monkeypatch.setattr(routing, "_sort", lambda *arguments: calls.append(1) or sort(*arguments))
    model(torch.randn(980, 4), torch.tensor(SKEWED * 20))
    assert len(calls) == 1


def test_routing_that_does_not_fit_is_refused() -> None:
    layer = TaskLinear(4, 3, 2)
    with pytest.raises(InputError, match="found a routing for 3 tasks: the layer has 4"):
        layer(torch.randn(2, 3), route(torch.tensor([0, 2]), 3))
    with pytest.raises(InputError, match=r"found \[3\] task ids for an input of shape \[2, 3\]"):
        layer(torch.randn(2, 3), route(torch.tensor([0, 1, 2]), 4))
    with pytest.raises(InputError, match=r"found \[2, 2\] task ids for an input of shape \[2, 2, 3\]"):
        layer(torch.randn(2, 2, 3), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("routed", [False, True], ids=["task ids", "routing"])
def test_compiles_whole(backend: str, routed: bool) -> None:
    torch._dynamo.reset()
    layer = TaskLinear(5, 7, 3)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for batch in (6, 9, 11, 1):
        ids = torch.randint(5, (batch,))
        given_ids: torch.Tensor | Routing = route(ids, 5) if routed else ids
        x = torch.randn(batch, 7)
        ours, plain = (gradients(layer, x, given_ids, call) for call in (compiled, layer))
        for mine, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, other)
    with pytest.raises(InputError, match="task id 5 is out of range: the layer has tasks 0 to 4"):
        compiled(torch.randn(6, 7), torch.arange(6))


def test_stack_compiles_whole() -> None:
    torch._dynamo.reset()
    encoder = nn.Linear(4, 6)
    encoder.out_features = 6
    model = NCMTL(encoder, num_tasks=10, num_clusters=(2, 3, 10))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, ids = torch.randn(len(SKEWED), 4), torch.tensor(SKEWED)
    ours, plain = (gradients(model, x, ids, call) for call in (compiled, model))
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other)


def test_functional_gradients() -> None:
    layer, ids = TaskLinear(10, 4, 2), torch.tensor(SKEWED)
    x = torch.randn(len(ids), 4)

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x, ids)).square().sum()

    found = torch.func.grad(loss)(dict(layer.named_parameters()))
    loss(dict(layer.named_parameters())).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_clusters_get_the_sum_of_the_gradients_of_their_tasks() -> None:
    """So a compact layer can be trained: K groups of rows, K sets of gradients."""
    assignment, first = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 1, 0]), [0, 1, 3]
    layer, ids = TaskLinear(10, 4, 2).double(), torch.tensor(SKEWED)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[torch.tensor(first)[assignment]])
    small = CompactLayer(layer, assignment)
    x = torch.randn(len(ids), 4, dtype=torch.float64)
    for given_ids in (ids, route(ids, 10)):
        out, of_x, *of_tasks = gradients(layer, x, ids, layer)
        compact_out, compact_of_x, *of_clusters = gradients(small, x, given_ids, small)
        torch.testing.assert_close(compact_out, out)
        torch.testing.assert_close(compact_of_x, of_x)
        for tasks, clusters in zip(of_tasks, of_clusters, strict=True):
            torch.testing.assert_close(clusters, torch.zeros_like(clusters).index_add_(0, assignment, tasks))


@pytest.mark.parametrize("task", [-1, 10])
def test_compact_layers_refuse_ids_out_of_range(task: int) -> None:
    small = CompactLayer(TaskLinear(10, 4, 2), torch.arange(10) % 3)
    with pytest.raises(InputError, match=f"task id {task} is out of range: the layer has tasks 0 to 9"):
        small(torch.randn(2, 4), torch.tensor([0, task]))
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with pytest.raises((InputError, IndexError), match="out of (range|bounds)"):
        compiled(torch.randn(2, 4), torch.tensor([0, task]))


def test_absent_tasks_get_zero_gradients() -> None:
    layer = TaskLinear(4, 3, 2)
    layer(torch.randn(5, 3), torch.tensor([0, 2, 2, 0, 2])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[[1, 3]].eq(0).all()
    assert layer.weight.grad[[0, 2]].ne(0).all()


def test_absent_tasks_still_move_by_momentum() -> None:
    """As documented: the gradient of an absent task is zero, which Adam's running mean is not."""
    layer = TaskLinear(2, 3, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    for tasks in ([0, 1], [0, 0]):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        layer(torch.ones(2, 3), torch.tensor(tasks)).sum().backward()
        optimizer.step()
    assert not torch.equal(layer.weight[1], before[1])


def test_task_ids_that_do_not_match_the_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"found \[3\] task ids for an input of shape \[2, 3\]"):
        TaskLinear(4, 3, 2)(torch.randn(2, 3), torch.tensor([0, 1, 2]))


def test_empty_batch() -> None:
    layer = TaskLinear(4, 3, 2)
    out = layer(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert out.shape == (0, 2)
    out.sum().backward()
    for parameter in layer.parameters():  # ranks without rows step together with the others
        assert parameter.grad is not None
        assert parameter.grad.eq(0).all()


@pytest.mark.parametrize("task", [-1, 4, 1000])
def test_task_id_out_of_range_is_refused(task: int) -> None:
    with pytest.raises(InputError, match=f"task id {task} is out of range: the layer has tasks 0 to 3"):
        TaskLinear(4, 3, 2)(torch.randn(2, 3), torch.tensor([0, task]))


@pytest.mark.parametrize("values", [[0.0, 1.7], [0.0, float("nan")]])
@pytest.mark.parametrize("make", [TaskLinear, lambda n, *size: TaskModule(nn.Linear(*size), n)])
def test_task_ids_that_are_no_integers_are_refused(values: list[float], make: Any) -> None:
    layer = make(4, 3, 2)
    for ids in (torch.tensor(values), torch.tensor(values).bfloat16()):
        with pytest.raises(InputError, match=f"task ids must be integers, found {ids.dtype}"):
            layer(torch.randn(2, 3), ids)
    assert TaskLinear(4, 3, 2)(torch.randn(0, 3), torch.tensor([])).shape == (0, 2)


@pytest.mark.parametrize("clusters", [0, 5, 2.0, "2", None, True])
def test_more_clusters_than_tasks_are_refused(clusters: Any) -> None:
    with pytest.raises(InputError, match=f"between 1 and the number of tasks 4, found {clusters!r}"):
        ClusterLinear(4, 3, 2, num_clusters=clusters)


def test_sizes_below_one_are_refused() -> None:
    for size in (0, 2.0, "2", None, True):
        with pytest.raises(InputError, match=f"in_features must be a whole number from 1, found {size!r}"):
            TaskLinear(4, size, 2)  # type: ignore[arg-type]


def test_task_linear_starts_apart_and_cluster_linear_together() -> None:
    apart, together = TaskLinear(3, 4, 2), ClusterLinear(3, 4, 2, num_clusters=2)
    assert not torch.equal(apart.weight[0], apart.weight[1])
    for parameter in together.parameters():
        assert parameter.eq(parameter[0]).all()
        assert parameter.std() > 0


def test_start_has_the_range_of_nn_linear() -> None:
    torch.manual_seed(0)
    weight = TaskLinear(50, 16, 64).weight
    assert 0.24 < weight.abs().max() <= 0.25  # uniform in +-1/sqrt(16)


def test_assignment_travels_in_the_state_dict() -> None:
    layer = ClusterLinear(3, 4, 2, num_clusters=2)
    assert layer.assignment.tolist() == [-1, -1, -1]
    layer.assignment = torch.tensor([0, 1, 0])
    other = ClusterLinear(3, 4, 2, num_clusters=2)
    other.load_state_dict(layer.state_dict())
    assert other.assignment.tolist() == [0, 1, 0]
    assert layer.state_dict().keys() == {"weight", "bias", "_extra_state"}
