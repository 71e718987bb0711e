"""Values that the host needs beside a GPU, such as task ids and lengths: a copy of them stays on the CPU.

To ask a GPU for them the host would have to wait for all that it still has to do. What a batch had on the CPU before it
was moved is known there already.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_ncmtl.errors import InputError

# Of tensors: their values on the CPU, and the versions of both that are the same. No attribute of theirs, which copies
# and pickles would take along, whose versions are counted anew.
_KNOWN = WeakTensorKeyDictionary()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def on_host(values: Tensor) -> Tensor:
    """Values on the CPU. A device is waited for once, and not at all if :func:`remember` was told them.

    Args:
        values: On any device; not to be changed in place where this is not told, such as through ``data``.
    """
    if values.is_cpu:
        return values
    known, versions = _KNOWN.get(values, (None, None))
    if known is None or values.is_inference() or versions != (values._version, _version(known)):
        known = values.cpu()
        _set(values, known)
    return known  # type: ignore[no-any-return]


def remember(moved: Any, batch: Any) -> Any:
    """``moved``, of which the values that ``batch``, the same collection, has on the CPU are remembered there.

    Until they are changed in place, in the one or in the other. A tensor of another shape or type than in ``batch`` is
    not what that has.

    Raises:
        InputError: If the two do not have as many values.
    """
    theirs, ours = tree_leaves(moved), tree_leaves(batch)
    if len(theirs) != len(ours):
        raise InputError(f"what was moved must be the batch, found {len(theirs)} values of {len(ours)}")
    for there, here in zip(theirs, ours, strict=True):
        if not isinstance(here, Tensor) or not isinstance(there, Tensor) or there.is_cpu or not here.is_cpu:
            continue
        if (there.shape, there.dtype) == (here.shape, here.dtype):
            _set(there, here)
    return moved


@torch.compiler.disable  # type: ignore[untyped-decorator]
def to_device(device: torch.device, *values: "Tensor | np.ndarray[Any, Any]") -> Sequence[Tensor]:
    """1-d integers of the CPU on a device, in one copy that the host does not wait for; they are remembered."""
    here = [each if isinstance(each, Tensor) else torch.from_numpy(each) for each in values]
    if device.type == "cpu" or not here:
        return here
    joined = torch.cat(here)
    if device.type == "cuda":
        joined = joined.pin_memory()  # else a large copy waits for its turn
    # On MPS copies that are not waited for may be wrong (pytorch#83015)
    moved = joined.to(device, non_blocking=device.type != "mps").split([len(each) for each in here])
    return remember(list(moved), here)  # type: ignore[no-any-return]


def _set(values: Tensor, known: Tensor) -> None:
    if not values.is_inference():  # which have no version
        _KNOWN[values] = known, (values._version, _version(known))


def _version(values: Tensor) -> int:
    return 0 if values.is_inference() else values._version
