"""Hard layers: one network that every task shares. An encoder has ``out_features`` and maps a batch to ``[B, F]``."""

from lightning_ncmtl.encoders.han import HAN

__all__ = ["HAN"]
