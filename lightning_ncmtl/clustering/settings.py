"""The settings of network clustering: how long a warm-up is, and what is out of range, which is refused."""

from collections.abc import Iterable
from numbers import Real
from typing import Any, get_args

from lightning_ncmtl.clustering.kmeans import Backend, Metric, check_backend
from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.whole import is_whole

# Steps of a warm-up; of a shared one, the most
WARMUP_STEPS = {"shared": 1000, "apart": 200}
# What only a warm-up apart knows, by default
_APART = {"every_n_steps": 1, "commitment": 0.01, "metric": "euclidean"}


def check_settings(of: Any) -> None:
    """Raise :class:`InputError` if an attribute of a NetworkClustering is out of range."""
    tasks = of.task_names
    names = tasks is None or (isinstance(tasks, list) and all(isinstance(name, str) for name in tasks))
    cosine = of.metric == "cosine"
    shared = of.warmup == "shared"
    unused = [name for name, default in _APART.items() if getattr(of, name) != default]
    for is_right, message in (
        (of.preset in ("literal", None), f"unknown preset {of.preset!r}: choose 'literal' or none"),
        (is_number(of.warmup_steps), f"warmup_steps must be a number from 0, found {of.warmup_steps!r}"),
        (is_whole(of.every_n_steps), f"every_n_steps must be a whole number from 1, found {of.every_n_steps!r}"),
        (is_whole(of.restarts), f"restarts must be a whole number from 1, found {of.restarts!r}"),
        (
            is_number(of.commitment) and of.commitment <= 1,
            f"commitment must be a number between 0 and 1, found {of.commitment!r}",
        ),
        (is_whole(of.seed, -(2**62)) and of.seed < 2**62, f"seed must be a whole number of 62 bits, found {of.seed!r}"),
        (isinstance(of.shared_start, bool), f"shared_start must be true or false, found {of.shared_start!r}"),
        (of.warmup in WARMUP_STEPS, f"unknown warmup {of.warmup!r}: choose 'shared' or 'apart'"),
        (
            not shared or of.shared_start,
            "tasks that share in the warm-up need a shared start: allow for one, or choose warmup='apart'",
        ),
        (
            not shared or is_number(of.warmup_steps, 2),
            f"a shared warm-up needs 2 steps or more, found {of.warmup_steps}; or choose warmup='apart'",
        ),
        (of.metric in get_args(Metric), f"unknown metric {of.metric!r}: choose one of {', '.join(get_args(Metric))}"),
        (not cosine or of.shared_start, "the metric cosine compares ways from a shared start: allow for one"),
        (is_whole(of.max_clusters, 2), f"max_clusters must be a whole number from 2, found {of.max_clusters!r}"),
        (not shared or not unused, f"{', '.join(unused)} is not for a shared warm-up: choose warmup='apart'"),
        (
            shared or of.preset is not None or not of.specific,
            f"specific says what stops sharing behind a shared warm-up, found {of.specific} with warmup='apart': leave "
            "it out",
        ),
        (names, f"task_names must be a list of strings, found {tasks!r}"),
    ):
        if not is_right:
            raise InputError(message)


def is_number(value: object, least: float = 0) -> bool:
    """Whether a setting is a number, at least so great."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) >= least


def check_kmeans(backend: Backend, targets: Iterable[Target]) -> None:
    """Raise :class:`InputError` if a k-means is not there, or cannot take weights of which each rank has a part."""
    check_backend(backend)
    if backend == "faiss" and any(target.group is not None for target in targets):
        raise InputError("FAISS needs whole weights, found sharded ones: choose the backend 'gram'")
