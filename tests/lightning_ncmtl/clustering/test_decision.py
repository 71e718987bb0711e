"""The end of a shared warm-up: the clusters of all layers."""

from collections.abc import Callable

import pytest
import torch
from ranks import on_ranks
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from lightning_ncmtl import ClusterLinear
from lightning_ncmtl.clustering import find_targets
from lightning_ncmtl.clustering.decision import describe_evidence, fix_clusters
from lightning_ncmtl.clustering.evidence import Evidence, multiply_halves, weigh_evidence
from lightning_ncmtl.clustering.layer_state import LayerState

TASKS = 12
FAMILY = torch.arange(TASKS) % 3
# Each family in two parts
PART = FAMILY + 3 * (torch.arange(TASKS) // 3 % 2)


def find_evidence(noise: float = 0.3, families: float = 1.0, parts: float = 0.4, seed: int = 0) -> Evidence:
    """Of tasks in families, and in parts of these that are less different."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    truth = families * draw(3, 60)[FAMILY] + parts * draw(6, 60)[PART]
    return weigh_evidence([multiply_halves(truth + noise * draw(TASKS, 60), truth + noise * draw(TASKS, 60))])


def attach(model: nn.Module, numbers: dict[str, int | None]) -> dict[str, LayerState]:
    states = {name: LayerState(number) for name, number in numbers.items()}
    for name, state in states.items():
        (target,) = find_targets(model, [name])
        layer = model.get_submodule(name)
        state.attach(target, layer if isinstance(layer, ClusterLinear) else None)
    return states


@pytest.fixture
def make_states() -> Callable[..., dict[str, LayerState]]:
    """Layers with these numbers of clusters."""

    def make(*numbers: int | None) -> dict[str, LayerState]:
        torch.manual_seed(0)
        layers = {f"layer{place}": nn.Linear(2, TASKS) for place in range(len(numbers))}
        return attach(nn.ModuleDict(layers), dict(zip(layers, numbers, strict=True)))

    return make


def settle(states: dict[str, LayerState], evidence: Evidence) -> list[Tensor]:
    fix_clusters(states, evidence, 7, restarts=20, seed=0, backend="auto")
    found = []
    for state in states.values():
        assert state.assignment is not None
        assert state.frozen_at_step == 7
        assert state.trace == [[7, state.assignment.tolist()]]
        assert state.num_clusters == len(state.assignment.unique())
        found.append(state.assignment)
    return found


def is_divided(clusters: Tensor, into: Tensor) -> bool:
    """Whether tasks of one part are of one cluster."""
    return all(len(clusters[into == part].unique()) == 1 for part in into.unique())


def test_numbers_that_are_given_make_one_hierarchy(make_states: Callable[..., dict[str, LayerState]]) -> None:
    """From general to specific, whatever the order of the layers."""
    evidence = find_evidence()
    for numbers in ([3, 5, 10], [10, 3, 5], [3, 3, 6], [1, 6, TASKS], [TASKS, 2, 1]):
        states = make_states(*numbers)
        found = settle(states, evidence)
        assert [len(clusters.unique()) for clusters in found] == numbers
        for clusters in found:
            for others in found:
                if len(clusters.unique()) <= len(others.unique()):
                    assert is_divided(clusters, others)
        for number, clusters in zip(numbers, found, strict=True):
            if number in (3, 6):
                assert adjusted_rand_score(FAMILY if number == 3 else PART, clusters) == 1


def test_layers_of_one_number_have_the_same_clusters(make_states: Callable[..., dict[str, LayerState]]) -> None:
    first, second, third = settle(make_states(4, None, 4), find_evidence())
    assert torch.equal(first, third)
    assert is_divided(second, first) or is_divided(first, second)


def test_tasks_without_data_are_told_apart_where_every_task_is_for_itself(
    make_states: Callable[..., dict[str, LayerState]],
) -> None:
    """They go the same way in both halves: that of the mean of the others, turned round."""
    absent = torch.randn(2, TASKS, 20, generator=torch.Generator().manual_seed(0))
    absent[:, 3:] = absent[:, 3:4]
    found = settle(make_states(2, 9, TASKS), weigh_evidence([multiply_halves(*absent)]))
    assert [len(clusters.unique()) for clusters in found] == [2, 9, TASKS]


@pytest.mark.parametrize(
    ("settings", "number", "line"),
    [
        ({"parts": 0.0}, 3, "evidence for 3 clusters, agreement of halves 0."),
        ({"families": 0.0, "parts": 0.0}, 1, "no evidence for clusters (agreement of halves"),
    ],
)
def test_a_number_to_be_chosen_is_that_of_the_evidence(
    settings: dict[str, float],
    number: int,
    line: str,
    make_states: Callable[..., dict[str, LayerState]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    evidence = find_evidence(**settings)
    with caplog.at_level("INFO", logger="lightning_ncmtl"):
        first, given, second = settle(make_states(None, 4, None), evidence)
    assert torch.equal(first, second)
    assert len(first.unique()) == evidence.num_clusters == number
    assert len(given.unique()) == 4
    assert is_divided(first, given)
    if number == 3:
        assert adjusted_rand_score(FAMILY, first) == 1
    (said,) = caplog.messages
    assert said.startswith(line)


def test_tasks_share_at_once() -> None:
    """The mean of their weights, and layers of this package know their clusters and compute by them."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"layer": ClusterLinear(TASKS, 4, 5), "heads": nn.ModuleList(nn.Linear(2, 1) for _ in FAMILY)}
    )
    layer = model["layer"]
    assert isinstance(layer, ClusterLinear)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    before = layer.weight.detach().clone()
    states = attach(model, {"layer": None, "heads": 6})
    first, second = settle(states, find_evidence(parts=0.0))
    assert layer.num_clusters == 3
    assert torch.equal(layer.assignment, first)
    assert layer.frozen_clusters is not None
    for cluster in range(3):
        mean = before[first == cluster].mean(0)
        torch.testing.assert_close(layer.weight[first == cluster], mean.expand(4, *mean.shape))
    heads = torch.stack([head.weight for head in model["heads"]])  # type: ignore[union-attr]
    for cluster in range(6):
        assert heads[second == cluster].eq(heads[second == cluster][0]).all()


def decide_on_rank(rank: int, numbers: list[int | None]) -> None:
    """Where ranks find other numbers and clusters, that of the first counts."""
    found = []
    for evidence in (find_evidence(parts=0.0), find_evidence(parts=0.0 if rank == 0 else 3.0, seed=7 * rank)):
        layers = nn.ModuleDict({f"layer{place}": nn.Linear(2, TASKS) for place in range(len(numbers))})
        states = attach(layers, dict(zip(layers, numbers, strict=True)))
        found.append([clusters.tolist() for clusters in settle(states, evidence)])
    assert find_evidence(parts=0.0).num_clusters == 3
    assert find_evidence(parts=3.0, seed=7).num_clusters == 6
    assert found[0] == found[1]


@pytest.mark.parametrize("numbers", [[None], [None, 3], [6, None, 1]])
def test_the_first_rank_decides(numbers: list[int | None]) -> None:
    on_ranks(2, decide_on_rank, numbers)


@pytest.mark.parametrize(
    ("found", "error", "p_value", "line"),
    [
        (3, 0.049, 0.001, "evidence for 3 clusters, agreement of halves 0.62 ± 0.05, p = 0.001"),
        (14, 0.2, 0.001, "evidence that every task differs, agreement of halves 0.62 ± 0.20, p = 0.001"),
        (1, 0.1, 0.4521, "no evidence for clusters (agreement of halves 0.62 ± 0.10, p = 0.452)"),
        (1, 0.1, 0.001, "no evidence for clusters (agreement of halves 0.62 ± 0.10, p = 0.001; tasks differ, but each "
         "in its own way)"),
        (2, None, 0.001, "evidence for 2 clusters, agreement of halves 0.62, p = 0.001"),
        (1, float("nan"), 1.0, "no evidence for clusters (agreement of halves 0.62, p = 1)"),
    ],
)  # fmt: skip
def test_evidence_in_a_line(found: int, error: float | None, p_value: float, line: str) -> None:
    assert describe_evidence(found, 14, 0.621, error, p_value) == line
