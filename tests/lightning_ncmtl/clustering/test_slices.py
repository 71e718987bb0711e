"""Targets whose parameters ranks hold in parts: slices on all ranks are what one has that holds all."""

from collections.abc import Sequence
from typing import Any

import torch
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_ncmtl.clustering import find_targets

N = 3


class Stack(nn.Module):
    """Parameters of all tasks, of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        for number, shape in enumerate([(5, 2), (4,), (1, 3), ()]):
            self.register_parameter(f"p{number}", nn.Parameter(torch.randn(N, *shape)))


class Head(nn.Sequential):
    """Parameters of one task, one of them a scalar."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6), nn.Linear(6, 1))
        self.scale = nn.Parameter(torch.randn(()))


def new() -> nn.Module:
    torch.manual_seed(0)
    rows = {"out": nn.Linear(4, 2 * N), "table": nn.Linear(N, 5), "words": nn.Embedding(N + 1, 3, padding_idx=1)}
    return nn.ModuleDict({"stack": Stack(), "heads": nn.ModuleList(Head() for _ in range(N)), **rows})


ROWS: list[Any] = [
    {"name": "out", "rows_per_task": 2},
    {"name": "table.weight", "dim": 1},
    "words",
]
INTERLEAVED = {"name": "out", "rows_per_task": 2, "layout": "interleaved"}


def check(module: nn.Module, names: Sequence[Any]) -> None:
    whole = new()
    for target, expected in zip(find_targets(module, names), find_targets(whole, names), strict=True):
        rows, mine = expected.read(), target.read()
        assert target.group is not None
        assert target.size == rows.shape[1]
        assert target.total(torch.tensor(mine.shape[1])) == rows.shape[1]
        torch.testing.assert_close(target.total(mine.square().sum(1)), rows.square().sum(1))
        assert torch.equal(target.whole(mine), rows)
        assert torch.equal(target.cut(rows), mine)
        assert torch.equal(target.cut(rows[0]), mine[0])
        target.write(2 * mine)
        expected.write(2 * rows)
        target.add_to(mine)
        assert torch.equal(target.whole(mine), 3 * rows)
        for ours, theirs in zip(target.parameters, expected.parameters, strict=True):
            for (_, p), (_, q) in zip(ours, theirs, strict=True):
                assert torch.equal(p.full_tensor(), q)


def distribute(module: nn.Module, mesh: DeviceMesh, placements: list[Placement]) -> nn.Module:
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            possible = [Replicate() if isinstance(s, Shard) and s.dim >= p.ndim else s for s in placements]
            part.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, possible)))
    return module


def on_rank(rank: int) -> None:
    line = init_device_mesh("cpu", (4,))
    for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
        check(distribute(new(), line, [placement]), ["stack", "heads", *ROWS])
        check(distribute(new(), line, [placement]), [INTERLEAVED])
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for placements in ([Replicate(), Shard(0)], [Shard(0), Replicate()], [Shard(0), Shard(0)], [Shard(1), Shard(0)]):
        check(distribute(new(), grid, placements), ["stack", "heads"])
    module = new()
    fully_shard(module.stack, mesh=grid)  # replicated along one dimension, sharded along the other
    for head in module.heads:
        parallelize_module(head, grid["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        for layer in (head[0], head[1]):
            fully_shard(layer, mesh=grid["data"])
    check(module, ["stack", "heads.*.0", "heads.*.1"])


def test_ranks_read_and_write_slices() -> None:
    on_ranks(4, on_rank)
