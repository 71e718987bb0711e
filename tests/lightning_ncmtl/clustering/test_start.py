import pytest
import torch
from torch import nn

from lightning_ncmtl import TaskLinear, TaskModule
from lightning_ncmtl.clustering import find_targets
from lightning_ncmtl.clustering.start import start_alike, start_apart


def test_apart_and_alike() -> None:
    module = nn.ModuleDict({"layer": TaskLinear(4, 3, 2)})
    module["layer"].reset_parameters(shared=True)
    start_apart(module, seed=1)
    weight = module["layer"].weight.detach().clone()
    assert len(weight.unique(dim=0)) == 4
    start_apart(module, seed=1)
    assert torch.equal(module["layer"].weight, weight)
    (target,) = find_targets(module, ["layer"])
    start_alike({"layer": target}, "first")
    assert torch.equal(module["layer"].weight, weight[:1].expand_as(weight))


def test_a_task_module_that_would_start_alike_is_told() -> None:
    module = nn.ModuleDict({"experts": TaskModule(nn.Linear(3, 2), 4)})
    with pytest.warns(UserWarning, match="draws no weights for experts, a TaskModule"):
        start_apart(module, seed=1)
