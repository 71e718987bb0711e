"""How many clusters each target shall have."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from torch import nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import cluster_layers

NumClusters: TypeAlias = int | Literal["auto"] | list[int | Literal["auto"]] | None


def clusters_per_target(
    num_clusters: NumClusters, targets: Sequence[str], module: nn.Module, num_tasks: int
) -> dict[str, int | None]:
    """The number of clusters of each target, ``None`` where it is to be chosen.

    Args:
        num_clusters: One number or ``"auto"`` for all targets, one for each, or ``None`` for those of the layers.
        targets: Their names.
        module: The module, where a target may be a :class:`lightning_ncmtl.ClusterLinear`.
        num_tasks: Number of tasks.

    Raises:
        InputError: If a number is missing, superfluous or out of range.
    """
    wanted: list[Any]
    if isinstance(num_clusters, list):
        wanted = num_clusters
    elif num_clusters is not None:
        wanted = [num_clusters] * len(targets)
    else:
        layers = cluster_layers(module)
        wanted = [layers[name].num_clusters if name in layers else None for name in targets]
    if len(wanted) != len(targets):
        raise InputError(
            f"num_clusters {wanted} must have one value for each of the {len(targets)} targets {', '.join(targets)}"
        )
    for name, clusters in zip(targets, wanted, strict=True):
        if clusters is None:
            raise InputError(f"num_clusters is needed for the target {name}: a number, or 'auto'")
        if clusters != "auto" and not (isinstance(clusters, int) and 1 <= clusters <= num_tasks):
            raise InputError(f"num_clusters of {name} must be 'auto' or in 1 .. {num_tasks} tasks, found {clusters}")
    return {name: None if k == "auto" else k for name, k in zip(targets, wanted, strict=True)}
