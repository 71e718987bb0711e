import pytest
import torch
from torch import nn

from lightning_ncmtl import ClusterLinear, TaskLinear
from lightning_ncmtl.errors import InputError


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
    assert layer(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("task", [-1, 4, 1000])
def test_task_id_out_of_range_is_refused(task: int) -> None:
    with pytest.raises(InputError, match=f"task id {task} is out of range: the layer has tasks 0 to 3"):
        TaskLinear(4, 3, 2)(torch.randn(2, 3), torch.tensor([0, task]))


@pytest.mark.parametrize("clusters", [0, 5])
def test_more_clusters_than_tasks_are_refused(clusters: int) -> None:
    with pytest.raises(InputError, match=f"between 1 and the number of tasks 4, found {clusters}"):
        ClusterLinear(4, 3, 2, num_clusters=clusters)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="in_features must be at least 1, found 0"):
        TaskLinear(4, 0, 2)


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
