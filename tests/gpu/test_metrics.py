"""Metrics of tasks on the device are those of the CPU."""

import pytest
import torch
from on_device import CPU, DEVICE

from lightning_ncmtl.metrics import TaskMetrics


def test_they_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 3, generator=generator), torch.randint(-1, 3, (500,), generator=generator)
    task_ids = torch.randint(0, 60, (500,), generator=generator)
    clean = torch.rand(500, generator=generator) < 0.5
    found = []
    for device in (CPU, DEVICE):
        metrics = TaskMetrics([str(task) for task in range(60)]).to(device)
        for _ in range(2):
            metrics.update(*(values.to(device) for values in (logits, labels, task_ids, clean)))
        found.append({name: float(value) for name, value in metrics.compute().items()})
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_the_loss_is_repeatable() -> None:
    """Bitwise, though sums are over tasks that are scattered."""
    torch.manual_seed(0)
    logits, labels = torch.randn(5000, 2, device=DEVICE), torch.randint(0, 2, (5000,), device=DEVICE)
    task_ids = torch.randint(0, 7, (5000,), device=DEVICE)
    found = []
    for _ in range(4):
        metrics = TaskMetrics([str(task) for task in range(7)]).to(DEVICE)
        metrics.update(logits, labels, task_ids)
        found.append({name: float(value) for name, value in metrics.compute().items()})
    assert found[1:] == found[:1] * 3
