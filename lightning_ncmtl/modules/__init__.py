"""The LightningModules: NCMTL and the systems it is compared with."""

from lightning_ncmtl.modules.asp_mtl import ASPMTL
from lightning_ncmtl.modules.base import MultiTaskModule
from lightning_ncmtl.modules.cross_stitch import CrossStitch
from lightning_ncmtl.modules.hard_share import HardShare
from lightning_ncmtl.modules.mmoe import MMoE
from lightning_ncmtl.modules.ncmtl import NCMTL
from lightning_ncmtl.modules.ple import PLE
from lightning_ncmtl.modules.single_task import SingleTask
from lightning_ncmtl.modules.soft_share import SoftShare

__all__ = [
    "ASPMTL",
    "NCMTL",
    "PLE",
    "CrossStitch",
    "HardShare",
    "MMoE",
    "MultiTaskModule",
    "SingleTask",
    "SoftShare",
]
