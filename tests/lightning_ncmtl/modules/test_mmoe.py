"""Multi-gate mixture of experts, against a loop over entries and experts."""

from collections.abc import Callable

import pytest
import torch
from data import make_data
from pytorch_lightning import Trainer
from torch import nn

from lightning_ncmtl import PLE, HardShare, MMoE, compact, count_parameters
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules.sources import Synthetic
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules._experts import Experts, mix


def randomize(model: nn.Module) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter)


def test_against_a_loop() -> None:
    torch.manual_seed(0)
    model = MMoE(nn.Linear(4, 5), 3, num_experts=2, expert_features=(7, 6), features=(8,), num_classes=3).double()
    randomize(model)
    x, rows, tasks = torch.randn(4, 4).double(), torch.tensor([3, 0, 3, 1, 0]), torch.tensor([2, 0, 1, 2, 2])
    expected = []
    for row, task in zip(rows.tolist(), tasks.tolist(), strict=True):
        encoded = model.encoder(x[row])
        outs = []
        for expert in range(2):
            hidden = encoded
            for weight, bias in zip(model.experts.weights, model.experts.biases, strict=True):
                hidden = (weight[expert] @ hidden + bias[expert]).relu()
            outs.append(hidden)
        gate = (model.gates.weight[task] @ encoded + model.gates.bias[task]).exp()
        mixed = sum(g / gate.sum() * out for g, out in zip(gate, outs, strict=True))
        tower = model.towers[0].weight[task] @ mixed + model.towers[0].bias[task]
        expected.append(model.head.weight[task] @ tower.relu() + model.head.bias[task])
    torch.testing.assert_close(model(x, tasks, rows), torch.stack(expected))


def test_one_expert_is_hard_sharing() -> None:
    """Whatever its gates are."""
    torch.manual_seed(0)
    model = MMoE(nn.Linear(4, 5), 3, num_experts=1, expert_features=(6,), features=())
    hard = HardShare(nn.Linear(4, 5), 3, features=(6,), share_layers=True)
    randomize(model)
    hard.encoder.load_state_dict(model.encoder.state_dict())
    hard.head.load_state_dict(model.head.state_dict())
    hard.layers[0].load_state_dict({"weight": model.experts.weights[0][0], "bias": model.experts.biases[0][0]})
    x, tasks = torch.randn(6, 4), torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(model(x, tasks), hard(x, tasks))


def test_tasks_start_alike_and_experts_apart() -> None:
    model = MMoE(nn.Linear(4, 5), 3)
    out = model(torch.ones(3, 4), torch.arange(3))
    torch.testing.assert_close(out, out[:1].expand_as(out))
    weights = model.experts.weights[0]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    assert weights.abs().max() <= 5**-0.5  # as nn.Linear draws


def test_experts_drop_out_each_by_itself() -> None:
    torch.manual_seed(0)
    experts = Experts(50, [4, 40], dropout=0.5)
    x = torch.randn(1, 4)
    zero = experts(x) == 0
    assert not zero.eq(zero[:, :1]).all()
    assert 0.6 < zero.float().mean() < 0.9  # half by ReLU, half of the others by dropout
    assert torch.equal(experts.eval()(x), experts(x))


def test_a_gate_weighs_by_its_softmax() -> None:
    gates, experts = torch.tensor([[0.0, 2.0**0.5]]).log(), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    torch.testing.assert_close(mix(gates, experts), experts[:, 1])
    torch.testing.assert_close(mix(torch.zeros(1, 2), experts), torch.tensor([[2.0, 3.0]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 0}, "the number of experts must be at least 1, found 0"),
        ({"expert_features": ()}, "expert_features must have the width of one layer or more, found none"),
        ({"expert_features": (0,)}, r"the widths in expert_features must be at least 1, found \[0\]"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MMoE(nn.Linear(4, 5), 3, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("system", [MMoE, PLE])
def test_towers_are_clustered(
    system: type[MMoE] | type[PLE], source: Synthetic, make_trainer: Callable[..., Trainer]
) -> None:
    """In a shared warm-up all that belongs to tasks is shared; then towers are, and compact models compute the same."""
    torch.manual_seed(0)
    model = system(HAN(400, 8, 4, num_layers=1), 4, expert_features=(8,), features=(6,))
    clustering = NetworkClusteringCallback(2, ["towers.0", "head"], warmup_epochs=1)
    data = make_data(source, batch_size=16, validation_size=11, vocab_size=400, min_frequency=1)
    make_trainer(max_epochs=3, callbacks=[clustering]).fit(model, datamodule=data)
    groups = clustering.assignments["head"]
    assert groups.unique().tolist() == [0, 1]
    assert torch.equal(groups, clustering.assignments["towers.0"])
    for layer in (model.towers[0], model.head):
        for cluster in groups.unique():
            members = layer.weight[groups == cluster]
            assert members.eq(members[0]).all()
    batch = next(iter(data.val_dataloader()))
    small = compact(model.eval(), clustering.assignments)
    assert count_parameters(small)[""] < count_parameters(model)[""]
    torch.testing.assert_close(small(batch["inputs"], batch["task_ids"]), model(batch["inputs"], batch["task_ids"]))
