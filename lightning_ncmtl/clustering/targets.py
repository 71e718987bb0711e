"""Finding the targets that a user names in a module, and refusing what cannot be clustered."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from lightning_ncmtl.clustering.target import Named, Target, check_mesh, list_some
from lightning_ncmtl.clustering.target_spec import TargetSpec, read_target
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import PerTask, plain_name, uncompiled
from lightning_ncmtl.torch_versions import FSDPModule

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def find_targets(module: nn.Module, names: Sequence[str | Mapping[str, Any]], trainable: bool = True) -> list[Target]:
    """Find and check the per-task parameters that the names stand for.

    Args:
        module: The module that holds them.
        names: Each the dotted name of a ``ModuleList`` or ``ModuleDict`` whose children are one task each; such a name
            with a part of every child (``heads.*.fc1``); a pattern that the names of several modules fit
            (``*_tower``, ``*_tower.fc1``); all that fits a pattern with ``**`` for any stretch of a name, and perhaps
            ``?`` for a letter (``**.lora_?.*``: what a task has in all layers); or the name of a parameter, or of a
            module all of whose parameters have the task as their first dimension. (What an ``Embedding`` has at its
            ``padding_idx`` is no task.) Or a mapping that says more, see
            :class:`lightning_ncmtl.clustering.target_spec.TargetSpec`.
        trainable: Refuse what cannot be trained together: frozen parameters, targets of different tasks.

    Returns:
        One target per name.

    Raises:
        InputError: If a name stands for nothing, or its tasks cannot share weights: different parameters or shapes,
            parameters that are tied, frozen, used by two targets or sharded differently; or if targets have different
            tasks.
    """
    reshard(module)
    targets = [_find(module, read_target(name)) for name in names]
    _check_apart(module, targets, trainable)
    for target in targets:
        check_mesh(target)
    for target in targets:
        for other in targets if trainable else ():
            if len(target.tasks) != len(other.tasks) or (target.named and other.named and target.tasks != other.tasks):
                raise InputError(
                    f"targets must have the same tasks in the same order, found {list_some(target.tasks)} in "
                    f"{target.name} and {list_some(other.tasks)} in {other.name}"
                    f"{advise(target, len(other.tasks))}{advise(other, len(target.tasks))}"
                )
    return targets


def reshard(module: nn.Module) -> None:
    """Free the whole copies that FSDP2 has in the place of parameters after an evaluation: these may change now."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def advise(target: Target, number: int) -> str:
    """How to find so many tasks in a target, if its shapes allow for it; the end of a message."""
    _, parameter = target.parameters[0][0]
    if not target.stacked or (target.dim, target.order) != (0, None) or len(target.tasks) == number:
        return ""
    name, size = target.name, len(target.tasks)
    if size % number == 0:
        way = f"of {size // number} rows for each task: {{'name': {name!r}, 'rows_per_task': {size // number}}}"
    elif number in parameter.shape:
        way = f"with the task in another dimension: {{'name': {name!r}, 'dim': {list(parameter.shape).index(number)}}}"
    else:
        return ""
    return f"; {name} {list(parameter.shape)} may be {way}"


def _find(module: nn.Module, spec: TargetSpec) -> Target:
    name = spec.name
    if paths := _find_tasks(module, spec):
        if spec != TargetSpec(name, tasks=spec.tasks):
            raise InputError(
                f"rows_per_task and dim are for tasks in one parameter, but {name!r} has a part for each task: leave "
                "them out"
            )
        parameters, kinds = [], []
        for theirs in paths.values():
            parts = [uncompiled(_look_up(module, path, name)) for path in theirs]
            named_parts = [_named(part, path) for part, path in zip(parts, theirs, strict=True)]
            parameters.append(list(chain(*named_parts)))
            kinds.append(list(chain(*map(_describe, parts, named_parts, theirs))))
        _check_alike(list(paths), kinds, name)
        return Target(name, list(paths), parameters, stacked=False)
    found = uncompiled(_look_up(module, name, name))
    if isinstance(found, PerTask) and not spec.is_plain:
        raise InputError(f"{name} is a {type(found).__name__}, whose tasks are known: name it alone, {name!r}")
    named = _named(found, name)
    _check_one_module(found, name)
    for path, p in named:
        if not -p.ndim <= spec.dim < max(p.ndim, 1):
            raise InputError(f"{path} {list(p.shape)} has no dimension {spec.dim}, in which {name!r} shall have tasks")
    sizes = {p.shape[spec.dim] if p.ndim else 0 for _, p in named}
    if len(sizes) != 1 or 0 in sizes:
        where = "first dimension" if spec.dim == 0 else f"dimension {spec.dim}"
        raise InputError(
            f"the target {name!r} is neither a ModuleList or ModuleDict of tasks nor has the task as the {where} of "
            f"its parameters, found {_list_shapes(named)}"
        )
    padding = _find_padding(module, named) if spec.dim in (0, -2) else set()
    rows = [row for row in range(sizes.pop()) if row not in padding]
    each = spec.rows_per_task
    if len(rows) % each or not rows:
        raise InputError(f"{name} has {len(rows)} rows, which cannot be {each} for each task")
    n = len(rows) // each
    mine = [rows[task::n] if spec.layout == "interleaved" else rows[task * each :][:each] for task in range(n)]
    tasks = [str(row) for row in (rows if each == 1 else range(n))]
    order = tuple(chain.from_iterable(mine)) if each > 1 or padding else None
    return Target(name, tasks, [named], True, spec.dim, order)


def _find_tasks(module: nn.Module, spec: TargetSpec) -> dict[str, list[str]]:
    """The paths of the parts that each task has of its own; none if they are in one parameter."""
    if spec.tasks is not None:
        return {task: [parts] if isinstance(parts, str) else parts for task, parts in spec.tasks.items()}
    if "**" in spec.name:
        return _find_everywhere(module, spec.name)
    parts = spec.name.split(".")
    starred = [place for place, part in enumerate(parts) if "*" in part]
    if spec.name.count("*") > 1:
        raise InputError(
            f"cannot read the target {spec.name!r}: one '*' may stand for the tasks, as in 'heads.*.fc1' or '*_tower'"
        )
    place = starred[0] if starred else len(parts)
    head, pattern, tail = parts[:place], "".join(parts[place : place + 1]), parts[place + 1 :]
    holder = uncompiled(_look_up(module, ".".join(head), spec.name) if head else module)
    if pattern in ("", "*"):
        keys = {key: key for key, _ in _tasks(holder)}
        if pattern and not keys:
            raise InputError(
                f"the target {spec.name!r} needs a ModuleList or ModuleDict at {'.'.join(head)!r}, found "
                f"{type(holder).__name__}"
            )
    else:
        before, _, after = pattern.partition("*")
        there = [key for key, _ in _members(holder)]
        long = len(pattern)  # at least one letter for the star
        fit = [key for key in there if key.startswith(before) and key.endswith(after) and len(key) >= long]
        keys = {key[len(before) : len(key) - len(after)]: key for key in fit}
        if len(keys) < 2:
            raise InputError(
                f"the target {spec.name!r} must fit the names of two tasks or more in {type(holder).__name__}, which "
                f"has {list_some(there)}"
            )
    return {task: [".".join([*head, key, *tail])] for task, key in keys.items()}


def _find_everywhere(module: nn.Module, name: str) -> dict[str, list[str]]:
    """All parts, in their order, that fit a pattern in which ``**`` stands for any stretch of a name."""
    parts = name.split(".")
    if [part.count("*") for part in parts if part != "**" and "*" in part] != [1]:
        raise InputError(
            f"cannot read the target {name!r}: beside '**' one '*' must stand for the tasks, as in '**.lora_?.*'"
        )
    pattern = ""
    for part in parts:
        one = re.escape(part).replace(r"\*", r"([^.]+)").replace(r"\?", "[^.]") + r"\."
        pattern += r"(?:[^.]+\.)*" if part == "**" else one
    found: dict[str, dict[str, str]] = {}
    inside: set[str] = set()  # of modules that are parts
    for path in map(plain_name, [*dict(module.named_modules()), *dict(module.named_parameters())]):
        above = path.rpartition(".")[0]
        if above in inside:
            inside.add(path)
        elif fit := re.fullmatch(pattern, f"{path}."):
            inside.add(path)
            found.setdefault(fit[1], {})[f"{path[: fit.start(1)]}*{path[fit.end(1) :]}"] = path
    if len(found) < 2:
        raise InputError(
            f"the target {name!r} must fit the names of parts of two tasks or more, found tasks: "
            f"{list_some(list(found)) or 'none'}"
        )
    everywhere = list(dict.fromkeys(chain(*found.values())))
    for task, places in found.items():
        if missing := [place for place in everywhere if place not in places]:
            raise InputError(f"all tasks of the target {name!r} need the same parts: {task!r} has no {missing[0]}")
    return {task: [places[place] for place in everywhere] for task, places in found.items()}


def _find_padding(module: nn.Module, named: Named) -> set[int]:
    """The row that an embedding has for padding, which belongs to nobody and never changes."""
    found = set()
    for path, _ in named:
        holder, parametrized, _ = path.partition(".parametrizations.")
        holder = holder if parametrized else holder.rpartition(".")[0]
        parts = holder.split(".") if holder else []
        around = [uncompiled(module.get_submodule(".".join(parts[:length]))) for length in range(len(parts) + 1)]
        # In a TaskModule, an embedding is one of a task, all of whose rows belong to it
        if isinstance(around[-1], _EMBEDDINGS) and not any(isinstance(each, PerTask) for each in around):
            found.add(around[-1].padding_idx)
    return {row for row in found if row is not None}


def _tasks(container: nn.Module | nn.Parameter) -> list[tuple[str, Any]]:
    """The named tasks of a container, not of any other module."""
    if isinstance(container, (nn.ModuleDict, nn.ParameterDict)):
        return list(container.items())
    if isinstance(container, (nn.ModuleList, nn.ParameterList)):
        return [(str(number), task) for number, task in enumerate(container)]
    return []


def _look_up(module: nn.Module | nn.Parameter, path: str, name: str) -> nn.Module | nn.Parameter:
    found: object = module
    for part in path.split("."):
        # getattr, which finds what torch.compile wrapped
        following = getattr(found, part, None) if isinstance(found, nn.Module) else None
        if not isinstance(following, (nn.Module, nn.Parameter)):
            there = [key for key, _ in _members(found)] if isinstance(found, nn.Module) else []
            raise InputError(
                f"the target {name!r} names nothing in the module: no {part!r} in {type(found).__name__}, which has "
                f"{list_some(there)}"
            )
        found = following
    assert isinstance(found, (nn.Module, nn.Parameter))
    return found


def _members(module: nn.Module) -> Iterator[tuple[str, object]]:
    yield from module.named_children()
    yield from module.named_parameters(recurse=False)


def _named(part: nn.Module | nn.Parameter, prefix: str) -> Named:
    found = [("", part)] if isinstance(part, nn.Parameter) else part.named_parameters()
    named = [(plain_name(f"{prefix}.{name}").rstrip("."), parameter) for name, parameter in found]
    if not named:
        raise InputError(f"{prefix} has no parameters")
    for name, parameter in named:
        if is_lazy(parameter):
            raise InputError(f"{name} has no shape yet (a lazy module): run one batch through the module before")
    return named


def _check_alike(tasks: list[str], kinds: list[list[str]], name: str) -> None:
    """Tasks that shall share weights need the same modules, and parameters of the same shape and type."""
    for task, theirs in zip(tasks, kinds, strict=True):
        for ours, other in zip_longest(kinds[0], theirs, fillvalue="nothing"):
            if ours != other:
                raise InputError(
                    f"all tasks of the target {name!r} need the same modules and parameters: {tasks[0]!r} has {ours} "
                    f"where {task!r} has {other}"
                )


def _describe(part: nn.Module | nn.Parameter, named: Named, prefix: str) -> list[str]:
    modules = [] if isinstance(part, nn.Parameter) else list(part.named_modules())
    kinds = [
        f"{plain_name(path) or 'a'} {type_before_parametrizations(module).__name__}"
        for path, module in modules
        if uncompiled(module) is module
    ]
    return kinds + [
        f"{n.removeprefix(prefix).lstrip('.') or 'a tensor'} {list(p.shape)} of {p.dtype}" for n, p in named
    ]


def _check_one_module(part: nn.Module | nn.Parameter, name: str) -> None:
    """Several modules side by side are rather tasks, in a container that is no ModuleList, unless a layer says not."""
    if isinstance(part, PerTask):
        return
    modules = [] if isinstance(part, nn.Parameter) else list(part.named_modules(prefix=name))
    holders = {
        path.split(".parametrizations.")[0]: module
        for path, module in modules
        if any(True for _ in module.parameters(recurse=False))
    }
    if len(holders) > 1 and not all(isinstance(uncompiled(module), PerTask) for module in holders.values()):
        raise InputError(
            f"the target {name!r} holds several modules, {list_some(list(holders))}: name a ModuleList or ModuleDict "
            "with one child per task, or each module as a target of its own"
        )


def _check_apart(module: nn.Module, targets: list[Target], trainable: bool) -> None:
    """Each parameter must belong to only one task of one target."""
    owners: dict[int, list[str]] = {}
    for path, owner in module.named_modules():  # each module once, whatever the number of paths to it
        for name, parameter in owner.named_parameters(path, recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
    seen: dict[int, tuple[str, str]] = {}
    for target in targets:
        for name, parameter in (pair for task in target.parameters for pair in task):
            if not parameter.is_floating_point():
                raise InputError(f"{name} cannot be clustered: it holds {parameter.dtype}")
            if trainable and not parameter.requires_grad:
                raise InputError(f"{name} is frozen (requires_grad=False): train it, or leave it out of the targets")
            other, where = seen.get(id(parameter), (name, target.name))
            if where != target.name:
                raise InputError(f"{name} belongs to two targets, {where!r} and {target.name!r}")
            tied = [other, name] if id(parameter) in seen else owners[id(parameter)]
            if len(tied) > 1:
                raise InputError(f"tasks need parameters of their own, but {list_some(tied)} are one and the same")
            seen[id(parameter)] = (name, target.name)


def _list_shapes(named: Named) -> str:
    return list_some([f"{name} {list(parameter.shape)}" for name, parameter in named])
