"""Predictions to a file."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ncmtl.compatibility import Callback, LightningModule, Trainer, attributes
from lightning_ncmtl.whole_files import whole


class PredictionWriter(Callback):
    """Writes what ``predict`` found as JSON lines, a line for each row of what was predicted, in the same order.

    A line begins with what tells the row, such as its ``id`` or ``text``, as the data module's ``predict_rows()`` has
    it. Then come ``domain``, ``prediction`` and ``probabilities``; or, of a row that is predicted in several domains,
    ``predictions``: ``prediction`` and ``probabilities`` by domain.

    The prediction is the name of a class if the data module has ``class_names``, in the order of their numbers, else
    the number. Probabilities are those of the domain's classes by name, if it has ``domain_classes``, the names by
    domain; else a list of all. Of a task that predicts numbers, the prediction is one, without probabilities.

    All this is the same on any number of devices.

    Args:
        path: The file; ``predictions.jsonl`` in the run directory by default.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._outputs: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outputs = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        # Copies: what workers of a loader made is memory that they share, of which there is a limited number
        self._outputs.append({name: values.to("cpu", copy=True) for name, values in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = [self._outputs]
        if trainer.world_size > 1:
            parts *= trainer.world_size
            torch.distributed.all_gather_object(parts, self._outputs)
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "predictions.jsonl")
        if not trainer.is_global_zero:
            return
        data = attributes(trainer).datamodule
        with whole(path) as part, part.open("w", encoding="utf-8") as file:
            for line in _lines(data, _sort([outputs for part in parts for outputs in part])):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"Predictions: {path}")


def _sort(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The entries of all batches by ``index``; those of a row keep their order."""
    columns = {name: torch.cat([batch[name] for batch in outputs]) for name in outputs[0]}
    order = columns["index"].argsort(stable=True)
    return {name: values[order] for name, values in columns.items()}


def _lines(data: Any, entries: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """What is written of each row."""
    names, classes = getattr(data, "class_names", None), getattr(data, "domain_classes", None)
    indices = entries["index"].tolist()
    start = 0
    for index, (line, domains) in enumerate(data.predict_rows()):
        if start == len(indices) or indices[start] != index:  # limit_predict_batches
            continue
        several = [domains] if isinstance(domains, str) else domains
        mine = slice(start, start + len(several))
        start += len(several)
        rows = entries["probabilities"][mine].tolist()
        values = entries["values"][mine].tolist() if "values" in entries else [math.nan] * len(several)
        found = {
            domain: _entry(row, names, None if classes is None else classes[domain])
            if math.isnan(value)
            else {"prediction": value}
            for domain, row, value in zip(several, rows, values, strict=True)
        }
        yield line | ({"domain": domains, **found[domains]} if isinstance(domains, str) else {"predictions": found})


def _entry(probabilities: list[float], names: list[Any] | None, classes: list[Any] | None) -> dict[str, Any]:
    """What is written of a row in a domain that has these classes."""
    named = dict(zip(range(len(probabilities)) if names is None else names, probabilities, strict=True))
    return {
        "prediction": max(named, key=named.__getitem__),
        "probabilities": probabilities if classes is None else {str(name): named[name] for name in classes},
    }
