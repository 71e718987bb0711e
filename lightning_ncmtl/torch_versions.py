"""What differs between versions of torch, from 2.4 on, and how it runs. A branch says until when it is needed."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING or torch.__version__ >= "2.5":  # until 2.5 is the oldest
    from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
else:
    from torch.distributed._tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

if TYPE_CHECKING or torch.__version__ >= "2.6":  # until 2.6 is the oldest
    from torch.distributed.fsdp import FSDPModule
else:
    from torch.distributed._composable.fsdp import FSDPModule

__all__ = [
    "RESHARDS",
    "DTensor",
    "FSDPModule",
    "Placement",
    "Replicate",
    "Shard",
    "distribute_tensor",
    "is_exporting",
    "is_tracing",
]

# Whether parameters may be cut along another dimension than they are sharded in: torch 2.8 gives other numbers, or an
# error where a rank has none. Until 2.11 is the oldest.
RESHARDS = torch.__version__ >= "2.11"


def is_exporting() -> bool:
    """Whether ``torch.export`` traces the call, rather than ``torch.compile`` or nothing.

    Below torch 2.12 it must have been told ``strict=False``: else it traces as ``torch.compile`` does.
    """
    if _KNOWS_EXPORT:
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


# Up to 2.6 torch has no such function; up to 2.11 it is true inside of torch.compile, too. Until 2.12 is the oldest.
_KNOWS_EXPORT = torch.__version__ >= "2.12"


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` records what is computed, which holds for other inputs then."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
