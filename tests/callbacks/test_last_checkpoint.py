"""A training that a signal stops leaves a checkpoint from which it goes on exactly."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data import make_data
from projects import Heads
from pytorch_lightning import Callback, LightningModule, Trainer
from ranks import on_ranks

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import Interrupted, LastCheckpoint, NetworkClusteringCallback, StepSeed
from lightning_ncmtl.datamodules.sources import Synthetic

INT, TERM = signal.SIGINT, signal.SIGTERM
Hook = tuple[str, int]  # a hook of a callback, and the number of steps that are done by then


class Signals(Callback):
    """Sends signals to this process."""

    def __init__(self, at: Hook, *numbers: int) -> None:
        self.at, self.numbers = at, numbers
        self.stopped_at: int | None = None

    def _send(self, hook: str, trainer: Trainer) -> None:
        if (hook, trainer.global_step) == self.at:
            self.at = ("", 0)
            for number in self.numbers:
                signal.raise_signal(number)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._send("batch_start", trainer)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        self._send("backward", trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._send("batch_end", trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._send("validation", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._send("epoch_end", trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stopped_at = trainer.global_step


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed")
@pytest.mark.parametrize(
    ("at", "number", "stopped_at", "settings"),
    [
        (("backward", 2), INT, 3, {}),
        (("batch_end", 3), TERM, 3, {}),
        (("backward", 7), INT, 8, {}),  # the last step of an epoch, before its validation
        (("validation", 8), TERM, 8, {}),
        (("epoch_end", 8), INT, 8, {}),
        (("validation", 3), INT, 3, {"val_check_interval": 3}),
        (("backward", 4), TERM, 5, {"check_val_every_n_epoch": None, "val_check_interval": 5}),
        (("batch_start", 2), INT, 3, {"accumulate_grad_batches": 2}),
    ],
)
def test_it_goes_on_exactly(
    at: Hook,
    number: int,
    stopped_at: int,
    settings: dict[str, Any],
    source: Synthetic,
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> tuple[NCMTL, dict[str, Any]]:
        model = make_model(dropout=0.2)
        clustering = NetworkClusteringCallback(warmup_epochs=1, freeze_after_epochs=None)
        trainer = make_trainer(
            max_epochs=2,
            callbacks=[clustering, StepSeed(), *callbacks],
            enable_checkpointing=bool(callbacks),
            num_sanity_val_steps=0,
            default_root_dir=tmp_path / ("first" if ckpt_path is None else "resumed"),
            **settings,
        )
        data = make_data(source, batch_size=16, validation_size=11, vocab_size=400, min_frequency=1)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return model, clustering.state_dict()["layers"]

    whole, clusters = run()
    before = [signal.getsignal(each) for each in (INT, TERM)]
    signals = Signals(at, number)
    with pytest.raises(Interrupted) as stop:
        run(signals, LastCheckpoint())
    assert stop.value.code == 128 + number
    assert signals.stopped_at == stopped_at
    assert torch.load(stop.value.checkpoint, weights_only=True)["global_step"] == stopped_at
    assert [signal.getsignal(each) for each in (INT, TERM)] == before
    resumed, found = run(LastCheckpoint(), ckpt_path=stop.value.checkpoint)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    torch.testing.assert_close(found, clusters, rtol=0, atol=0)


def test_at_the_last_step_the_training_just_ends(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    signals = Signals(("validation", 12), INT)
    last = LastCheckpoint()
    trainer = make_trainer(
        max_epochs=2, callbacks=[signals, last], enable_checkpointing=True, default_root_dir=tmp_path
    )
    trainer.fit(Heads())
    assert signals.at == ("", 0)
    assert trainer.global_step == 12
    assert trainer.state.finished


def test_a_second_signal_stops_at_once(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """The checkpoint of the epoch before stays."""
    before = [signal.getsignal(each) for each in (INT, TERM)]
    trainer = make_trainer(
        max_epochs=2,
        callbacks=[Signals(("backward", 8), INT, INT), LastCheckpoint()],
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
    with pytest.raises(SystemExit) as stop:
        trainer.fit(Heads())
    assert isinstance(stop.value.__context__, KeyboardInterrupt)
    (file,) = tmp_path.rglob("last.ckpt")
    assert torch.load(file, weights_only=True)["global_step"] == 6
    signal.signal(INT, before[0])  # which Lightning ignores by now
    assert signal.getsignal(TERM) == before[1]


def on_rank(rank: int, folder: Path) -> None:
    signals = Signals(("backward", 2), TERM) if rank == 1 else Callback()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        callbacks=[signals, LastCheckpoint()],
        logger=False,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with pytest.raises(Interrupted) as stop:
        trainer.fit(Heads())
    assert trainer.global_step == 4  # the next at which they ask each other
    assert stop.value.code == (0 if rank else 143)


def test_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    on_ranks(2, on_rank, tmp_path)
    (file,) = tmp_path.rglob("last.ckpt")
    assert torch.load(file, weights_only=True)["global_step"] == 4
