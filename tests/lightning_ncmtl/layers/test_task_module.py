import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import Heads, data, unshared
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.export import Dim

from lightning_ncmtl import TaskLinear, TaskModule, compact, count_parameters, load, save
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.routing import route

MakeTrainer = Callable[..., Trainer]


class Residual(nn.Module):
    """A module with a buffer, a parameter of its own and an argument that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.GELU()), nn.Linear(4, 4, bias=False))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        out = x + self.scale * self.block(x - self.shift)
        return out if gate is None else out * gate.unsqueeze(1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def x(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Any, ...]]]] = {
    "MLP": (mlp, lambda b: (x(b, 4),)),
    "LayerNorm and Linear": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), lambda b: (x(b, 4),)),
    "nested": (Residual, lambda b: (x(b, 4),)),
    "two arguments": (Residual, lambda b: (x(b, 4), x(b))),
    "RNNCell": (lambda: nn.RNNCell(4, 5, nonlinearity="relu"), lambda b: (x(b, 4), x(b, 5))),
    "GRUCell": (lambda: nn.GRUCell(4, 5), lambda b: (x(b, 4), x(b, 5))),
    "GRUCell without state": (lambda: nn.GRUCell(4, 5, bias=False), lambda b: (x(b, 4),)),
    "LSTMCell": (lambda: nn.LSTMCell(4, 5), lambda b: (x(b, 4), (x(b, 5), x(b, 5)))),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten()), lambda b: (x(b, 2, 4),)),
    "embedding": (lambda: nn.Embedding(6, 3), lambda b: (torch.randint(6, (b, 2)),)),
}
EVEN = torch.arange(12) % 4
SKEWED = torch.tensor([2] * 40 + [0, 3, 2, 0, 2, 3, 3])
BATCHES = {"all": EVEN, "skewed": SKEWED[torch.randperm(47, generator=torch.Generator().manual_seed(0))]}
BATCHES |= {"one task": torch.full((3,), 1), "one row": torch.tensor([3])}


def rows(arguments: Any, index: Tensor) -> Any:
    if isinstance(arguments, tuple):
        return tuple(rows(each, index) for each in arguments)
    return arguments[index]


def apart(module: nn.Module, num_tasks: int = 4) -> tuple[TaskModule, list[nn.Module]]:
    """A layer whose tasks have weights of their own, and copies of the module with the same weights."""
    layer = TaskModule(module, num_tasks)
    copies = [copy.deepcopy(module) for _ in range(num_tasks)]
    with torch.no_grad():
        for name, parameter in layer.module.named_parameters():
            parameter.normal_(std=0.5)
            for task, each in enumerate(copies):
                each.get_parameter(name).copy_(parameter[task])
    return layer, copies


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_a_loop_over_copies(case: str, batch: str) -> None:
    """Outputs, and gradients of weights and inputs; absent tasks have gradients of zero."""
    torch.manual_seed(0)
    make, draw = CASES[case]
    layer, copies = apart(make())
    task_ids = BATCHES[batch]
    arguments = draw(len(task_ids))
    inputs = [each.requires_grad_() for each in torch.utils._pytree.tree_leaves(arguments) if each.is_floating_point()]
    outs = layer(arguments if len(arguments) > 1 else arguments[0], task_ids)
    outs = outs if isinstance(outs, tuple) else (outs,)
    expected: list[Tensor] = [torch.zeros_like(out) for out in outs]
    for task, each in enumerate(copies):
        if len(mine := (task_ids == task).nonzero().squeeze(1)):
            theirs = each(*rows(arguments, mine))
            for total, out in zip(expected, theirs if isinstance(theirs, tuple) else (theirs,), strict=True):
                total[mine] = out
    upstream = [torch.randn_like(out) for out in outs]
    for out, total in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, total, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(outs, upstream)
    found = [each.grad for each in inputs]
    for each in inputs:
        each.grad = None
    torch.autograd.backward(expected, upstream)
    for ours, each in zip(found, inputs, strict=True):
        torch.testing.assert_close(ours, each.grad, rtol=1e-5, atol=1e-5)
    for name, parameter in layer.module.named_parameters():
        for task, each in enumerate(copies):
            grad = each.get_parameter(name).grad
            assert parameter.grad is not None
            grad = torch.zeros_like(parameter[task]) if grad is None else grad
            torch.testing.assert_close(parameter.grad[task], grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_has_gradients_of_zero(case: str) -> None:
    make, draw = CASES[case]
    layer, copies = apart(make())
    out = layer(draw(0), torch.zeros(0, dtype=torch.int64))
    out = out[0] if isinstance(out, tuple) else out
    expected = copies[0](*draw(2))
    assert out.shape == (0, *(expected[0] if isinstance(expected, tuple) else expected).shape[1:])
    out.sum().backward()
    for parameter in layer.parameters():  # ranks without rows step together with the others
        assert parameter.grad is not None
        assert parameter.grad.eq(0).all()


def test_tasks_start_with_the_weights_of_the_module_and_are_no_part_of_it() -> None:
    module = mlp().eval()
    layer = TaskModule(module, 3)
    assert not layer.training
    for name, parameter in module.named_parameters():
        stacked = layer.module.get_parameter(name)
        assert stacked.shape == (3, *parameter.shape)
        assert stacked.eq(parameter).all()
        assert stacked.untyped_storage().size() == 3 * parameter.untyped_storage().size()  # nothing expanded
    assert "num_tasks=3" in repr(layer)


def test_padding_cannot_make_numbers_infinite() -> None:
    """Where the slope at zero is infinite, rows of zeros would give gradients of NaN."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.factor * x).square().sum(1).sqrt()

    layer = TaskModule(Root(), 3)
    layer(torch.rand(6, 4) + 1, torch.tensor([0, 0, 0, 1, 2, 2])).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())  # type: ignore[union-attr]


def test_dropout_differs_from_row_to_row() -> None:
    layer = TaskModule(nn.Sequential(nn.Linear(1, 64), nn.Dropout(0.5)), 3)
    same, task_ids = torch.ones(6, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    dropped = layer(same, task_ids) == 0
    assert 0.3 < dropped.float().mean() < 0.7
    assert len(dropped.unique(dim=0)) == 6
    assert not (layer.eval()(same, task_ids) == 0).any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_types(dtype: torch.dtype, tolerance: float) -> None:
    layer, copies = apart(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)))
    inputs = torch.randn(12, 4, dtype=dtype)
    out = layer.to(dtype)(inputs, EVEN)
    assert out.dtype == dtype
    expected = torch.cat(
        [copies[int(task)].to(dtype)(row.unsqueeze(0)) for row, task in zip(inputs, EVEN, strict=True)]
    )
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_under_autocast_it_keeps_the_type_of_its_parameters() -> None:
    layer, _ = apart(mlp())
    inputs = torch.randn(12, 4).bfloat16()  # as linear layers before it give them
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(inputs, EVEN)
    assert torch.equal(out, layer(inputs.float(), EVEN))


def test_state_dict_round_trip() -> None:
    layer, _ = apart(Residual())
    assert layer.state_dict()["module.block.0.0.weight"].shape == (4, 4, 4)
    other = TaskModule(Residual(), 4)
    other.load_state_dict(layer.state_dict())
    inputs = torch.randn(12, 4)
    assert torch.equal(other(inputs, EVEN), layer(inputs, EVEN))
    assert torch.equal(copy.deepcopy(layer)(inputs, EVEN), layer(inputs, EVEN))


def test_a_routing_does_as_well() -> None:
    layer, _ = apart(mlp())
    inputs, routing = torch.randn(12, 4), route(EVEN, 4)
    assert torch.equal(layer(inputs, routing), layer(inputs, EVEN))


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
def test_compiled_and_exported() -> None:
    layer, _ = apart(mlp())
    inputs = torch.randn(12, 4)
    assert torch.equal(torch.compile(layer, backend="eager")(inputs, EVEN), layer(inputs, EVEN))
    torch._dynamo.reset()
    if torch.__version__ < "2.11":
        pytest.skip("torch.export in 2.8 and before takes no functional calls of modules within modules")
    rows = Dim("rows")
    shapes = ({0: rows}, {0: rows})
    exported = torch.export.export(layer, (inputs[:5], EVEN[:5]), dynamic_shapes=shapes, strict=False).module()
    torch.testing.assert_close(exported(inputs, EVEN), layer(inputs, EVEN), rtol=0, atol=1e-6)


class WithTaskModule(Heads):
    """Heads in one layer, which takes mixed batches."""

    def __init__(self) -> None:
        super().__init__()
        del self.heads
        self.layer = TaskModule(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1)), 6)

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        return self.layer(self.backbone(x).relu(), task_ids).squeeze(1)  # type: ignore[no-any-return]


def fit(targets: list[str], make_trainer: MakeTrainer) -> tuple[WithTaskModule, dict[str, Tensor]]:
    model = WithTaskModule()
    callback = NetworkClusteringCallback(2, targets, warmup_steps=2)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    return model.eval(), callback.assignments


def test_the_callback_clusters_it(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    model, assignments = fit(["layer"], make_trainer)
    stacked = torch.cat([p.detach().flatten(1) for p in model.layer.parameters()], 1)
    assert unshared(stacked, assignments["layer"]) == 0
    assert len(stacked.unique(dim=0)) == 2

    small = compact(model, assignments)
    inputs, _, task_ids = data(seed=5)[:]
    torch.testing.assert_close(small(inputs, task_ids), model(inputs, task_ids), rtol=0, atol=1e-6)
    assert count_parameters(small)["layer"] * 3 == count_parameters(model)["layer"]
    with pytest.raises(InputError, match="task id 6 is out of range: the layer has tasks 0 to 5"):
        small(inputs, torch.full_like(task_ids, 6))
    save(small, tmp_path / "it")
    loaded = load(tmp_path / "it", module=WithTaskModule())
    assert torch.equal(loaded(inputs, task_ids), small(inputs, task_ids))


def test_a_part_is_clustered_but_not_compacted(make_trainer: MakeTrainer) -> None:
    model, assignments = fit(["layer.module.0"], make_trainer)
    assert len(model.layer.module.get_parameter("0.weight").unique(dim=0)) == 2
    assert len(model.layer.module.get_parameter("2.weight").unique(dim=0)) == 6
    with pytest.raises(InputError, match=r"layer.module.0 is a part of the TaskModule layer, .* the target 'layer'"):
        compact(model, assignments)


def tied() -> nn.Module:
    one = nn.Linear(4, 4)
    return nn.Sequential(one, nn.ReLU(), one)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "1 of Sequential is a BatchNorm1d, which mixes the rows"),
        (nn.BatchNorm1d(4, track_running_stats=False), "the module is a BatchNorm1d, which mixes the rows"),
        (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), "InstanceNorm1d, which .* keeps statistics"),
        (nn.GRU(4, 4), "the module is a GRU, which torch.vmap cannot run: take GRUCell"),
        (nn.ReLU(), "ReLU has no parameters"),
        (nn.LazyLinear(3), "weight of LazyLinear has no shape yet"),
        (tied(), "Sequential has tied parameters"),
        (nn.Sequential(TaskLinear(2, 4, 4)), "0 of Sequential is a TaskLinear, which has weights per task already"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_that_are_not_the_same_as_copies_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TaskModule(module, 3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="num_tasks must be a whole number from 1, found 0"):
        TaskModule(mlp(), 0)
    layer = TaskModule(nn.GRUCell(4, 5), 3)
    inputs, hidden, task_ids = torch.randn(2, 4), torch.randn(2, 5), torch.tensor([0, 2])
    with pytest.raises(InputError, match=r"found \[3\] task ids for an input of shape \[2, 4\]"):
        layer((inputs, hidden), torch.tensor([0, 2, 1]))
    with pytest.raises(InputError, match=r"found \[2\] task ids for an input of shape \[1, 5\]"):
        layer((inputs, hidden[:1]), task_ids)
    with pytest.raises(InputError, match=r"found \[2\] task ids for an input of type NoneType"):
        layer((inputs, None), task_ids)
    with pytest.raises(InputError, match="task id 3 is out of range: the layer has tasks 0 to 2"):
        layer((inputs, hidden), torch.tensor([0, 3]))
    with pytest.raises(InputError, match=r"one row for each of 2, found \[8\]"):
        TaskModule(nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)), 3)(inputs, torch.tensor([1, 1]))
