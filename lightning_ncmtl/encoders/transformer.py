"""A pretrained transformer (Vaswani et al., NeurIPS 2017; Devlin et al., NAACL 2019), from Hugging Face."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_ncmtl.encoders._words import check_dropout, flatten, pad
from lightning_ncmtl.errors import InputError


class Transformer(nn.Module):
    """Any encoder of Hugging Face's ``transformers``, which is an extra: ``lightning-ncmtl[transformers]``.

    The data must be tokenised with the model's own tokenizer, whose special tokens ([CLS], [SEP]) are among the tokens.
    Sentences are not told apart.

    Args:
        path: A folder with ``config.json`` and weights, or a name on the Hugging Face hub.
        pooling: A document vector is the mean over the last layer's token vectors, or the first of them ([CLS]).
        max_tokens: Tokens of a document that are read, from its start; by default as many as the model can.
        dropout: Dropout on document vectors. Within the model, that of its config applies.
        freeze: Keep the weights as they start, rather than train them.
        pretrained: Whether to start from the weights at ``path``; otherwise from random ones.
        vocab_size: Number of words of the data's tokenizer, which must not be more than the model's.

    Attributes:
        out_features: Size of a document vector, the model's ``hidden_size``.
        pretrained: As given.

    Raises:
        InputError: If there is no such model, it is not one that encodes text, or an argument is out of its range.
    """

    def __init__(
        self,
        path: str,
        pooling: Literal["mean", "first"] = "mean",
        max_tokens: int | None = None,
        dropout: float = 0.1,
        freeze: bool = False,
        pretrained: bool = True,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "first"):
            raise InputError(f"pooling must be mean or first, found {pooling!r}")
        check_dropout(dropout=dropout)
        self.model, config = _read(path, pretrained)
        if vocab_size is not None and vocab_size > config.vocab_size:
            raise InputError(
                f"the tokenizer of the data has {vocab_size} words, more than the {config.vocab_size} of {path!r}: "
                "tokenise with the model's own"
            )
        limit = _max_tokens(self.model, config)
        chosen = limit if max_tokens is None else max_tokens
        if chosen is None:
            raise InputError(f"{path!r} does not say how many tokens it can read: set max_tokens")
        if not 1 <= chosen <= (limit or chosen):
            at_most = f" and at most the {limit} of {path!r}" if limit else ""
            raise InputError(f"max_tokens must be at least 1{at_most}, found {chosen}")
        self.pretrained = pretrained
        self.max_tokens = chosen
        self.padding = config.pad_token_id or 0
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.model.requires_grad_(not freeze)
        self.out_features: int = config.hidden_size

    def forward(self, documents: Mapping[str, Tensor]) -> Tensor:
        """Encode documents (as for :class:`lightning_ncmtl.encoders.HAN`) to ``[B, out_features]``."""
        tokens, lengths = pad(*flatten(documents), self.max_tokens, self.padding)
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        hidden: Tensor = self.model(input_ids=tokens, attention_mask=inside.long()).last_hidden_state
        if self.pooling == "first":
            vectors = hidden[:, 0]
        else:
            vectors = hidden.where(inside.unsqueeze(2), 0).sum(1) / lengths.unsqueeze(1)
        out: Tensor = self.dropout(vectors)
        return out


def _read(path: str, pretrained: bool) -> tuple[nn.Module, Any]:
    """The model, in training mode and 32 bits, without parameters that the last layer's vectors do not need."""
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise InputError(
            "the Transformer encoder needs transformers: pip install 'lightning-ncmtl[transformers]'"
        ) from error
    missing: Iterable[str] = ()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        _check(path, config)
        if pretrained:
            model, info = AutoModel.from_pretrained(
                path, config=config, trust_remote_code=False, output_loading_info=True
            )
            missing = info["missing_keys"]
        else:
            model = AutoModel.from_config(config, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # of many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{path!r} is no folder or name on the hub of a model that can be read: {reason}") from error
    if missing := sorted(name for name in missing if not name.startswith("pooler.")):
        raise InputError(f"the weights at {path!r} lack {len(missing)} of the model's parameters, such as {missing[0]}")
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = nn.Identity()  # its weights would get no gradient, on which distributed training fails
    return model.float().train(), config


def _check(path: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{path!r} is an encoder with a decoder ({config.model_type}): choose one without a decoder")
    if not all(isinstance(getattr(config, name, None), int) for name in ("vocab_size", "hidden_size")):
        raise InputError(f"{path!r} is no model of text ({config.model_type}): choose an encoder of text")


def _max_tokens(model: nn.Module, config: Any) -> int | None:
    """How many tokens the model has positions for; RoBERTa and its like count from behind the padding's id."""
    number = getattr(config, "max_position_embeddings", None)
    if not isinstance(number, int) or number < 1:
        return None
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            return number - 1 - int(table.padding_idx)
    return number
