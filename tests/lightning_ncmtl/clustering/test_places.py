from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_ncmtl import ClusterLinear
from lightning_ncmtl.clustering import find_targets
from lightning_ncmtl.clustering.places import Places
from lightning_ncmtl.errors import InputError

Change = Callable[[Any], object]


def new() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "heads": nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)) for name in "abc"}),
            "listed": nn.ModuleList(nn.Linear(3, 2) for _ in range(3)),
            "scales": nn.ParameterList(torch.randn(2) for _ in range(3)),
            "out": nn.Linear(3, 3),
            "layer": ClusterLinear(3, 4, 2, num_clusters=2),
            "rest": nn.Linear(2, 2),
        }
    )


def replaces(path: str, value: object) -> Change:
    def change(module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, value)

    return change


NAMES = ["heads.*.0", "listed", "scales", "out", "layer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaces("heads.b", nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))), "heads.b.0.weight is another parameter"),
        (replaces("heads.b.0", nn.Linear(3, 2)), "heads.b.0.weight is another parameter than when training began"),
        (replaces("listed", nn.ModuleList(nn.Linear(3, 2) for _ in range(3))), "listed.0.weight is another"),
        (replaces("out", nn.Linear(3, 4)), "out.weight is another parameter"),
        (replaces("out.bias", nn.Parameter(torch.zeros(3))), "out.bias is another parameter .*: replace modules and"),
        (replaces("scales.1", nn.Parameter(torch.zeros(2))), "scales.1 is another parameter"),
        (
            lambda module: module["listed"].append(nn.Linear(3, 2)),
            "listed has 4 tasks by now, 3 when training began: add",
        ),
        (lambda module: module["heads"].pop("c"), "heads.c.0.weight is another parameter"),
        (lambda module: nn.utils.parametrizations.weight_norm(module["out"]), "out.weight is another parameter"),
    ],
)
def test_what_is_replaced_is_noticed(change: Change, message: str) -> None:
    module = new()
    places = Places(module, find_targets(module, NAMES))
    places.check()
    change(module)
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            places.check()


def test_other_changes_are_nobodys_business() -> None:
    module = new()
    places = Places(module, find_targets(module, NAMES))
    module["rest"] = nn.Linear(3, 3)
    module["heads"]["a"][1] = nn.Linear(2, 5)  # no part of the target
    with torch.no_grad():
        module["out"].weight.zero_()
    module["layer"].freeze_clusters(torch.tensor([0, 1, 0]))
    places.check()
    module["out"] = torch.compile(module["out"], backend="eager")  # type: ignore[assignment]
    module["listed"][0] = torch.compile(module["listed"][0], backend="eager")  # type: ignore[assignment,index]
    module.to(torch.float64).load_state_dict(module.state_dict())
    places.check()
    module["out"]._orig_mod = nn.Linear(3, 3)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="out.weight is another parameter"):
        places.check()


def test_a_task_more_in_one_of_the_places_of_a_pattern_is_noticed() -> None:
    module = nn.ModuleList(nn.ModuleDict({"adapters": nn.ModuleDict({"a": nn.Linear(2, 2)})}) for _ in range(3))
    for layer in module:
        layer["adapters"]["b"] = nn.Linear(2, 2)  # type: ignore[index]
    places = Places(module, find_targets(module, ["**.adapters.*"]))
    places.check()
    module.append(nn.Linear(2, 2))  # another layer is no other task
    places.check()
    module[1]["adapters"]["c"] = nn.Linear(2, 2)  # type: ignore[index]
    with pytest.raises(InputError, match="1.adapters has 3 tasks by now, 2 when training began"):
        places.check()
