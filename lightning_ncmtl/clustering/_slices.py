"""Parameters of which each rank holds a part (FSDP2, tensor parallelism), cut so that it holds some of every task.

The parts in which torch shards a parameter may be whole tasks. For clustering, each rank takes a slice of the numbers
of all tasks instead: along the dimension after that of the tasks, or the first one of a parameter that is one task's.
Slices may have different sizes, or be empty. On a mesh with several dimensions its last one divides the numbers, and
the ranks along the others hold the same slice.

A parameter is taken as ``[..., 1]``, so that there is a dimension to cut. One that is not sharded is one slice.
"""

from typing import cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from lightning_ncmtl.torch_versions import DTensor, Placement, Replicate, Shard


def mesh_of(parameter: Tensor) -> DeviceMesh | None:
    """The ranks that hold the parts of a parameter; ``None`` where each has all of it."""
    return parameter.device_mesh if isinstance(parameter, DTensor) else None


def group_of(parameter: Tensor) -> dist.ProcessGroup | None:
    """The ranks whose slices are the whole parameter."""
    mesh = mesh_of(parameter)
    return None if mesh is None else mesh.get_group(mesh.ndim - 1)


def stretch(parameter: Tensor, dim: int) -> slice:
    """Which indices of the dimension ``dim`` this rank has."""
    size = (*parameter.shape, 1)[dim]
    mesh = mesh_of(parameter)
    if mesh is None:
        return slice(0, size)
    length = -(-size // mesh.size(mesh.ndim - 1))  # as torch.chunk
    start = min(mesh.get_local_rank(mesh.ndim - 1) * length, size)
    return slice(start, min(start + length, size))


def shape(parameter: Tensor, dim: int) -> torch.Size:
    """The shape of this rank's slice."""
    mine = stretch(parameter, dim)
    return torch.Size([*parameter.shape[:dim], mine.stop - mine.start, *(*parameter.shape, 1)[dim + 1 :]])


@torch.no_grad()
def read(parameter: Tensor, dim: int) -> Tensor:
    """This rank's slice of a parameter along ``dim``; perhaps a view."""
    if not isinstance(parameter, DTensor):
        return parameter.detach().unsqueeze(-1)
    if (cut := _cut(parameter.device_mesh, dim)) == parameter.placements:
        return parameter.to_local().detach().unsqueeze(-1)
    return cast(DTensor, parameter.detach().unsqueeze(-1)).redistribute(placements=cut).to_local()


def place(parameter: Tensor, values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What this rank holds of a parameter, and what to write there, of a slice such as :func:`read` gives."""
    if isinstance(parameter, DTensor):
        if (cut := _cut(parameter.device_mesh, dim)) != parameter.placements:
            values = values.to(parameter.dtype).reshape(shape(parameter, dim)).contiguous()
            whole = parameter.unsqueeze(-1)
            sliced = DTensor.from_local(
                values, parameter.device_mesh, cut, run_check=False, shape=whole.shape, stride=whole.stride()
            )
            values = sliced.redistribute(placements=parameter.placements).to_local()
        parameter = parameter.to_local()
    return parameter, values.reshape(parameter.shape)


def _cut(mesh: DeviceMesh, dim: int) -> tuple[Placement, ...]:
    return (*[Replicate()] * (mesh.ndim - 1), Shard(dim))
