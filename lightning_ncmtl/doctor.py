"""``ncmtl doctor``: what there is on this machine, and whether it works."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from lightning_ncmtl.clustering import describe_faiss
from lightning_ncmtl.errors import InputError

_OURS = "lightning-ncmtl"


def main(args: list[str]) -> None:
    """Run ``ncmtl doctor``: print what matters for a question or a report of a fault.

    Args:
        args: Its arguments, of which it has none.

    Raises:
        InputError: If there is one.
    """
    if args:
        raise InputError(f"doctor takes no arguments, found {args[0]!r}")
    for name, text in diagnose():
        print(f"{name:<13}{text}")


def diagnose() -> Iterator[tuple[str, str]]:
    """Lines of what there is: what it is about, and what was found."""
    yield "package", f"{_OURS} {version(_OURS)}, Python {platform.python_version()}"
    free = shutil.disk_usage(".").free / 2**30
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    yield "system", f"{platform.platform()}, {cores}, {free:.0f} GiB free on this disk"
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    none = "" if devices else "; no GPU: trainings run on the CPU"
    yield "torch", f"{torch.__version__}, {_describe_cuda()}{none}"
    for device in devices:
        found = torch.cuda.get_device_properties(device)
        yield str(device), f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB"
    for line in describe_faiss(devices):
        yield "FAISS", line
    lightning = [name for name in ("pytorch-lightning", "lightning", "torchmetrics") if _find(name)]
    yield "Lightning", ", ".join(f"{name} {version(name)}" for name in lightning)
    for extra in ("text", "compare", "transformers", "molecules", "torchjd"):
        yield extra, _describe_extra(extra)


def _describe_cuda() -> str:
    if torch.version.cuda is None:
        return "a build for CPUs"
    architectures = ", ".join(torch.cuda.get_arch_list()) or "unknown"
    return f"for CUDA {torch.version.cuda} (kernels: {architectures})"


def _describe_extra(extra: str) -> str:
    """The packages of an extra with their versions, or how to get those that are missing."""
    marker = re.compile(rf"""extra\s*==\s*["']{extra}["']""")
    needed = [re.split(r"[^\w-]", line)[0] for line in requires(_OURS) or [] if marker.search(line)]
    needed = [name for name in needed if name != _OURS]
    if missing := [name for name in needed if not _find(name)]:
        return f"without {', '.join(missing)}: pip install '{_OURS}[{extra}]'"
    return ", ".join(f"{name} {version(name)}" for name in needed)


def _find(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
