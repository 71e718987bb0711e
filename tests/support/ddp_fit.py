"""Train on several processes, on the CPU or one GPU, and leave in a folder what each saw: run by the DDP tests."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from projects import Heads, data, rows_of, unshared
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import DataLoader

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback, StepSeed
from lightning_ncmtl.encoders import HAN


class CompareRanks(Callback):
    """Gathers all weights after each step; counts the steps in which ranks differ or clusters do not share."""

    def __init__(self, clustering: NetworkClusteringCallback, folder: Path) -> None:
        self.clustering = clustering
        self.folder = folder
        self.steps = self.unequal = self.unshared = 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once more, with the weights that training leaves: averages, if there are any."""
        self._compare(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps += 1
        self._compare(trainer, pl_module)

    def _compare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = torch.cat([value.detach().double().flatten().cpu() for value in pl_module.state_dict().values()])
        states = [torch.empty_like(state) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(states, state)
        self.unequal += any(not torch.equal(state, other) for other in states)
        for name, assignment in self.clustering.assignments.items():
            if name == "out":
                weight, bias = pl_module.out.weight.detach(), pl_module.out.bias.detach()
                self.unshared += unshared(torch.cat([*weight.chunk(2), *bias.view(2, -1, 1)], 1), assignment)
            elif name == "heads":
                self.unshared += unshared(rows_of(pl_module), assignment)
            else:
                self.unshared += unshared(pl_module.get_submodule(name).weight.detach().flatten(1), assignment)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        result = {
            "ranks": trainer.world_size,
            "steps": self.steps,
            "unequal": self.unequal,
            "unshared": self.unshared,
            "clusters": self.clustering.clusters.summarize(),
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))


class PresentHeads(Heads):
    """Calls only the heads of the tasks in the batch, so that some have no gradient on a rank."""

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.backbone(x).relu()
        out = x.new_zeros(len(x))
        for task, head in enumerate(self.heads.values()):
            rows = task_ids == task
            if rows.any():
                out[rows] = head(x[rows]).squeeze(1)
        return out


class Rows(Heads):
    """The mean of all tasks, then the scales."""

    def __init__(self, lr: float) -> None:
        super().__init__(lr)
        del self.heads
        self.out = torch.nn.Linear(8, 12)

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        mean, scale = self.out(self.backbone(x).relu()).chunk(2, 1)
        return (mean * scale.sigmoid()).gather(1, task_ids.unsqueeze(1)).squeeze(1)


ROWS = {"name": "out", "rows_per_task": 2, "layout": "interleaved"}


def heads(project: type[Heads], **settings: Any) -> tuple[Heads, NetworkClusteringCallback, dict[str, Any]]:
    torch.manual_seed(0)
    # 97 documents are not divisible by 2 or 3 ranks; batches of 5 lack one of the 6 tasks.
    loader = DataLoader(data(97), batch_size=5, shuffle=True)
    target = ROWS if project is Rows else "heads"
    callback = NetworkClusteringCallback(2, target, warmup_steps=4, freeze_after_epochs=2, **settings)
    return project(lr=0.01), callback, {"train_dataloaders": loader, "val_dataloaders": DataLoader(data(31, 1))}


def ncmtl(**settings: Any) -> tuple[NCMTL, NetworkClusteringCallback, dict[str, Any]]:
    from data import make_data  # here, as it takes as long to import as all else

    from lightning_ncmtl.datamodules.sources import Synthetic

    source = Synthetic(num_domains=4, num_groups=2, train_documents=40, opinion_words=12)
    datamodule = make_data(source, batch_size=8, validation_size=11, vocab_size=400)
    torch.manual_seed(0)
    encoder = HAN(400, 8, 4, num_layers=1)
    model = NCMTL(encoder, 4, cluster_features=(8, 6), num_clusters=(2, 3), task_names=datamodule.domains)
    callback = NetworkClusteringCallback(warmup_epochs=1, freeze_after_epochs=3, **settings)
    return model, callback, {"datamodule": datamodule}


def main(folder: Path, project: str, devices: int, option: str, warmup: str, device: str = "cpu") -> None:
    model, callback, loaders = {
        "heads": partial(heads, Heads),
        "present_heads": partial(heads, PresentHeads),
        "rows": partial(heads, Rows),
        "ncmtl": ncmtl,
    }[project](warmup=warmup)
    averages = [EMAWeightAveraging(decay=0.9)] if option == "averages" else []
    Trainer(
        max_epochs=4,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=devices if device == "cpu" else "auto",
        strategy=DDPStrategy(
            parallel_devices=None if device == "cpu" else [torch.device(device)] * devices,
            process_group_backend="gloo",
            find_unused_parameters=option == "find_unused",
            start_method="spawn" if option == "spawn" else "popen",
        ),
        val_check_interval=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, StepSeed(), *averages, CompareRanks(callback, folder)],
    ).fit(model, **loaders)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    dist.barrier()  # threads of gloo that outlive the interpreter may abort it
    dist.destroy_process_group()
