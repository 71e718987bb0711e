"""``last.ckpt``: the newest state of a training, also where someone stops it."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_ncmtl.callbacks.resumable_checkpoint import ResumableCheckpoint
from lightning_ncmtl.compatibility import LightningModule, Trainer, attributes, rank_zero_info

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A training was stopped by a signal, and can go on from a checkpoint.

    Args:
        code: The exit status of the process.
        checkpoint: The file from which it can go on.
    """

    def __init__(self, code: int, checkpoint: Path) -> None:
        super().__init__(code)
        self.checkpoint = checkpoint


class LastCheckpoint(ResumableCheckpoint):
    """Saves ``last.ckpt`` at the end of each epoch, and when Ctrl-C (SIGINT) or SIGTERM stops the training.

    A training that was stopped goes on from there exactly: the step is finished first, with all steps of gradient
    accumulation and, if one follows, the validation. Then :class:`Interrupted` ends the process with 130 or 143, as
    shells expect of these signals. A second signal stops at once, and leaves the ``last.ckpt`` of the epoch before.

    With several processes it is enough that one gets the signal; they look for it every ``log_every_n_steps`` steps.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        self._signal: int | None = None
        self._stops = False
        self._steps = 0  # at the end of the batch before
        self._stepped = False  # in this batch; else it holds a part of the gradients of a step
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._signal, self._stops, self._stepped, self._steps = None, False, False, trainer.global_step
        if threading.current_thread() is threading.main_thread():  # in others, signals cannot be handled
            self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        rank_zero_info("stopping when this step is done; another signal stops at once, without saving")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stops:  # the state was saved behind the batch before
            # Lightning kills all processes where one that it started, which are all but the first, ends with an error
            code = 128 + (self._signal or signal.SIGTERM) if trainer.is_global_zero else 0
            raise Interrupted(code, self._path)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._release()

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _save_waiting(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super()._save_waiting(trainer, pl_module)
        if self._stepped and self._is_told(trainer):
            self._stops = True
            trainer.save_checkpoint(self._path, weights_only=False)

    def _is_told(self, trainer: Trainer) -> bool:
        """Whether any process got a signal."""
        if trainer.world_size == 1:
            return self._signal is not None
        if trainer.global_step % max(1, attributes(trainer).log_every_n_steps):
            return False
        return bool(trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False))

    @property
    def _path(self) -> Path:
        assert self.dirpath is not None  # once a training was set up
        return Path(self.dirpath) / "last.ckpt"
