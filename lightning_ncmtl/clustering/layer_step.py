"""The sharing step of several layers at once: own weights, clusters, shared weights, and what is told of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.clustering._direct import means
from lightning_ncmtl.clustering._ranks import agree, get_rank, say, trains_alone
from lightning_ncmtl.clustering.late import Late, is_ahead_of, not_finite
from lightning_ncmtl.clustering.layer_state import LayerState, measure_changes
from lightning_ncmtl.clustering.sharing import Shared, assign_tasks, share
from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.clustering.together import Together, gather


def share_layers(
    states: Mapping[str, LayerState],
    tasks: list[str],
    step: int,
    commitment: float,
    at_once: bool,
    **settings: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Late | None]:
    """Run the sharing step (see :mod:`lightning_ncmtl.clustering.sharing`) on some layers.

    On a GPU, once there are clusters, this only gives it work to do: the host waits for nothing. Small layers are
    taken together (:mod:`lightning_ncmtl.clustering.together`); those that are large, sharded or grouped by another
    metric or by FAISS are looked at one by one. A CUDA graph could capture it from reading to writing, as no size or
    branch depends on a value, but for the copy of what is to be told, and for FAISS.

    Args:
        states: The layers by name.
        tasks: Names of the N tasks.
        step: The number of this step, from 1.
        commitment: Fraction of its distance to the centre that a task gives up, where clusters are not settled.
        at_once: Whether clusters that are not settled are found anew.
        settings: The others of :func:`lightning_ncmtl.clustering.assign_tasks`.

    Returns:
        The clustering loss of each layer; the share of its tasks that changed cluster, 0-d each; and what is to be told
        in the next step, of a GPU.

    Raises:
        InputError: If weights are not finite: before they spread to their cluster. On a GPU in the next step.
    """
    for name, state in states.items():
        state.move()
        # A number of clusters cannot be chosen without, and that waits anyway
        if state.num_clusters is None and (where := state.target.find_broken()):
            raise not_finite(name, step, [tasks[task] for task in where])
    batches = [Together(*_weights_of(batch)) for batch in gather(states)]
    own = {name: rows for batch in batches for name, rows in batch.own.items()}
    own |= {name: state.read_own() for name, state in states.items() if name not in own}
    # Mostly the clusters stay, and then so do their means. A GPU is not asked whether they do.
    centers = {
        name: means(own[name], state.assignment, state.num_clusters)
        for name, state in states.items()
        if state.assignment is not None and state.num_clusters is not None and own[name].is_cpu
    }
    assignments = _assign(states, own, centers, batches, len(tasks), at_once, settings)
    numbers: dict[str, int] = {}
    for name, state in states.items():
        if state.num_clusters is None:
            say(f"{name}: {int(assignments[name].max()) + 1} clusters chosen")
        numbers[name] = state.count_clusters(assignments[name])
    shared: dict[str, Shared] = {}
    broken: dict[str, Tensor] = {}
    for batch in batches:
        given_up = 1.0 if states[next(iter(batch.own))].is_settled else commitment
        found, bad = batch.share(
            torch.stack([assignments[name] for name in batch.own]), max(numbers[name] for name in batch.own), given_up
        )
        shared |= zip(batch.own, found, strict=True)
        broken |= zip(batch.own, bad, strict=True)
    for name, state in states.items():
        if name in shared:
            continue
        k = numbers[name]
        if name not in centers or not state.has(assignments[name]):
            centers[name] = means(own[name], assignments[name], k)
        if is_ahead_of(own[name].device):
            broken[name] = state.target.total((~own[name].sum(1).isfinite()).int()) > 0
        given_up = 1.0 if state.is_settled else commitment
        shared[name] = share(own[name], assignments[name], centers[name], given_up, state.target.dtype)
        if name in broken:
            kept = state.target.read().where(broken[name].any(), shared[name].weights)
            shared[name] = shared[name]._replace(weights=kept)
    for name, state in states.items():
        state.residual = None if state.is_settled or commitment == 1 else shared[name].residuals
    losses = {name: state.target.total(shared[name].loss) for name, state in states.items()}
    changes = measure_changes(states, assignments)
    late = None
    if broken:
        late = Late(step, assignments, broken)
        for name, state in states.items():
            state.take(assignments[name])
    else:
        _look(states, losses, changes, assignments, tasks, step)
    _write([state.target for state in states.values()], [shared[name].weights for name in states])
    for state in states.values():
        state.freeze_layer()
    return losses, changes, late


def share_gradients(states: Mapping[str, LayerState]) -> None:
    """Give the tasks of each cluster the mean of their gradients; where a layer computes by clusters it does so."""
    states = {name: state for name, state in states.items() if state.must_share_gradients}
    batches = gather(states)
    for batch in batches:
        targets = {name: state.target.gradients() for name, state in batch.items()}
        clusters, numbers = zip(*(state.get_clusters() for state in batch.values()), strict=True)
        found, _ = Together(targets).share(torch.stack(clusters), max(numbers), 1.0)
        _write(targets.values(), [shared.weights for shared in found])
    together = set(chain(*batches))
    for name, state in states.items():
        if name not in together:
            state.target.gradients().share(*state.get_clusters())


def _weights_of(batch: Mapping[str, LayerState]) -> tuple[dict[str, Target], list[Tensor]]:
    targets = {name: state.target for name, state in batch.items()}
    return targets, [state.residual for state in batch.values() if state.residual is not None]


def _write(targets: Iterable[Target], rows: Iterable[Tensor]) -> None:
    """Write ``[N, D]`` to the parameters of each target, all with one call."""
    places, values = zip(*(target.places(own) for target, own in zip(targets, rows, strict=True)), strict=True)
    torch._foreach_copy_(list(chain(*places)), list(chain(*values)))


def _look(
    states: Mapping[str, LayerState],
    losses: Mapping[str, Tensor],
    changes: Mapping[str, Tensor],
    assignments: Mapping[str, Tensor],
    tasks: list[str],
    step: int,
) -> None:
    """Let the layers know their assignments, if all weights are finite: one look at the device for all of them."""
    seen = torch.stack([*losses.values(), *changes.values()]).tolist()
    for name, loss, change in zip(states, seen[: len(states)], seen[len(states) :], strict=True):
        if not math.isfinite(loss):  # on all ranks, with the same weights
            raise not_finite(name, step, [tasks[task] for task in states[name].target.find_broken()])
        states[name].remember(assignments[name], bool(change), step)


def _assign(
    states: Mapping[str, LayerState],
    own: Mapping[str, Tensor],
    centers: Mapping[str, Tensor],
    batches: Sequence[Together],
    num_tasks: int,
    at_once: bool,
    settings: Mapping[str, Any],
) -> dict[str, Tensor]:
    """The assignments of this step, on the device."""
    due = {
        name: state
        for name, state in states.items()
        if state.assignment is None or (at_once and state.is_undecided(num_tasks))
    }
    products: dict[str, Tensor] = {}
    if settings["metric"] == "euclidean" and settings["backend"] != "faiss":
        for batch in batches:
            if any(name in due for name in batch.own):
                products |= zip(batch.own, batch.multiply(), strict=True)
    found = {name: own[name].new_empty(len(own[name]), dtype=torch.int64) for name in due}
    for group in dict.fromkeys(state.target.group for state in due.values()):
        # Where each rank has a slice of the weights, rank 0 needs the others to decide.
        if trains_alone() or get_rank() == 0 or group is not None:
            mine = {name: state for name, state in due.items() if state.target.group == group}
            new = assign_tasks(
                [own[name] for name in mine],
                [state.num_clusters for state in mine.values()],
                [state.assignment for state in mine.values()],
                centers=[centers.get(name) for name in mine],
                products=[products.get(name) for name in mine],
                origins=[state.start for state in mine.values()],
                group=group,
                **settings,
            )
            found.update(zip(mine, new, strict=True))
    found = agree(found)
    return {name: found.get(name, state.assignment) for name, state in states.items()}  # type: ignore[misc]
