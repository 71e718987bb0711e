"""Train modules whose parameters are sharded over CPU processes (FSDP2) and leave what they went through in a folder.

The same modules train on one process, where nothing is sharded: each rank has an equal part of every batch, so that
the mean of their gradients is that of the batch.
"""

from pathlib import Path
from typing import Any

import torch
from projects import NUM_TASKS, Heads, Stacked, data
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_ncmtl import ClusterLinear, TaskLinear
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.errors import InputError

BATCH = 18
EPOCHS = 4


class Sharded(Heads):
    """Shards itself where there is a mesh: each child module, and the rest."""

    sharded = False

    def configure_model(self) -> None:
        if self._device_mesh is not None and not self.sharded:
            self.sharded = True
            self.shard(self._device_mesh["data_parallel"])

    def train_dataloader(self) -> DataLoader[Any]:
        """The same batches on any number of ranks, each of which has a part."""
        ranks, rows = self.trainer.world_size, data(6 * BATCH)
        sampler = DistributedSampler(rows, ranks, self.global_rank, shuffle=False)
        return DataLoader(rows, BATCH // ranks, sampler=sampler)

    def shard(self, mesh: DeviceMesh) -> None:
        for head in self.heads.values():
            fully_shard(head, mesh=mesh)
        fully_shard(self, mesh=mesh)


class ShardedStacked(Sharded, Stacked):
    """Parameters ``[N, ...]``: one sharded along its last dimension where that is possible, one of ``[N]``."""

    def shard(self, mesh: DeviceMesh) -> None:
        even = self.experts.shape[2] % mesh.size() == 0
        fully_shard(self, mesh=mesh, shard_placement_fn=lambda p: Shard(2) if even and p.ndim == 3 else None)


class ShardedLayers(Sharded):
    """Layers of ours, one of them with fewer rows per task than ranks."""

    def __init__(self) -> None:
        super().__init__()
        del self.heads
        self.cluster = ClusterLinear(NUM_TASKS, 8, 5, num_clusters=2)
        self.head = TaskLinear(NUM_TASKS, 5, 1)

    def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
        x = self.cluster(self.backbone(x).relu(), task_ids).tanh()
        return self.head(x, task_ids).squeeze(1)

    def shard(self, mesh: DeviceMesh) -> None:
        fully_shard(self.cluster, mesh=mesh)
        fully_shard(self, mesh=mesh)


class Broken(Sharded):
    """The weights of one task become infinite at the second step."""

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        with torch.no_grad():
            for p in self.heads["cat"].parameters():
                p *= torch.inf if batch_idx else 1.0


class Mixed(Sharded):
    """One head is not sharded."""

    def shard(self, mesh: DeviceMesh) -> None:
        fully_shard(self, mesh=mesh, ignored_params=set(self.heads["dog"].parameters()))


class MixedLayers(ShardedStacked):
    """One layer is not sharded."""

    def shard(self, mesh: DeviceMesh) -> None:
        fully_shard(self, mesh=mesh, ignored_params=set(self.binary.parameters()))


APART = {"warmup": "apart"}
MEMORY = {**APART, "warmup_steps": 0, "commitment": 0.0}  # by which tasks still change their clusters
SHARED = {"warmup": "shared", "warmup_steps": 14}
PARTS = ["heads.*.0", "heads.*.2"]
PROJECTS: dict[str, tuple[type[Sharded], dict[str, Any]]] = {
    "heads": (Sharded, {"num_clusters": 3, "targets": "heads", **APART}),
    "parts": (Sharded, {"num_clusters": [2, 3], "targets": PARTS, "every_n_steps": 2, **APART}),
    "stacked": (ShardedStacked, {"num_clusters": 2, "targets": ["experts", "binary"], "metric": "cosine", **MEMORY}),
    "layers": (ShardedLayers, {"num_clusters": 3, **MEMORY}),
    "auto": (ShardedLayers, {"num_clusters": ["auto", 1], "targets": ["cluster", "head"], "max_clusters": 4, **APART}),
    "literal": (ShardedLayers, {"preset": "literal"}),
    "shared": (Sharded, {"num_clusters": 3, "targets": "heads", **SHARED}),
    "shared_parts": (Sharded, {"num_clusters": [2, 3], "targets": PARTS, **SHARED}),
    "shared_stacked": (ShardedStacked, {"targets": "experts", "specific": "binary", **SHARED}),
    "shared_layers": (ShardedLayers, {"num_clusters": 2, **SHARED}),
    "faiss": (Sharded, {"num_clusters": 2, "targets": "heads", "backend": "faiss"}),
    "mixed": (Mixed, {"num_clusters": 2, "targets": "heads"}),
    "mixed_layers": (MixedLayers, {"targets": "experts", "specific": "binary"}),
    "without": (Sharded, {}),
    "broken": (Broken, {"num_clusters": 1, "targets": "heads", **APART}),
    "shared_broken": (Broken, {"targets": "heads", **SHARED}),
}


class History(Callback):
    """Whole weights and what the callback remembers, after each step."""

    def __init__(self, clustering: NetworkClusteringCallback, folder: Path) -> None:
        self.clustering = clustering
        self.folder = folder
        self.steps: dict[int, dict[str, Any]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        state = self.clustering.state_dict()
        self.steps[trainer.global_step] = {
            "weights": {name: whole(p) for name, p in pl_module.named_parameters()},
            **{name: state[name] for name in ("layers", "warmup", "evidence")},
            "losses": {name: loss for name, (_, loss) in self.clustering.clusters.losses.items()},
            "assignments": [m.assignment for m in pl_module.modules() if isinstance(m, ClusterLinear)],
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == EPOCHS // 2 - 1:
            trainer.save_checkpoint(self.folder / "middle.ckpt")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(self.steps, self.folder / f"rank{trainer.global_rank}.pt")


def whole(parameter: nn.Parameter) -> Tensor:
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


def fit(project: str, folder: Path, ranks: int, distributed: bool = False, resume: Path | None = None) -> None:
    """Train on one or several ranks; ``distributed`` is the form of the checkpoint, a folder instead of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    cls, settings = PROJECTS[project]
    clustering = NetworkClusteringCallback(**{"warmup_steps": 4, "freeze_after_epochs": 3, **settings})
    strategy = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=distributed) if ranks > 1 else "auto"
    Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        val_check_interval=0.5,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[clustering, History(clustering, folder)][project == "without" :],
    ).fit(cls(), ckpt_path=resume)


def main(rank: int, folder: Path, ranks: int, *runs: str) -> None:
    """Each run is ``PROJECT,NAME``, and perhaps ``,CHECKPOINT``; where the name has "folder", it saves folders.

    What the callback refuses is left in a file.
    """
    for run in runs:
        project, name, *checkpoint = run.split(",")
        resume = folder / checkpoint[0] / "middle.ckpt" if checkpoint else None
        try:
            fit(project, folder / name, ranks, "folder" in name, resume)
        except InputError as error:
            (folder / name / f"error{rank}.txt").write_text(str(error))
