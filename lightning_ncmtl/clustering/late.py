"""What the host is told of a sharing step later, so that it need not wait for a GPU.

A GPU works off what the host gave it some time ago. To look at a number is to wait until it has caught up, and then it
has nothing to do until it is given more. So the numbers of a step set out for the host by themselves, and are looked at
in the next sharing step, by when they mostly are there: the host may be a step ahead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.clustering.layer_state import LayerState
from lightning_ncmtl.errors import InputError

# Kinds of devices that the host is ahead of
AHEAD = {"cuda"}


def is_ahead_of(device: torch.device) -> bool:
    """Whether the host runs ahead of a device, and so should neither wait for it nor launch much for it."""
    return device.type in AHEAD


class Late:
    """The clusters of some layers after a step, and which tasks' weights were not finite before it.

    Args:
        step: The number of the step.
        assignments: ``[N]`` of each layer.
        broken: ``[N]`` of each layer, whether the weights of a task are not finite.
    """

    def __init__(self, step: int, assignments: Mapping[str, Tensor], broken: Mapping[str, Tensor]) -> None:
        self._step, self._names = step, list(assignments)
        without = torch.stack([broken[name] for name in assignments])
        clusters = torch.stack(list(assignments.values())).masked_fill(without, -1)
        self._clusters = clusters.to("cpu", non_blocking=True)  # to pinned memory
        self._arrived: torch.cuda.Event | None = None
        if clusters.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(clusters.device))

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: events cannot be in these, so what is on its way has to arrive."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {**vars(self), "_arrived": None}

    def tell(self, states: Mapping[str, LayerState], tasks: Sequence[str]) -> None:
        """Complete what is known of the layers.

        Raises:
            InputError: If weights were not finite.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        for name, found in zip(self._names, self._clusters, strict=True):
            if broken := [task for task, k in zip(tasks, found.tolist(), strict=True) if k < 0]:
                raise not_finite(name, self._step, broken)
        for name, found in zip(self._names, self._clusters, strict=True):
            states[name].note(found, self._step)


def not_finite(name: str, step: int, tasks: Sequence[str]) -> InputError:
    """The error for weights of tasks of a layer that are not finite."""
    return InputError(
        f"{name} has weights that are not finite (NaN or infinity) after step {step}, of the tasks {', '.join(tasks)}: "
        "a lower learning rate or gradient clipping may help"
    )
