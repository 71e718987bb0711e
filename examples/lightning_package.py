"""A project on ``lightning.pytorch``: two cluster layers in a ModuleList of heads, stopped, resumed, and made small.

Bikes are lent at 18 stations. A station stands at an office, a park or an arena, and is small or large; the model is
told neither. The hidden layers of the heads are grouped into three clusters and the output layers into six: that is
what the targets ``heads.*.0`` and ``heads.*.2`` say, in which ``*`` stands for the stations. ``warmup="apart"`` groups
each layer by its own weights, as the two are alike for different reasons. The training stops halfway and is resumed
from a checkpoint, which holds the clusters. At the end the model is saved with one set of weights per cluster, and
loaded again.

    python examples/lightning_package.py

takes about 15 seconds, and writes to a new folder in ``runs/``. With the seeds 0 to 4 the hidden layers are grouped
by place, and the output layers by place and size (adjusted Rand index 1.0 for both). This is not so for any width: with
16 hidden units and seed 1 the index of the output layers is 0.77, since a unit whose output weight starts near zero
went up at some stations and down at others of the same place and size.
"""

import argparse
import warnings
from datetime import datetime
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.clustering import adjusted_rand_score

from lightning_ncmtl import compact, load, save
from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback

STATIONS = [
    f"{size} {place} {n}" for n in "ABC" for size in ("small", "large") for place in ("office", "park", "arena")
]
PLACE = torch.arange(18) % 3
LARGE = torch.arange(18) // 3 % 2


class BikeData(L.LightningDataModule):
    """Hours with six (standardised) features, and the bikes lent at each station."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(self.seed)  # the same hours when training is resumed
        self.train_hours, self.new_hours = self._hours(4000, generator), self._hours(1000, generator)

    def _hours(self, number: int, generator: torch.Generator) -> TensorDataset:
        x = torch.randn(number, 6, generator=generator)
        temperature, rain, wind, commuters, tourists, events = x.T
        office = F.softplus(2 * commuters) - 0.5 * rain
        park = F.softplus(2 * temperature) - rain - 0.5 * wind
        arena = F.softplus(2 * events) + 0.5 * tourists
        bikes = torch.stack([office, park, arena], 1)[:, PLACE] * (1 + LARGE)
        return TensorDataset(x, bikes + 0.5 * torch.randn(bikes.shape, generator=generator))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_hours, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.new_hours, batch_size=500)


class BikeModel(L.LightningModule):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(6, 64), nn.GELU())
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(64, hidden), nn.GELU(), nn.Linear(hidden, 1)) for _ in STATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return torch.cat([head(x) for head in self.heads], 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, bikes = batch
        return F.mse_loss(self(x), bikes)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, bikes = batch
        self.log("val_loss", F.mse_loss(self(x), bikes))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(
    folder: Path, seed: int, epochs: int, resume_from: str | None = None
) -> tuple[L.Trainer, BikeModel, NetworkClusteringCallback]:
    """Train up to an epoch, with everything made anew, as another process would."""
    clustering = NetworkClusteringCallback(
        targets=["heads.*.0", "heads.*.2"], num_clusters=[3, 6], task_names=STATIONS, warmup="apart"
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[clustering, ClusterReport(), ModelCheckpoint(folder / "checkpoints", save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = BikeModel()
    trainer.fit(model, datamodule=BikeData(seed), ckpt_path=resume_from)
    return trainer, model, clustering


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where to make a folder (default: runs)")
    args = parser.parse_args()
    folder = args.runs / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-lightning_package"
    L.seed_everything(args.seed)
    # Of no use to a reader: advice about worker processes (all data is in memory), and warnings of torch 2.13 to others
    warnings.filterwarnings("ignore", ".*does not have many workers|`isinstance.treespec|Sparse invariant checks")

    stopped, _, _ = fit(folder, args.seed, epochs=3)
    checkpoint = stopped.checkpoint_callback.last_model_path
    trainer, model, clustering = fit(folder, args.seed, epochs=6, resume_from=checkpoint)
    print(f"resumed from {checkpoint}, ended at step {trainer.global_step}")
    for name, groups in {"heads.*.0": PLACE, "heads.*.2": 2 * PLACE + LARGE}.items():
        print(f"{name}: adjusted Rand index {adjusted_rand_score(clustering.assignments[name], groups):.3f}")

    save(compact(model, clustering.assignments), folder / "compact")
    loaded = load(folder / "compact")  # elsewhere: import BikeModel first, or load(folder, module=BikeModel())
    before, after = (sum(p.numel() for p in m.heads.parameters()) for m in (model, loaded))
    print(f"parameters of the heads: {before:,} before and {after:,} after compaction")
    hours = torch.randn(100, 6)
    print(f"loaded from {folder / 'compact'}")
    print(f"largest difference of a prediction: {(model(hours) - loaded(hours)).abs().max():.1e}")


if __name__ == "__main__":
    main()
