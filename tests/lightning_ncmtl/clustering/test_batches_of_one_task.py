"""Batches of one task each: halves of the data must not become halves of the tasks."""

from typing import Literal

import pytest
import torch
from torch import nn

from lightning_ncmtl import NetworkClustering
from lightning_ncmtl.errors import InputError

TASKS = 12


def fit(order: Literal["turns", "halves", "random"], steps: int = 300, tasks: int = TASKS) -> NetworkClustering:
    """Tasks of three kinds, one at a step; rows 0 to 49 of each are one half, the others the other."""
    torch.manual_seed(1)
    kinds = torch.arange(tasks) % 3
    x = torch.randn(tasks, 100, 8)
    y = torch.einsum("tnd,td->tn", x, torch.randn(3, 8)[kinds]) + 0.5 * torch.randn(tasks, 100)
    net = nn.ModuleDict({"base": nn.Linear(8, 16), "heads": nn.ModuleList(nn.Linear(16, 1) for _ in range(tasks))})
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    clusters = NetworkClustering(net, targets="heads", warmup_steps=steps)
    for step in range(steps + 1):
        half = step % 2
        task = {"turns": step % tasks, "halves": step // 2 % tasks, "random": int(torch.randint(tasks, (1,)))}[order]
        clusters.start_step()  # which takes turns
        rows = torch.randint(50, (16,)) + 50 * half
        optimizer.zero_grad()
        out = net["heads"][task](net["base"](x[task, rows]).relu())  # type: ignore[index]
        (out[:, 0] - y[task, rows]).square().mean().backward()
        clusters.before_step()
        optimizer.step()
        clusters.step()
    return clusters


@pytest.mark.parametrize("steps", [60, 300])
def test_tasks_that_come_in_one_half_only_are_refused(steps: int) -> None:
    """They would be two clusters, p = 0.001, whatever the data."""
    expected = "the tasks 0, 2, 4, 6, 8, 10 come only in steps of the first half of the data, 1, 3, 5, 7, 9, 11 only in"
    with pytest.raises(InputError, match=expected):
        fit("turns", steps)


@pytest.mark.parametrize(("order", "tasks"), [("halves", 12), ("random", 12), ("turns", 9)])
def test_tasks_that_come_in_both_halves_are_grouped(order: Literal["turns", "halves", "random"], tasks: int) -> None:
    clusters = fit(order, 600, tasks)
    assert clusters.assignments["heads"].reshape(-1, 3).unique(dim=0).shape[0] == 1
    assert clusters.evidence is not None
    assert clusters.evidence.num_clusters == 3
