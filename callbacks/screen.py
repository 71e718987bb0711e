"""What a training shows on the screen, in the place of Lightning's own: progress, and the parts of the model."""

from collections.abc import Sequence
from datetime import timedelta
from math import inf, isfinite
from time import monotonic
from typing import Any

from rich import get_console
from rich.table import Table

from lightning_ncmtl.compatibility import LightningModule, RichModelSummary, RichProgressBar, Trainer

_SECONDS = 10.0  # between two lines, where there is no terminal


class TrainingProgress(RichProgressBar):
    """Lightning's progress bar, with the time that is left for the whole training.

    The estimate takes all steps, with their part of the validations, for equally long, and that all epochs are trained.
    Where the output is no terminal, such as a file, there is no bar but a line each ten seconds.
    """

    _started = _told = 0.0  # seconds
    _first_step, _total = 0, inf  # steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        console = get_console()
        self._lines = trainer.is_global_zero and not (console.is_terminal or console.is_jupyter)
        if self._lines:
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = self._told = monotonic()
        self._first_step, self._total = trainer.global_step, float(trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        if self._lines and monotonic() - self._told >= _SECONDS:
            self._told = monotonic()
            print(f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}", end="")
            for name, value in self.get_metrics(trainer, pl_module).items():
                print(f", {name} {value:.3f}" if isinstance(value, float) else f", {name} {value}", end="")
            print(flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics of the bar, and the time that is left."""
        metrics = super().get_metrics(trainer, pl_module)
        done = trainer.global_step - self._first_step
        if trainer.training and done and isfinite(self._total):
            left = (monotonic() - self._started) / done * max(0.0, self._total - trainer.global_step)
            metrics["time left"] = str(timedelta(seconds=round(left)))
        return metrics


class ParameterSummary(RichModelSummary):
    """The parts of a model that have parameters, and how many."""

    @staticmethod
    def summarize(
        summary_data: Sequence[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Print the table.

        Args:
            summary_data: Columns, each with its name.
            total_parameters: Of the whole model.
            trainable_parameters: Those that are trained.
            model_size: Of all parameters, in MB.
            args: More that Lightning counts.
            kwargs: The same.
        """
        columns = dict(summary_data)
        table = Table("part", "type", title="Model", title_justify="left")
        table.add_column("parameters", justify="right")
        for name, kind, number in zip(columns["Name"], columns["Type"], columns["Params"], strict=True):
            if number.strip() != "0":
                table.add_row(name, kind, number)
        frozen = total_parameters - trainable_parameters
        total = f"{total_parameters:,}" + (f", {frozen:,} of them frozen" if frozen else "")
        table.add_row("all", f"{model_size:,.2f} MB", total)
        get_console().print(table)
