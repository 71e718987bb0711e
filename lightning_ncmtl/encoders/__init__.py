"""Hard layers: one network that every task shares. An encoder has ``out_features`` and maps a batch to ``[B, F]``."""

from lightning_ncmtl.encoders._words import WordEncoder
from lightning_ncmtl.encoders.concat import Concat
from lightning_ncmtl.encoders.features import MLP, Identity
from lightning_ncmtl.encoders.han import HAN
from lightning_ncmtl.encoders.lstm import LSTM
from lightning_ncmtl.encoders.ngram import NGram
from lightning_ncmtl.encoders.text_cnn import TextCNN
from lightning_ncmtl.encoders.transformer import Transformer

__all__ = ["HAN", "LSTM", "MLP", "Concat", "Identity", "NGram", "TextCNN", "Transformer", "WordEncoder"]
