"""A backbone and a ModuleDict of heads: which products sell for the same reasons?

A shop forecasts the daily sales of 12 products from the weather and the calendar, with one head per product. Products
sell for four reasons, which the model is not told (only that there are four). The callback finds them: heads of
products that learn alike become one head. Without the lines marked "network clustering" this is an ordinary project.

    python examples/module_dict.py

takes about 10 seconds. With the seeds 0, 1 and 2 the groups are found (adjusted Rand index 1.0).
"""

import argparse
import warnings

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.clustering import adjusted_rand_score

from lightning_ncmtl import compact  # network clustering
from lightning_ncmtl.callbacks import NetworkClusteringCallback  # network clustering

HIDDEN_GROUPS = {
    "ice cream": "heat", "soup": "cold", "umbrella": "rain", "flowers": "weekend",
    "lemonade": "heat", "cocoa": "cold", "raincoat": "rain", "newspaper": "weekend",
    "sunscreen": "heat", "gloves": "cold", "board game": "rain", "charcoal": "weekend",
}  # fmt: skip


def make_days(number: int) -> TensorDataset:
    """Days with six features, and the sales of each product (both standardised)."""
    temperature, rain, wind, trend = torch.randn(4, number)
    weekend, holiday = torch.randint(2, (2, number)).float()
    reasons = {
        "heat": F.softplus(2 * temperature) - rain,
        "cold": F.softplus(-2 * temperature) + 0.5 * wind,
        "rain": F.softplus(2 * rain) + 0.5 * wind,
        "weekend": 2 * weekend + holiday + 0.5 * temperature,
    }
    x = torch.stack([temperature, rain, wind, trend, weekend, holiday], 1)
    sales = torch.stack([reasons[group] for group in HIDDEN_GROUPS.values()], 1)
    own = 0.1 * x @ torch.randn(6, len(HIDDEN_GROUPS))  # no two products are quite the same
    sales = sales + own + 0.5 * torch.randn_like(sales)
    return TensorDataset(x, (sales - sales.mean(0)) / sales.std(0))


class SalesModel(LightningModule):
    def __init__(self, products: list[str]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)) for name in products}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        return torch.cat([head(x) for head in self.heads.values()], 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, sales = batch
        return F.mse_loss(self(x), sales)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    # Of no use to a reader: advice about worker processes (all data is in memory), and warnings of torch 2.13 to others
    warnings.filterwarnings("ignore", ".*does not have many workers|`isinstance.treespec|Sparse invariant checks")
    seed_everything(parser.parse_args().seed)

    model = SalesModel(list(HIDDEN_GROUPS))
    # In the first epoch each day is seen once, so that what its two halves say of the products is independent
    clustering = NetworkClusteringCallback(num_clusters=4, targets="heads", warmup_epochs=1)  # network clustering
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=6,
        callbacks=[clustering],  # network clustering
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(make_days(4000), batch_size=32, shuffle=True))

    found = clustering.assignments["heads"]
    print("\nproduct      cluster  hidden group")
    for product, cluster in sorted(zip(clustering.tasks, found.tolist(), strict=True), key=lambda pair: pair[1]):
        print(f"{product:12} {cluster:7}  {HIDDEN_GROUPS[product]}")
    groups = list(HIDDEN_GROUPS.values())
    ari = adjusted_rand_score(found, torch.tensor([groups.index(group) for group in groups]))
    print(f"adjusted Rand index: {ari:.3f}")

    small, days = compact(model, clustering.assignments), torch.randn(100, 6)
    before, after = (sum(p.numel() for p in m.heads.parameters()) for m in (model, small))
    print(f"parameters of the heads: {before:,} before and {after:,} after compaction")
    print(f"largest difference of a prediction: {(model(days) - small(days)).abs().max():.1e}")


if __name__ == "__main__":
    main()
