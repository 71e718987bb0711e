"""What a trainer knows of its run becomes the content of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_ncmtl.callbacks.page.content import Content
from lightning_ncmtl.callbacks.page.facts import describe, read_settings
from lightning_ncmtl.callbacks.page.history import History, is_number, split_name
from lightning_ncmtl.callbacks.page.next_steps import find_checkpoints, suggest
from lightning_ncmtl.callbacks.page.text import plural
from lightning_ncmtl.compatibility import LightningModule, Trainer
from lightning_ncmtl.metrics import TaskMetrics


class Scores(NamedTuple):
    """What each task reached, of one stage.

    Attributes:
        tasks: Names of the N tasks.
        columns: For each value that of the tasks ``[N]``, NaN where there is none.
        averages: What was logged of all tasks together.
        headline: What ranks the tasks, and whether more of it is better; ``None`` where that is not known.
    """

    tasks: list[str]
    columns: dict[str, list[float]]
    averages: dict[str, float]
    headline: tuple[str, bool] | None


def read_scores(logged: Mapping[str, Any], metrics: TaskMetrics | None, stage: str, tasks: Sequence[str]) -> Scores:
    """Read what each task reached.

    Args:
        logged: All values logged. Of other models than ours, ``val/accuracy/TASK`` and the like are of a task.
        metrics: Those of a model of this package.
        stage: ``val`` or ``test``.
        tasks: Names of the tasks that were clustered, which hold where the model has only numbers.
    """
    named = {split_name(key): float(value) for key, value in logged.items() if is_number(value)}
    values = {name: value for (kind, name), value in named.items() if kind == stage}
    headline = None
    if metrics is not None and metrics.per_task:
        numbered = metrics.task_names == [str(task) for task in range(len(tasks))]
        tasks = tasks if numbered else metrics.task_names
        columns = {name: list(map(float, value)) for name, value in metrics.per_task.items()}
        first = next((name for name in [*metrics.scores, "accuracy", "rmse"] if name in columns), None)
        headline = None if first is None else (first, metrics.directions[first])
    else:
        columns = {}
        places = {task: place for place, task in enumerate(tasks)}
        for key, value in values.items():
            *before, last = key.split("/")
            if last in places and before:
                column = columns.setdefault("/".join(before), [np.nan] * len(tasks))
                column[places[last]] = value
    averages = {name: values[name] for name in columns if name in values}
    return Scores(list(tasks), columns, averages, headline)


def collect(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    stage: str,
    directory: Path,
    report: Mapping[str, Any],
    tasks: list[str],
    similarities: NDArray[Any] | None,
    scores: Mapping[str, Scores],
    history: History,
    losses: Mapping[str, list[tuple[int, float]]],
    seconds: float,
) -> Content:
    """Gather what there is to say of a run.

    Args:
        trainer: The trainer.
        pl_module: What it trained, or evaluated.
        stage: ``fit``, ``validate`` or ``test``.
        directory: Where the page goes.
        report: Content of ``clusters.json``.
        tasks: Names of the tasks that were clustered.
        similarities: How similar the tasks are in each half of the data, where there is evidence.
        scores: What each task reached, by stage.
        history: What was logged over the epochs.
        losses: Step and clustering loss, by layer.
        seconds: How long it took.
    """
    metrics = getattr(pl_module, "metrics", None)
    named = tasks or (list(metrics.task_names) if isinstance(metrics, TaskMetrics) else [])
    epochs = history.epochs
    last_step = epochs[-1][1] if epochs else int(trainer.global_step)
    best, best_path, last_path = find_checkpoints(trainer, history)
    commands, note = suggest(trainer, stage, best_path, last_path)
    content = Content(
        title=f"{type(pl_module).__name__}: {plural(len(named), 'task')}",
        stage=stage,
        directory=str(directory.resolve()),
        tasks=named,
        report=report,
        facts=describe(trainer, pl_module, named, history, stage, seconds),
        similarities=similarities,
        curves=history.curves,
        epochs=epochs,
        losses=losses,
        last_step=last_step,
        best=best,
        commands=commands,
        note=note,
        config=read_settings(trainer, pl_module, directory),
    )
    return add_scores(content, scores)


def add_scores(content: Content, scores: Mapping[str, Scores], checkpoint: str = "") -> Content:
    """The same run with what its tasks reached.

    Args:
        content: The run.
        scores: What each task reached, by stage. Of other tasks than the run's it is left out: it would stand beside
            the wrong names.
        checkpoint: What was tested, if that is to be told.
    """
    fitting = {name: score for name, score in scores.items() if score.columns and score.tasks == list(content.tasks)}
    return replace(
        content,
        facts={**content.facts, **({"tested": checkpoint} if checkpoint else {})},
        scores={name: score.columns for name, score in fitting.items()},
        averages={name: score.averages for name, score in fitting.items()},
        headline=next((score.headline for score in fitting.values() if score.headline is not None), None),
    )
