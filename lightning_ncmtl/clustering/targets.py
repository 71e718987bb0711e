"""Which numbers of a module belong to which task: the rows that network clustering works on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_ncmtl.clustering import _slices
from lightning_ncmtl.clustering._direct import means
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import PerTask, plain_name, uncompiled

Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Target:
    """The parameters that form one cluster layer, one row of numbers per task.

    Where each rank holds a part of the parameters (DTensors, as those of FSDP2), rows are slices ``[N, D of this
    rank]``, and reading and writing are for all ranks of :attr:`group` at once.

    Attributes:
        name: As the user named it.
        tasks: Names of the tasks: the keys of a ``ModuleDict``, else indices.
        parameters: Per task its named parameters; or, where ``stacked``, one list of parameters ``[N, ...]``.
        stacked: Whether the parameters hold all tasks, along their first dimension.
    """

    name: str
    tasks: list[str]
    parameters: list[Named]
    stacked: bool

    def read(self) -> Tensor:
        """All parameters of each task, flattened: a copy, ``[N, D]``."""
        if self.stacked:
            return torch.cat([_slices.read(p, dim=1).flatten(1) for _, p in self.parameters[0]], 1)
        return torch.stack([torch.cat([_slices.read(p, dim=0).flatten() for _, p in task]) for task in self.parameters])

    def gradients(self) -> "Target":
        """The gradients of the parameters, to read and to write; zeros where there was none."""
        for _, parameter in (pair for task in self.parameters for pair in task):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        named: Any = [[(name, parameter.grad) for name, parameter in task] for task in self.parameters]
        return Target(self.name, self.tasks, named, self.stacked)

    def add_to(self, rows: Tensor) -> None:
        """Add all parameters of each task to ``rows`` [N, D], in place."""
        if not self.stacked:
            rows += self.read()
            return
        for part, (_, p) in zip(rows.split(self._sizes, dim=1), self.parameters[0], strict=True):
            part.add_(_slices.read(p, dim=1).flatten(1))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the rows: the widest of the parameters."""
        return reduce(torch.promote_types, (p.dtype for _, p in self.parameters[0]))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0][0][1].device

    @property
    def named(self) -> bool:
        """Whether the tasks have names rather than indices."""
        return self.tasks != [str(task) for task in range(len(self.tasks))]

    @torch.no_grad()
    def write(self, rows: Tensor) -> None:
        """Write ``[N, D]`` back to the parameters."""
        sizes = self._sizes
        for named, values in zip(self.parameters, [rows] if self.stacked else rows, strict=True):
            for (_, parameter), part in zip(named, values.split(sizes, dim=-1), strict=True):
                _slices.write(parameter, part, dim=int(self.stacked))

    def share(self, assignment: Tensor) -> None:
        """Give the tasks of each cluster ``[N]`` the mean of their parameters; equal ones stay as they are."""
        rows, clusters = self.read(), assignment.to(self.device)
        self.write(means(rows, clusters, int(clusters.max()) + 1).index_select(0, clusters))

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks whose slices are the whole rows; ``None`` where each has all of them."""
        return _slices.group_of(self.parameters[0][0][1])

    @property
    def size(self) -> int:
        """D of the whole rows."""
        return sum(p.numel() for _, p in self.parameters[0]) // (len(self.tasks) if self.stacked else 1)

    def total(self, values: Tensor) -> Tensor:
        """The sum, in place, of what the ranks found for their slices."""
        if (group := self.group) is not None:
            dist.all_reduce(values, group=group)
        return values

    def whole(self, rows: Tensor) -> Tensor:
        """The whole rows ``[..., D]``, on every rank, from the slices."""
        if self.group is None:
            return rows
        whole = rows.new_zeros(*rows.shape[:-1], self.size)
        whole[..., self._columns(rows.device)] = rows
        return self.total(whole)

    def cut(self, rows: Tensor) -> Tensor:
        """This rank's slice of whole rows ``[..., D]``."""
        return rows if self.group is None else rows[..., self._columns(rows.device)]

    def is_alike(self) -> bool:
        """Whether all tasks have the same parameters."""
        rows = self.read()
        return not self.total(rows.ne(rows[0]).sum())

    def find_broken(self) -> list[int]:
        """The tasks with parameters that are not finite."""
        broken = self.total((~self.read().isfinite()).sum(1))
        return broken.nonzero().flatten().tolist()

    @cached_property
    def _sizes(self) -> list[int]:
        """How many numbers of a row this rank has from each parameter."""
        dim = int(self.stacked)
        return [_slices.shape(p, dim)[dim:].numel() for _, p in self.parameters[0]]

    def _columns(self, device: torch.device) -> Tensor:
        """Which numbers of the whole rows this rank has."""
        dim, columns, end = int(self.stacked), [], 0
        for _, p in self.parameters[0]:
            shape = torch.Size([*p.shape[dim:], 1])
            start, end = end, end + shape.numel()
            columns.append(torch.arange(start, end, device=device).reshape(shape)[_slices.stretch(p, dim)].flatten())
        return torch.cat(columns)

    def find_in(self, copy: nn.Module) -> "Target":
        """The same parameters of a copy of the module."""
        named = [[(name, copy.get_parameter(name)) for name, _ in task] for task in self.parameters]
        return Target(self.name, self.tasks, named, self.stacked)


def find_targets(module: nn.Module, names: Sequence[str], trainable: bool = True) -> list[Target]:
    """Find and check the per-task parameters that the names stand for.

    Args:
        module: The module that holds them.
        names: Each the dotted name of a ``ModuleList`` or ``ModuleDict`` whose children are one task each; such a name
            with a part of every child (``heads.*.fc1``); or the name of a parameter, or of a module all of whose
            parameters have the task as their first dimension.
        trainable: Refuse frozen parameters.

    Returns:
        One target per name.

    Raises:
        InputError: If a name stands for nothing, or its tasks cannot share weights: different parameters or shapes,
            parameters that are tied, frozen, used by two targets or sharded differently; or if targets have different
            tasks.
    """
    reshard(module)
    targets = [_find(module, name) for name in names]
    _check_apart(module, targets, trainable)
    for target in targets:
        check_mesh(target)
    for target in targets:
        for other in targets:
            if len(target.tasks) != len(other.tasks) or (target.named and other.named and target.tasks != other.tasks):
                raise InputError(
                    f"targets must have the same tasks in the same order, found {_some(target.tasks)} in "
                    f"{target.name} and {_some(other.tasks)} in {other.name}"
                )
    return targets


def reshard(module: nn.Module) -> None:
    """Free the whole copies that FSDP2 has in the place of parameters after an evaluation: these may change now."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _find(module: nn.Module, name: str) -> Target:
    head, star, tail = name.partition(".*")
    if "*" in head + tail or (tail and not tail.startswith(".")):
        raise InputError(f"cannot read the target {name!r}: one '*' may stand for the tasks, as in 'heads.*.fc1'")
    found = _look_up(module, head, name)
    found = uncompiled(found)
    if children := _tasks(found):
        prefixes = [f"{head}.{key}" for key, _ in children]
        parts = [uncompiled(_look_up(child, tail[1:], name) if tail else child) for _, child in children]
        parameters = [_named(part, prefix + tail) for part, prefix in zip(parts, prefixes, strict=True)]
        _check_alike([key for key, _ in children], parts, parameters, prefixes, name)
        return Target(name, [key for key, _ in children], parameters, stacked=False)
    if star:
        raise InputError(
            f"the target {name!r} needs a ModuleList or ModuleDict at {head!r}, found {type(found).__name__}"
        )
    named = _named(found, name)
    _check_one_module(found, name)
    sizes = {p.shape[0] if p.ndim else 0 for _, p in named}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(
            f"the target {name!r} is neither a ModuleList or ModuleDict of tasks nor has the task as the first "
            f"dimension of its parameters, found {_shapes(named)}"
        )
    return Target(name, [str(task) for task in range(sizes.pop())], [named], stacked=True)


def _tasks(container: nn.Module | nn.Parameter) -> list[tuple[str, Any]]:
    """The named tasks of a container, not of any other module."""
    if isinstance(container, (nn.ModuleDict, nn.ParameterDict)):
        return list(container.items())
    if isinstance(container, (nn.ModuleList, nn.ParameterList)):
        return [(str(number), task) for number, task in enumerate(container)]
    return []


def _look_up(module: nn.Module | nn.Parameter, path: str, name: str) -> nn.Module | nn.Parameter:
    found: object = module
    for part in path.split("."):
        # getattr, which finds what torch.compile wrapped
        following = getattr(found, part, None) if isinstance(found, nn.Module) else None
        if not isinstance(following, (nn.Module, nn.Parameter)):
            there = [key for key, _ in _members(found)] if isinstance(found, nn.Module) else []
            raise InputError(
                f"the target {name!r} names nothing in the module: no {part!r} in {type(found).__name__}, which has "
                f"{_some(there)}"
            )
        found = following
    assert isinstance(found, (nn.Module, nn.Parameter))
    return found


def _members(module: nn.Module) -> Iterator[tuple[str, object]]:
    yield from module.named_children()
    yield from module.named_parameters(recurse=False)


def _named(part: nn.Module | nn.Parameter, prefix: str) -> Named:
    found = [("", part)] if isinstance(part, nn.Parameter) else part.named_parameters()
    named = [(plain_name(f"{prefix}.{name}").rstrip("."), parameter) for name, parameter in found]
    if not named:
        raise InputError(f"{prefix} has no parameters")
    for name, parameter in named:
        if is_lazy(parameter):
            raise InputError(f"{name} has no shape yet (a lazy module): run one batch through the module before")
    return named


def _check_alike(tasks: list[str], parts: list[Any], parameters: list[Named], prefixes: list[str], name: str) -> None:
    """Tasks that shall share weights need the same modules, and parameters of the same shape and type."""
    described = [_describe(*task) for task in zip(parts, parameters, prefixes, strict=True)]
    for task, theirs in zip(tasks, described, strict=True):
        for ours, other in zip_longest(described[0], theirs, fillvalue="nothing"):
            if ours != other:
                raise InputError(
                    f"all tasks of the target {name!r} need the same modules and parameters: {tasks[0]!r} has {ours} "
                    f"where {task!r} has {other}"
                )


def _describe(part: nn.Module | nn.Parameter, named: Named, prefix: str) -> list[str]:
    modules = [] if isinstance(part, nn.Parameter) else list(part.named_modules())
    kinds = [
        f"{plain_name(path) or 'a'} {type_before_parametrizations(module).__name__}"
        for path, module in modules
        if uncompiled(module) is module
    ]
    return kinds + [
        f"{n.removeprefix(prefix).lstrip('.') or 'a tensor'} {list(p.shape)} of {p.dtype}" for n, p in named
    ]


def _check_one_module(part: nn.Module | nn.Parameter, name: str) -> None:
    """Several modules side by side are rather tasks, in a container that is no ModuleList, unless a layer says not."""
    if isinstance(part, PerTask):
        return
    modules = [] if isinstance(part, nn.Parameter) else list(part.named_modules(prefix=name))
    holders = {
        path.split(".parametrizations.")[0]: module
        for path, module in modules
        if any(True for _ in module.parameters(recurse=False))
    }
    if len(holders) > 1 and not all(isinstance(uncompiled(module), PerTask) for module in holders.values()):
        raise InputError(
            f"the target {name!r} holds several modules, {_some(list(holders))}: name a ModuleList or ModuleDict with "
            "one child per task, or each module as a target of its own"
        )


def _check_apart(module: nn.Module, targets: list[Target], trainable: bool) -> None:
    """Each parameter must belong to only one task of one target."""
    owners: dict[int, list[str]] = {}
    for path, owner in module.named_modules():  # each module once, whatever the number of paths to it
        for name, parameter in owner.named_parameters(path, recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
    seen: dict[int, tuple[str, str]] = {}
    for target in targets:
        for name, parameter in (pair for task in target.parameters for pair in task):
            if not parameter.is_floating_point():
                raise InputError(f"{name} cannot be clustered: it holds {parameter.dtype}")
            if trainable and not parameter.requires_grad:
                raise InputError(f"{name} is frozen (requires_grad=False): train it, or leave it out of the targets")
            other, where = seen.get(id(parameter), (name, target.name))
            if where != target.name:
                raise InputError(f"{name} belongs to two targets, {where!r} and {target.name!r}")
            tied = owners[id(parameter)] if other == name else [other, name]
            if len(tied) > 1:
                raise InputError(f"tasks need parameters of their own, but {_some(tied)} are one and the same")
            seen[id(parameter)] = (name, target.name)


def check_mesh(target: Target) -> None:
    """Refuse a target of whose parameters some ranks hold a slice, and others not, or slices of another mesh."""
    named = [pair for task in target.parameters for pair in task]
    first, mesh = named[0][0], _slices.mesh_of(named[0][1])
    for name, parameter in named:
        if (other := _slices.mesh_of(parameter)) != mesh:
            raise InputError(
                f"all parameters of the target {target.name!r} must be sharded over the same device mesh: that of "
                f"{first} is {mesh}, that of {name} is {other}"
            )


def _shapes(named: Named) -> str:
    return _some([f"{name} {list(parameter.shape)}" for name, parameter in named])


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
