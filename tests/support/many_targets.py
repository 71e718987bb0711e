"""A module with a target of each kind, and a training of it that needs no data."""

from typing import Any

import torch
from torch import nn

from lightning_ncmtl import ClusterLinear
from lightning_ncmtl.clustering import NetworkClustering

TASKS = list("abcdef")
SETTINGS: dict[str, Any] = {"warmup": "apart", "warmup_steps": 2, "commitment": 0.1, "task_names": TASKS}


class Model(nn.Module):
    """Layers of this package, of two other kinds, and one that is shared by all."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = ClusterLinear(6, 4, 3, num_clusters=2)
        self.hard = ClusterLinear(6, 3, 3, num_clusters=1)
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)) for name in TASKS})
        self.out = nn.Linear(5, 6)
        self.wide = nn.Linear(2, 12)
        self.table = nn.Parameter(torch.randn(4, 6))


NUMBERS = {"cluster": 2, "hard": 1, "heads": 3, "out": 2, "wide": 2, "table": 2}
TARGETS: list[Any] = [
    "cluster",
    "hard",
    "heads",
    "out",
    {"name": "wide", "rows_per_task": 2},
    {"name": "table", "dim": 1},
]


def make(**settings: Any) -> tuple[Model, NetworkClustering]:
    """A model and the clustering of all its targets; by default after a warm-up apart."""
    torch.manual_seed(0)
    model = Model()
    return model, NetworkClustering(model, list(NUMBERS.values()), TARGETS, **{**SETTINGS, **settings})


def train(model: nn.Module, clusters: NetworkClustering, steps: range) -> None:
    """Steps whose gradients are drawn by their numbers, ever larger ones, so that clusters change."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        clusters.start_step()
        for parameter in model.parameters():
            parameter.grad = 2.0**step * torch.randn(parameter.shape, generator=generator)
        clusters.before_step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad  # type: ignore[arg-type]
        clusters.step()
