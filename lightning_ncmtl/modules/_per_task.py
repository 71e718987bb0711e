"""Networks of which each sees the rows of one task alone."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError


def copy_except(module: nn.Module, shared: Iterable[nn.Module | nn.Parameter]) -> nn.Module:
    """A deep copy that has some parts in common with the original."""
    return copy.deepcopy(module, {id(part): part for part in shared})


def word_tables(encoder: nn.Module) -> list[nn.Embedding]:
    """The table of word vectors of an encoder of text, or the tables of encoders side by side."""
    named = [getattr(module, "embedding", None) for module in encoder.modules()]
    return [table for table in named if isinstance(table, nn.Embedding)]


def apply_per_task(networks: nn.ModuleList, inputs: Any, task_ids: Tensor) -> Tensor:
    """Apply to each row the network of its task; those of absent tasks are not called.

    Args:
        networks: One per task, each maps inputs of ``M`` rows to ``[M, F]``.
        inputs: As for :func:`select`, B rows in any order of tasks.
        task_ids: ``[B]``, the task of each row; B at least 1.

    Returns:
        ``[B, F]``.

    Raises:
        InputError: If a task id is out of range.
    """
    rows = rows_of_tasks(task_ids, len(networks))
    out = torch.cat([networks[task](select(inputs, mine)) for task, mine in rows.items()])
    return out[torch.cat(list(rows.values())).argsort()]


def rows_of_tasks(task_ids: Tensor, num_tasks: int) -> dict[int, Tensor]:
    """The places of the rows of each task that is present, by task: ``{task: [M]}``."""
    present = task_ids.unique().tolist()
    for task in present:
        if not 0 <= task < num_tasks:
            raise InputError(f"task id {task} is out of range: there are tasks 0 to {num_tasks - 1}")
    return {task: (task_ids == task).nonzero().squeeze(1) for task in present}


def select(inputs: Any, rows: Tensor) -> Any:
    """Some rows of a batch.

    Args:
        inputs: A tensor ``[B, ...]``; documents as for :class:`lightning_ncmtl.encoders.HAN`; or any other mapping of
            tensors ``[B, ...]``.
        rows: ``[M]``, places in ``0 .. B - 1``.

    Returns:
        The same for M rows, in the order of ``rows``. Sentences are padded no further than the longest needs.
    """
    if not isinstance(inputs, Mapping):
        return inputs[rows]
    if "document_lengths" not in inputs:
        return {name: values[rows] for name, values in inputs.items()}
    lengths = inputs["document_lengths"]
    first = lengths.cumsum(0) - lengths
    mine = lengths[rows]
    # A document's first sentence, repeated, plus 0, 1, ... up to its length
    steps = torch.arange(int(mine.sum()), device=mine.device) - (mine.cumsum(0) - mine).repeat_interleave(mine)
    sentences = first[rows].repeat_interleave(mine) + steps
    words = inputs["sentence_lengths"][sentences]
    return {
        "tokens": inputs["tokens"][sentences, : int(words.max())],
        "sentence_lengths": words,
        "document_lengths": mine,
    }
