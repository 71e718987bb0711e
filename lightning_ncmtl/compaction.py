"""After training: K sets of weights instead of N, and a folder that holds them."""

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_ncmtl.clustering import Target, find_targets
from lightning_ncmtl.clustering.target_spec import TargetLike, read_target, read_targets
from lightning_ncmtl.compatibility import instantiate_module, made_by_cli, without_maker
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import CompactLayer, TaskLinear, TaskModule, cluster_layers, uncompiled
from lightning_ncmtl.whole_files import whole

Module = TypeVar("Module", bound=nn.Module)
_SETTINGS, _WEIGHTS = "settings.json", "model.safetensors"


def compact(
    module: Module,
    assignments: Mapping[str, Tensor] | None = None,
    targets: TargetLike | Sequence[TargetLike] | None = None,
) -> Module:
    """Copy a trained module so that the tasks of a cluster truly share one set of weights.

    - A :class:`lightning_ncmtl.ClusterLinear` becomes a :class:`lightning_ncmtl.layers.CompactLayer`; its outputs are
      the same up to the order in which a product is summed. So does a :class:`lightning_ncmtl.TaskModule`.
    - In a ``ModuleList`` or ``ModuleDict`` the parameters of a cluster's tasks become one object. The modules, and so
      the outputs, stay as they are.
    - A parameter that holds all tasks is kept with the rows of K, from which those of N are read
      (``torch.nn.utils.parametrize``).

    The copy is not compiled, whatever the module was.

    It can be trained on, without the callback, with gradients and optimizer state for K sets instead of N (the state
    starts anew). A cluster's gradient is then the sum of those of its tasks, while under the callback with frozen
    clusters it is their mean (where modules are not layers of this package, the mean of the tasks' steps counts). So
    with SGD a cluster of n tasks learns as if the learning rate were n times as large: lower it. For Adam, in whose
    steps the scale of gradients cancels out, that hardly matters.

    Args:
        module: The module as training left it.
        assignments: The clusters, ``{target: [N] int64}``: ``callback.assignments``. They are needed for targets that
            were named to the callback; a ``ClusterLinear`` keeps its own.
        targets: What the callback was told of them, ``callback.targets``, where that is more than their names.

    Returns:
        The copy, in which ``parameters()`` are K sets instead of N. Its attribute ``compact_clusters`` says the cluster
        of each task, ``{target: {task: cluster}}``.

    Raises:
        InputError: If there are no clusters, tasks of a cluster have different weights, or the module is compact.
    """
    module = uncompiled(module)
    if hasattr(module, "compact_clusters"):
        raise InputError(f"{type(module).__name__} is compact already")
    clusters = _own_assignments(module) | {name: a.cpu() for name, a in (assignments or {}).items()}
    if not clusters:
        raise InputError(
            f"{type(module).__name__} has no clusters to compact: give the callback's assignments, or train longer "
            "than the warm-up"
        )
    told = {read_target(target).name: target for target in read_targets(targets) or ()}
    specs = [told.get(name, name) for name in clusters]
    for target in find_targets(module, specs, trainable=False):
        assignment = clusters[target.name]
        if len(assignment) != len(target.tasks):
            more = (
                "" if told else ". If the callback was told more than its name: compact(..., targets=callback.targets)"
            )
            raise InputError(
                f"{target.name} has {len(target.tasks)} tasks, found an assignment of {len(assignment)}{more}"
            )
        rows = target.read()
        for cluster in assignment.unique():
            members = rows[assignment == cluster]
            if members.ne(members[0]).any():
                raise InputError(
                    f"the tasks of cluster {int(cluster)} of {target.name} have different weights: the assignment is "
                    "not that of this module, or it was trained on without NetworkClusteringCallback"
                )
    result = copy.deepcopy(module)
    _remove_compilation(result)
    _restructure(result, clusters, specs)
    return result


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Number of parameters of each direct part of a module that has any, tied ones once; the sum under ``""``."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    parts = {name: number for name, number in parts.items() if number}
    return {**parts, "": sum(p.numel() for p in module.parameters())}


def count_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module, tied ones once."""
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))


def save(module: nn.Module, folder: str | Path, data: Mapping[str, Any] | None = None) -> None:
    """Write a compact module: ``model.safetensors``, and what is needed to build it again as ``settings.json``.

    Args:
        module: From :func:`compact`.
        folder: Where to; it must be new or empty.
        data: More to keep in the settings (plain JSON values).

    Raises:
        InputError: If the folder has files, or the module was not made by :func:`compact`.
    """
    folder = Path(folder)
    if not hasattr(module, "compact_clusters"):
        raise InputError(f"{type(module).__name__} is not compact: save(compact(module), ...)")
    if others := [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]:
        raise InputError(f"safetensors can hold only tensors, but the state of {', '.join(others)} is something else")
    cls = parametrize.type_before_parametrizations(module)
    hyper_parameters = _plain(dict(getattr(module, "hparams", {})))
    settings = {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "hyper_parameters": hyper_parameters if _is_json(hyper_parameters) else None,
        "clusters": module.compact_clusters,
        "targets": module.compact_targets,
        "data": dict(data or {}),
    }
    if not _is_json(settings["data"]):
        raise InputError(f"data must be plain JSON values, found {data}")
    with whole(folder) as part:
        part.mkdir()
        save_model(module, str(part / _WEIGHTS))  # knows tied parameters
        (part / _SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load(folder: str | Path, module: nn.Module | None = None) -> nn.Module:
    """Read a compact module.

    The settings name the module's class, which must have been imported, and (for modules made by LightningCLI) classes
    of its parts, which are imported: load folders that you trust.

    Args:
        folder: What :func:`save` or ``ncmtl export`` wrote.
        module: A new module of the class that was compacted, for classes that cannot be built from
            nothing but their ``hparams``. It is changed.

    Returns:
        The compact module, in evaluation mode, and not compiled, whatever the module was.

    Raises:
        InputError: If the folder holds no compact module, or it cannot be built or does not fit.
    """
    folder = Path(folder)
    if not (folder / _SETTINGS).is_file():
        raise InputError(f"{str(folder)!r} holds no compact module: there is no {_SETTINGS}")
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        clusters = {str(name): dict(found) for name, found in settings["clusters"].items()}
        specs = list(settings["targets"])
        weights = load_file(folder / _WEIGHTS)
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise InputError(f"{str(folder)!r} holds no compact module that can be read: {_line(error)}") from error
    module = _build(settings) if module is None else uncompiled(module)
    _remove_compilation(module)
    assignments = {}
    for target in find_targets(module, specs, trainable=False):
        if set(target.tasks) != set(clusters[target.name]):
            raise InputError(
                f"the module has other tasks in {target.name} than were saved: {', '.join(target.tasks)} instead of "
                f"{', '.join(clusters[target.name])}"
            )
        assignments[target.name] = torch.tensor([clusters[target.name][task] for task in target.tasks])
    _restructure(module, assignments, specs)
    for name, value in (*module.named_parameters(remove_duplicate=False), *module.named_buffers()):
        if name in weights and value.is_floating_point():
            value.data = value.data.to(weights[name].dtype)
    try:
        load_model(module, str(folder / _WEIGHTS))
    except RuntimeError as error:
        raise InputError(f"the weights in {str(folder)!r} do not fit the module: {_line(error)}") from error
    return module.eval()


def _own_assignments(module: nn.Module) -> dict[str, Tensor]:
    """Those of our layers that have been clustered."""
    return {name: layer.assignment for name, layer in cluster_layers(module).items() if layer.assignment.min() >= 0}


def _remove_compilation(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if uncompiled(child) is not child:
                setattr(parent, name, uncompiled(child))


def _restructure(module: nn.Module, clusters: Mapping[str, Tensor], specs: Sequence[TargetLike]) -> None:
    """Keep the weights of the first task of each cluster, in place."""
    named: dict[str, dict[str, int]] = {}
    for target in find_targets(module, specs, trainable=False):
        used, assignment = clusters[target.name].cpu().unique(return_inverse=True)
        first = [int((assignment == cluster).nonzero()[0]) for cluster in range(len(used))]
        named[target.name] = dict(zip(target.tasks, clusters[target.name].tolist(), strict=True))
        if not target.stacked:
            for parameters, cluster in zip(target.parameters, assignment.tolist(), strict=True):
                for (name, _), (_, shared) in zip(parameters, target.parameters[first[cluster]], strict=True):
                    path, _, attribute = name.rpartition(".")
                    setattr(module.get_submodule(path), attribute, shared)
            continue
        path, _, attribute = target.name.rpartition(".")
        layer = getattr(module.get_submodule(path), attribute)
        if isinstance(layer, (TaskLinear, TaskModule)):
            setattr(module.get_submodule(path), attribute, CompactLayer(layer, assignment))
            continue
        for place, part in module.named_modules():
            if isinstance(part, TaskModule) and target.name.startswith(f"{place}."):
                raise InputError(
                    f"{target.name} is a part of the TaskModule {place}, which can only be made compact as a whole: "
                    f"train with the target {place!r}"
                )
        for name, parameter in target.parameters[0]:
            path, _, attribute = name.rpartition(".")
            expand = _expand(target, parameter, assignment, first)
            parametrize.register_parametrization(module.get_submodule(path), attribute, expand)
    module.compact_clusters, module.compact_targets = named, list(specs)  # type: ignore[assignment]


def _expand(target: Target, parameter: nn.Parameter, assignment: Tensor, first: list[int]) -> "_Expand":
    """For a parameter of all tasks, of which only the first of each cluster are kept, and what is no task's."""
    dim = target.dim % parameter.ndim
    size = parameter.shape[dim]
    rows = torch.tensor(target.order or range(size)).view(len(target.tasks), -1)
    others = sorted(set(range(size)).difference(rows.flatten().tolist()))
    kept = [*rows[first].flatten().tolist(), *others]
    places = torch.arange(size)  # of each row among those that are kept
    places[torch.tensor(kept)] = torch.arange(len(kept))
    places[rows] = places[rows[first][assignment]]
    return _Expand(places.to(parameter.device), kept, dim)


class _Expand(nn.Module):
    """Reads all rows along a dimension from those that are kept, of which ``assignment`` says one for each."""

    assignment: Tensor

    def __init__(self, assignment: Tensor, kept: list[int], dim: int) -> None:
        super().__init__()
        self.register_buffer("assignment", assignment)
        self.kept, self.dim = kept, dim

    def forward(self, rows: Tensor) -> Tensor:
        return rows.index_select(self.dim, self.assignment)

    def right_inverse(self, rows: Tensor) -> Tensor:
        return rows.index_select(self.dim, torch.tensor(self.kept, device=rows.device))


def _plain(value: Any) -> Any:
    """Settings without the types of libraries."""
    if type(value).__name__ == "Namespace":  # of jsonargparse, which need not be installed
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_json(value: Any) -> bool:
    """Whether JSON gives the value back."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _build(settings: Mapping[str, Any]) -> nn.Module:
    """The module as it was before :func:`compact`, with new weights."""
    path, _, name = settings["class"].rpartition(".")
    cls, arguments = getattr(sys.modules.get(path), name, None), settings["hyper_parameters"]
    if cls is not None and not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"the settings name {settings['class']} as the module, which is none")
    if cls is None or arguments is None:
        raise InputError(
            f"{settings['class']} cannot be built from its settings: "
            + ("import the module that defines it, or " if cls is None else "")
            + "give a new one, load(folder, module=...)"
        )
    if made_by_cli(arguments):
        return instantiate_module(cls, without_maker(arguments))
    try:
        return cls(**arguments)
    except TypeError as error:
        raise InputError(
            f"{settings['class']} cannot be built from its hparams ({error}): give a new one, load(folder, module=...)"
        ) from error
