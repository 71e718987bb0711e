"""What a user says of a target: its name, or a mapping where that does not say where the tasks are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

from lightning_ncmtl.errors import InputError

TargetLike: TypeAlias = str | dict[str, Any]

_LAYOUTS = ("blocked", "interleaved")


@dataclass(frozen=True)
class TargetSpec:
    """Where the numbers of each task are.

    Attributes:
        name: A dotted name, see :func:`lightning_ncmtl.clustering.find_targets`. With ``tasks``, any name.
        rows_per_task: How many indices of the task dimension each task has, such as mean and variance.
        layout: Whether these follow one another (``"blocked"``, a dimension that ``view(tasks, rows)`` divides), or the
            first ones of all tasks come first (``"interleaved"``, as ``view(rows, tasks)`` or ``chunk(rows)`` divides).
        dim: The task dimension of each parameter, counted from the end if negative.
        tasks: Modules or parameters that are one task each, ``{task: dotted name}``, or several, ``{task: [names]}``.
    """

    name: str
    rows_per_task: int = 1
    layout: str = "blocked"
    dim: int = 0
    tasks: dict[str, str | list[str]] | None = None

    def __post_init__(self) -> None:
        tasks = self.tasks
        for is_right, message in (
            (isinstance(self.name, str) and self.name, f"a target needs a name, a string, found {self.name!r}"),
            (
                _is_int(self.rows_per_task) and self.rows_per_task >= 1,
                f"rows_per_task of {self.name} must be a number from 1, found {self.rows_per_task!r}",
            ),
            (
                self.layout in _LAYOUTS,
                f"unknown layout {self.layout!r} of {self.name}: choose 'blocked' (the rows of a task follow one "
                "another) or 'interleaved' (the first rows of all tasks, then the second ones)",
            ),
            (_is_int(self.dim), f"dim of {self.name} must be a whole number, found {self.dim!r}"),
            (
                tasks is None
                or (
                    len(tasks) > 1
                    and all(isinstance(task, str) and parts and _are_names(parts) for task, parts in tasks.items())
                ),
                f"tasks of {self.name} must name a part of the module for each of two tasks or more, found {tasks}",
            ),
            (
                tasks is None or (self.rows_per_task, self.dim) == (1, 0),
                f"{self.name} has either tasks or rows_per_task and dim, which are for tasks in one parameter",
            ),
        ):
            if not is_right:
                raise InputError(message)

    @property
    def is_plain(self) -> bool:
        """Whether the name says it all."""
        return self == TargetSpec(self.name)


def read_target(given: str | Mapping[str, Any]) -> TargetSpec:
    """Read what a user says of a target.

    Args:
        given: A name; a mapping of the attributes of :class:`TargetSpec`; or its ``tasks`` alone.

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(given, str):
        return TargetSpec(given)
    keys, given = TargetSpec.__dataclass_fields__, plain(given)
    if isinstance(given, dict) and given.keys() <= keys.keys() and "name" in given:
        return TargetSpec(**given)
    if isinstance(given, dict) and "name" not in given and all(map(_are_names, given.values())):
        return TargetSpec("tasks", tasks=given)
    raise InputError(
        f"a target is a name, {{task: name}} or {{task: [names]}} for the parts of each task, or a mapping of "
        f"{', '.join(keys)}: found {given!r}"
    )


def read_targets(given: Any) -> list[TargetLike] | None:
    """A list of targets, as plain values, of one or several in any form; ``None`` as it is.

    Raises:
        InputError: If one of them is no target.
    """
    given = plain(given)
    if given is None:
        return None
    several = given if isinstance(given, list) else [given]
    for each in several:
        read_target(each)
    return several


def check_targets(before: Sequence[TargetLike] | None, now: Sequence[TargetLike] | None) -> None:
    """Raise :class:`InputError` if targets of the same name are others: the same numbers would be other tasks'."""
    known = {read_target(target).name: target for target in before or ()}
    for target in now or ():
        spec = read_target(target)
        if read_target(known.get(spec.name, target)) != spec:
            raise InputError(
                f"the checkpoint was trained with the target {known[spec.name]!r}, found {target!r}: say the same"
            )


def plain(value: Any) -> Any:
    """Lists, dicts and ints in the place of what libraries have for them (OmegaConf, NumPy), and of tuples."""
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _are_names(value: object) -> bool:
    return all(isinstance(each, str) for each in (value if isinstance(value, list) else [value]))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
