"""The end of a shared warm-up: the clusters of all layers, from general to specific."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_ncmtl.clustering._ranks import agree, say
from lightning_ncmtl.clustering.evidence import LEVEL, Evidence, group_tasks
from lightning_ncmtl.clustering.kmeans import Backend
from lightning_ncmtl.clustering.layer_state import LayerState
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.whole import is_whole


def fix_clusters(
    states: Mapping[str, LayerState],
    evidence: Evidence,
    step: int,
    *,
    restarts: int,
    seed: int,
    backend: Backend,
) -> None:
    """Fix the clusters of all layers, whose tasks share from now on.

    All layers are looked at together, as each alone knows less. Those with the same number of clusters get the same;
    those with more get parts of these, so that clusters form one hierarchy.

    Args:
        states: The layers by name; their ``num_clusters`` is ``None`` where it is to be chosen.
        evidence: Of all layers.
        step: The first step with these clusters.
        restarts: k-means++ starts.
        seed: Seed of k-means++.
        backend: The k-means to use.
    """
    device = next(iter(states.values())).target.device
    # On which ranks of other hardware may disagree, too
    chosen = int(agree({"": torch.tensor(evidence.num_clusters, device=device)})[""])
    numbers = {name: state.num_clusters or chosen for name, state in states.items()}
    found: dict[int, Tensor] = {}
    fewer: Tensor | None = None
    for k in sorted(set(numbers.values())):
        clusters = group_tasks(evidence.products, k, within=fewer, restarts=restarts, seed=seed, backend=backend)
        found[k] = fewer = agree({"": clusters.to(device)})[""]
    for name, state in states.items():
        _fix(state, found[numbers[name]], step)
    error = evidence.agreement_error
    say(describe_evidence(evidence.num_clusters, len(evidence.products), evidence.agreement, error, evidence.p_value))


def fix_given(states: Mapping[str, LayerState], groups: Sequence[int], step: int) -> None:
    """Give all layers the same clusters, which somebody knows: ``groups`` [N], from 0.

    Raises:
        InputError: If there is not one for each task, a number has no task, or the layers were to have another number
            of clusters.
    """
    if not all(is_whole(group, 0) for group in groups) or len({*groups}) <= max(groups, default=0):
        raise InputError(f"clusters must be given in a list of whole numbers, from 0 without a gap, found {groups}")
    number = max(groups, default=0) + 1
    for name, state in states.items():
        if len(groups) != len(state.target.tasks):
            raise InputError(f"clusters must be given for each of {len(state.target.tasks)} tasks, found {len(groups)}")
        if state.num_clusters not in (None, number):
            raise InputError(f"{name} has {state.num_clusters} clusters, {number} are given: set it to auto")
        _fix(state, torch.tensor(groups, device=state.target.device), step)


def _fix(state: LayerState, clusters: Tensor, step: int) -> None:
    """Give a layer the clusters ``[N]`` for good, from a step on."""
    k = state.count_clusters(clusters)
    state.remember(clusters, True, step)
    state.freeze(step)
    state.target.share(clusters, k)  # at once: somebody may look at them before the step ends
    state.freeze_layer()


def describe_evidence(found: int, num_tasks: int, agreement: float, error: float | None, p_value: float) -> str:
    """How sure clusters are, in one line for people.

    Args:
        found: Number of clusters that there is evidence for, 1 if for none.
        num_tasks: Number of tasks.
        agreement: Agreement of halves.
        error: Its standard error; ``None`` or NaN if unknown.
        p_value: Of the test by permutations.
    """
    spread = "" if error is None or math.isnan(error) else f" ± {error:.2f}"
    # No "p < 0.001": of 999 random orders and the one found, that is more than was measured
    measured = f"agreement of halves {agreement:.2f}{spread}, p = {p_value:.3g}"
    if found == 1:
        apart = "; tasks differ, but each in its own way" if p_value < LEVEL else ""
        return f"no evidence for clusters ({measured}{apart})"
    return f"evidence {'that every task differs' if found == num_tasks else f'for {found} clusters'}, {measured}"
