"""Predictions to a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.jsonl``: per text, in the order of the input, domain, text, prediction and probabilities.

    Args:
        path: The file; ``predictions.jsonl`` in the run directory by default.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("epoch")
        self.path = path

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[dict[str, Tensor]],
        batch_indices: Sequence[Any],
    ) -> None:
        probabilities = {
            index: row
            for batch in predictions
            for index, row in zip(batch["index"].tolist(), batch["probabilities"].tolist(), strict=True)
        }
        if trainer.world_size > 1:
            parts: list[dict[int, list[float]]] = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, probabilities)
            probabilities = {index: row for part in parts for index, row in part.items()}
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "predictions.jsonl")
        if trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                for index, (domain, text) in enumerate(trainer.datamodule.predict_texts()):
                    row = probabilities[index]
                    prediction = max(range(len(row)), key=row.__getitem__)
                    line = {"domain": domain, "text": text, "prediction": prediction, "probabilities": row}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            print(f"Predictions: {path}")
