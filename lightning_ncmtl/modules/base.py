"""What all systems have in common: training, evaluation and checkpoints of a model for many tasks."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.compatibility import (
    LightningCLI,
    LightningModule,
    LRSchedulerCallable,
    OptimizerCallable,
    made_by_cli,
)
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import PerTask, on_host, to_device
from lightning_ncmtl.losses import entry_losses, is_known, mean_loss
from lightning_ncmtl.metrics import TaskMetrics
from lightning_ncmtl.modules._aggregation import Aggregation
from lightning_ncmtl.modules._output_mask import output_mask


class MultiTaskModule(LightningModule):
    """A model for many tasks. A system defines :meth:`logits`, and :meth:`loss` where it is not the mean over entries.

    A task has classes, of which it predicts one, or it predicts a number (``regression_tasks``).

    A batch is a mapping with

    - ``inputs``: B documents, as the encoder takes them;
    - ``rows [R]``: for each of R entries the place of its document, in ``0 .. B - 1``. An entry is a document in a
      task: a document may have several, or none. Without ``rows`` each document has one, ``R = B``, in order;
    - ``task_ids [R]``: the task of each entry;
    - ``labels [R]``: the class, -1 if unknown. Such entries count neither in the loss nor in the metrics;
    - ``values [R]``, where tasks predict numbers: the number, NaN if unknown;
    - ``weights [R]``, perhaps: what the entry counts in the training loss;
    - ``index [R]``, where known: the number of the document (what ``predict`` and outcomes are told by);
    - ``clean [R]``, where known: whether the document has no copy in the training data.

    So in massive multi-task learning with many labels per document, a batch has an entry for each label that is known;
    shared networks read each document once. Where all entries are laid out, those that are unknown have the label -1.

    Args:
        num_tasks: Number of tasks N.
        num_classes: Number of classes C; 0 where all tasks predict numbers.
        task_names: Name of each task, for logs; indices by default.
        task_classes: The classes of each task, out of ``0 .. num_classes - 1``; all by default. The others have logits
            of minus infinity: they are never predicted, and the loss is that of a smaller softmax.
        regression_tasks: The tasks that predict numbers, which have no classes. In training, numbers are standardised
            by the data module's ``value_scale()``; all that goes in or comes out is in the user's units.
        metrics: What to evaluate beside loss and accuracy or error: names of metrics of ``torchmetrics.classification``
            or ``torchmetrics.regression``, such as ``AUROC`` (see :class:`lightning_ncmtl.metrics.TaskMetrics`).
        optimizer: Makes the optimizer of the parameters.
        lr_scheduler: Makes a scheduler of the optimizer, stepped each epoch.
        aggregator: What makes one step of many tasks, of TorchJD (``pip install 'lightning-ncmtl[torchjd]'``). It is an
            ``Aggregator`` of the tasks' gradients of :meth:`shared_parameters`, where all others keep the gradient of
            the mean over tasks, or a ``Scalarizer`` of the tasks' losses; or ``{"class_path":
            "torchjd.aggregation.PCGrad"}``. The loss of a task is the mean over its entries in the batch, and only
            tasks that have some take part. By default the loss is the mean over all entries, so that a task counts by
            how many it has. See ``docs/aggregation.md``.

    Attributes:
        skips_absent_tasks: Whether tasks that are absent from a batch have no gradient.
        num_outputs: Columns of :meth:`forward`: C, and one more where tasks predict numbers, which is the last.
        output_mask: ``[N, num_outputs]``, 1 where a task has an output, else 0; ``None`` if all tasks have all.
        value_mean: ``[N]``, the mean of the numbers of each task, where tasks predict numbers.
        value_scale: ``[N]``, their standard deviation, the same way.

    Raises:
        InputError: If there is no task, not one name for each or not one list of classes, or no such metric or task.
    """

    skips_absent_tasks = False
    output_mask: Tensor | None
    value_mean: Tensor
    value_scale: Tensor

    def __init__(
        self,
        num_tasks: int,
        num_classes: int = 2,
        task_names: list[str] | None = None,
        task_classes: list[list[int]] | None = None,
        regression_tasks: list[int] | None = None,
        metrics: list[str] | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        aggregator: dict[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Of all constructors down to the system's own.
        self.save_hyperparameters(ignore=["encoder", "optimizer", "lr_scheduler", "aggregator"], logger=False)
        if made_by_cli(self.hparams):  # the encoder, too, is a plain value
            self.save_hyperparameters(logger=False)
            # The command line gives an encoder both sizes, of which it has only one
            arguments = self.hparams.get("encoder", {}).get("init_args", {})
            arguments.pop("vocab_size" if arguments.get("in_features") else "in_features", None)
        if num_tasks < 1:
            raise InputError(f"num_tasks must be at least 1, found {num_tasks}")
        names = [str(task) for task in range(num_tasks)] if task_names is None else task_names
        if len(names) != num_tasks:
            raise InputError(f"task_names must name each of the {num_tasks} tasks, found {len(names)} names")
        if twice := [name for name, number in Counter(names).items() if number > 1]:
            raise InputError(f"task_names must differ, found {twice[0]!r} twice")
        self.num_tasks = num_tasks
        self.num_classes = num_classes
        self.regression_tasks = list(regression_tasks or ())
        self.num_outputs = num_classes + bool(self.regression_tasks)
        mask = output_mask(num_tasks, num_classes, task_classes, self.regression_tasks)
        # Not in checkpoints, as it follows from the settings. Not bool, of which averages of a module cannot be taken.
        self.register_buffer("output_mask", mask, persistent=False)
        if self.regression_tasks:
            self.register_buffer("value_mean", torch.zeros(num_tasks))
            self.register_buffer("value_scale", torch.ones(num_tasks))
        self.metrics = TaskMetrics(names, metrics or (), self.regression_tasks)
        self._started = False  # whether there are trained weights, which what data says must not replace
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self._aggregation = None if aggregator is None else Aggregation(aggregator, num_tasks)

    def setup(self, stage: str) -> None:
        """Start from the data module's word vectors and scale of numbers, if it has any and nothing was learned yet."""
        data = getattr(self.trainer, "datamodule", None)
        if getattr(data, "features", None) is not None and (encoders := self._encoders_of_words()):
            raise InputError(
                f"{type(encoders[0]).__name__} reads texts, and the data has features: set model.encoder to "
                "lightning_ncmtl.encoders.Identity or MLP"
            )
        if self.regression_tasks and self.trainer.precision in ("16-true", "bf16-true"):
            raise InputError(
                f"tasks predict numbers, which the precision {self.trainer.precision} rounds, in the data, too: set "
                f"--trainer.precision {self.trainer.precision.replace('true', 'mixed')}"
            )
        if stage == "fit":
            self._check_monitors()
            if self._aggregation is not None:
                self._aggregation.start(self, self.shared_parameters(), type(self).loss is not MultiTaskModule.loss)
        scale = getattr(data, "value_scale", None)
        if stage == "fit" and not self._started and scale is not None and self.regression_tasks:
            for buffer, values in zip((self.value_mean, self.value_scale), scale(), strict=True):
                buffer.copy_(values)
        vectors = getattr(data, "vectors", None)
        if stage == "fit" and not self._started and vectors is not None and (matrix := vectors()) is not None:
            encoders = self._encoders_of_words()
            if not encoders:
                raise InputError(
                    f"{type(self).__name__} has no encoder that takes word vectors: unset data.text.vectors"
                )
            widths = [getattr(getattr(encoder, "embedding", None), "embedding_dim", None) for encoder in encoders]
            fitting = [encoder for encoder, width in zip(encoders, widths, strict=True) if width == matrix.shape[1]]
            for encoder in fitting or encoders:  # where none fits, one says what would
                encoder.load_vectors(matrix)
        self._started = self._started or stage == "fit"

    def load_state_dict(self, *args: Any, **settings: Any) -> Any:
        """As of any module. What data says no longer replaces word vectors and the scale of numbers."""
        self._started = True
        return super().load_state_dict(*args, **settings)

    def on_train_start(self) -> None:
        """Refuse DDP that waits for the gradients of absent tasks."""
        # Now, as only the wrapped model tells it.
        model = self.trainer.strategy.model
        if self.skips_absent_tasks and getattr(model, "find_unused_parameters", True) is False:
            raise InputError(
                f"{type(self).__name__} leaves the networks of absent tasks out of a step, of which DDP must know: set "
                "--trainer.strategy ddp_find_unused_parameters_true"
            )
        if self._aggregation is not None:
            self._aggregation.leave_gradients_alone(model)

    def forward(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """What is predicted for the entries of a batch.

        Args:
            inputs: B documents, as the encoder takes them.
            task_ids: ``[R]``, the task of each entry.
            rows: ``[R]``, the place of each entry's document in ``0 .. B - 1``; ``None`` if these are all, in order.

        Returns:
            Logits ``[R, num_outputs]``, minus infinity for classes that a task does not have. Where tasks predict
            numbers, these are in the last column, which is minus infinity for the other tasks.
        """
        if task_ids.shape[0] == 0:  # of a rank without documents, see MixedBatchSampler, or documents without entries
            # All parameters are behind it, with gradients of zero: ranks step together.
            return torch.cat([p.flatten()[:0] for p in self.parameters()]).unsqueeze(1).expand(0, self.num_outputs)
        return self.masked(self.logits(inputs, task_ids, rows), task_ids)

    @abstractmethod
    def logits(self, inputs: Any, task_ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As :meth:`forward`, of one entry or more, and with all columns; numbers are standardised."""

    def masked(self, logits: Tensor, task_ids: Tensor) -> Tensor:
        """Of :meth:`logits` of the tasks ``task_ids [R]``, what :meth:`forward` gives."""
        if self.regression_tasks:
            kind = torch.promote_types(logits.dtype, torch.float32)  # 16 bits are few for numbers far from zero
            numbers = logits[:, -1].to(kind) * self.value_scale[task_ids] + self.value_mean[task_ids]
            logits = torch.cat([logits[:, :-1], numbers.unsqueeze(1)], 1)
        if self.output_mask is None:
            return logits
        return logits.masked_fill(self.output_mask[task_ids] == 0, -torch.inf)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """What training minimises, 0-d: the mean loss of entries with a label, or what an aggregator says.

        Of several devices each has the mean over its own entries, and DDP the mean over devices of their gradients.
        """
        losses, known = self.losses(self(batch["inputs"], batch["task_ids"], batch.get("rows")), batch)
        if self._aggregation is None:
            return mean_loss(losses, known)
        return self._aggregation.loss(losses, known, batch["task_ids"], self.current_epoch)

    def losses(self, outputs: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss ``[R]`` of each entry times its weight, 0 where the label is unknown; and where it is known ``[R]``.

        It is the cross-entropy of a class, and the squared error of a standardised number.

        Args:
            outputs: ``[R, num_outputs]``, as :meth:`forward` gives them.
            batch: The batch.
        """
        values = batch.get("values")
        scale = None if values is None else self.value_scale[batch["task_ids"]]
        losses, known = entry_losses(outputs, batch["labels"], values, scale)
        return losses * batch["weights"] if "weights" in batch else losses, known

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._aggregation is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._aggregation.backward(loss, self.shared_parameters(), self.parameters())

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that tasks have in common: all but those of :class:`lightning_ncmtl.layers.PerTask`."""
        own = {id(p) for module in self.modules() if isinstance(module, PerTask) for p in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor | None]:
        """As :meth:`evaluate`, of a batch."""
        return self.evaluate(self(batch["inputs"], batch["task_ids"], batch.get("rows")), batch)

    def evaluate(self, outputs: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
        """Add what was predicted to the metrics.

        Args:
            outputs: ``[R, num_outputs]``, as :meth:`forward` gives them.
            batch: The batch; inputs are not needed.

        Returns:
            Of entries with a label their ``index`` (``None`` where the batch has none), ``task_ids``, ``clean`` where
            the batch has it, and whether the right class was found, ``correct``, which is never so of numbers.
        """
        labels, task_ids, values = batch["labels"], batch["task_ids"], batch.get("values")
        units = None if values is None else (self.value_mean, self.value_scale)
        self.metrics.update(outputs, labels, task_ids, batch.get("clean"), values, units)
        given = {"index": batch.get("index")} | ({"clean": batch["clean"]} if "clean" in batch else {})
        outcome = given | {"task_ids": task_ids, "correct": outputs.argmax(1) == labels}
        known = is_known(on_host(labels), None if values is None else on_host(values))
        if known.all():
            return outcome
        (places,) = to_device(labels.device, known.nonzero().squeeze(1))
        return {name: None if each is None else each[places] for name, each in outcome.items()}

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor | None]:
        """As :meth:`validation_step`."""
        return self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Class probabilities ``[R, num_classes]`` of the documents numbered ``index [R]``.

        Where tasks predict numbers, these as ``values [R]``; of each entry one of the two is NaN.
        """
        outputs = self(batch["inputs"], batch["task_ids"], batch.get("rows"))
        found = {"index": batch["index"], "probabilities": outputs.softmax(1)}
        if self.regression_tasks:
            numbers = outputs[:, -1] != -torch.inf
            found["probabilities"] = found["probabilities"][:, :-1].masked_fill(numbers.unsqueeze(1), torch.nan)
            found["values"] = outputs[:, -1].masked_fill(~numbers, torch.nan)
        return found

    def configure_optimizers(self) -> Any:
        learned = () if self._aggregation is None else self._aggregation.parameters()
        try:
            optimizer = self.optimizer([*self.parameters(), *learned])
            scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        except ValueError as error:
            raise InputError(f"a setting of model.optimizer or model.lr_scheduler was refused: {error}") from error
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an aggregator learned and remembers."""
        if self._aggregation is not None:
            checkpoint["aggregator"] = self._aggregation.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model in one line, before anything is overwritten."""
        self._started = True
        theirs, ours = (
            {name: list(getattr(value, "shape", ())) for name, value in state.items()}  # modules may keep other things
            for state in (checkpoint["state_dict"], self.state_dict())
        )
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"the checkpoint is of another model: it has {name} of shape {theirs.get(name)}, "
                    f"this model {ours.get(name)}"
                )
        if self._aggregation is not None:
            self._aggregation.load_state_dict(checkpoint.get("aggregator", {}))

    def _check_monitors(self) -> None:
        """Refuse callbacks that would take the worst for the best, or that wait for what there is not."""
        known = self.metrics.directions
        for callback in getattr(self.trainer, "callbacks", ()):
            monitor, mode = getattr(callback, "monitor", None) or "", getattr(callback, "mode", None)
            name = monitor.removeprefix("val/").split("/")[0] if monitor.startswith("val/") else ""
            who = f"{type(callback).__name__} monitors {monitor!r}"
            if name in known and mode in ("min", "max") and known[name] != (mode == "max"):
                better = "max" if known[name] else "min"
                raise InputError(f"{who} with the mode {mode!r}, which keeps the worst: set its mode to {better}")
            if name in ("accuracy", "accuracy_clean", "rmse") and name not in known:
                kind = "predicts numbers" if name == "rmse" else "has classes"
                raise InputError(f"{who}, and no task {kind}: set its monitor, such as checkpoint.monitor, to another")

    def _encoders_of_words(self) -> list[Any]:
        """One encoder per embedding table: a table that several of them share is filled once."""
        tables: dict[int, nn.Module] = {}
        for module in self.modules():
            if hasattr(module, "load_vectors"):
                table: Any = getattr(module, "embedding", module)
                tables.setdefault(id(getattr(table, "weight", table)), module)
        return list(tables.values())

    def _log_metrics(self, stage: str) -> None:
        values = self.metrics.compute()
        self.metrics.reset()
        # All ranks hold the same values; sync_dist only tells Lightning so.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
