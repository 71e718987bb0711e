"""The sharing step on the device: exact, repeatable, without a wait on the steady path, in a CUDA graph."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from on_device import CPU, DEVICE, GPU, assert_close, no_waits, planted
from projects import Heads, Stacked, data
from torch import Tensor, nn

from lightning_ncmtl import NetworkClustering
from lightning_ncmtl.clustering import assign_tasks, means, share
from lightning_ncmtl.clustering.sharing import Shared

TARGETS = {Heads: ["heads"], Stacked: ["experts", "binary"]}


def step(own: Tensor, assignment: Tensor, k: int) -> tuple[Tensor, Shared]:
    (found,) = assign_tasks([own], [k], [assignment])
    return found, share(own.clone(), found, means(own, found, k), 0.01)


@pytest.mark.parametrize(("n", "d", "k"), [(18, 2112, 3), (200, 3000, 10)])
def test_it_is_exact_and_repeatable(n: int, d: int, k: int) -> None:
    own, start = planted(n, d, k), torch.arange(n) * 7 % k
    expected, theirs = step(own, start, k)
    (found, ours), (again, once_more) = (step(own.to(DEVICE), start.to(DEVICE), k) for _ in range(2))
    assert found.tolist() == expected.tolist()
    assert torch.equal(found, again)
    for one, other in zip(ours, once_more, strict=True):
        assert torch.equal(one, other)
    assert_close(ours.weights, theirs.weights, 1e-6, 1e-8)
    assert_close(ours.loss, theirs.loss, 1e-5, 1e-9)
    for cluster in range(k):
        rows = ours.weights[found == cluster]
        assert rows.eq(rows[0]).all()


def test_its_device_part_can_be_captured_in_a_cuda_graph() -> None:
    if not GPU:
        pytest.skip("a CPU has no CUDA graphs")
    own, assignment = planted(18, 2112, 3).to(DEVICE), (torch.arange(18) % 3).to(DEVICE)
    weights = own.clone()
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):  # libraries allocate before the capture
        for _ in range(3):
            step(weights, assignment, 3)
    torch.cuda.current_stream(DEVICE).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, shared = step(weights, assignment, 3)
    for seed in range(3):
        moved = planted(18, 2112, 3, seed=seed).to(DEVICE)
        weights.copy_(moved)
        graph.replay()
        expected, theirs = step(moved, assignment, 3)
        assert torch.equal(found, expected)
        assert torch.equal(shared.weights, theirs.weights)


class Loop:
    """A plain training of tests/support/projects.py, whose hooks of network clustering can be watched."""

    def __init__(self, project: type[Any], targets: list[str], **settings: Any) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = project().to(DEVICE)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.02)
        self.clusters = NetworkClustering(self.module, 2, targets, **settings)
        self.batch = [tensor.to(DEVICE) for tensor in data().tensors]
        self.watch: Callable[[], AbstractContextManager[None]] = nullcontext

    def step(self) -> None:
        with self.watch():
            self.clusters.start_step()
        self.optimizer.zero_grad()
        self.module.training_step(self.batch, 0).backward()  # type: ignore[operator]
        with self.watch():
            self.clusters.before_step()
        self.optimizer.step()
        with self.watch():
            self.clusters.step()


@pytest.mark.parametrize("project", [Heads, Stacked])
@pytest.mark.parametrize(
    "settings",
    [
        {"warmup": "apart", "warmup_steps": 2},
        {"warmup": "apart", "warmup_steps": 2, "every_n_steps": 3},
        {"warmup": "apart", "warmup_steps": 2, "metric": "cosine"},
        {"warmup": "shared", "warmup_steps": 1000},
        {"warmup": "shared", "warmup_steps": 20},
    ],
    ids=["apart", "every 3 steps", "cosine", "in the warm-up", "behind the warm-up"],
)
def test_the_steady_path_waits_for_nothing(project: type[Any], settings: dict[str, Any]) -> None:
    """What the network itself does is not looked at."""
    loop = Loop(project, TARGETS[project], **settings)
    for _ in range(30):  # the first clustering and whatever changes after it
        loop.step()
    loop.watch = no_waits
    for _ in range(4):
        loop.step()
    for _, loss in loop.clusters.losses.values():
        assert loss.isfinite()


@pytest.mark.parametrize("project", [Heads, Stacked])
@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_clusters_are_those_of_the_cpu(project: type[Any], warmup: str) -> None:
    loop = Loop(project, TARGETS[project], warmup=warmup, warmup_steps=20)
    for _ in range(40):
        loop.step()
    assert set(loop.clusters.assignments) == set(TARGETS[project])
    for found in loop.clusters.assignments.values():
        assert (found == found[0]).tolist() == [True, False] * 3


@pytest.mark.parametrize("warmup", ["apart", "shared"])
def test_what_is_kept_goes_where_the_module_goes(warmup: str) -> None:
    """A state from the device continues on the CPU, after the module was moved back, and the other way round."""
    loop = Loop(Stacked, TARGETS[Stacked], warmup=warmup, warmup_steps=20)
    for device in (DEVICE, CPU, DEVICE):
        loop.module.to(device)
        loop.batch = [tensor.to(device) for tensor in loop.batch]
        for state in loop.optimizer.state.values():
            state.update({name: value.to(device) for name, value in state.items() if name != "step"})
        for _ in range(30):
            loop.step()
        assert {found.device for found in loop.clusters.assignments.values()} == {device}
