"""Optimizers that hold copies of the weights (master weights), from which each step writes all weights anew.

What network clustering writes is then gone after the next step. That is looked at where what was written is far more
than a step of the optimizer: now and then in a shared warm-up, or after the first clustering.
"""

from collections.abc import Mapping

from torch import Tensor

from lightning_ncmtl.clustering._ranks import warn
from lightning_ncmtl.clustering.target import Target


def warn_if_lost(target: Target, found: Tensor, written: Tensor) -> bool:
    """Warn, and tell, if most of what was written ``[N, D]`` is not found after the step of the optimizer."""
    is_lost = _square(target, found - written) > _square(target, written) / 4
    if is_lost:
        _warn(target.name)
    return is_lost


def warn_if_back(targets: Mapping[str, Target], written: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Warn of layers that have gone back to what they were.

    Args:
        targets: By name.
        written: Rows ``[N, D]`` as the optimizer had left them, and as they were written, a step ago.
    """
    back = [
        name
        for name, (before, after) in written.items()
        if _square(targets[name], targets[name].read() - before) < _square(targets[name], after - before) / 16
    ]
    if back:
        _warn(", ".join(back))


def _square(target: Target, rows: Tensor) -> float:
    """The squared length of rows of which this rank may have a slice."""
    return float(target.total(rows.double().square().sum()))


def _warn(names: str) -> None:
    warn(
        f"what network clustering wrote into the weights of {names} was gone after the next step of the optimizer, "
        "which may hold copies of them (master weights) and undo sharing at each step: choose one that changes the "
        "parameters themselves, as those of torch.optim do"
    )
