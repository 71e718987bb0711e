"""Where documents come from. A source names its domains and reads the documents of a split, one at a time."""

from lightning_ncmtl.datamodules.sources.assays import SyntheticAssays
from lightning_ncmtl.datamodules.sources.base import Document, Label, Problem, Source, Split
from lightning_ncmtl.datamodules.sources.fdu_mtl import FDUMTL
from lightning_ncmtl.datamodules.sources.feature_tables import FeatureTables
from lightning_ncmtl.datamodules.sources.hugging_face import HuggingFace
from lightning_ncmtl.datamodules.sources.molecules import Molecules
from lightning_ncmtl.datamodules.sources.sentiment import MultiDomainSentiment
from lightning_ncmtl.datamodules.sources.shuffled import ShuffledDomains
from lightning_ncmtl.datamodules.sources.synthetic import Synthetic
from lightning_ncmtl.datamodules.sources.tables import Tables

__all__ = [
    "FDUMTL",
    "Document",
    "FeatureTables",
    "HuggingFace",
    "Label",
    "Molecules",
    "MultiDomainSentiment",
    "Problem",
    "ShuffledDomains",
    "Source",
    "Split",
    "Synthetic",
    "SyntheticAssays",
    "Tables",
]
