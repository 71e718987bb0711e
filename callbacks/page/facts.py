"""What was trained, on what, and with which settings."""

import os
import platform
from datetime import timedelta
from importlib.metadata import distributions
from pathlib import Path

import torch
from torch.nn.parameter import is_lazy

from lightning_ncmtl.callbacks.page.history import History
from lightning_ncmtl.callbacks.page.text import plural, shorten
from lightning_ncmtl.compatibility import (
    LightningModule,
    SaveConfigCallback,
    Trainer,
    attributes,
    find_callbacks,
    without_maker,
)
from lightning_ncmtl.metrics import TaskMetrics

_PACKAGES = ("lightning-ncmtl", "torch", "pytorch-lightning", "lightning")
_LONGEST = 2000  # characters of a hyperparameter


def describe(
    trainer: Trainer, pl_module: LightningModule, tasks: list[str], history: History, stage: str, seconds: float
) -> dict[str, str]:
    """Say what was trained, or evaluated.

    Args:
        trainer: The trainer.
        pl_module: The model.
        tasks: Names of the tasks.
        history: Of the training.
        stage: ``fit``, ``validate`` or ``test``.
        seconds: How long that took.

    Returns:
        An answer for each question.
    """
    metrics, data = getattr(pl_module, "metrics", None), attributes(trainer).datamodule
    facts = {"system": type(pl_module).__name__}
    if isinstance(encoder := getattr(pl_module, "encoder", None), torch.nn.Module):
        facts["encoder"] = type(encoder).__name__
    if data is not None:
        source = getattr(data, "source", None)
        facts["data"] = type(data if source is None else source).__name__
        if isinstance(path := getattr(source, "path", None), (str, Path)):
            facts["data"] += f", {path}"
    numbers = len(metrics.regression_tasks) if isinstance(metrics, TaskMetrics) else 0
    kinds = {0: "", len(tasks): ", numbers"}.get(numbers, f", of which {numbers} predict numbers")
    facts["tasks"] = f"{len(tasks):,}{kinds}"
    parameters = [parameter for parameter in pl_module.parameters() if not is_lazy(parameter)]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    facts["parameters"] = f"{total:,}" + (f", of which {trained:,} are trained" if trained != total else "")
    if "PL_GLOBAL_SEED" in os.environ:
        facts["seed"] = os.environ["PL_GLOBAL_SEED"]
    if history.epochs:
        epoch, step = history.epochs[-1]
        facts["training"] = f"{plural(epoch, 'epoch')}, {plural(step, 'step')}"
    if stage != "fit" and trainer.ckpt_path:
        facts["checkpoint"] = str(trainer.ckpt_path)
    facts["duration"] = _write_time(seconds) + (" (of this run)" if stage == "fit" else f" ({stage})")
    device = pl_module.device
    cpu = f"{platform.processor() or platform.machine()}, {plural(torch.get_num_threads(), 'thread')}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    many = f"{trainer.world_size} devices, " if trainer.world_size > 1 else ""
    facts["hardware"] = f"{many}{device.type.upper()}, {name}"
    facts["software"] = ", ".join([f"Python {platform.python_version()}", *_versions()])
    return facts


def _versions() -> list[str]:
    # A checkout need not be installed, and of Lightning's two packages one is enough
    found = {each.name: each.version for package in _PACKAGES for each in distributions(name=package)}
    return [f"{package} {number}" for package, number in found.items()]


def _write_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds))) + " (h:min:s)"


def read_settings(trainer: Trainer, pl_module: LightningModule, directory: Path) -> str:
    """The settings: what the command line has saved, or else the hyperparameters."""
    file = directory / "config.yaml"
    if find_callbacks(trainer, SaveConfigCallback) and file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    hparams = without_maker(pl_module.hparams)
    return "\n".join(f"{name}: {shorten(repr(value), _LONGEST)}" for name, value in hparams.items())
