"""PyTorch Lightning, whichever of its two packages is installed.

``pytorch_lightning`` and ``lightning.pytorch`` are one code with two hierarchies of classes, and each trainer knows
only its own. A callback of ours belongs to both (where both are installed), and so fits into any project. Modules,
data modules and the command line are those of ``pytorch_lightning``, or of ``lightning.pytorch`` where it is alone.
"""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING or find_spec("pytorch_lightning"):
    import pytorch_lightning as pl
    from pytorch_lightning import callbacks, cli, loggers, plugins, strategies, utilities
else:
    import lightning.pytorch as pl
    from lightning.pytorch import callbacks, cli, loggers, plugins, strategies, utilities

LightningDataModule = pl.LightningDataModule
LightningModule = pl.LightningModule
Trainer = pl.Trainer
Callback = pl.Callback
ModelCheckpoint = callbacks.ModelCheckpoint
WeightAveraging = callbacks.WeightAveraging
ModelSummary = callbacks.ModelSummary
ProgressBar = callbacks.ProgressBar
RichModelSummary = callbacks.RichModelSummary
RichProgressBar = callbacks.RichProgressBar
ArgsType = cli.ArgsType
LRSchedulerCallable = cli.LRSchedulerCallable
LightningArgumentParser = cli.LightningArgumentParser
LightningCLI = cli.LightningCLI
OptimizerCallable = cli.OptimizerCallable
SaveConfigCallback = cli.SaveConfigCallback
SIGTERMException = utilities.exceptions.SIGTERMException
instantiate_module = cli.instantiate_module
CSVLogger = loggers.CSVLogger
TensorBoardLogger = loggers.TensorBoardLogger
DDPStrategy = strategies.DDPStrategy
SingleDeviceStrategy = strategies.SingleDeviceStrategy
TorchCheckpointIO = plugins.TorchCheckpointIO
rank_zero_info = utilities.rank_zero_info
rank_zero_only = utilities.rank_zero_only
rank_zero_warn = utilities.rank_zero_warn
_MADE_BY = "_instantiator"
_Callback = TypeVar("_Callback", bound=pl.Callback)

if not TYPE_CHECKING and pl.__name__ == "pytorch_lightning":
    try:
        from lightning.pytorch import callbacks as others
    except ImportError:
        pass
    else:

        class Callback(pl.Callback, others.Callback):
            """A callback for the trainers of both packages."""

        class ModelCheckpoint(callbacks.ModelCheckpoint, others.Checkpoint):
            """A ModelCheckpoint that the trainers of both packages run after all other callbacks."""


def attributes(trainer: Trainer) -> Any:
    """A trainer, for attributes that Lightning sets but does not declare: ``callbacks``, ``datamodule`` and others."""
    return trainer


def made_by_cli(hparams: Mapping[str, Any]) -> bool:
    """Whether LightningCLI has made an object with these hyperparameters: they are all plain values then."""
    return _MADE_BY in hparams


def without_maker(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters less the mark that LightningCLI sets."""
    return {name: value for name, value in hparams.items() if name != _MADE_BY}


def find_callbacks(trainer: Trainer, kind: type[_Callback]) -> list[_Callback]:
    """The callbacks of a kind that a trainer has."""
    return [callback for callback in attributes(trainer).callbacks if isinstance(callback, kind)]


def find_averages(trainer: Trainer) -> list[nn.Module]:
    """The averaged copies of the module that ``WeightAveraging`` and ``StochasticWeightAveraging`` keep."""
    found = [getattr(callback, "_average_model", None) for callback in attributes(trainer).callbacks]
    return [copy.module if isinstance(copy, AveragedModel) else copy for copy in found if copy is not None]


def _log_where_lightning_does() -> None:
    """Let the messages of this package appear where those of Lightning do: by default on the screen."""
    ours = logging.getLogger("lightning_ncmtl")
    theirs = logging.getLogger(LightningModule.__module__.partition(".core.")[0])
    ours.setLevel(theirs.level)
    ours.handlers, ours.propagate = theirs.handlers, theirs.propagate


_log_where_lightning_does()
