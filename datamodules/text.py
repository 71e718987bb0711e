"""Text to numbers: vocabularies, and documents as sentences of words."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from datasets import Dataset
from huggingface_hub import hf_hub_download
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.copies import Integers
from lightning_ncmtl.datamodules.document_table import read_column
from lightning_ncmtl.errors import InputError

PADDING, UNKNOWN = "[PAD]", "[UNK]"
Keep = Literal["start", "end", "both"]
_PARALLEL = 50_000  # documents from which on several processes encode them
_SENTENCE_END = re.compile(r"[.!?]+")
_BOUNDARIES = "\u0120\u2581"  # what byte-level and SentencePiece vocabularies write for a space
_ENCODED = pa.schema(
    {name: pa.list_(pa.int32()) for name in ("tokens", "sentence_lengths")}
    | {"length": pa.int32()}
    | {name: pa.bool_() for name in ("empty", "truncated", "invalid")}
)


def train_tokenizer(
    texts: Iterable[str] | Iterable[list[str]], kind: str, vocab_size: int, min_frequency: int
) -> Tokenizer:
    """Learn a vocabulary of words, or of parts of words.

    Text is lower-cased and split at white space; punctuation at the end of a word (and opening brackets and quotes at
    its start) becomes a word of its own, so that plain text and tokenised corpora give the same words.

    Args:
        texts: Training texts, one by one or some at a time.
        kind: ``words``, or ``bpe`` for byte-pair encoding (Sennrich, Haddow & Birch, ACL 2016) of bytes, which knows
            no unknown words.
        vocab_size: Upper bound on the number of words, padding (id 0) and unknown (id 1) included.
        min_frequency: Rarer words become unknown; rarer pairs are not joined.
    """
    bpe = kind == "bpe"
    tokenizer = Tokenizer(models.BPE() if bpe else models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    split = [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(r'^["(\[]+|[.,!?;:)\]"]+$'), behavior="isolated"),
    ]
    if bpe:
        tokenizer.decoder = decoders.ByteLevel()
        split.append(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    settings: dict[str, Any] = {"vocab_size": vocab_size, "min_frequency": min_frequency, "show_progress": False}
    settings["special_tokens"] = [PADDING, UNKNOWN]
    trainer: Any
    if bpe:
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
    else:
        trainer = trainers.WordLevelTrainer(**settings)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def learn_tokenizer(
    table: Dataset,
    places: Integers,
    more: Sequence[Dataset],
    cache: Cache,
    kind: str,
    vocab_size: int,
    min_frequency: int,
) -> Tokenizer:
    """Learn a vocabulary, or find the result of having done so before.

    Args:
        table: A table on disk with the column ``text`` ...
        places: ``[n]``, ... and its rows to learn from.
        more: Tables to learn from, too.
        cache: Where the result stays.
        kind: As for :func:`train_tokenizer`.
        vocab_size: The same.
        min_frequency: The same.
    """
    files = [each.cache_files for each in (table, *more)]
    key = key_of(files, hashlib.sha256(places.tobytes()).digest(), kind, vocab_size, min_frequency)

    def make(path: Path) -> None:
        texts = read_column("text", table.select(places), *more)
        train_tokenizer(texts, kind, vocab_size, min_frequency).save(str(path))

    return Tokenizer.from_file(str(cache.get(f"vocabulary-{key}.json", make)))


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer made elsewhere, such as that of a pretrained model.

    Args:
        name: A file ``tokenizer.json``, a folder that holds one, or a name on the Hugging Face hub.

    Raises:
        InputError: If there is none.
    """
    path = Path(name)
    try:
        file = path if path.is_file() else path / "tokenizer.json"
        if not path.exists():
            file = Path(hf_hub_download(name, "tokenizer.json"))
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"data.text.tokenizer must be 'words', 'bpe', a folder with a tokenizer.json or a name on the Hugging Face "
            f"hub, found {name!r}: {message}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Encoder:
    """Turns texts into sentences of word ids.

    Special words that the tokenizer puts around each text (``[CLS]``, ``[SEP]``) are put around what is kept of it.

    Args:
        tokenizer: The vocabulary.
        max_words: As in :class:`lightning_ncmtl.datamodules.TextSettings`, but by default without a limit.
        max_sentences: The same.
        max_tokens: The same; special words count, too.
        keep: As there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_words: int | None = None,
        max_sentences: int | None = None,
        max_tokens: int | None = None,
        keep: Keep = "start",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_words = max_words
        self.max_sentences = max_sentences
        self.keep = keep
        if keep not in get_args(Keep):
            raise InputError(f"keep must be one of {', '.join(get_args(Keep))}, found {keep!r}")
        self.prefix, self.suffix = _special(tokenizer)
        special = len(self.prefix) + len(self.suffix)
        if max_tokens is not None and max_tokens <= special:
            raise InputError(f"max_tokens must be more than the {special} special words, found {max_tokens}")
        self.max_tokens = None if max_tokens is None else max_tokens - special
        vocabulary = tokenizer.get_vocab()
        self.ends = {index for word, index in vocabulary.items() if _SENTENCE_END.fullmatch(word.strip(_BOUNDARIES))}
        self.unknown = vocabulary.get(getattr(tokenizer.model, "unk_token", None) or UNKNOWN, 0)

    def __call__(self, texts: Sequence[str]) -> pa.Table:
        """Encode texts.

        Returns:
            Columns: ``tokens``, word ids of each document; ``sentence_lengths``, words per sentence; ``length``, words
            per document; ``empty``, ``truncated`` and ``invalid`` (with characters that were no UTF-8). A document
            without words becomes one unknown word.
        """
        rows = []
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        for text, ids in zip(texts, (encoding.ids for encoding in encodings), strict=True):
            words = ids or [self.unknown]
            sentences = self._keep(self._cut(self._keep(words, self.max_tokens)), self.max_sentences)
            truncated = sum(map(len, sentences)) < len(words)
            sentences[0] = self.prefix + sentences[0]
            sentences[-1] = sentences[-1] + self.suffix
            tokens = list(chain.from_iterable(sentences))
            rows.append(
                {
                    "tokens": tokens,
                    "sentence_lengths": list(map(len, sentences)),
                    "length": len(tokens),
                    "empty": not ids,
                    "truncated": truncated,
                    "invalid": "\ufffd" in text,
                }
            )
        return pa.Table.from_pylist(rows, _ENCODED)

    def _keep(self, items: list[Any], most: int | None) -> list[Any]:
        """The part of a document that is within the limit."""
        if most is None or len(items) <= most:
            return items
        first = {"start": most, "end": 0, "both": (most + 1) // 2}[self.keep]
        return items[:first] + items[len(items) - most + first :]

    def _cut(self, words: list[int]) -> list[list[int]]:
        """The sentences of a document, or pieces of them."""
        sentences = []
        start = 0
        for stop in sorted({*(place for place, word in enumerate(words, 1) if word in self.ends), len(words)}):
            step = self.max_words or len(words)
            sentences += [words[place : min(place + step, stop)] for place in range(start, stop, step)]
            start = stop
        return sentences


def encode_table(
    table: Dataset, tokenizer: Tokenizer, settings: Mapping[str, Any], cache: Cache, num_proc: int | None = None
) -> Dataset:
    """Encode the texts of a table, or find the result of having done so before.

    Args:
        table: A table on disk with the column ``text``.
        tokenizer: The vocabulary.
        settings: The other arguments of :class:`Encoder`.
        cache: Where the result stays.
        num_proc: Number of processes; by default one, or as many as there are cores for more than 50,000 documents.

    Returns:
        The table with the columns that :class:`Encoder` makes in place of the texts.
    """
    key = key_of(table.cache_files, tokenizer.to_str(), sorted(settings.items()))
    with cache.lock(f"encoded-{key}"):
        encoded = table.with_format("arrow").map(
            _encode_rows,
            batched=True,
            remove_columns=table.column_names,
            fn_kwargs={"encoder": Encoder(tokenizer, **settings)},
            num_proc=num_proc or (os.cpu_count() if len(table) > _PARALLEL else None),
            cache_file_name=str(cache.folder / f"encoded-{key}.arrow"),
            new_fingerprint=key,
            desc="Encoding",
        )
    return encoded.with_format(None)


def _encode_rows(rows: pa.Table, encoder: Encoder) -> pa.Table:
    encoded = encoder(rows["text"].to_pylist())
    for name in rows.column_names:
        if name != "text":
            encoded = encoded.append_column(name, rows[name])
    return encoded


def _special(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and behind each text."""
    inside = tokenizer.encode("a", add_special_tokens=False).ids
    around = tokenizer.encode("a").ids
    start = next((i for i in range(len(around)) if around[i : i + len(inside)] == inside), 0)
    return around[:start], around[start + len(inside) :]
