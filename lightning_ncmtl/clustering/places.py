"""Where a module holds the parameters of its targets: whether they are still there, at each step and in little time."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile

from torch import nn

from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import uncompiled


class Places:
    """The places of the parameters of targets in a module.

    What FSDP2 shards is left out: it has other parameters in their place now and then.

    Args:
        module: The module.
        targets: Its targets.
    """

    def __init__(self, module: nn.Module, targets: Iterable[Target]) -> None:
        self._module = module
        self._targets = [target for target in targets if target.group is None]
        self._look()

    def check(self) -> None:
        """Raise :class:`InputError` if a parameter was replaced, or there are more tasks or fewer by now."""
        sizes = all(len(held) == number for _, held, number in self._containers)
        if sizes and all(held.get(key) is part for held, key, part in self._links):
            return
        for target in self._targets:
            for name, parameter in (pair for task in target.parameters for pair in task):
                if _find(self._module, name) is not parameter:
                    raise InputError(
                        f"{name} is another parameter than when training began, whose clusters are not its own: "
                        "replace modules and parameters before training, or begin a new training with a new callback"
                    )
        for name, held, number in self._containers:
            if len(held) != number:
                raise InputError(
                    f"{name} has {len(held)} tasks by now, {number} when training began: add tasks before training, or "
                    "begin a new training with a new callback"
                )
        self._look()  # only what is around them changed, as when it is compiled

    def _look(self) -> None:
        links = {}
        self._containers: list[tuple[str, Mapping[str, object], int]] = []
        for target in self._targets:
            for name, _ in (pair for task in target.parameters for pair in task):
                links.update({(id(held), key): (held, key, part) for held, key, part in _walk(self._module, name)})
            # Two tasks have their containers in common
            pairs = () if target.stacked else zip(target.parameters[0], target.parameters[-1], strict=True)
            for name in {_common(one, other) for (one, _), (other, _) in pairs}:
                holder = _find(self._module, name)
                if isinstance(holder, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
                    held = holder._modules or holder._parameters
                    self._containers += [(name, held, len(held))] if len(held) == len(target.tasks) else []
        self._links = list(links.values())


def _find(module: nn.Module, name: str) -> object:
    """What has a name, without what compiles it; ``None`` if nothing has."""
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return uncompiled(found)


def _walk(module: nn.Module, name: str) -> Iterator[tuple[Mapping[str, object], str, object]]:
    """Each step of the way to what has a name: who holds it under which key. Attributes of no module are left out."""
    holder = module
    for part in name.split("."):
        if (inner := uncompiled(holder)) is not holder:
            yield holder._modules, "_orig_mod", inner
        following = getattr(inner, part)
        yield from ((held, part, following) for held in (inner._modules, inner._parameters) if part in held)
        holder = following


def _common(one: str, other: str) -> str:
    """What two dotted names begin with."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return ".".join(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
