import pytest
import torch
from torch import Tensor

from lightning_ncmtl.clustering import align_labels, assign_tasks, means, share
from lightning_ncmtl.clustering.sharing import Shared


def shared(own: Tensor, assignment: Tensor, k: int, commitment: float, dtype: torch.dtype | None = None) -> Shared:
    return share(own, assignment, means(own, assignment, k), commitment, dtype)


def test_two_steps_by_hand() -> None:
    weights = torch.tensor([[0.0], [2.0], [10.0]])
    assignment = torch.tensor([0, 0, 1])
    first = shared(weights, assignment, 2, commitment=0.25)
    assert first.weights.tolist() == [[1.0], [1.0], [10.0]]
    assert first.residuals.tolist() == [[-0.75], [0.75], [0.0]]
    assert float(first.loss) == pytest.approx(2.0)  # 1 + 1 + 0

    # The optimizer moves task 0 by +1 and task 1 by -1: own weights 2 - 0.75 and 0 + 0.75.
    second = shared(first.weights + torch.tensor([[1.0], [-1.0], [0.0]]) + first.residuals, assignment, 2, 0.25)
    assert second.weights.tolist() == [[1.0], [1.0], [10.0]]
    assert second.residuals.tolist() == [[0.1875], [-0.1875], [0.0]]
    assert float(second.loss) == pytest.approx(0.125)  # 2 * 0.25 ** 2


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(9, 4, generator=generator)
    return weights, torch.randn(9, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1])


@pytest.mark.parametrize("commitment", [0.0, 0.01, 0.5, 1.0])
def test_shared_weights_do_not_depend_on_the_commitment(commitment: float) -> None:
    weights, residuals, assignment = random_case(0)
    result = shared(weights + residuals, assignment, 3, commitment)
    torch.testing.assert_close(result.weights, shared(weights + residuals, assignment, 3, 0.3).weights)
    for cluster in range(3):
        members = assignment == cluster
        assert result.weights[members].eq(result.weights[members][0]).all()  # bitwise equal
        torch.testing.assert_close(result.residuals[members].sum(0), torch.zeros(4), atol=1e-6, rtol=0)


def test_no_commitment_forgets_nothing() -> None:
    weights, residuals, assignment = random_case(1)
    result = shared(weights + residuals, assignment, 3, commitment=0.0)
    torch.testing.assert_close(result.weights + result.residuals, weights + residuals)


def test_full_commitment_is_the_papers_replacement() -> None:
    weights, _, assignment = random_case(2)
    result = shared(weights.clone(), assignment, 3, commitment=1.0)
    assert result.residuals.eq(0).all()
    torch.testing.assert_close(result.weights, means(weights, assignment, 3)[assignment])


def test_half_precision_weights_lose_nothing() -> None:
    weights, residuals, assignment = random_case(3)
    half = weights.bfloat16()
    result = shared(half + residuals, assignment, 3, commitment=0.0, dtype=half.dtype)
    assert result.weights.dtype == torch.bfloat16
    assert result.residuals.dtype == torch.float32
    torch.testing.assert_close(result.weights.float() + result.residuals, half.float() + residuals)


def test_a_task_moves_once_its_own_weights_are_nearer_to_another_cluster() -> None:
    assignment = torch.tensor([0, 0, 0, 1, 1])
    weights = torch.tensor([[0.0], [0.0], [0.0], [9.0], [9.0]])
    residuals = torch.zeros(5, 1)
    history = []
    for _ in range(9):  # task 2 is pulled towards the other cluster at every step
        weights = weights + torch.tensor([[0.0], [0.0], [1.0], [0.0], [0.0]])
        assignment = assign_tasks([weights + residuals], [2], [assignment])[0]
        weights, residuals, _ = shared(weights + residuals, assignment, 2, commitment=0.01)
        history.append(assignment.tolist())
    assert history[0] == [0, 0, 0, 1, 1]
    assert history[-1] == [0, 0, 1, 1, 1]


def test_without_memory_the_task_stays() -> None:
    assignment = torch.tensor([0, 0, 0, 1, 1])
    weights = torch.tensor([[0.0], [0.0], [0.0], [9.0], [9.0]])
    for _ in range(9):
        weights = weights + torch.tensor([[0.0], [0.0], [1.0], [0.0], [0.0]])
        assignment = assign_tasks([weights], [2], [assignment])[0]
        weights, _, _ = shared(weights, assignment, 2, commitment=1.0)
    assert assignment.tolist() == [0, 0, 0, 1, 1]


def test_labels_keep_their_numbers() -> None:
    previous = torch.tensor([2, 2, 0, 0, 1, 1])
    assert align_labels(torch.tensor([0, 0, 1, 1, 2, 2]), previous, 3).tolist() == previous.tolist()
    assert align_labels(torch.tensor([0, 0, 1, 1, 2, 1]), previous, 3).tolist() == [2, 2, 0, 0, 1, 0]


def test_fresh_clustering_is_aligned_with_the_previous_one() -> None:
    own = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
    for seed in range(10):
        previous = torch.tensor([2, 2, 0, 0, 1, 1])
        found = assign_tasks([own], [3], [previous], warm_start=False, restarts=10, seed=seed)[0]
        assert found.tolist() == previous.tolist()


def test_a_previous_cluster_without_tasks_is_filled() -> None:
    own = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    found = assign_tasks([own], [2], [torch.tensor([1, 1, 1, 1])])[0]
    assert found[0] == found[1] != found[2] == found[3]


def test_several_layers_and_backends() -> None:
    layers = [
        torch.tensor([[0.0], [0.1], [5.0], [5.1]]),
        torch.tensor([[0.0, 1.0], [3.0, 1.0], [0.1, 1.0], [3.1, 1.0]]),
    ]
    for backend in ("gram", "faiss"):
        cold = assign_tasks(layers, [2, 2], [None, None], backend=backend)  # type: ignore[arg-type]
        assert [found[0] == found[1] for found in cold] == [True, False]
        assert [found[0] == found[2] for found in cold] == [False, True]
        # One is warm, one is new, and one cluster or as many as tasks need no k-means.
        again = assign_tasks(
            [*layers, *layers],
            [2, 2, 1, 4],
            [cold[0], None, cold[0] * 0, torch.arange(4)],
            backend=backend,  # type: ignore[arg-type]
        )
        assert [found.tolist() for found in again[:2]] == [found.tolist() for found in cold]
        assert [found.tolist() for found in again[2:]] == [[0] * 4, [0, 1, 2, 3]]


def test_directions_from_the_start_do_not_see_how_far_tasks_went() -> None:
    """Domains with more documents take more steps; two ways from the start are two clusters all the same."""
    start = torch.tensor([5.0, 5.0])
    ways = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    own = start + ways * torch.tensor([[0.1], [0.1], [9.0], [9.0]])
    (by_way,) = assign_tasks([own], [2], [None], metric="cosine", origins=[start])
    assert by_way.tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    (by_place,) = assign_tasks([own], [2], [None])
    assert by_place[0] == by_place[1]
    assert assign_tasks([own], [2], [by_way], metric="cosine", origins=[start])[0].tolist() == by_way.tolist()
