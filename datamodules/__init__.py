"""What the model is fed: many domains in mixed batches."""

from lightning_ncmtl.datamodules.multi_domain import MultiDomainDataModule
from lightning_ncmtl.datamodules.sampling import MixedBatchLoader, MixedBatchSampler
from lightning_ncmtl.datamodules.settings import BatchSettings, LabelSettings, SplitSettings, TextSettings

__all__ = [
    "BatchSettings",
    "LabelSettings",
    "MixedBatchLoader",
    "MixedBatchSampler",
    "MultiDomainDataModule",
    "SplitSettings",
    "TextSettings",
]
