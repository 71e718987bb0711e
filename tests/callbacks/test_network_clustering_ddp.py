"""Two processes with gloo: ranks stay bitwise equal after every step."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Synthetic
from lightning_ncmtl.encoders import HAN


class CompareRanks(Callback):
    """Gathers all weights and buffers after each step and counts the steps in which ranks differ."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = 0
        self.unequal = 0
        self.unshared = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        state = torch.cat([value.detach().double().flatten() for value in pl_module.state_dict().values()])
        states = [torch.empty_like(state) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(states, state)
        self.steps += 1
        self.unequal += any(not torch.equal(state, other) for other in states)
        for layer in pl_module.cluster_layers:
            for cluster in layer.assignment.unique():
                members = layer.weight[layer.assignment == cluster]
                self.unshared += bool(cluster >= 0 and members.ne(members[0]).any())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        result = {
            "steps": self.steps,
            "unequal": self.unequal,
            "unshared": self.unshared,
            "assignment": pl_module.cluster_layers[0].assignment.tolist(),
        }
        torch.save(result, self.folder / f"rank{trainer.global_rank}")


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    source = Synthetic(num_domains=4, num_groups=2, train_documents=40, opinion_words=12)
    data = MultiDomainDataModule(source, batch_size=8, validation_size=11, vocab_size=400)  # 44 validate: 6 batches
    torch.manual_seed(0)
    encoder = HAN(400, 8, 4, num_layers=1)
    model = NCMTL(encoder, 4, cluster_features=(8, 6), num_clusters=(2, 3), task_names=data.domains)
    Trainer(
        max_epochs=4,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        val_check_interval=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[NetworkClusteringCallback(warmup_epochs=1, freeze_after_epochs=3), StepSeed(), CompareRanks(folder)],
    ).fit(model, datamodule=data)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_stay_equal(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}") for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["steps"] == 4 * 8  # 116 documents in global batches of 16
    assert ranks[0]["unequal"] == 0
    assert ranks[0]["unshared"] == 0
    assert min(ranks[0]["assignment"]) == 0


if __name__ == "__main__":
    train(Path(sys.argv[1]))
