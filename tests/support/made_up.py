"""Evidence for clusters as two halves of data might give it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def make_evidence(num_tasks: int, num_clusters: int, noise: float = 0.2, seed: int = 0) -> tuple[Any, list[int]]:
    """Made up, with the fields of ``Evidence``; task t is in the cluster t % ``num_clusters``."""
    rng = np.random.default_rng(seed)
    assignment = np.arange(num_tasks) % num_clusters
    halves = []
    for _ in range(2):
        errors = noise * rng.standard_normal((num_tasks, num_tasks))
        half = 0.4 * np.equal.outer(assignment, assignment) - 0.1 + (errors + errors.T) / 2
        np.fill_diagonal(half, 1)
        halves.append(half.clip(-1, 1))
    numbers = sorted({*range(2, min(20, num_tasks - 1) + 1), num_tasks})
    return SimpleNamespace(
        num_clusters=num_clusters,
        p_value=0.001,
        agreement=0.6,
        agreement_error=0.05,
        gains={number: 0.2 - abs(number - num_clusters) / num_tasks for number in numbers},
        similarities=torch.tensor(np.stack(halves), dtype=torch.float32),
    ), assignment.tolist()
