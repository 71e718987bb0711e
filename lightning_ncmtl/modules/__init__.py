"""The LightningModules."""

from lightning_ncmtl.modules.ncmtl import NCMTL

__all__ = ["NCMTL"]
