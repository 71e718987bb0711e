"""What all systems have in common: training, evaluation and checkpoints of a classifier for many tasks."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ncmtl._lightning import LightningCLI, LightningModule, LRSchedulerCallable, OptimizerCallable
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.metrics import TaskMetrics


class MultiTaskModule(LightningModule):
    """A classifier for many tasks. A system defines :meth:`logits`, and :meth:`loss` where it is not cross-entropy.

    A batch is a mapping with ``inputs`` (whatever the encoder takes), ``task_ids [B]`` and ``labels [B]``; where known,
    also ``index [B]``, the numbers of the documents, and ``clean [B]``, whether a document has no copy in the training
    data.

    Args:
        num_tasks: Number of tasks N.
        num_classes: Number of classes C.
        task_names: Name of each task, for logs; indices by default.
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes a scheduler of the optimizer, stepped each epoch.

    Attributes:
        skips_absent_tasks: Whether tasks that are absent from a batch have no gradient.

    Raises:
        InputError: If there is not one name per task.
    """

    skips_absent_tasks = False

    def __init__(
        self,
        num_tasks: int,
        num_classes: int = 2,
        task_names: list[str] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        # Of all constructors down to the system's own.
        self.save_hyperparameters(ignore=["encoder", "optimizer", "lr_scheduler"], logger=False)
        if "_instantiator" in self.hparams:  # made by LightningCLI: all plain values, the encoder included
            self.save_hyperparameters(logger=False)
        names = [str(task) for task in range(num_tasks)] if task_names is None else task_names
        if len(names) != num_tasks:
            raise InputError(f"task_names must name each of the {num_tasks} tasks, found {len(names)} names")
        self.num_tasks = num_tasks
        self.num_classes = num_classes
        self.metrics = TaskMetrics(names)
        self._started = False  # whether there are trained weights, which pretrained vectors must not replace
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler

    def setup(self, stage: str) -> None:
        """Start from the data module's pretrained word vectors, if it has any and nothing was learned yet."""
        vectors = getattr(getattr(self.trainer, "datamodule", None), "vectors", None)
        if stage == "fit" and not self._started and vectors is not None and (matrix := vectors()) is not None:
            encoders = self._encoders_of_words()
            if not encoders:
                raise InputError(f"{type(self).__name__} has no encoder that takes word vectors: unset data.vectors")
            fitting = [encoder for encoder in encoders if _width(encoder) == matrix.shape[1]]
            for encoder in fitting or encoders:  # where none fits, one says what would
                encoder.load_vectors(matrix)
            self._started = True

    def on_train_start(self) -> None:
        """Refuse DDP that waits for the gradients of absent tasks."""
        # Now, as only the wrapped model tells it.
        model = self.trainer.strategy.model
        if self.skips_absent_tasks and getattr(model, "find_unused_parameters", True) is False:
            raise InputError(
                f"{type(self).__name__} leaves the networks of absent tasks out of a step, of which DDP must know: set "
                "--trainer.strategy ddp_find_unused_parameters_true"
            )

    def forward(self, inputs: Any, task_ids: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            inputs: What the encoder takes.
            task_ids: ``[B]``, the task of each row.

        Returns:
            Logits ``[B, num_classes]``.
        """
        if task_ids.shape[0] == 0:  # a rank without documents, see MixedBatchSampler
            return next(self.parameters()).new_zeros(0, self.num_classes)
        return self.logits(inputs, task_ids)

    @abstractmethod
    def logits(self, inputs: Any, task_ids: Tensor) -> Tensor:
        """As :meth:`forward`, of one document or more."""

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """What training minimises, 0-d."""
        return F.cross_entropy(self(batch["inputs"], batch["task_ids"]), batch["labels"])

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor | None]:
        """Whether each document numbered ``index [B]`` was classified correctly, ``correct [B]``."""
        return self._evaluate(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor | None]:
        """Whether each document numbered ``index [B]`` was classified correctly, ``correct [B]``."""
        return self._evaluate(batch)

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

    def _encoders_of_words(self) -> list[Any]:
        """One encoder per embedding table: a table that several of them share is filled once."""
        tables: dict[int, nn.Module] = {}
        for module in self.modules():
            if hasattr(module, "load_vectors"):
                table: Any = getattr(module, "embedding", module)
                tables.setdefault(id(getattr(table, "weight", table)), module)
        return list(tables.values())

    def _evaluate(self, batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
        logits = self(batch["inputs"], batch["task_ids"])
        self.metrics.update(logits, batch["labels"], batch["task_ids"], batch.get("clean"))
        return {"index": batch.get("index"), "correct": logits.argmax(1) == batch["labels"]}

    def _log_metrics(self, stage: str) -> None:
        values = self.metrics.compute()
        self.metrics.reset()
        # All ranks hold the same values; sync_dist only tells Lightning so.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)


def _width(encoder: Any) -> int | None:
    """Of an encoder's word vectors."""
    return getattr(getattr(encoder, "embedding", None), "embedding_dim", None)
