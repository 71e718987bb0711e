"""The table of tasks and the lists of clusters."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from lightning_ncmtl.callbacks.page.content import Content

STAGES = {"val": "validation", "test": "test"}


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        name: What it is of.
        stage: ``validation`` or ``test``; empty where that makes no difference.
        kind: ``number``, ``cluster`` or ``text``.
        values: ``[N]``; ``None`` where there is none.
        cells: ``[N]``, how they are written.
        average: What is written below it.
        errors: ``[N]``, how sure the values are, where that is known.
        places: ``[N]``, from 0 for the least value to 1 for the greatest; only of the column that ranks the tasks.
    """

    name: str
    stage: str
    kind: str
    values: list[Any]
    cells: list[str]
    average: str = ""
    errors: list[str] | None = None
    places: list[float | None] | None = None


class Cluster(NamedTuple):
    """A cluster: its number, the tasks, and the mean of what ranks them."""

    number: int
    tasks: list[str]
    mean: str


class Group(NamedTuple):
    """Layers that have the same clusters.

    Attributes:
        names: Names of the layers.
        layer: What is known of the first of them.
        ari: Adjusted Rand index with planted groups; ``None`` if there are none.
        clusters: The clusters by number.
    """

    names: list[str]
    layer: Mapping[str, Any]
    ari: float | None
    clusters: list[Cluster]


def ranking(content: Content) -> tuple[str, Sequence[float], bool] | None:
    """The stage and the values ``[N]`` by which tasks are ranked, and whether more is better; ``None`` without any."""
    if content.headline is None:
        return None
    name, higher = content.headline
    stage = next((stage for stage in ("test", "val") if name in content.scores.get(stage, {})), None)
    return None if stage is None else (stage, content.scores[stage][name], higher)


def make_columns(content: Content) -> list[Column]:
    """The columns of the table, but the names: what ranks the tasks, of how many labels, clusters, and the rest."""
    ranked = ranking(content)
    by = None if ranked is None or content.headline is None else (ranked[0], content.headline[0])
    columns = []
    for stage in [stage for stage in ("test", "val") if stage in content.scores]:
        for name, values in content.scores[stage].items():
            average = content.averages.get(stage, {}).get(name)
            columns.append(
                Column(
                    name,
                    STAGES[stage],
                    "number",
                    [value if isfinite(value) else None for value in values],
                    [write_number(name, value) for value in values],
                    "" if average is None else write_number(name, average),
                    _errors(name, values, content.scores[stage].get("count")),
                    _places(values) if (stage, name) == by else None,
                )
            )
    planted = content.report["planted"]
    if planted is not None:
        groups = [planted.get(task) for task in content.tasks]
        columns.append(Column("planted", "", "text", groups, ["" if group is None else str(group) for group in groups]))
    for name, layer in content.layers.items():
        numbers = layer["clusters"]
        columns.append(Column(name, "", "cluster", numbers, [str(number) for number in numbers]))
    first = "" if content.headline is None else content.headline[0]
    places = {first: 0, "count": 1}
    kinds = {"cluster": 2, "text": 3, "number": 4}
    return sorted(columns, key=lambda column: places.get(column.name, 4) if column.stage else kinds[column.kind])


def rank_tasks(content: Content) -> list[int]:
    """The tasks, the worst first and those without a value last; without any values as they are."""
    ranked = ranking(content)
    if ranked is None:
        return list(range(len(content.tasks)))
    _, values, higher = ranked

    def key(task: int) -> tuple[bool, float]:
        value = values[task]
        return (False, value if higher else -value) if isfinite(value) else (True, 0.0)

    return sorted(range(len(values)), key=key)


def group_layers(content: Content) -> list[Group]:
    """The layers with their clusters; those that have the same stand together."""
    ranked = ranking(content)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, layer in content.layers.items():
        groups.setdefault(tuple(layer["clusters"]), []).append(name)
    result = []
    for assignment, names in groups.items():
        members: dict[int, list[int]] = {}
        for task, cluster in enumerate(assignment):
            members.setdefault(cluster, []).append(task)
        clusters = []
        for number in sorted(members):
            values = [ranked[1][task] for task in members[number]] if ranked else []
            values = [value for value in values if isfinite(value)]
            mean = write_number(content.headline[0], sum(values) / len(values)) if values and content.headline else ""
            clusters.append(Cluster(number, [content.tasks[task] for task in members[number]], mean))
        ari = (content.report["ari"] or {}).get(names[0])
        result.append(Group(names, content.layers[names[0]], ari, clusters))
    return result


def write_number(name: str, value: float) -> str:
    """A value of a column; empty if there is none."""
    if not isfinite(value):
        return ""
    if name == "count":
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 and name != "rmse" else f"{value:.4g}"


def _errors(name: str, values: Sequence[float], counts: Sequence[float] | None) -> list[str] | None:
    """Standard errors of accuracies, which are shares of documents (binomial)."""
    if name != "accuracy" or counts is None:
        return None
    errors = []
    for value, count in zip(values, counts, strict=True):
        known = isfinite(value) and count > 0
        errors.append(f"{(value * (1 - value) / count) ** 0.5:.3f}" if known else "")
    return errors


def _places(values: Sequence[float]) -> list[float | None]:
    finite = [value for value in values if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return [(value - low) / (high - low or 1.0) if isfinite(value) else None for value in values]
