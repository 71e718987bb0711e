"""What a training shows on the screen."""

import re
from collections.abc import Callable

import pytest
from projects import Heads
from pytorch_lightning import Trainer
from rich.console import Console

from lightning_ncmtl.callbacks import ParameterSummary, TrainingProgress, screen


def shown(line: str) -> tuple[int, str]:
    match = re.fullmatch(r"epoch \d+, step (\d+),.* time left (\d:\d\d:\d\d)", line)
    assert match is not None, line
    return int(match[1]), match[2]


def test_where_there_is_no_terminal_lines_tell_the_time_that_is_left(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(max_epochs=2, callbacks=[TrainingProgress()], enable_progress_bar=True)
    monkeypatch.setattr(screen, "monotonic", lambda: 2.0 * trainer.global_step)
    monkeypatch.setattr(screen, "_SECONDS", 4.0)
    trainer.fit(Heads())
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [shown(line)[0] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert shown(lines[0])[1] == "0:00:20"  # 4 seconds for 2 steps, 10 steps more
    assert shown(lines[-1])[1] == "0:00:00"


def test_an_open_end_has_no_time_left(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "_SECONDS", 0.0)

    class Stops(Heads):
        def on_train_batch_start(self, batch: object, batch_idx: int) -> int | None:
            return -1 if self.trainer.current_epoch == 1 else None

        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = self.trainer.current_epoch == 1

    make_trainer(max_epochs=-1, callbacks=[TrainingProgress()], enable_progress_bar=True).fit(Stops())
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"epoch 1, step {step + 1}") for step, line in enumerate(lines)] == [True] * 6
    assert "left" not in "".join(lines)


def test_in_a_terminal_the_bar_shows_it(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr("rich._console", Console(force_terminal=True))
    make_trainer(max_epochs=2, callbacks=[TrainingProgress()], enable_progress_bar=True).fit(Heads())
    assert "time left: 0:00:00" in capsys.readouterr().out


def test_the_summary_counts_parameters_and_nothing_else(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    model = Heads()
    number = sum(parameter.numel() for parameter in model.parameters())
    next(model.parameters()).requires_grad = False
    frozen = next(model.parameters()).numel()
    make_trainer(max_epochs=1, callbacks=[ParameterSummary()], enable_model_summary=True).fit(model)
    output = capsys.readouterr().out
    assert f"{number:,}, {frozen:,} of them frozen" in output
    assert "FLOPs" not in output
