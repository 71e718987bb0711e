"""Which checkpoints there are, and what to do with them."""

import shlex
from pathlib import Path

from lightning_ncmtl.callbacks.page.content import Best
from lightning_ncmtl.callbacks.page.history import History, split_name
from lightning_ncmtl.compatibility import Trainer, attributes


def find_checkpoints(trainer: Trainer, history: History) -> tuple[Best | None, str, str]:
    """The best epoch, the file of it, and that of the last state; empty where there is none.

    Args:
        trainer: The trainer.
        history: Of its training, which knows when a value was reached.
    """
    kept = [each for each in attributes(trainer).checkpoint_callbacks if hasattr(each, "best_model_path")]
    choosing = [each for each in kept if getattr(each, "monitor", None)]
    best, best_path, last_path = None, "", ""
    for callback in choosing[:1]:
        best_path = str(callback.best_model_path)
        if callback.best_model_score is not None:
            value = float(callback.best_model_score)
            kind, name = split_name(callback.monitor)
            points = history.curves.get(f"{kind}/{name}", [])
            # Of equal values the first is kept
            step = next((step for step, each in points if abs(each - value) <= 1e-6 * abs(value)), None)
            epoch = next((epoch for epoch, end in history.epochs if step is not None and end >= step), None)
            best = Best(f"{kind}/{name}" if kind else callback.monitor, value, step, epoch)
    for callback in kept:
        if callback.last_model_path:
            last_path = str(callback.last_model_path)
        elif not getattr(callback, "monitor", None) and callback.best_model_path:
            last_path = str(callback.best_model_path)
    return best, best_path, last_path


def suggest(trainer: Trainer, stage: str, best: str, last: str) -> tuple[dict[str, str], str]:
    """Say what to do next, by the command line that made the trainer, or else in Python; and what to know of it.

    Args:
        trainer: The trainer.
        stage: ``fit``, ``validate`` or ``test``.
        best: The best checkpoint, empty if there is none.
        last: The last one.

    Returns:
        For each purpose what to type, and a note.
    """
    command = getattr(trainer, "command", None)
    if stage != "fit":
        best = last = str(Path(attributes(trainer).ckpt_path)) if attributes(trainer).ckpt_path else ""
    best, last = (str(Path(path).resolve()) if path else "" for path in (best, last))
    best = best or last
    limit = "max_steps" if trainer.max_steps > 0 else "max_epochs"
    longer = 2 * (
        trainer.max_steps if trainer.max_steps > 0 else max(trainer.max_epochs or 0, trainer.current_epoch, 1)
    )
    found: dict[str, str] = {}
    if command is None:
        if best and stage == "fit":
            found["Evaluate on test data"] = f"trainer.test(model, dataloaders, ckpt_path={best!r})"
        if last and stage == "fit":
            found["Go on training"] = f"Trainer({limit}={longer}, ...).fit(model, dataloaders, ckpt_path={last!r})"
        return found, ""
    if best:
        quoted = shlex.quote(best)
        if stage != "test":
            found["Evaluate on test data"] = f"{command} test --ckpt_path {quoted}"
        found["Predict what is new"] = f"{command} predict --ckpt_path {quoted} --data.predict_path FILE"
        found["Save the model with one set of weights per cluster"] = f"{command} export --ckpt_path {quoted}"
    if last and stage == "fit":
        found["Go on training"] = f"{command} fit --ckpt_path {shlex.quote(last)} --trainer.{limit} {longer}"
    note = f"Relative paths in the settings are those of the folder {Path.cwd()}." if found else ""
    return found, note
