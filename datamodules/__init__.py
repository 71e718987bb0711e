"""What the model is fed: many domains in mixed batches."""

from lightning_ncmtl.datamodules.multi_domain import MultiDomainDataModule
from lightning_ncmtl.datamodules.sampling import MixedBatchLoader, MixedBatchSampler

__all__ = ["MixedBatchLoader", "MixedBatchSampler", "MultiDomainDataModule"]
