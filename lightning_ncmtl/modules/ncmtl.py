"""Network Clustering for Multi-task Learning (Mu, Gao & Guo, Neural Process. Lett. 57:4, 2025)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.compatibility import LRSchedulerCallable, OptimizerCallable
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import ClusterLinear, TaskLinear, route
from lightning_ncmtl.modules._per_task import of_rows
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
        num_classes: Number of classes C.
        cluster_features: Width of each cluster layer (the paper, 4.1: 32, 32, 16).
        num_clusters: Number of clusters of each cluster layer (the paper, 4.1: 3, 5, 10).
        dropout: Dropout after each cluster layer.
        task_names: Name of each task, for logs; indices by default.
        task_classes: The classes of each task, out of ``0 .. num_classes - 1``; all by default.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes a scheduler of the optimizer, stepped each epoch.
        update_absent_tasks: Whether momentum and weight decay go on to change the stacked weights of tasks that are
            absent from a step, see :func:`lightning_ncmtl.absent_tasks.keep_absent_tasks`.

    Raises:
        InputError: If a layer has more clusters than there are tasks, or the lists differ in length.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        num_classes: int = 2,
        cluster_features: Sequence[int] = (32, 32, 16),
        num_clusters: Sequence[int] = (3, 5, 10),
        dropout: float = 0.0,
        task_names: list[str] | None = None,
        task_classes: list[list[int]] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        update_absent_tasks: bool = True,
    ) -> None:
        super().__init__(num_tasks, num_classes, task_names, task_classes, optimizer, lr_scheduler)
        self.update_absent_tasks = update_absent_tasks
        if len(cluster_features) != len(num_clusters):
            raise InputError(
                f"cluster_features and num_clusters need one value per layer, found {list(cluster_features)} "
                f"and {list(num_clusters)}"
            )
        self.encoder = encoder
        widths = [int(encoder.out_features), *cluster_features]  # type: ignore[arg-type]
        self.cluster_layers = nn.ModuleList(
            ClusterLinear(num_tasks, inside, outside, clusters)
            for inside, outside, clusters in zip(widths, widths[1:], num_clusters, strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = TaskLinear(num_tasks, widths[-1], num_classes)
        # Heads that started apart would pull the cluster layers of their tasks apart, whatever the tasks learn.
        self.head.reset_parameters(shared=True)

    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        x = of_rows(self.encoder(inputs), rows)
        routing = route(task_ids, self.num_tasks)  # once for all layers
        for layer in self.cluster_layers:
            x = self.dropout(layer(x, routing).relu())
        logits: Tensor = self.head(x, routing)
        return logits
