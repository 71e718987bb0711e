"""A small training in Hugging Face's Trainer, for tests; as a program, one rank of several."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from projects import Heads, data
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from lightning_ncmtl.hugging_face import NetworkClusteringTrainerCallback


class Rows(Dataset[dict[str, Tensor]]):
    """The examples of tests/support/projects.py as Hugging Face's collator takes them."""

    def __init__(self, rows: int = 96) -> None:
        self.x, self.y, self.task_ids = data(rows)[:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "labels": self.y[index], "task_ids": self.task_ids[index], "index": index}


class Model(nn.Module):
    """A backbone and six heads; it remembers which examples it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Heads()
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor, labels: Tensor, task_ids: Tensor, index: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen.append(index.tolist())
        out = self.net(x, task_ids)
        return {"loss": F.mse_loss(out, labels), "logits": out}


def make_trainer(folder: Path, *callbacks: Any, rows: int = 96, **settings: Any) -> Trainer:
    defaults = {
        "per_device_train_batch_size": 8, "num_train_epochs": 4, "learning_rate": 0.02, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 5,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    return Trainer(Model(), args, train_dataset=Rows(rows), eval_dataset=Rows(rows), callbacks=list(callbacks))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, results = Path(sys.argv[1]), []
    for name, checkpoint in (("whole", None), ("resumed", str(folder / "whole/checkpoint-12"))):
        callback = NetworkClusteringTrainerCallback(2, "net.heads")
        trainer = make_trainer(folder / name, callback, per_device_train_batch_size=4, save_strategy="epoch")
        trainer.train(resume_from_checkpoint=checkpoint)
        clusters = callback.clusters.summarize()
        results.append({"weights": trainer.model.state_dict(), "clusters": clusters, "seen": trainer.model.seen})
    assert torch.distributed.get_world_size() == 2
    torch.save(results, folder / f"rank{os.environ['RANK']}.pt")
