"""The end of a shared warm-up: clusters, and how sure they are.

In a shared warm-up the optimizer moves the weights of all tasks alike, by the mean of their gradients. Beside that, two
disjoint halves of the data take turns, and each makes each task differ a little from the mean
(:meth:`lightning_ncmtl.clustering.layer_state.LayerState.learn`): the network computes with the mean and what the half
of the batch has made of the task. So layers in front of a cluster layer learn what tasks need that differ, and what the
halves make of a task, at its end, are two independent views of it (:mod:`lightning_ncmtl.clustering.evidence`).
"""

from collections.abc import Mapping

import torch

from lightning_ncmtl.clustering._ranks import agree, say
from lightning_ncmtl.clustering.evidence import Evidence, group_tasks, multiply_halves, weigh_evidence
from lightning_ncmtl.clustering.kmeans import Backend
from lightning_ncmtl.clustering.layer_state import LayerState
from lightning_ncmtl.errors import InputError


def decide(
    states: Mapping[str, LayerState],
    specific: Mapping[str, LayerState],
    step: int,
    *,
    max_clusters: int,
    restarts: int,
    seed: int,
    backend: Backend,
) -> None:
    """Find the clusters of all layers, and fix them.

    All layers are looked at together, as each alone knows less; those with the same number of clusters get the same.

    Args:
        states: Cluster layers by name; their ``num_clusters`` is ``None`` where it is to be chosen.
        specific: Layers that shared in the warm-up, too, and share no more.
        step: The first step with these clusters.
        max_clusters: Upper bound where the number is chosen (beside the number of tasks).
        restarts: k-means++ starts.
        seed: Seed of k-means++ and of the permutations.
        backend: The k-means to use.

    Raises:
        InputError: If the warm-up has seen only one half of the data, or weights are not finite.
    """
    for name, state in {**states, **specific}.items():
        if broken := state.target.find_broken():
            raise InputError(
                f"{name} has weights that are not finite (NaN or infinity) after the warm-up, of {len(broken)} tasks: "
                "a lower learning rate or gradient clipping may help"
            )
    layers = [*states.values(), *specific.values()]
    products = []
    for state in layers:
        if state.halves is not None:
            if not all(half.any() for half in state.halves):
                raise InputError("the warm-up has seen no steps of one half of the data: make it longer")
            first, second = state.halves
            products.append(multiply_halves(first, second, state.target.group))
    if not products and any(state.num_clusters != 1 for state in states.values()):
        raise InputError("the warm-up has seen no steps of one half of the data: make it longer")
    evidence = weigh_evidence(products, max_clusters=max_clusters, restarts=restarts, seed=seed) if products else None
    for name, state in states.items():
        k, n, device = state.num_clusters, len(state.target.tasks), state.target.device
        if k == 1 or evidence is None:  # a hard layer
            assignment = torch.zeros(n, dtype=torch.int64, device=device)
        else:
            k = k or evidence.num_clusters
            found = group_tasks(evidence.products, k, restarts=restarts, seed=seed, backend=backend)
            assignment = agree({name: found.to(device)})[name]
            gains = {str(number): gain for number, gain in evidence.gains.items()}
            state.evidence = {"p_value": evidence.p_value, "agreement": evidence.agreement, "gains": gains}
            say(f"{name}: {describe(evidence, k, n)}")
        state.count_clusters(assignment)
        state.remember(assignment, True, step)
        state.freeze(step)
    for state in layers:
        state.halves = state.squares = None


def describe(evidence: Evidence, k: int, n: int) -> str:
    """One line for people, of K clusters of N tasks."""
    if k == 1:
        what = "no evidence for clusters, all tasks share"
    else:
        what = "every task for itself" if k == n else f"{k} clusters of {n} tasks"
    return f"{what} (agreement of halves {evidence.agreement:.2f}, p = {evidence.p_value:.3g})"
