"""Progressive layered extraction, against loops over entries, tasks and experts."""

import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl import PLE, MMoE
from lightning_ncmtl.errors import InputError


def randomize(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


def gated(gate: Tensor, outs: list[Tensor]) -> Tensor:
    weights = gate.exp() / gate.exp().sum()
    return torch.stack([weight * out for weight, out in zip(weights, outs, strict=True)]).sum(0)


def by_loops(model: PLE, x: Tensor, task: int) -> Tensor:
    """Of one document in one task, as Tang et al. write it: all tasks pass through all levels together."""
    shared = model.encoder(x)
    own = [shared] * model.num_tasks
    for level in model.levels:
        width = level.shared_experts.weights[0].shape[1]
        common = [
            (weight @ shared + bias).relu()
            for weight, bias in zip(level.shared_experts.weights[0], level.shared_experts.biases[0], strict=True)
        ]
        experts = [
            [part.relu() for part in (weight @ mine + bias).split(width)]
            for weight, bias, mine in zip(level.task_experts.weight, level.task_experts.bias, own, strict=True)
        ]
        gates = [level.gates.weight[k] @ own[k] + level.gates.bias[k] for k in range(model.num_tasks)]
        own = [gated(gate, [*common, *mine]) for gate, mine in zip(gates, experts, strict=True)]
        if level.shared_gate is not None:
            shared = gated(level.shared_gate(shared), [*common, *(one for mine in experts for one in mine)])
    hidden = own[task]
    for tower in model.towers:
        hidden = (tower.weight[task] @ hidden + tower.bias[task]).relu()
    out: Tensor = model.head.weight[task] @ hidden + model.head.bias[task]
    return out


@pytest.mark.parametrize("expert_features", [(6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("numbers", [(1, 1), (2, 3)])
def test_against_loops(expert_features: tuple[int, ...], numbers: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = PLE(
        nn.Linear(4, 5),
        3,
        num_shared_experts=numbers[0],
        num_task_experts=numbers[1],
        expert_features=expert_features,
        features=(7,),
        num_classes=3,
    ).double()
    randomize(model)
    x, rows, tasks = torch.randn(4, 4).double(), torch.tensor([3, 0, 3, 1, 0]), torch.tensor([2, 0, 1, 2, 2])
    pairs = list(zip(rows.tolist(), tasks.tolist(), strict=True))
    expected = torch.stack([by_loops(model, x[row], task) for row, task in pairs])
    torch.testing.assert_close(model(x, tasks, rows), expected)
    expected = torch.stack([by_loops(model, x[row], 2 - row % 3) for row in range(4)])
    torch.testing.assert_close(model(x, 2 - torch.arange(4) % 3), expected)


def test_gates_that_shut_out_own_experts_leave_mmoe() -> None:
    torch.manual_seed(0)
    model = PLE(nn.Linear(4, 5), 3, num_shared_experts=2, expert_features=(6,), features=(7,))
    mmoe = MMoE(nn.Linear(4, 5), 3, num_experts=2, expert_features=(6,), features=(7,))
    randomize(mmoe)
    level = model.levels[0]
    for mine, theirs in (
        (model.encoder, mmoe.encoder),
        (level.shared_experts, mmoe.experts),
        (model.towers, mmoe.towers),
        (model.head, mmoe.head),
    ):
        mine.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        level.gates.weight.zero_()
        level.gates.weight[:, :2] = mmoe.gates.weight
        level.gates.bias.fill_(-1e9)
        level.gates.bias[:, :2] = mmoe.gates.bias
    x, tasks = torch.randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(model(x, tasks), mmoe(x, tasks))


def test_what_a_task_finds_goes_to_others_only_between_levels() -> None:
    for expert_features, reaches in (((6,), False), ((6, 6), True)):
        torch.manual_seed(0)
        model = PLE(nn.Linear(4, 5), 3, expert_features=expert_features)
        model(torch.randn(4, 4), torch.zeros(4, dtype=torch.int64)).sum().backward()
        found = model.levels[0].task_experts.weight.grad.flatten(1).abs().sum(1) > 0
        assert found.tolist() == [True, reaches, reaches]


def test_tasks_start_alike() -> None:
    model = PLE(nn.Linear(4, 5), 3, num_task_experts=2, expert_features=(6, 6))
    out = model(torch.ones(3, 4), torch.arange(3))
    torch.testing.assert_close(out, out[:1].expand_as(out))
    first, second = model.levels[0].task_experts.weight[0].chunk(2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_shared_experts": 0}, "the number of experts must be at least 1, found 0"),
        ({"num_task_experts": 0}, "the number of experts of a task must be at least 1, found 0"),
        ({"expert_features": ()}, "expert_features must have the width of one level or more, found none"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PLE(nn.Linear(4, 5), 3, **settings)  # type: ignore[arg-type]
