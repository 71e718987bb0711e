"""What a report shows and writes of clusters and tasks, so that it stays readable with a thousand of them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lightning_ncmtl.clustering.decision import describe_evidence
from lightning_ncmtl.metrics import MAX_LOGGED_TASKS, WORST, TaskMetrics
from lightning_ncmtl.whole_files import whole

_SHOWN_TASKS = 5  # of a cluster, where there are too many tasks to show all
_SHOWN_CLUSTERS = 50  # of a layer


def cluster_table(report: Mapping[str, Any]) -> Table:
    """The clusters of each layer, from the content of ``clusters.json``; some tasks of each where there are many."""
    title = "\n".join(["Clusters", *([evidence_line(report)] if report["evidence"] else [])])
    table = Table("layer", "clusters", title=title, title_justify="left")
    for name, layer in report["layers"].items():
        heading = [name, *([] if layer["num_clusters"] is None else [f"{layer['num_clusters']} clusters"])]
        if report["ari"] and name in report["ari"]:
            heading.append(f"ARI {report['ari'][name]:.3f}")
        if layer["frozen_at_step"] is not None:
            heading.append(f"frozen at step {layer['frozen_at_step']}")
        members: dict[int, list[str]] = {}
        for task, cluster in layer["assignment"].items():
            members.setdefault(cluster, []).append(task)
        inner = Table.grid(padding=(0, 2))
        if not members:
            inner.add_row("not clustered")
        elif len(members) == len(layer["assignment"]):
            inner.add_row("each task by itself")
        elif len(layer["assignment"]) <= MAX_LOGGED_TASKS:
            for cluster, tasks in sorted(members.items()):
                inner.add_row(str(cluster), escape(", ".join(tasks)))
        else:
            largest = sorted(members, key=lambda cluster: (-len(members[cluster]), cluster))[:_SHOWN_CLUSTERS]
            for cluster in sorted(largest):
                tasks = members[cluster]
                some = ", ".join(tasks[:_SHOWN_TASKS]) + ", ..." * (len(tasks) > _SHOWN_TASKS)
                inner.add_row(str(cluster), f"{len(tasks)} task{'s' * (len(tasks) != 1)}", escape(some))
            if len(members) > len(largest):
                inner.add_row("", "", f"and {len(members) - len(largest):,} clusters that are no larger")
        table.add_row("\n".join(heading), inner)
        table.add_section()
    return table


def evidence_line(report: Mapping[str, Any]) -> str:
    """How sure the clusters are, in one line, from the content of ``clusters.json``, in which there is evidence."""
    evidence, layers = report["evidence"], report["layers"].values()
    found = evidence["num_clusters"]
    line = describe_evidence(
        found,
        max(len(layer["assignment"]) for layer in layers),
        evidence["agreement"],
        evidence["agreement_error"],
        evidence["p_value"],
    )
    # Where numbers of clusters were given, tasks need not share
    return line + ": all tasks share" * (found == 1 and all(layer["num_clusters"] == 1 for layer in layers))


def score_table(logged: Mapping[str, Any], metrics: TaskMetrics | None) -> Table:
    """Accuracy or error of the last validation, and the metrics, of each task, or of the worst where there are many.

    Args:
        logged: All values logged.
        metrics: The model's, if it has any.
    """
    names = ["accuracy", "rmse", *([] if metrics is None else metrics.scores)]
    names = [name for name in names if f"val/{name}" in logged]
    table = Table("task", *names, title="Validation", title_justify="left")
    values: dict[str, dict[str, Any]]
    values = {name: _of_tasks(logged, f"val/{name}/") for name in names}
    tasks = sorted({task for of_task in values.values() for task in of_task})
    averages = {"average": names, "average without copies": ["accuracy_clean"]}
    if metrics is not None and metrics.many and "accuracy" in names:
        table.title = f"Validation: the worst of {len(metrics.task_names):,} tasks"
        values = {name: dict(zip(metrics.task_names, metrics.per_task[name].tolist(), strict=True)) for name in values}
        accuracy = values["accuracy"]
        seen = [task for task, value in accuracy.items() if value == value]  # not NaN
        tasks = sorted(seen, key=lambda task: accuracy[task])[:WORST]
        averages = {f"average of these {len(tasks)}": [f"accuracy_worst_{WORST}"], **averages}
    for task in tasks:
        table.add_row(escape(task), *(_cell(name, of_task.get(task)) for name, of_task in values.items()))
    table.add_section()
    for label, columns in averages.items():
        if columns and f"val/{columns[0]}" in logged:
            table.add_row(label, *(_cell(name, logged[f"val/{name}"]) for name in columns))
    return table


def _of_tasks(logged: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): logged[name] for name in logged if name.startswith(prefix)}


def _cell(name: str, value: Any) -> str:
    """A number; empty where there is none, or NaN: of a task that a metric skips."""
    return "" if value is None or value != value else format(float(value), ".4g" if name == "rmse" else ".3f")


def write_task_table(path: Path, tasks: Sequence[str], columns: Mapping[str, Tensor | Sequence[Any]]) -> None:
    """Write a CSV file with a row for each task.

    Args:
        path: The file.
        tasks: Names of the N tasks.
        columns: More columns, ``[N]`` each; NaN becomes an empty cell.
    """
    values = [column.tolist() if isinstance(column, Tensor) else column for column in columns.values()]
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", *columns])
        for task, row in zip(tasks, zip(*values, strict=True), strict=True):
            cells = (f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)
            writer.writerow([task, *("" if cell == "nan" else cell for cell in cells)])
