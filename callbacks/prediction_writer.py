"""Predictions to a file."""

import json
from pathlib import Path
from typing import Any

import torch

from lightning_ncmtl._lightning import Callback, LightningModule, Trainer


class PredictionWriter(Callback):
    """Writes what ``predict`` found as JSON lines: ``domain``, ``text``, ``prediction`` and ``probabilities``.

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
        texts = trainer.datamodule.predict_texts()  # type: ignore[attr-defined]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for index, (domain, text) in enumerate(texts):
                if index not in probabilities:  # limit_predict_batches
                    continue
                row = probabilities[index]
                prediction = row.index(max(row))
                line = {"domain": domain, "text": text, "prediction": prediction, "probabilities": row}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"Predictions: {path}")
