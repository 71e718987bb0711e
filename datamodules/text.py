"""Text to numbers: a word-level vocabulary, documents as sentences of words, and batches of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

PADDING, UNKNOWN = "[PAD]", "[UNK]"
_SENTENCE_END = re.compile(r"[.!?]+")


class _Evaluated(TypedDict, total=False):
    clean: Tensor


class Batch(_Evaluated):
    """Documents of several tasks, B in all.

    Attributes:
        inputs: What the encoder reads: ``tokens [S, L]``, the word ids of all sentences, 0 where padded;
            ``sentence_lengths [S]``, in words; ``document_lengths [B]``, in sentences.
        task_ids: ``[B]``, the task of each document.
        labels: ``[B]``, the class of each document, -1 where unknown.
        index: ``[B]``, the place of each document in its dataset.
        clean: ``[B]``, whether a document has no copy among those trained on. Batches of validation and test have it
            (of test, only if the source has a training split), others do not.
    """

    inputs: dict[str, Tensor]
    task_ids: Tensor
    labels: Tensor
    index: Tensor


def train_tokenizer(texts: Iterable[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """Learn a word-level vocabulary.

    Text is lower-cased and split at white space; punctuation at the end of a word (and opening brackets and quotes at
    its start) becomes a word of its own, so that plain text and tokenised corpora give the same words.

    Args:
        texts: Training texts.
        vocab_size: Upper bound on the number of words, padding (id 0) and unknown (id 1) included.
        min_frequency: Rarer words become unknown.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r'^["(\[]+|[.,!?;:)\]"]+$'), behavior="isolated"),
        ]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PADDING, UNKNOWN],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, max_words: int, max_sentences: int
) -> dict[str, list[list[int]] | list[int] | list[bool]]:
    """Turn texts into sentences of word ids.

    Args:
        texts: The texts.
        tokenizer: From :func:`train_tokenizer`.
        max_words: Longer sentences are cut into pieces of this many words.
        max_sentences: Documents are truncated to this many sentences (or pieces).

    Returns:
        Columns: ``tokens``, word ids of each document; ``sentence_lengths``, words per sentence; ``length``, words per
        document; ``empty`` and ``truncated``. A document without words becomes one unknown word.
    """
    ends = {index for word, index in tokenizer.get_vocab().items() if _SENTENCE_END.fullmatch(word)}
    unknown = tokenizer.token_to_id(UNKNOWN)
    assert unknown is not None
    columns: dict[str, Any] = {key: [] for key in ("tokens", "sentence_lengths", "length", "empty", "truncated")}
    for encoding in tokenizer.encode_batch_fast(list(texts)):
        ids = encoding.ids or [unknown]
        lengths, start = [], 0
        for position, index in enumerate(ids, start=1):
            if index in ends or position - start == max_words or position == len(ids):
                lengths.append(position - start)
                start = position
        kept = lengths[:max_sentences]
        columns["tokens"].append(ids[: sum(kept)])
        columns["sentence_lengths"].append(kept)
        columns["length"].append(sum(kept))
        columns["empty"].append(not encoding.ids)
        columns["truncated"].append(len(lengths) > max_sentences)
    return columns


def collate(rows: Mapping[str, Sequence[Any]]) -> Batch:
    """Make a padded batch of columns of encoded documents.

    Args:
        rows: ``tokens`` and ``sentence_lengths`` as :func:`encode` gives them, with ``task_id``, ``label`` and
            ``index`` of each document, and ``clean`` where it is known; no document at all makes an empty batch.
    """
    lengths = torch.tensor([length for row in rows["sentence_lengths"] for length in row], dtype=torch.int64)
    tokens = torch.zeros(len(lengths), int(lengths.max()) if len(lengths) else 0, dtype=torch.int64)
    words = torch.tensor([word for row in rows["tokens"] for word in row], dtype=torch.int64)
    tokens[torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)] = words
    batch = Batch(
        inputs={
            "tokens": tokens,
            "sentence_lengths": lengths,
            "document_lengths": torch.tensor([len(row) for row in rows["sentence_lengths"]], dtype=torch.int64),
        },
        task_ids=torch.tensor(rows["task_id"], dtype=torch.int64),
        labels=torch.tensor(rows["label"], dtype=torch.int64),
        index=torch.tensor(rows["index"], dtype=torch.int64),
    )
    if "clean" in rows:
        batch["clean"] = torch.tensor(rows["clean"], dtype=torch.bool)
    return batch
