"""Which numbers of a module belong to which task: the rows that network clustering works on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lightning_ncmtl.clustering import _slices
from lightning_ncmtl.clustering._direct import means
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.torch_versions import RESHARDS

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
        stacked: Whether the parameters hold all tasks, along one dimension.
        dim: That dimension of a stacked parameter.
        order: Which indices of it belong to the tasks, task by task, as many to each; what is not among them is
            nobody's and stays as it is. ``None``: one to each.
    """

    name: str
    tasks: list[str]
    parameters: list[Named]
    stacked: bool
    dim: int = 0
    order: tuple[int, ...] | None = None

    def read(self) -> Tensor:
        """All parameters of each task, flattened: a copy, ``[N, D]``."""
        if self.stacked:
            return torch.cat(self.parts(), 1)
        parts = [_slices.read(p, dim=0).flatten() for task in self.parameters for _, p in task]
        return torch.cat(parts).view(len(self.parameters), sum(self._sizes))

    def parts(self) -> list[Tensor]:
        """The rows of each stacked parameter, perhaps views."""
        return [self._unstack(p) for _, p in self.parameters[0]]

    def gradients(self) -> "Target":
        """The gradients of the parameters, to read and to write; zeros where there was none.

        Raises:
            InputError: If they are sparse.
        """
        for name, parameter in (pair for task in self.parameters for pair in task):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.layout != torch.strided:
                raise InputError(
                    f"{name} has sparse gradients, of which tasks that share cannot be given the mean: make them dense "
                    "(sparse=False), or choose warmup='apart'"
                )
        named: Any = [[(name, parameter.grad) for name, parameter in task] for task in self.parameters]
        return self._of(named)

    def add_to(self, rows: Tensor) -> None:
        """Add all parameters of each task to ``rows`` [N, D], in place."""
        if not self.stacked:
            rows += self.read()
            return
        for part, (_, p) in zip(rows.split(self._sizes, dim=1), self.parameters[0], strict=True):
            part.add_(self._unstack(p))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the rows, the widest of the parameters."""
        return reduce(torch.promote_types, (p.dtype for _, p in self.parameters[0]))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0][0][1].device

    @property
    def named(self) -> bool:
        """Whether the tasks have names rather than indices."""
        return not self.stacked and self.tasks != [str(task) for task in range(len(self.tasks))]

    def describe(self, tasks: Sequence[str]) -> str:
        """The tasks by their names, and what belongs to them where that is not one row each, for people."""
        if self.order is None:
            return list_some(tasks)
        each = len(self.order) // len(tasks)
        kind = "row" if self.dim == 0 else "column" if self.dim in (1, -1) else "index"
        theirs = [", ".join(map(str, self.order[n * each :][:each])) for n in range(len(tasks))]
        return list_some([f"{task} ({kind} {rows})" for task, rows in zip(tasks, theirs, strict=True)])

    @torch.no_grad()
    def write(self, rows: Tensor) -> None:
        """Write ``[N, D]`` back to the parameters."""
        torch._foreach_copy_(*self.places(rows))

    def places(self, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Where ``[N, D]`` is to be written: this rank's parts of the parameters, and what is for each."""
        parts = [values.split(self._sizes, dim=-1) for values in ([rows] if self.stacked else rows)]
        found = [
            self._stack(p, part) if self.stacked else _slices.place(p, part, dim=0)
            for named, values in zip(self.parameters, parts, strict=True)
            for (_, p), part in zip(named, values, strict=True)
        ]
        return [place for place, _ in found], [values for _, values in found]

    def share(self, assignment: Tensor, num_clusters: int) -> None:
        """Give the tasks of each cluster ``[N]`` the mean of their parameters; equal ones stay as they are."""
        rows, clusters = self.read(), assignment.to(self.device)
        if rows.dtype != torch.float64:
            self.write(means(rows, clusters, num_clusters).index_select(0, clusters))
            return
        # Sums of equal numbers are rounded in their own type: from the first task of a cluster, they are zeros
        numbers = torch.arange(num_clusters, device=clusters.device).unsqueeze(1)
        first = (clusters == numbers).int().argmax(1).index_select(0, clusters)
        origin = rows.index_select(0, first)
        self.write(origin + means(rows - origin, clusters, num_clusters).index_select(0, clusters))

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks whose slices are the whole rows; ``None`` where each has all of them."""
        return _slices.group_of(self.parameters[0][0][1])

    @property
    def size(self) -> int:
        """D of the whole rows."""
        return sum(shape.numel() for shape in self._shapes)

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

    def _unstack(self, parameter: nn.Parameter) -> Tensor:
        """This rank's slice of a stacked parameter, ``[N, D]``; perhaps a view."""
        dim, cut = self._dims(parameter)
        values = _slices.read(parameter, cut)
        if not dim and self.order is None:  # as mostly, at each step several times
            return values.reshape(len(values), -1)
        values = values.movedim(dim, 0)
        if self.order is not None:
            values = values.index_select(0, self._index)
        return values.reshape(len(self.tasks), len(values) // len(self.tasks), *values.shape[1:]).flatten(1)

    def _stack(self, parameter: nn.Parameter, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where to write what :meth:`_unstack` reads."""
        dim, cut = self._dims(parameter)
        if dim or self.order is not None:
            values = _slices.read(parameter, cut).movedim(dim, 0)
            number = len(values) if self.order is None else len(self.order)
            rows = rows.to(values.dtype).reshape(number, *values.shape[1:])
            rows = (rows if self.order is None else values.index_copy(0, self._index, rows)).movedim(0, dim)
        return _slices.place(parameter, rows, cut)

    def _dims(self, parameter: Tensor) -> tuple[int, int]:
        """The dimension of the tasks, and the first other one, along which ranks have slices."""
        dim = self.dim % parameter.ndim
        return dim, int(dim == 0)

    @property
    def _index(self) -> Tensor:
        """:attr:`order`, where the parameters are: it is moved once."""
        if self._indices.device != self.device:
            self.__dict__["_indices"] = self._indices.to(self.device)
        return self._indices

    @cached_property
    def _indices(self) -> Tensor:
        return torch.tensor(self.order, device="cpu")

    @cached_property
    def _shapes(self) -> list[torch.Size]:
        """The shape of what a task has of each parameter, after how many indices of a stacked one are its own."""
        if not self.stacked:
            return [torch.Size([1, *p.shape, 1]) for _, p in self.parameters[0]]
        each = 1 if self.order is None else len(self.order) // len(self.tasks)
        dims = [(p, self._dims(p)[0]) for _, p in self.parameters[0]]
        return [torch.Size([each, *p.shape[:dim], *p.shape[dim + 1 :], 1]) for p, dim in dims]

    @cached_property
    def _stretches(self) -> list[slice]:
        """Which part of these shapes' second dimension this rank has."""
        return [_slices.stretch(p, self._dims(p)[1] if self.stacked else 0) for _, p in self.parameters[0]]

    @cached_property
    def _sizes(self) -> list[int]:
        """How many numbers of a row this rank has from each parameter."""
        mine = zip(self._shapes, self._stretches, strict=True)
        return [shape[0] * (part.stop - part.start) * shape[2:].numel() for shape, part in mine]

    def _columns(self, device: torch.device) -> Tensor:
        """Which numbers of the whole rows this rank has."""
        columns, end = [], 0
        for shape, part in zip(self._shapes, self._stretches, strict=True):
            start, end = end, end + shape.numel()
            columns.append(torch.arange(start, end, device=device).reshape(shape)[:, part].flatten())
        return torch.cat(columns)

    def find_in(self, copy: nn.Module) -> "Target":
        """The same parameters of a copy of the module."""
        named = [[(name, copy.get_parameter(name)) for name, _ in task] for task in self.parameters]
        return self._of(named)

    def _of(self, parameters: list[Named]) -> "Target":
        found = replace(self, parameters=parameters)
        if self.order is not None:
            found.__dict__["_indices"] = self._index
        return found


def merge(targets: Sequence[Target]) -> Target:
    """Targets of one kind as if they were one."""
    parameters = [list(chain(*parts)) for parts in zip(*(target.parameters for target in targets), strict=True)]
    return replace(targets[0], name=", ".join(target.name for target in targets), parameters=parameters)


def read_parts(targets: Sequence[Target]) -> list[list[Tensor]]:
    """The rows ``[N, D]`` of each target in parts, perhaps views; one kernel for all that have parameters by task."""
    apart = [target for target in targets if not target.stacked]
    rows = iter(merge(apart).read().split([target.size for target in apart], 1) if apart else ())
    return [target.parts() if target.stacked else [next(rows)] for target in targets]


def check_mesh(target: Target) -> None:
    """Refuse a target of whose parameters some ranks hold a slice, and others not, or slices of another mesh."""
    named = [pair for task in target.parameters for pair in task]
    first, mesh = named[0][0], _slices.mesh_of(named[0][1])
    if mesh is not None and not RESHARDS:
        raise InputError(
            f"{first} of the target {target.name!r} is sharded, which needs torch 2.11 or newer: "
            f"found torch {torch.__version__}"
        )
    for name, parameter in named:
        if (other := _slices.mesh_of(parameter)) != mesh:
            raise InputError(
                f"all parameters of the target {target.name!r} must be sharded over the same device mesh: that of "
                f"{first} is {mesh}, that of {name} is {other}"
            )


def list_some(names: Sequence[str], limit: int = 8) -> str:
    """Names for a message, the first ones where there are many."""
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
