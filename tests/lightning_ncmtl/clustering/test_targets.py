import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_ncmtl import ClusterLinear, TaskLinear, TaskModule
from lightning_ncmtl.clustering import find_targets
from lightning_ncmtl.errors import InputError


def head(out: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, out))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(5, 3)
        self.heads = nn.ModuleDict({"cats": head(), "dogs": head(), "fish": head()})
        self.listed = nn.ModuleList(head() for _ in range(3))
        self.experts = nn.Parameter(torch.randn(3, 2, 4))
        self.offsets = nn.ParameterList(nn.Parameter(torch.randn(2)) for _ in range(3))
        self.scales = nn.ParameterDict({name: nn.Parameter(torch.randn(4)) for name in ("cats", "dogs", "fish")})
        self.binary = nn.Linear(6, 3)  # one output per task
        self.cluster = ClusterLinear(3, 4, 2, num_clusters=2)
        self.odd = nn.Module()
        self.odd.one, self.odd.other = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2))


@pytest.fixture
def model() -> Model:
    return Model()


def test_a_module_dict_gives_one_row_per_child(model: Model) -> None:
    (target,) = find_targets(model, ["heads"])
    assert target.tasks == ["cats", "dogs", "fish"]
    rows = target.read()
    assert rows.shape == (3, 3 * 4 + 4 + 4 * 2 + 2)
    for row, child in zip(rows, model.heads.values(), strict=True):
        assert torch.equal(row, nn.utils.parameters_to_vector(child.parameters()))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("heads", 26),
        ("heads.*", 26),
        ("heads.*.0", 16),
        ("heads.*.2.weight", 8),
        ("listed", 26),
        ("listed.*.2", 10),
        ("experts", 8),
        ("offsets", 2),
        ("scales", 4),
        ("binary", 7),
        ("binary.weight", 6),
        ("cluster", 10),
    ],
)
def test_writing_back_what_was_read_changes_what_was_named_and_nothing_else(
    model: Model, name: str, width: int
) -> None:
    (target,) = find_targets(model, [name])
    rows = target.read()
    assert rows.shape == (3, width)
    assert not rows.requires_grad
    before = copy.deepcopy(model.state_dict())
    target.write(rows.clone())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    new = torch.randn_like(rows)
    target.write(new)
    assert torch.equal(target.read(), new)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {parameter for task in target.parameters for parameter, _ in task}


def test_rows_of_a_copy(model: Model) -> None:
    (target,) = find_targets(model, ["heads.*.0"])
    other = copy.deepcopy(model)
    target.find_in(other).write(torch.zeros(3, 16))
    assert not target.find_in(other).read().any()
    assert target.read().any()


def test_compiled_modules_are_looked_into(model: Model) -> None:
    rows = find_targets(model, ["heads"])[0].read()
    model.heads["dogs"] = torch.compile(model.heads["dogs"], backend="eager")  # type: ignore[assignment]
    assert torch.equal(find_targets(model, ["heads"])[0].read(), rows)
    assert find_targets(model, ["heads.*.0"])[0].read().shape == (3, 16)
    model.listed = torch.compile(model.listed, backend="eager")  # type: ignore[assignment]
    assert find_targets(model, ["listed.*.0"])[0].read().shape == (3, 16)
    outer = nn.Module()
    outer.net = torch.compile(model, backend="eager")  # type: ignore[assignment]
    assert find_targets(outer, ["net.heads", "net.cluster"])[0].read().equal(rows)


def test_a_second_path_to_the_same_module_is_no_tie(model: Model) -> None:
    model.alias = model.heads
    assert find_targets(model, ["heads"])[0].read().shape == (3, 26)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("haeds", "'haeds' names nothing in the module: no 'haeds' in Model, which has backbone, heads, listed"),
        ("heads.*.7", "no '7' in Sequential, which has 0, 1, 2"),
        ("heads.*.1", "heads.cats.1 has no parameters"),
        ("offsets.*.x", "no 'x' in Parameter"),
        ("backbone.*", "needs a ModuleList or ModuleDict at 'backbone', found Linear"),
        ("heads.cats", "'heads.cats' holds several modules, heads.cats.0, heads.cats.2: name a ModuleList"),
        ("odd", r"neither a ModuleList .* found odd.one \[3, 2\], odd.other \[2\]"),
        ("*.*", "cannot read the target"),
        ("head*s*", "cannot read the target"),
        ("heads*", "must fit the names of two tasks or more in Model, which has backbone, heads"),
        ("heads.*.0.*", "cannot read the target"),
    ],
)
def test_names_that_stand_for_nothing(model: Model, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_targets(model, [name])


def test_tasks_that_cannot_share(model: Model) -> None:
    """The message names the first thing that differs."""
    for wrong, message in (
        (head(out=3), r"'cats' has 2.weight \[2, 4\] of torch.float32 where 'dogs' has 2.weight \[3, 4\]"),
        (nn.Linear(3, 2), "'cats' has a Sequential where 'dogs' has a Linear"),
        (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), "'cats' has 1 ReLU where 'dogs' has 1 Tanh"),
        (nn.Sequential(*head(), nn.Identity()), r"'cats' has 0.weight \[4, 3\] .* where 'dogs' has 3 Identity"),
        (
            head().double(),
            r"has 0.weight \[4, 3\] of torch.float32 where 'dogs' has 0.weight \[4, 3\] of torch.float64",
        ),
    ):
        model.heads["dogs"] = wrong
        with pytest.raises(InputError, match=f"'heads' need the same modules and parameters: .*{message}"):
            find_targets(model, ["heads"])
    model.heads["dogs"] = head(out=3)
    assert find_targets(model, ["heads.*.0"])  # the parts that agree


def test_parametrised_tasks_are_alike(model: Model) -> None:
    """Parametrisations make a class of its own of every module."""
    for child in model.listed:
        nn.utils.parametrizations.weight_norm(child[0])
    (target,) = find_targets(model, ["listed"])
    assert target.read().shape == (3, 26 + 4)  # a length for each of four rows
    nn.utils.parametrizations.weight_norm(model.binary)
    assert find_targets(model, ["binary"])[0].read().shape == (3, 8)


def test_several_task_layers_are_one_target(model: Model) -> None:
    model.layers = nn.Sequential(TaskLinear(3, 4, 2), nn.ReLU(), TaskLinear(3, 2, 2))
    assert find_targets(model, ["layers"])[0].read().shape == (3, 4 * 2 + 2 + 2 * 2 + 2)


def test_tied_parameters(model: Model) -> None:
    model.heads["dogs"][2] = model.heads["cats"][2]
    with pytest.raises(InputError, match=r"but heads.cats.2.weight, heads.dogs.2.weight are one and the same"):
        find_targets(model, ["heads"])
    model = Model()
    model.listed[1][0].weight = model.listed[0][0].weight
    with pytest.raises(InputError, match=r"but listed.0.0.weight, listed.1.0.weight are one and the same"):
        find_targets(model, ["listed"])
    model = Model()
    model.tail = nn.Linear(4, 2)
    model.tail.weight = model.heads["fish"][2].weight  # with something that is no task
    with pytest.raises(InputError, match=r"but heads.fish.2.weight, tail.weight are one and the same"):
        find_targets(model, ["heads"])


def test_frozen_overlapping_lazy_and_integer_parameters(model: Model) -> None:
    model.heads["fish"][0].bias.requires_grad_(False)
    with pytest.raises(InputError, match=r"heads.fish.0.bias is frozen \(requires_grad=False\)"):
        find_targets(model, ["heads"])
    with pytest.raises(InputError, match=r"listed.0.0.weight belongs to two targets, 'listed' and 'listed.*.0'"):
        find_targets(model, ["listed", "listed.*.0"])
    model.listed = nn.ModuleList(nn.LazyLinear(2) for _ in range(3))
    with pytest.raises(InputError, match="listed.0.weight has no shape yet"):
        find_targets(model, ["listed"])
    for dtype in (torch.int64, torch.complex64):
        model.experts = nn.Parameter(torch.zeros(3, 2, dtype=dtype), requires_grad=False)
        with pytest.raises(InputError, match=f"experts cannot be clustered: it holds {dtype}"):
            find_targets(model, ["experts"])


def test_targets_have_the_same_tasks(model: Model) -> None:
    assert len(find_targets(model, ["listed", "experts", "cluster"])) == 3
    named, indices = find_targets(model, ["heads", "listed"])
    assert named.named
    assert not indices.named
    model.other = nn.ModuleDict({"dogs": head(), "cats": head(), "fish": head()})
    with pytest.raises(InputError, match="found cats, dogs, fish in heads and dogs, cats, fish in other"):
        find_targets(model, ["heads", "other"])
    model.more = TaskLinear(4, 2, 2)
    with pytest.raises(InputError, match="found 0, 1, 2 in listed and 0, 1, 2, 3 in more"):
        find_targets(model, ["listed", "more"])


def test_what_a_module_is_is_not_told_by_an_attribute() -> None:
    """Only layers of this package hold tasks in several modules, whatever the attributes of others are called."""

    class Multi(nn.Linear):
        num_tasks = 4

    module = nn.ModuleDict({"theirs": nn.Sequential(Multi(3, 4), Multi(4, 4)), "ours": TaskModule(nn.GRUCell(3, 2), 4)})
    with pytest.raises(InputError, match="'theirs' holds several modules"):
        find_targets(module, ["theirs"])
    assert find_targets(module, ["ours"])[0].read().shape[0] == 4
    assert TaskModule(module["theirs"], 2).num_tasks == 2


class Rows(nn.Module):
    """Tasks in other places than the first dimension: five of them."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 10)
        self.three = nn.Parameter(torch.randn(2, 5, 4))
        self.last = nn.Linear(10, 5, bias=False)
        self.last.weight = nn.Parameter(torch.randn(3, 5))
        self.last.bias = nn.Parameter(torch.randn(5))
        self.front = nn.Embedding(6, 3, padding_idx=0)
        self.middle = nn.Embedding(11, 3, padding_idx=4)
        self.a_net, self.b_net = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))
        self.a_scale, self.b_scale = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))


def others(size: int, without: int) -> list[int]:
    return [row for row in range(size) if row != without]


ROWS = [
    ({"name": "out", "rows_per_task": 2}, lambda m: [m.out.weight.view(5, 6), m.out.bias.view(5, 2)]),
    (
        {"name": "out", "rows_per_task": 2, "layout": "interleaved"},
        lambda m: [torch.stack(m.out.weight.chunk(2), 1).flatten(1), torch.stack(m.out.bias.chunk(2), 1)],
    ),
    ({"name": "three", "dim": 1}, lambda m: [m.three.transpose(0, 1).flatten(1)]),
    ({"name": "last", "dim": -1}, lambda m: [m.last.weight.T, m.last.bias.unsqueeze(1)]),
    ({"name": "last.weight", "dim": 1}, lambda m: [m.last.weight.T]),
    ("front", lambda m: [m.front.weight[1:]]),
    ("front.weight", lambda m: [m.front.weight[1:]]),
    ({"name": "middle", "rows_per_task": 2}, lambda m: [m.middle.weight[others(11, 4)].view(5, 6)]),
    (
        {"name": "middle", "rows_per_task": 2, "layout": "interleaved"},
        lambda m: [torch.stack(m.middle.weight[others(11, 4)].chunk(2), 1).flatten(1)],
    ),
]


@pytest.mark.parametrize(("spec", "expected"), ROWS, ids=[str(spec) for spec, _ in ROWS])
def test_rows_of_tasks(spec: Any, expected: Any) -> None:
    """Reading, writing, adding, gradients; what belongs to no task never changes."""
    module = Rows()
    before = copy.deepcopy(module)
    (target,) = find_targets(module, [spec])
    rows = torch.cat(expected(module), 1).detach()
    assert torch.equal(target.read(), rows)
    assert len(target.tasks) == 5
    assert target.size == rows.shape[1]
    assert torch.equal(target.whole(rows), rows)
    target.write(target.read())
    for name, value in before.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
    new = torch.randn_like(rows)
    target.write(new)
    assert torch.equal(target.read(), new)
    assert torch.equal(torch.cat(expected(module), 1), new)
    target.add_to(new)
    assert torch.equal(new, 2 * target.read())
    ours = {name for named in target.parameters for name, _ in named}
    changed = {name for name, value in before.named_parameters() if not module.get_parameter(name).equal(value)}
    assert changed == ours
    for name in ("front", "middle"):
        layer, old = module.get_submodule(name), before.get_submodule(name)
        assert torch.equal(layer.weight[layer.padding_idx], old.weight[layer.padding_idx])  # type: ignore
    target.gradients().write(rows)
    assert torch.equal(target.gradients().read(), rows)
    target.share(torch.tensor([0, 1, 0, 2, 1]), 3)
    assert torch.equal(target.read()[0], target.read()[2])
    assert len(target.read().unique(dim=0)) == 3
    assert torch.equal(target.find_in(copy.deepcopy(module)).read(), target.read())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sharing_a_second_time_changes_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 40, 2**15):
        module = nn.ParameterDict({"rows": nn.Parameter(torch.randn(7, size, generator=generator).to(dtype) + 100)})
        (target,) = find_targets(module, ["rows"])
        clusters = torch.tensor([0, 1, 1, 3, 1, 3, 3])  # one of them is empty
        before = module["rows"].detach().double()
        target.share(clusters, 4)
        once = module["rows"].detach().clone()
        expected = torch.stack([before[clusters == cluster].mean(0) for cluster in clusters.tolist()])
        torch.testing.assert_close(once, expected.to(dtype))
        target.share(clusters, 4)
        assert torch.equal(module["rows"], once)


def test_tasks_of_rows_have_their_numbers() -> None:
    module = Rows()
    (front,) = find_targets(module, ["front"])
    assert front.tasks == ["1", "2", "3", "4", "5"]
    assert not front.named
    (out,) = find_targets(module, [{"name": "out", "rows_per_task": 2, "layout": "interleaved"}])
    assert out.describe(list("abcde")) == "a (row 0, 5), b (row 1, 6), c (row 2, 7), d (row 3, 8), e (row 4, 9)"
    compiled = torch.compile(module, backend="eager")
    assert find_targets(compiled, ["front"])[0].tasks == front.tasks


def test_padding_of_other_embeddings() -> None:
    """In bags, in a compiled or parametrised one; of a layer per task it is none of the tasks."""
    module = nn.ModuleDict(
        {
            "bag": nn.EmbeddingBag(5, 3, padding_idx=0),
            "scaled": nn.utils.parametrizations.weight_norm(nn.Embedding(5, 3, padding_idx=-1)),
            "compiled": torch.compile(nn.Embedding(5, 3, padding_idx=2), backend="eager"),
            "tasks": TaskModule(nn.Embedding(7, 3, padding_idx=0), 4),
            "listed": nn.ModuleList(nn.Embedding(7, 3, padding_idx=0) for _ in range(4)),
        }
    )
    for name, rows in (
        ("bag", "1234"),
        ("scaled", "0123"),
        ("compiled", "0134"),
        ("tasks", "0123"),
        ("listed", "0123"),
    ):
        assert find_targets(module, [name])[0].tasks == list(rows), name
    assert find_targets(module, ["tasks.module.weight"])[0].tasks == list("0123")
    root = nn.Embedding(5, 3, padding_idx=0)
    assert find_targets(root, ["weight"])[0].tasks == list("1234")


def test_modules_that_are_named_alike_or_one_by_one() -> None:
    module = Rows()
    expected = torch.stack([nn.utils.parameters_to_vector(net.parameters()) for net in (module.a_net, module.b_net)])
    for spec in (
        "*_net",
        "*_net.0",
        {"a": "a_net", "b": "b_net"},
        {"name": "x", "tasks": {"a": "a_net.0", "b": "b_net.0"}},
    ):
        (target,) = find_targets(module, [spec])
        assert target.tasks == ["a", "b"]
        assert torch.equal(target.read(), expected)
    assert [target.name for target in find_targets(module, ["*_scale", {"a": "a_net", "b": "b_net"}])] == [
        "*_scale",
        "tasks",
    ]
    inner = nn.ModuleDict({"model": module})
    assert find_targets(inner, ["model.*_net"])[0].tasks == ["a", "b"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "out", "rows_per_task": 3}, "out has 10 rows, which cannot be 3 for each task"),
        ({"name": "out", "rows_per_task": 0}, "rows_per_task of out must be a number from 1, found 0"),
        ({"name": "out", "rows_per_task": True}, "rows_per_task of out must be a number from 1, found True"),
        ({"name": "out", "rows_per_task": 2, "layout": "rows"}, "unknown layout 'rows' of out: choose 'blocked'"),
        ({"name": "out", "dim": 1}, r"out.bias \[10\] has no dimension 1"),
        ({"name": "out", "dim": "last"}, "dim of out must be a whole number, found 'last'"),
        ({"name": "last"}, "the task as the first dimension of its parameters, found"),
        ({"name": "out", "dim": -1}, "the task as the dimension -1 of its parameters, found"),
        ({"name": "out", "row": 2}, "a target is a name, {task: name} .* or a mapping of name, rows_per_task, layout"),
        ({"rows_per_task": 2}, "a target is a name"),
        (3, "a target is a name, .*: found 3"),
        ({"a": "a_net"}, "must name a part of the module for each of two tasks or more"),
        ({"a": "a_net", "b": "c_net"}, "no 'c_net' in Rows"),
        ({"a": "a_net", "b": "b_scale"}, "all tasks of the target 'tasks' need the same modules and parameters"),
        ({"name": "x", "tasks": {"a": "a_net", "b": "b_net"}, "dim": 1}, "x has either tasks or rows_per_task and dim"),
        ({"name": "*_net", "rows_per_task": 2}, "are for tasks in one parameter, but '.*_net' has a part for each"),
    ],
    ids=str,
)
def test_mappings_that_say_nothing(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_targets(Rows(), [spec])


def test_layers_of_this_package_know_their_tasks(model: Model) -> None:
    with pytest.raises(InputError, match="cluster is a ClusterLinear, whose tasks are known: name it alone, 'cluster'"):
        find_targets(model, [{"name": "cluster", "rows_per_task": 3}])


def test_another_number_of_tasks_is_refused_with_the_way_out(model: Model) -> None:
    model.out, model.table = nn.Linear(4, 6), nn.Parameter(torch.zeros(7, 3))
    for name, way in (
        ("out", "{'name': 'out', 'rows_per_task': 2}"),
        ("table", "{'name': 'table', 'dim': 1}"),
    ):
        with pytest.raises(InputError, match=f"found cats, dogs, fish in heads and .*may be .*{way}"):
            find_targets(model, ["heads", name])
