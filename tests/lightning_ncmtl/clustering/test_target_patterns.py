"""Tasks whose parts are spread over a module: lists of parts, and patterns with '**'."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl.clustering import find_targets
from lightning_ncmtl.errors import InputError

NAMES = ["de", "en", "fr"]


class Adapted(nn.Module):
    """A layer with a low-rank adapter for each language."""

    def __init__(self, width: int = 4, names: list[str] = NAMES) -> None:
        super().__init__()
        self.base = nn.Linear(width, 4)
        self.lora_A = nn.ModuleDict({name: nn.Linear(width, 2, bias=False) for name in names})
        self.lora_B = nn.ModuleDict({name: nn.Linear(2, 4, bias=False) for name in names})
        self.scale = nn.ParameterDict({name: nn.Parameter(torch.randn(1)) for name in names})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Adapted() for _ in range(2))
        self.last = Adapted(3)
        self.experts = nn.ModuleDict({name: nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)]) for name in NAMES})


@pytest.fixture
def net() -> Net:
    return Net()


def parts_of(net: Net, name: str, kinds: str) -> list[Tensor]:
    holders = [net.layers[0], net.layers[1], net.last]
    return [getattr(holder, f"lora_{kind}")[name].weight for holder in holders for kind in kinds]


@pytest.mark.parametrize(
    ("pattern", "kinds"), [("**.lora_?.*", "AB"), ("**.lora_A.*", "A"), ("**.lora_B.*.weight", "B")]
)
def test_a_pattern_gathers_the_parts_of_each_task_from_all_layers(net: Net, pattern: str, kinds: str) -> None:
    (target,) = find_targets(net, [pattern])
    assert target.tasks == NAMES
    for name, row, named in zip(NAMES, target.read(), target.parameters, strict=True):
        expected = parts_of(net, name, kinds)
        assert all(p is q for (_, p), q in zip(named, expected, strict=True))
        assert row.equal(torch.cat([part.flatten() for part in expected]))


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("layers.**.lora_A.*", 2 * 8),
        ("layers.**.lora_?.*", 4 * 8),
        ("layers.1.**.lora_A.*", 8),  # also a stretch of no length
        ("**.scale.*", 3),
        ("experts.*.**", 6 + 3),  # what is inside of a part belongs to it, and is no other one
        ("**.experts.*.1", 3),
    ],
)
def test_how_far_a_pattern_reaches(net: Net, pattern: str, size: int) -> None:
    (target,) = find_targets(net, [pattern])
    assert (target.tasks, target.size) == (NAMES, size)


def test_a_list_of_parts_for_each_task(net: Net) -> None:
    told = {name: (f"last.lora_A.{name}", f"experts.{name}.0.bias", f"last.scale.{name}") for name in reversed(NAMES)}
    (target,) = find_targets(net, [told])
    assert target.tasks == NAMES[::-1]
    fr = [net.last.lora_A["fr"].weight.flatten(), net.experts["fr"][0].bias, net.last.scale["fr"]]  # type: ignore[index]
    assert target.read()[0].equal(torch.cat(fr))


def test_a_part_that_is_compiled(net: Net) -> None:
    before = find_targets(net, ["**.lora_?.*"])[0].read()
    net.layers[0] = torch.compile(net.layers[0], backend="eager")  # type: ignore[assignment]
    net.last.lora_A["en"] = torch.compile(net.last.lora_A["en"], backend="eager")  # type: ignore[assignment]
    assert find_targets(net, ["**.lora_?.*"])[0].read().equal(before)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("**.lora_A", "beside '**' one '*' must stand for the tasks, as in '**.lora_?.*'"),
        ("**.*.*", "beside '**' one '*' must stand for the tasks"),
        ("layers**.*", "beside '**' one '*' must stand for the tasks"),
        ("**.lora_C.*", "'**.lora_C.*' must fit the names of parts of two tasks or more, found tasks: none"),
        ("**.experts.d*", "must fit the names of parts of two tasks or more, found tasks: e"),
        ({"de": ["last.scale.de"], "en": []}, "must name a part of the module for each of two tasks or more"),
        ({"de": ["last.scale.de"], "en": [3]}, "a target is a name, {task: name} or {task: [names]}"),
        ({"de": ["last.scale.de", "last.scale.de"], "en": ["last.scale.en", "last.scale.fr"]}, "are one and the same"),
        ({"de": ["last.scale.de"], "en": ["last.scale.en", "last.scale.fr"]}, "'de' has nothing where 'en' has a ten"),
        ({"name": "**.scale.*", "dim": 1}, "rows_per_task and dim are for tasks in one parameter"),
    ],
)
def test_what_cannot_be_read_is_refused(net: Net, told: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_targets(net, [told])
    assert message in str(caught.value)


def test_a_task_without_one_of_the_parts_is_refused(net: Net) -> None:
    """As many parts of equal shapes, but in other layers."""
    net.layers[1] = Adapted(names=["de", "en"])
    net.more = Adapted(names=["de", "fr"])
    with pytest.raises(InputError, match=r"need the same parts: 'en' has no more.lora_A.\*"):
        find_targets(net, ["**.lora_A.*"])
