"""Cross-stitch networks, against loops and against systems that they contain."""

import pytest
import torch
from torch import nn

from lightning_ncmtl import CrossStitch, HardShare
from lightning_ncmtl.errors import InputError


def randomize(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


def test_against_a_loop() -> None:
    torch.manual_seed(0)
    model = CrossStitch(nn.Linear(4, 5), 3, features=(7, 6), num_classes=3).double()
    randomize(model)
    x, rows, tasks = torch.randn(4, 4).double(), torch.tensor([3, 0, 3, 1, 0]), torch.tensor([2, 0, 1, 2, 2])
    expected = []
    for row, task in zip(rows.tolist(), tasks.tolist(), strict=True):
        hidden = [model.encoder(x[row])] * 3
        for layer, unit in zip(model.layers, model.units, strict=True):
            found = [(layer.weight[k] @ hidden[k] + layer.bias[k]).relu() for k in range(3)]
            hidden = [sum(unit[k, j] * found[j] for j in range(3)) for k in range(3)]
        expected.append(model.head.weight[task] @ hidden[task] + model.head.bias[task])
    torch.testing.assert_close(model(x, tasks, rows), torch.stack(expected))
    torch.testing.assert_close(model(x[rows], tasks), torch.stack(expected))


@pytest.mark.parametrize("share_layers", [False, True])
def test_between_networks_of_their_own_and_one_for_all(share_layers: bool) -> None:
    """Units that take nothing of others are no units; with equal layers, those that take the mean change nothing."""
    torch.manual_seed(0)
    hard = HardShare(nn.Linear(4, 5), 3, features=(7, 6), share_layers=share_layers)
    randomize(hard)
    model = CrossStitch(nn.Linear(4, 5), 3, features=(7, 6), own_weight=1 / 3 if share_layers else 1)
    state = hard.state_dict()
    if share_layers:
        layers = {name: value for name, value in state.items() if name.startswith("layers.")}
        state |= {name: value.expand(3, *value.shape) for name, value in layers.items()}
    model.load_state_dict({**state, **{f"units.{i}": unit for i, unit in enumerate(model.units)}})
    x, tasks = torch.randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(model(x, tasks), hard(x, tasks))


def test_units_start_as_they_are_told_and_learn() -> None:
    model = CrossStitch(nn.Linear(4, 5), 3, features=(7, 6), own_weight=0.8)
    expected = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    for unit in model.units:
        torch.testing.assert_close(unit.detach(), expected)
    model(torch.randn(2, 4), torch.tensor([1, 1])).square().sum().backward()
    first, last = (unit.grad for unit in model.units)
    assert last[1].ne(0).all()
    assert last[[0, 2]].eq(0).all()  # to other tasks nothing of the last unit goes
    assert first.ne(0).all()
    assert CrossStitch(nn.Linear(4, 5), 1).units[0].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ()}, "features must have the width of one layer or more, behind which units are, found none"),
        ({"own_weight": 1.5}, "own_weight must be between 0 and 1, found 1.5"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CrossStitch(nn.Linear(4, 5), 3, **settings)  # type: ignore[arg-type]
