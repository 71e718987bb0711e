"""Tiny random models with a tokenizer, saved as Hugging Face saves them."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def save_model(folder: Path, model: str = "Bert", **settings: Any) -> str:
    """A model that reads 20 tokens of a vocabulary of 50."""
    import transformers

    room = 22 if model == "Roberta" else 20  # positions 0 and 1 are those of padding
    config = getattr(transformers, f"{model}Config")(**{**SIZES, "max_position_embeddings": room, **settings})
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """Words w5 to w49, and special ones around each text."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, ".": 4} | {f"w{n}": n for n in range(5, 50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(4)  # as files of pretrained models have it
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
