"""The sharing step of several layers at once: own weights, clusters, shared weights, and what is told of them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.clustering._direct import means
from lightning_ncmtl.clustering._ranks import agree, get_rank, say, trains_alone
from lightning_ncmtl.clustering.late import AHEAD, Late, not_finite
from lightning_ncmtl.clustering.layer_state import LayerState
from lightning_ncmtl.clustering.sharing import Shared, assign_tasks, share


def share_layers(
    states: Mapping[str, LayerState],
    tasks: list[str],
    step: int,
    commitment: float,
    at_once: bool,
    **settings: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Late | None]:
    """Run the sharing step (see :mod:`lightning_ncmtl.clustering.sharing`) on some layers.

    On a GPU, once there are clusters, this only gives it work to do: the host waits for nothing.

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
    own = {name: state.read_own() for name, state in states.items()}
    # Mostly the clusters stay, and then so do their means. A GPU is not asked whether they do.
    centers = {
        name: means(own[name], state.assignment, state.num_clusters)
        for name, state in states.items()
        if state.assignment is not None and state.num_clusters is not None and own[name].is_cpu
    }
    assignments = _assign(states, own, centers, len(tasks), at_once, settings)
    shared: dict[str, Shared] = {}
    broken: dict[str, Tensor] = {}
    for name, state in states.items():
        if state.num_clusters is None:
            say(f"{name}: {int(assignments[name].max()) + 1} clusters chosen")
        k = state.count_clusters(assignments[name])
        if name not in centers or not state.has(assignments[name]):
            centers[name] = means(own[name], assignments[name], k)
        if own[name].device.type in AHEAD:
            broken[name] = state.target.total((~own[name].sum(1).isfinite()).int()) > 0
        given_up = 1.0 if state.is_settled else commitment
        shared[name] = share(own[name], assignments[name], centers[name], given_up, state.target.dtype)
        state.residual = shared[name].residuals if given_up < 1 else None
    losses = {name: states[name].target.total(result.loss) for name, result in shared.items()}
    changes = {name: state.measure_change(assignments[name]) for name, state in states.items()}
    late = None
    if broken:
        late = Late(step, assignments, broken)
        for name, state in states.items():
            weights = state.target.read().where(broken[name].any(), shared[name].weights)
            shared[name] = shared[name]._replace(weights=weights)
            state.take(assignments[name])
    else:
        _look(states, losses, changes, assignments, tasks, step)
    for name, state in states.items():
        state.target.write(shared[name].weights)
        state.freeze_layer()
    return losses, changes, late


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
                origins=[state.start for state in mine.values()],
                group=group,
                **settings,
            )
            found.update(zip(mine, new, strict=True))
    found = agree(found)
    return {name: found.get(name, state.assignment) for name, state in states.items()}  # type: ignore[misc]
