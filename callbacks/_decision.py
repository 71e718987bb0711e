"""Which cluster each task belongs to after a step, the same on all ranks; and which tasks cannot be clustered."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.callbacks._layer_state import LayerState
from lightning_ncmtl.clustering import Target, assign_tasks
from lightning_ncmtl.compatibility import Trainer


def decide(
    trainer: Trainer,
    states: Mapping[str, LayerState],
    targets: Mapping[str, Target],
    own: Mapping[str, Tensor],
    centers: Mapping[str, Tensor],
    **settings: Any,
) -> dict[str, Tensor]:
    """Run k-means on some layers.

    Rank 0 decides for all, so that ranks cannot disagree by a rounding error. (Where each has a slice of the weights,
    it needs the others for that.)

    Args:
        trainer: Knows the ranks.
        states: The layers.
        targets: Of these layers and perhaps others.
        own: ``[N, D]``, their own weights.
        centers: ``[K, D]``, means of their previous clusters, where they are known.
        settings: What :func:`lightning_ncmtl.clustering.assign_tasks` takes besides.

    Returns:
        ``[N]`` of each layer, on its device.
    """
    found = {name: own[name].new_empty(len(own[name]), dtype=torch.int64) for name in states}
    for group in dict.fromkeys(targets[name].group for name in states):
        if trainer.is_global_zero or group is not None:
            names = [name for name in states if targets[name].group == group]
            layers = [states[name] for name in names]
            starts = [layer.start for layer in layers if layer.start is not None]  # of all layers, or of none
            new = assign_tasks(
                [own[name] for name in names],
                [layer.num_clusters for layer in layers],
                [layer.assignment for layer in layers],
                centers=[centers.get(name) for name in names],
                origins=starts or None,
                group=group,
                **settings,
            )
            found.update(zip(names, new, strict=True))
    if states and trainer.world_size > 1:
        decided = trainer.strategy.broadcast(torch.stack(list(found.values())))
        found = {name: row.to(own[name].device) for name, row in zip(found, decided, strict=True)}
    return found


def why_not_finite(target: Target, tasks: Sequence[str], step: int) -> str:
    """The message for weights that a step has broken."""
    broken = target.total((~target.read().isfinite()).sum(1))
    names = [tasks[task] for task in broken.nonzero().flatten().tolist()]
    return (
        f"{target.name} has weights that are not finite (NaN or infinity) after step {step}, of the tasks "
        f"{', '.join(names)}: a lower learning rate or gradient clipping may help"
    )
