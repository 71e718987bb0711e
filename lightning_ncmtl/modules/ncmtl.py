"""Network Clustering for Multi-task Learning (Mu, Gao & Guo, Neural Process. Lett. 57:4, 2025)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl._lightning import LightningCLI, LightningModule, LRSchedulerCallable, OptimizerCallable
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import ClusterLinear, TaskLinear
from lightning_ncmtl.metrics import TaskMetrics


class NCMTL(LightningModule):
    """A classifier for many tasks that goes from general to specific: encoder, cluster layers, one head per task.

    The encoder is shared by all tasks (*hard*). Each cluster layer has weights per task, which
    :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` groups during training; the head is never shared
    (*specific*). With ``num_clusters=1`` in a layer it is one hard layer, with ``num_clusters=num_tasks`` specific.

    A batch is a mapping with ``inputs`` (whatever the encoder takes), ``task_ids [B]`` and ``labels [B]``.

    Args:
        encoder: The hard layers: maps ``inputs`` to ``[B, encoder.out_features]``.
        num_tasks: Number of tasks N.
        num_classes: Number of classes C.
        cluster_features: Width of each cluster layer (the paper, 4.1: 32, 32, 16).
        num_clusters: Number of clusters of each cluster layer (the paper, 4.1: 3, 5, 10).
        dropout: Dropout after each cluster layer.
        task_names: Name of each task, for logs; indices by default.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes a scheduler of the optimizer, stepped each epoch.

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
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["encoder", "optimizer", "lr_scheduler"], logger=False)
        if "_instantiator" in self.hparams:  # made by LightningCLI: all plain values, the encoder included
            self.save_hyperparameters(logger=False)
        if len(cluster_features) != len(num_clusters):
            raise InputError(
                f"cluster_features and num_clusters need one value per layer, found {list(cluster_features)} "
                f"and {list(num_clusters)}"
            )
        names = [str(task) for task in range(num_tasks)] if task_names is None else task_names
        if len(names) != num_tasks:
            raise InputError(f"task_names must name each of the {num_tasks} tasks, found {len(names)} names")
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
        self.metrics = TaskMetrics(names)
        self._started = False  # whether there are trained weights, which pretrained vectors must not replace
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def setup(self, stage: str) -> None:
        """Start from the data module's pretrained word vectors, if it has any and nothing was learned yet."""
        vectors = getattr(getattr(self.trainer, "datamodule", None), "vectors", None)
        if stage == "fit" and not self._started and vectors is not None and (matrix := vectors()) is not None:
            self.encoder.load_vectors(matrix)  # type: ignore[operator]
            self._started = True

    def forward(self, inputs: Any, task_ids: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            inputs: What the encoder takes.
            task_ids: ``[B]``, the task of each row.

        Returns:
            Logits ``[B, num_classes]``.
        """
        if task_ids.shape[0] == 0:  # a rank without documents, see MixedBatchSampler
            return self.head.weight.new_zeros(0, self.head.out_features)
        x = self.encoder(inputs)
        for layer in self.cluster_layers:
            x = self.dropout(layer(x, task_ids).relu())
        logits: Tensor = self.head(x, task_ids)
        return logits

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        logits = self(batch["inputs"], batch["task_ids"])
        loss = F.cross_entropy(logits, batch["labels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(logits))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Class probabilities ``[B, num_classes]`` of the documents numbered ``index [B]``."""
        return {"index": batch["index"], "probabilities": self(batch["inputs"], batch["task_ids"]).softmax(1)}

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model in one line, before anything is overwritten."""
        self._started = True
        theirs = {name: list(value.shape) for name, value in checkpoint["state_dict"].items()}
        ours = {name: list(value.shape) for name, value in self.state_dict().items()}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"the checkpoint is of another model: it has {name} of shape {theirs.get(name)}, "
                    f"this model {ours.get(name)}"
                )

    def _evaluate(self, batch: Mapping[str, Any]) -> None:
        self.metrics.update(self(batch["inputs"], batch["task_ids"]), batch["labels"], batch["task_ids"])

    def _log_metrics(self, stage: str) -> None:
        values = self.metrics.compute()
        self.metrics.reset()
        # All ranks hold the same values; sync_dist only tells Lightning so.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
