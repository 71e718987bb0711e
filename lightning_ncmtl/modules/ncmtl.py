"""Network Clustering for Multi-task Learning (Mu, Gao & Guo, Neural Process. Lett. 57:4, 2025)."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import ClusterLinear
from lightning_ncmtl.modules._layers import apply_layers, check_widths, make_dropout, make_specific
from lightning_ncmtl.modules._per_task import select_entries
from lightning_ncmtl.modules.base import MultiTaskModule


class NCMTL(MultiTaskModule):
    """A classifier for many tasks that goes from general to specific: encoder, cluster layers, one head per task.

    The encoder is shared by all tasks (*hard*). Each cluster layer has weights per task, which
    :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` groups during training; the head is never shared
    (*specific*). With ``num_clusters=1`` in a layer it is one hard layer, with ``num_clusters=num_tasks`` specific.

    Batches are those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Args:
        encoder: The hard layers: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        cluster_features: Width of each cluster layer (the paper, 4.1: 32, 32, 16).
        num_clusters: Number of clusters of each cluster layer (the paper, 4.1: 3, 5, 10), or ``"auto"``: what the
            evidence for clusters says.
        dropout: Dropout after each cluster layer.
        settings: Those of :class:`lightning_ncmtl.modules.MultiTaskModule`.

    Raises:
        InputError: If a layer has more clusters than there are tasks, or no units, or the lists differ in length.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        *,
        cluster_features: Sequence[int] = (32, 32, 16),
        num_clusters: Sequence[int | Literal["auto"]] | Literal["auto"] = "auto",
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(num_tasks, **settings)
        check_widths("cluster_features", cluster_features)
        numbers: Sequence[int | Literal["auto"]] = (
            ["auto"] * len(cluster_features) if num_clusters == "auto" else num_clusters
        )
        if len(cluster_features) != len(numbers):
            raise InputError(
                f"cluster_features and num_clusters need one value per layer, found {list(cluster_features)} "
                f"and {list(numbers)}"
            )
        self.encoder = encoder
        widths = [int(encoder.out_features), *cluster_features]  # type: ignore[arg-type]
        self.cluster_layers = nn.ModuleList(
            ClusterLinear(num_tasks, inside, outside, clusters)
            for inside, outside, clusters in zip(widths, widths[1:], numbers, strict=False)
        )
        self.dropout = make_dropout(dropout)
        self.head = make_specific(num_tasks, widths[-1], self.num_outputs)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        x = select_entries(self.encoder(inputs), rows)
        return apply_layers([*self.cluster_layers, self.head], self.dropout, x, task_ids, self.num_tasks)
