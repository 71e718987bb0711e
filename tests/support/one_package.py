"""A project on one of Lightning's two packages, where the other may be hidden: run by test_packages.py."""

import importlib
import json
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import torch
from torch import Tensor, nn

PACKAGE, HIDDEN = sys.argv[1], sys.argv[2].split(",")


def hide(packages: list[str]) -> None:
    """Make packages look as if they were not installed."""
    find_spec = PathFinder.find_spec

    def find_others(name: str, *args: Any) -> ModuleSpec | None:
        return None if name.split(".")[0] in packages else find_spec(name, *args)

    PathFinder.find_spec = find_others  # type: ignore[method-assign, assignment]


def run() -> dict[str, Any]:
    pl = importlib.import_module(PACKAGE)
    from lightning_ncmtl import NCMTL
    from lightning_ncmtl.callbacks import ClusterReport, NetworkClusteringCallback

    class Project(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(4))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return sum((head(batch) - n % 2).square().mean() for n, head in enumerate(self.heads))  # type: ignore[return-value]

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.01)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.randn(64, 3), batch_size=8)  # type: ignore[arg-type]

    callback = NetworkClusteringCallback(2, "heads", warmup_epochs=1)
    checkpoint = pl.callbacks.ModelCheckpoint("saved", "last")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[callback, ClusterReport(), checkpoint],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Project())
    content = torch.load("saved/last.ckpt", weights_only=True)
    return {
        "assignment": callback.assignments["heads"].tolist(),
        "saved": content["callbacks"]["NetworkClusteringCallback(heads)"]["layers"]["heads"]["assignment"].tolist(),
        "ours": NCMTL.__mro__[2].__module__,
        "callback": isinstance(callback, pl.Callback),
        "loaded": sorted({name.split(".")[0] for name in sys.modules} & {"pytorch_lightning", "lightning"}),
    }


if __name__ == "__main__":
    hide(HIDDEN)
    result = run()
    print(json.dumps(result))
    if PACKAGE == "lightning.pytorch":  # the command line, too
        from lightning_ncmtl.main import main

        main(["fit", "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"])
