"""A run is followed from its start, and its page written at the end."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightning_ncmtl.callbacks.page.collect import Scores, add_scores, collect, read_scores
from lightning_ncmtl.callbacks.page.content import Content
from lightning_ncmtl.callbacks.page.history import History
from lightning_ncmtl.compatibility import LightningModule, Trainer, attributes
from lightning_ncmtl.metrics import TaskMetrics
from lightning_ncmtl.whole_files import whole


class RunPage:
    """``report.html`` of a run, which a trainer makes.

    Attributes:
        history: What was logged over the epochs of the training.
    """

    def __init__(self) -> None:
        self.history = History()
        self._scores: dict[str, Scores] = {}
        self._content: Content | None = None  # of a training, for an evaluation that follows
        self._began = time.monotonic()

    def begin(self, stage: str, fresh: bool) -> None:
        """Begin a stage, ``fit``, ``validate`` or ``test``; a fresh training has no history yet."""
        self._began = time.monotonic()
        if stage == "fit":
            self._scores, self._content = {}, None
        if fresh:
            self.history = History()

    def keep_logged(self, trainer: Trainer, metrics: TaskMetrics | None, stage: str, tasks: list[str]) -> None:
        """Take what was logged of a stage, ``train`` or ``val``: on all ranks, which may have to average it."""
        names = {*tasks, *(() if metrics is None else metrics.task_names)}  # either may be numbers
        self.history.add_logged(trainer.callback_metrics, stage, trainer.global_step, names)

    def keep_scores(self, trainer: Trainer, metrics: TaskMetrics | None, stage: str, tasks: list[str]) -> None:
        """Take what each task reached in an evaluation, ``val`` or ``test``: on all ranks, too."""
        self._scores[stage] = read_scores(trainer.callback_metrics, metrics, stage, tasks)

    def write(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        directory: Path,
        report: Mapping[str, Any],
        tasks: list[str],
        similarities: NDArray[Any] | None,
        losses: Mapping[str, list[tuple[int, float]]],
    ) -> Path:
        """Write the page; after an evaluation in the directory of a training, that of the training with its values.

        Args:
            trainer: The trainer.
            pl_module: What it trained, or evaluated.
            directory: Where the page goes.
            report: Content of ``clusters.json``.
            tasks: Names of the tasks that were clustered.
            similarities: How similar the tasks are in each half of the data, where there is evidence.
            losses: Step and clustering loss, by layer.

        Returns:
            The file.
        """
        from lightning_ncmtl.callbacks.page.render import render_page  # it takes time to import

        stage = str(attributes(trainer).state.fn.value)
        if stage != "fit" and self._content is not None and self._content.directory == str(directory.resolve()):
            # The checkpoint that was evaluated need not be that of the end: only what it reached is new
            content = add_scores(self._content, self._scores, str(trainer.ckpt_path or ""))
        else:
            content = collect(
                trainer,
                pl_module,
                stage=stage,
                directory=directory,
                report=report,
                tasks=tasks,
                similarities=similarities,
                scores=self._scores,
                history=self.history,
                losses=losses,
                seconds=time.monotonic() - self._began,
            )
        if stage == "fit":
            self._content = content
        file = directory / "report.html"
        with whole(file) as part:  # names of files need not be Unicode
            part.write_text(render_page(content), encoding="utf-8", errors="replace")
        return file
