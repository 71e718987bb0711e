"""The settings of network clustering: what is out of range is refused."""

from typing import Any, get_args

from lightning_ncmtl.clustering.kmeans import Metric
from lightning_ncmtl.errors import InputError


def check_settings(
    task_names: Any,
    warmup_steps: int,
    warmup: str,
    every_n_steps: int,
    commitment: float,
    restarts: int,
    metric: str,
    max_clusters: int,
    shared_start: bool,
) -> None:
    """Raise :class:`InputError` if a setting of NetworkClustering is out of range."""
    names = task_names is None or (isinstance(task_names, list) and all(isinstance(n, str) for n in task_names))
    for is_right, message in (
        (warmup_steps >= 0, f"warmup_steps must be at least 0, found {warmup_steps}"),
        (every_n_steps >= 1, f"every_n_steps must be at least 1, found {every_n_steps}"),
        (restarts >= 1, f"restarts must be at least 1, found {restarts}"),
        (0 <= commitment <= 1, f"commitment must be between 0 and 1, found {commitment}"),
        (warmup in ("shared", "apart"), f"unknown warmup {warmup!r}: choose 'shared' or 'apart'"),
        (warmup == "apart" or shared_start, "tasks that share in the warm-up need a shared start: allow for one"),
        (metric in get_args(Metric), f"unknown metric {metric!r}: choose one of {', '.join(get_args(Metric))}"),
        (metric != "cosine" or shared_start, "the metric cosine compares ways from a shared start: allow for one"),
        (max_clusters >= 2, f"max_clusters must be at least 2, found {max_clusters}"),
        (names, f"task_names must be a list of strings, found {task_names!r}"),
    ):
        if not is_right:
            raise InputError(message)
