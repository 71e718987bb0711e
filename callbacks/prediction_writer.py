"""Predictions to a file."""

import json
from pathlib import Path
from typing import Any

import torch

from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer, attributes


class PredictionWriter(Callback):
    """Writes what ``predict`` found as JSON lines: ``domain``, ``text``, ``prediction`` and ``probabilities``.

    The prediction is the name of a class if the data module has ``class_names``, in the order of their numbers, else
    the number. Probabilities are those of the domain's classes by name, if it has ``domain_classes``, the names by
    domain; else a list of all.

    Lines are in the order of the data module's ``predict_texts()``, on any number of devices.

    Args:
        path: The file; ``predictions.jsonl`` in the run directory by default.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._probabilities: dict[int, list[float]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._probabilities = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        indices, rows = outputs["index"].tolist(), outputs["probabilities"].tolist()
        self._probabilities.update(zip(indices, rows, strict=True))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        probabilities = self._probabilities
        if trainer.world_size > 1:
            parts: list[dict[int, list[float]]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, probabilities)
            probabilities = {index: row for part in parts for index, row in part.items()}
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "predictions.jsonl")
        if not trainer.is_global_zero:
            return
        data = attributes(trainer).datamodule
        names = getattr(data, "class_names", None)
        classes = getattr(data, "domain_classes", None)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for index, (domain, text) in enumerate(data.predict_texts()):
                if index not in probabilities:  # limit_predict_batches
                    continue
                row = probabilities[index]
                named = dict(zip(range(len(row)) if names is None else names, row, strict=True))
                line = {
                    "domain": domain,
                    "text": text,
                    "prediction": max(named, key=named.__getitem__),
                    "probabilities": row if classes is None else {str(name): named[name] for name in classes[domain]},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"Predictions: {path}")
