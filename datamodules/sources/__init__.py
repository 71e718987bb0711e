"""Where documents come from. A source names its domains and reads the documents of one domain and split."""

from lightning_ncmtl.datamodules.sources.base import Document, Source, Split
from lightning_ncmtl.datamodules.sources.fdu_mtl import FDUMTL
from lightning_ncmtl.datamodules.sources.shuffled import ShuffledDomains
from lightning_ncmtl.datamodules.sources.synthetic import Synthetic

__all__ = ["FDUMTL", "Document", "ShuffledDomains", "Source", "Split", "Synthetic"]
