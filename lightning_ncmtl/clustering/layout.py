"""What there is to cluster in a module: the targets, their tasks, and how many clusters each shall have."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import nn

from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.clustering.target_spec import TargetLike, read_target
from lightning_ncmtl.clustering.targets import advise, find_targets
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import cluster_layers, per_task_layers, plain_name
from lightning_ncmtl.layers.whole import is_whole

NumClusters: TypeAlias = int | Literal["auto"] | list[int | Literal["auto"]] | None


class Layout(NamedTuple):
    """What there is to cluster.

    Attributes:
        targets: The cluster layers by name.
        tasks: Names of the tasks.
        num_clusters: Of each target; ``None``: to choose.
        specific: Layers that share only in a shared warm-up.
    """

    targets: dict[str, Target]
    tasks: list[str]
    num_clusters: dict[str, int | None]
    specific: dict[str, Target]


def find_layout(
    module: nn.Module,
    targets: Sequence[TargetLike] | None,
    num_clusters: NumClusters,
    task_names: list[str] | None,
    specific: Sequence[TargetLike] | None,
) -> Layout:
    """Find what there is to cluster.

    Args:
        module: The module.
        targets: The targets, as a user says them; ``None`` for all :class:`lightning_ncmtl.ClusterLinear` layers.
        num_clusters: One number or ``"auto"`` for all targets, one for each, or ``None`` for those of the layers, and
            ``"auto"`` for targets that are none.
        task_names: Names of the tasks; ``None`` for the keys of a ``ModuleDict``, or indices.
        specific: The layers that share only in a shared warm-up; ``None`` for all others of this package.

    Raises:
        InputError: If there is nothing to cluster, a target cannot be clustered where it is, or numbers and names do
            not fit.
    """
    layers = cluster_layers(module)
    wanted_targets: list[TargetLike] = list(layers if targets is None else targets)
    names = [read_target(target).name for target in wanted_targets]
    others = [read_target(target).name for target in specific or ()]
    if len({*names, *others}) < len(names) + len(others):
        raise InputError(f"targets must differ, found {[*names, *others]}")
    if not names and hasattr(module, "compact_clusters"):
        raise InputError("the model is compact, its tasks share for good: train it without network clustering")
    if not names:
        raise InputError(
            f"{type(module).__name__} has no ClusterLinear layer for network clustering: name its per-task modules in "
            "targets"
        )
    if specific is None:
        specific = others = _find_others(module, find_targets(module, wanted_targets))
    all_of_them = find_targets(module, [*wanted_targets, *specific])
    _check_devices(all_of_them)
    found = dict(zip(names, all_of_them, strict=False))
    tasks = _name_tasks(list(found.values()), task_names)
    wanted: list[Any]
    if num_clusters is None:
        wanted = [layers[name].num_clusters if name in layers else "auto" for name in names]
    else:
        wanted = num_clusters if isinstance(num_clusters, list) else [num_clusters] * len(names)
    shared = dict(zip(others, all_of_them[len(names) :], strict=True))
    return Layout(found, tasks, _check_numbers(wanted, names, len(tasks)), shared)


def _check_devices(targets: Sequence[Target]) -> None:
    """Refuse parameters that are not all on one device, and one that cannot compute with them."""
    where = {p.device: name for target in targets for task in target.parameters for name, p in task}
    if len(where) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in where.items())
        raise InputError(f"all that is clustered must be on one device, found {places}: move it to one of them")
    if "mps" in {device.type for device in where}:
        raise InputError("network clustering needs float64, which MPS lacks: train on the CPU (accelerator 'cpu')")


def _find_others(module: nn.Module, targets: Sequence[Target]) -> list[str]:
    """The other layers of this package with as many tasks; of one that has a part among the targets, what is left."""
    taken = {id(parameter) for target in targets for task in target.parameters for _, parameter in task}
    found = []
    for name, layer in per_task_layers(module).items():
        if layer.num_tasks == len(targets[0].tasks):
            left = [plain_name(f"{name}.{part}") for part, p in layer.named_parameters() if id(p) not in taken]
            found += [name] if len(left) == len(list(layer.parameters())) else left
    return found


def _name_tasks(targets: Sequence[Target], task_names: list[str] | None) -> list[str]:
    found = next((target.tasks for target in targets if target.named), targets[0].tasks)
    tasks = found if task_names is None else task_names
    if len(tasks) != len(found) or len(set(tasks)) < len(found):
        advice = next((each for target in targets if (each := advise(target, len(tasks)))), "")
        raise InputError(f"task_names must be {len(found)} different names, one per task, found {task_names}{advice}")
    return list(tasks)


def _check_numbers(wanted: Sequence[Any], names: Sequence[str], num_tasks: int) -> dict[str, int | None]:
    if len(wanted) != len(names):
        raise InputError(
            f"num_clusters {wanted} must have one value for each of the {len(names)} targets {', '.join(names)}"
        )
    for name, k in zip(names, wanted, strict=True):
        if k != "auto" and not (is_whole(k) and k <= num_tasks):
            raise InputError(f"num_clusters of {name} must be 'auto' or in 1 .. {num_tasks} tasks, found {k!r}")
    # Of one task there is nothing to choose
    chosen = {name: None if k == "auto" and num_tasks > 1 else k for name, k in zip(names, wanted, strict=True)}
    return {name: 1 if k == "auto" else k for name, k in chosen.items()}
