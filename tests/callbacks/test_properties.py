"""What holds for any tasks, clusters, commitments and numbers of steps, in whole trainings, after a warm-up apart."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ncmtl.callbacks import NetworkClusteringCallback

examples = settings(max_examples=25, deadline=None, derandomize=True)


@dataclass
class Case:
    """A training in which every step moves each task by a given amount: plain SGD on a linear loss."""

    start: Tensor  # [N, D]
    moves: Tensor  # [steps, N, D]
    num_clusters: int
    commitment: float
    warmup: int = 0
    every: int = 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_tasks, size = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    steps = draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale, offset = 10.0 ** draw(st.integers(-3, 1)), draw(st.sampled_from([0.0, 1.0, 100.0]))
    return Case(
        start=torch.randn(size, generator=generator).expand(num_tasks, size) + offset,
        moves=torch.randn(steps, num_tasks, size, generator=generator) * scale,
        num_clusters=draw(st.integers(1, num_tasks)),
        commitment=draw(st.sampled_from([0.0, 0.01, 0.5, 1.0])),
        warmup=draw(st.integers(0, 2)),
        every=draw(st.integers(1, 3)),
    )


@st.composite
def planted_cases(draw: st.DrawFn) -> tuple[Case, Tensor]:
    """Tasks in groups that move apart, so that there is one best clustering; and the groups."""
    groups = draw(st.integers(2, 4))
    group = torch.tensor(
        draw(st.permutations([*range(groups), *draw(st.lists(st.integers(0, groups - 1), max_size=6))]))
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    steps, size = draw(st.integers(1, 6)), draw(st.integers(groups, 8))
    moves = torch.eye(size)[group] + 0.01 * torch.randn(steps, len(group), size, generator=generator)
    start = torch.zeros(len(group), size)
    return Case(start, moves, groups, draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))), group


class Moving(LightningModule):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.tasks = nn.Parameter(case.start.clone())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -(self.tasks * self.case.moves[batch_idx]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.arange(len(self.case.moves)))  # type: ignore[arg-type]


class History(Callback):
    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.residuals: list[Tensor | None] = []
        self.assignments: list[Tensor | None] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        clustering = next(c for c in trainer.callbacks if isinstance(c, NetworkClusteringCallback))
        self.weights.append(pl_module.tasks.detach().clone())
        self.residuals.append(clustering.state_dict()["layers"]["tasks"]["residual"])
        self.assignments.append(clustering.assignments.get("tasks"))


def train(case: Case) -> History:
    history = History()
    clustering = NetworkClusteringCallback(
        case.num_clusters,
        "tasks",
        warmup="apart",
        warmup_steps=case.warmup,
        every_n_steps=case.every,
        commitment=case.commitment,
        freeze_after_epochs=None,
    )
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[clustering, history],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Moving(case))
    assert len(history.weights) == len(case.moves)
    return history


@examples
@given(cases())
def test_tasks_of_a_cluster_are_bitwise_equal_after_every_step(case: Case) -> None:
    history = train(case)
    first = 1 if case.num_clusters == 1 else case.warmup + 1
    for step, (weights, assignment) in enumerate(zip(history.weights, history.assignments, strict=True), start=1):
        assert (assignment is not None) == (step >= first)
        if assignment is not None:
            assert len(assignment.unique()) == case.num_clusters
            for cluster in range(case.num_clusters):
                members = weights[assignment == cluster]
                assert members.eq(members[0]).all()


@examples
@given(cases())
def test_residuals_of_a_cluster_sum_to_zero(case: Case) -> None:
    """Within rounding of the weights and of what was moved. (In the step of a change the clusters are the new ones.)"""
    history = train(case)
    size = float(max(case.start.abs().max(), case.moves.abs().sum(0).max()))
    for residual, assignment in zip(history.residuals, history.assignments, strict=True):
        if residual is not None and assignment is not None:
            for cluster in assignment.unique():
                assert residual[assignment == cluster].sum(0).abs().max() <= 1e-5 * size


@examples
@given(cases())
def test_with_fixed_assignments_the_commitment_does_not_matter(case: Case) -> None:
    """The first clustering stays. Shared weights are the mean of what the tasks of a cluster would be alone."""
    histories = [train(replace(case, every=10**9, commitment=c)) for c in (0.0, 0.3, 1.0)]
    size = float(max(case.start.abs().max(), case.moves.abs().sum(0).max()))
    alone = case.start + case.moves.cumsum(0)
    for step in range(len(case.moves)):
        assignments = [history.assignments[step] for history in histories]
        for history, assignment in zip(histories, assignments, strict=True):
            expected = alone[step].clone()
            if assignment is not None:
                assert assignments[0] is not None
                assert torch.equal(assignment, assignments[0])
                for cluster in assignment.unique():
                    expected[assignment == cluster] = expected[assignment == cluster].mean(0)
            torch.testing.assert_close(history.weights[step], expected, rtol=0, atol=1e-5 * size)


@examples
@given(planted_cases(), st.randoms(use_true_random=False))
def test_permuting_the_tasks_permutes_the_result(planted: tuple[Case, Tensor], random: Any) -> None:
    case, group = planted
    order = torch.tensor(random.sample(range(len(group)), len(group)))
    one = train(case)
    other = train(replace(case, start=case.start[order], moves=case.moves[:, order]))
    for step in range(len(case.moves)):
        assignment, permuted = one.assignments[step], other.assignments[step]
        assert assignment is not None
        assert permuted is not None
        assert np.array_equal(together(assignment), together(group))
        assert np.array_equal(together(permuted), together(group[order]))
        torch.testing.assert_close(other.weights[step], one.weights[step][order], rtol=1e-5, atol=1e-5)
        assert unshared(other.weights[step], permuted) == 0


def together(assignment: Tensor) -> Any:
    return np.equal.outer(assignment.numpy(), assignment.numpy())
