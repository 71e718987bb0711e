"""Networks of which each sees the rows of one task only."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import on_host, remember, to_device


def copy_except(module: nn.Module, shared: Iterable[nn.Module | nn.Parameter]) -> nn.Module:
    """A deep copy that has some parts in common with the original."""
    return copy.deepcopy(module, {id(part): part for part in shared})


def word_tables(encoder: nn.Module) -> list[nn.Embedding]:
    """The table of word vectors of an encoder of text, or the tables of encoders side by side."""
    named = [getattr(module, "embedding", None) for module in encoder.modules()]
    return [table for table in named if isinstance(table, nn.Embedding)]


def select_entries(encoded: Tensor, rows: Tensor | None) -> Tensor:
    """From documents ``[B, F]`` to entries of the batch ``[R, F]``, of the documents ``rows [R]``; all if ``None``."""
    return encoded if rows is None else encoded[rows]


def apply_per_task(networks: nn.ModuleList, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
    """Apply to the document of each entry the network of its task; those of absent tasks are not called.

    Args:
        networks: One per task, each maps inputs of ``M`` documents to ``[M, F]``.
        inputs: As for :func:`select_documents`, B documents.
        task_ids: ``[R]``, the task of each entry, in any order; R at least 1.
        rows: ``[R]``, the place of each entry's document; ``None`` if these are ``0 .. B - 1``.

    Returns:
        ``[R, F]``.

    Raises:
        InputError: If a task id is out of range, or there are not as many rows as task ids.
    """
    if rows is not None and rows.shape != task_ids.shape:
        raise InputError(f"found {list(rows.shape)} rows for {list(task_ids.shape)} task ids")
    places = find_rows(task_ids, len(networks))
    documents = {task: mine if rows is None else _select(rows, mine) for task, mine in places.items()}
    out = torch.cat([networks[task](select_documents(inputs, mine)) for task, mine in documents.items()])
    return out[torch.cat(list(places.values())).argsort()]


def find_rows(task_ids: Tensor, num_tasks: int) -> dict[int, Tensor]:
    """The places of the rows of each task that is present, by task: ``{task: [M]}``."""
    ids = on_host(task_ids)
    present = ids.unique().tolist()
    for task in present:
        if not 0 <= task < num_tasks:
            raise InputError(f"task id {task} is out of range: there are tasks 0 to {num_tasks - 1}")
    found = to_device(task_ids.device, *[(ids == task).nonzero().squeeze(1) for task in present])
    return dict(zip(present, found, strict=True))


def select_documents(inputs: Any, rows: Tensor) -> Any:
    """Some documents of a batch.

    Args:
        inputs: A tensor ``[B, ...]``; text as for :class:`lightning_ncmtl.encoders.HAN`, in which ``tokens`` are
            ``[W]``, one after the other, or ``[S, L]``, padded; or any other mapping of tensors ``[B, ...]``.
        rows: ``[M]``, places in ``0 .. B - 1``; M at least 1.

    Returns:
        The same for M documents, in the order of ``rows``. Sentences are padded no further than the longest needs.
    """
    if not isinstance(inputs, Mapping):
        return inputs[rows]
    if "document_lengths" not in inputs:
        return {name: values[rows] for name, values in inputs.items()}
    tokens, lengths = inputs["tokens"], inputs["sentence_lengths"]
    sentences = _members(inputs["document_lengths"], rows)
    words = _select(lengths, sentences)
    longest = int(on_host(words).max())
    return {
        "tokens": tokens[_members(lengths, sentences)] if tokens.ndim == 1 else tokens[sentences, :longest],
        "sentence_lengths": words,
        "document_lengths": _select(inputs["document_lengths"], rows),
    }


def _select(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]`` of integers, on their device and on the host."""
    return remember(values[rows], on_host(values)[on_host(rows)])  # type: ignore[no-any-return]


def _members(lengths: Tensor, rows: Tensor) -> Tensor:
    """Of runs that lie one after the other, with ``lengths``: the places of all that is in the runs ``rows``."""
    here, rows = on_host(lengths), on_host(rows)
    first, mine = here.cumsum(0) - here, here[rows]
    # The place of a run's first member, repeated, plus 0, 1, ... up to its length
    steps = torch.arange(int(mine.sum())) - (mine.cumsum(0) - mine).repeat_interleave(mine)
    places: Tensor = to_device(lengths.device, first[rows].repeat_interleave(mine) + steps)[0]
    return places
