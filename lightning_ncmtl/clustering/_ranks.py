"""Several processes that train together: what one of them decides or says for all."""

import logging
import os
import warnings

import torch
from torch import Tensor
from torch import distributed as dist

_logger = logging.getLogger("lightning_ncmtl")


def get_rank() -> int:
    """The number of this process among those that train together, from 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def trains_alone() -> bool:
    """Whether there are no other processes to agree with."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def agree(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What rank 0 found, on all ranks, so that they cannot disagree by a rounding error; tensors of one shape."""
    if not found or trains_alone():
        return found
    rows = torch.stack(list(found.values()))
    dist.broadcast(rows, src=0)
    return dict(zip(found, rows, strict=True))


def say(message: str) -> None:
    """Log a message, once for all ranks."""
    if get_rank() == 0:
        _logger.info(message)


def warn(message: str) -> None:
    """Warn, once for all ranks."""
    if get_rank() == 0:
        warnings.warn(message, stacklevel=3)
