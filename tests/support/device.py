"""A stand-in for a GPU on machines without one: torch's device "meta", which has shapes but no values.

Whatever would make the host wait for a GPU, because it needs a value, raises there by itself: ``item``, ``tolist``,
``nonzero``, ``unique``, masks as indices, ``repeat_interleave`` without ``output_size``, copies to the CPU. So does
most of what mixes devices. :class:`DeviceCalls` finds the rest, and counts what a GPU would have to launch. Under it,
copies to the CPU are zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
_FREE = ("aten.empty", "aten.new_empty", "aten.detach", "aten.lift_fresh", "aten._unsafe_view")


class DeviceCalls(TorchDispatchMode):
    """Records what happens on the stand-in inside of a ``with`` block.

    Attributes:
        launches: Names of the operations that compute or copy there, in order; views are left out.
        waits: Those that make the host wait: copies to the CPU (unless ``non_blocking``), copies of ordinary memory to
            the device, and masks as indices.
        mixed: Those that use tensors of the CPU with more than one number beside those of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self._made = _Made(self.waits)
        # Autocast, which torch does not know there, is off.
        enabled, context = torch.is_autocast_enabled, torch.autocast
        self._patches = mock.patch.multiple(
            torch,
            is_autocast_enabled=lambda *kind: kind != (DEVICE.type,) and enabled(*kind),
            autocast=lambda kind, *args, **more: nullcontext() if kind == DEVICE.type else context(kind, *args, **more),
        )

    def __enter__(self) -> "DeviceCalls":
        self._patches.start()
        self._made.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)
        self._patches.stop()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = str(func).removeprefix("aten.")
        if name == "_to_copy.default" and _leaves(args[0], given.get("device")):
            (self.launches if given.get("non_blocking") else self.waits).append(name)
            return torch.zeros(args[0].shape, dtype=given.get("dtype") or args[0].dtype)
        found = func(*args, **given)
        inputs = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        if not any(isinstance(leaf, Tensor) and leaf.device == DEVICE for leaf in (*inputs, *tree_leaves(found))):
            return found
        if not _only_views(func):
            self.launches += [name] * _count_launches(name, args)
        from_cpu = [leaf for leaf in inputs if leaf.device != DEVICE and leaf.dim()]
        if from_cpu and name.startswith(("_to_copy", "to.", "copy_")):
            if not given.get("non_blocking", len(args) > 2 and args[2]):
                self.waits.append(name)
        elif from_cpu:
            self.mixed.append(name)
        if name.startswith(("index.", "index_put", "_index_put")) and any(
            leaf is not None and leaf.dtype in (torch.bool, torch.uint8) for leaf in args[1]
        ):
            self.waits.append(name)
        return found


class _Made(TorchFunctionMode):
    """Finds ``torch.tensor(values, device=...)``: it waits, dispatch does not see it (``new_tensor`` nobody does)."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, torch.asarray)
        if made and found.device == DEVICE and not (args and isinstance(args[0], Tensor)):
            self.waits.append(f"{func.__name__} of values")
        return found


def _count_launches(name: str, args: Sequence[Any]) -> int:
    """One, but for copies of many tensors that lie in memory in another way, which have a launch each."""
    if not name.startswith("_foreach_copy_"):
        return 1
    pairs = list(zip(args[0], args[1], strict=True))
    alike = all(one.stride() == other.stride() and one.is_contiguous() for one, other in pairs)
    return 1 if alike else len(pairs)


def _leaves(value: Tensor, device: torch.device | None) -> bool:
    """Whether a copy goes from the device to the CPU."""
    return value.device == DEVICE and device is not None and device.type == "cpu"


def _only_views(func: Any) -> bool:
    """Whether an operation launches nothing: it returns views, or memory that is not written."""
    aliases = [value.alias_info for value in func._schema.returns]
    name = str(func)
    return name.startswith(_FREE) or any(alias is not None and not alias.is_write for alias in aliases)
