"""PyTorch Lightning, whichever of its two packages is installed.

``pytorch_lightning`` and ``lightning.pytorch`` are one code with two hierarchies of classes, and each trainer knows
only its own. A callback of ours belongs to both (where both are installed), and so fits into any project. Modules,
data modules and the command line are those of ``pytorch_lightning``, or of ``lightning.pytorch`` where it is alone.
"""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING or find_spec("pytorch_lightning"):
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
    from pytorch_lightning.cli import (
        ArgsType,
        LightningArgumentParser,
        LightningCLI,
        LRSchedulerCallable,
        OptimizerCallable,
        SaveConfigCallback,
        instantiate_module,
    )
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

    if not TYPE_CHECKING:
        try:
            from lightning.pytorch import Callback as _OtherCallback
            from lightning.pytorch.callbacks import Checkpoint as _OtherCheckpoint
        except ImportError:
            pass
        else:

            class Callback(Callback, _OtherCallback):
                """A callback for the trainers of both packages."""

            class ModelCheckpoint(ModelCheckpoint, _OtherCheckpoint):
                """A ModelCheckpoint that the trainers of both packages run after all other callbacks."""

else:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
    from lightning.pytorch.cli import (
        ArgsType,
        LightningArgumentParser,
        LightningCLI,
        LRSchedulerCallable,
        OptimizerCallable,
        SaveConfigCallback,
        instantiate_module,
    )
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = [
    "ArgsType",
    "CSVLogger",
    "Callback",
    "LRSchedulerCallable",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "ModelCheckpoint",
    "OptimizerCallable",
    "SaveConfigCallback",
    "TensorBoardLogger",
    "Trainer",
    "WeightAveraging",
    "find_averages",
    "instantiate_module",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]


def find_averages(trainer: Trainer) -> list[nn.Module]:
    """The averaged copies of the module that ``WeightAveraging`` and ``StochasticWeightAveraging`` keep."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [getattr(callback, "_average_model", None) for callback in callbacks]
    return [copy.module if isinstance(copy, AveragedModel) else copy for copy in found if copy is not None]


def _log_where_lightning_does() -> None:
    """Let the messages of this package appear where those of Lightning do: by default on the screen."""
    ours = logging.getLogger("lightning_ncmtl")
    theirs = logging.getLogger(LightningModule.__module__.partition(".core.")[0])
    ours.setLevel(theirs.level)
    ours.handlers, ours.propagate = theirs.handlers, theirs.propagate


_log_where_lightning_does()
