"""What there is to cluster in a module, by default and as named."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_ncmtl import NCMTL, ClusterLinear, TaskLinear, TaskModule
from lightning_ncmtl.clustering.layout import find_layout
from lightning_ncmtl.errors import InputError


class Many(nn.Module):
    """Per-task parts of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ClusterLinear(4, 3, 3, num_clusters=2)
        self.second = ClusterLinear(4, 3, 3)
        self.block = TaskModule(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), 4)
        self.head = TaskLinear(4, 3, 1)
        self.of_others = TaskLinear(7, 3, 1)
        self.heads = nn.ModuleDict({name: nn.Linear(3, 1) for name in ("ant", "bee", "cat", "dog")})


def find(targets: list[str] | None = None, num_clusters: Any = None, specific: list[str] | None = None) -> Any:
    return find_layout(Many(), targets, num_clusters, None, specific)


def test_by_default_cluster_layers_are_clustered_and_the_others_are_specific() -> None:
    layout = find()
    assert list(layout.targets) == ["first", "second"]
    assert layout.num_clusters == {"first": 2, "second": None}
    assert list(layout.specific) == ["block", "head"]
    assert layout.tasks == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("num_clusters", "found"),
    [(None, [None, None]), ("auto", [None, None]), (3, [3, 3]), (["auto", 1], [None, 1]), ([4, "auto"], [4, None])],
)
def test_numbers_are_given_or_to_be_chosen(num_clusters: Any, found: list[int | None]) -> None:
    layout = find(["heads", "second"], num_clusters)
    assert layout.num_clusters == dict(zip(["heads", "second"], found, strict=True))
    assert layout.tasks == ["ant", "bee", "cat", "dog"]
    assert list(layout.specific) == ["first", "block", "head"]


def test_of_layers_with_a_part_that_is_clustered_the_rest_is_specific() -> None:
    layout = find(["block.module.0", "head.weight"])
    assert list(layout.specific) == [
        "first",
        "second",
        "block.module.2.weight",
        "block.module.2.bias",
        "head.bias",
    ]
    compiled = Many()
    compiled.block = torch.compile(compiled.block, backend="eager")  # type: ignore[assignment]
    layout = find_layout(compiled, ["block.module.0"], None, None, None)
    assert list(layout.specific) == ["first", "second", "block.module.2.weight", "block.module.2.bias", "head"]


def test_specific_parts_are_named() -> None:
    assert list(find(["first"], specific=[]).specific) == []
    assert list(find(["first"], specific=["heads.*", "head"]).specific) == ["heads.*", "head"]
    with pytest.raises(InputError, match="targets must differ"):
        find(["first"], specific=["head", "head"])
    with pytest.raises(InputError, match="targets must have the same tasks in the same order"):
        find(["first"], specific=["of_others"])


def test_ncmtl_is_found_whole() -> None:
    layout = find_layout(NCMTL(nn.Linear(3, 4), 5, num_clusters=(1, "auto", 5)), None, None, None, None)
    assert layout.num_clusters == {"cluster_layers.0": 1, "cluster_layers.1": None, "cluster_layers.2": 5}
    assert list(layout.specific) == ["head"]


def test_all_is_on_one_device_that_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = nn.ModuleDict({"heads": nn.ModuleList(nn.Linear(3, 1) for _ in range(4)), "out": nn.Linear(3, 4)})
    apart["out"].to("meta")
    with pytest.raises(InputError, match="on one device, found heads.3.bias on cpu, out.bias on meta: move it"):
        find_layout(apart, ["heads", "out"], 2, None, [])
    with pytest.raises(InputError, match="must be on one device"):
        find_layout(apart, ["heads"], 2, None, ["out"])
    apart["heads"][0].to("meta")  # type: ignore[index]
    with pytest.raises(InputError, match="must be on one device"):
        find_layout(apart, ["heads"], 2, None, [])
    whole = Many()
    monkeypatch.setattr(nn.Parameter, "device", torch.device("mps"))
    with pytest.raises(InputError, match="needs float64, which MPS lacks: train on the CPU"):
        find_layout(whole, ["heads"], 2, None, None)
