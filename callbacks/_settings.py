"""Checks of the settings of the clustering callback, before anything is trained."""

from typing import get_args

from lightning_ncmtl.clustering.kmeans import Metric
from lightning_ncmtl.errors import InputError


def check_settings(
    *,
    preset: str | None,
    every_n_steps: int,
    restarts: int,
    warmup_epochs: int,
    warmup_steps: int | None,
    freeze_after_epochs: int | None,
    commitment: float,
    metric: Metric,
    shared_start: bool,
    max_clusters: int,
    task_names: list[str] | None,
) -> None:
    """Raise :class:`InputError` where a setting of the callback is out of range or contradicts another."""
    if preset not in ("literal", None):
        raise InputError(f"unknown preset {preset!r}: choose 'literal' or none")
    if every_n_steps < 1 or restarts < 1 or warmup_epochs < 0 or (warmup_steps or 0) < 0:
        raise InputError(
            f"every_n_steps and restarts must be at least 1 and the warm-up at least 0, found {every_n_steps=}, "
            f"{restarts=}, {warmup_epochs=}, {warmup_steps=}"
        )
    if not 0 <= commitment <= 1:
        raise InputError(f"commitment must be between 0 and 1, found {commitment}")
    if metric not in get_args(Metric):
        raise InputError(f"unknown metric {metric!r}: choose one of {', '.join(get_args(Metric))}")
    if metric == "cosine" and not shared_start:
        raise InputError("the metric cosine compares ways from a shared start: leave shared_start and preset alone")
    if max_clusters < 2:
        raise InputError(f"max_clusters must be at least 2, found {max_clusters}")
    if task_names is not None and not (
        isinstance(task_names, list) and all(isinstance(name, str) for name in task_names)
    ):
        raise InputError(f"task_names must be a list of strings, found {task_names!r}")
    if freeze_after_epochs is not None and warmup_steps is None and freeze_after_epochs <= warmup_epochs:
        raise InputError(
            f"freeze_after_epochs {freeze_after_epochs} leaves no time to cluster after warmup_epochs "
            f"{warmup_epochs}: make it greater, or none at all (None, in YAML null)"
        )
