"""Modules and their names without the wrappers of ``torch.compile``."""

from typing import Any


def uncompiled(module: Any) -> Any:
    """What ``torch.compile`` wrapped, if it did."""
    return getattr(module, "_orig_mod", module)


def plain_name(name: str) -> str:
    """A dotted name without the wrappers of ``torch.compile``, which answer to the names of what they wrap."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
