"""Network clustering in the ``Trainer`` of Hugging Face transformers."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from lightning_ncmtl.clustering.halves import HalvesSampler
from lightning_ncmtl.clustering.layout import NumClusters
from lightning_ncmtl.clustering.network_clustering import NetworkClustering
from lightning_ncmtl.clustering.settings import is_number
from lightning_ncmtl.clustering.target_spec import TargetLike, read_target
from lightning_ncmtl.errors import InputError

try:
    from accelerate.state import AcceleratorState
    from accelerate.utils import send_to_device
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise InputError(
        f"lightning_ncmtl.hugging_face needs {error.name}, which is not installed: "
        "pip install 'lightning-ncmtl[transformers]'"
    ) from error

_logger = logging.getLogger("lightning_ncmtl")
_REFUSED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")


class NetworkClusteringTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """Runs :class:`lightning_ncmtl.clustering.NetworkClustering` in a Hugging Face ``Trainer``.

    Its state lies in that of the optimizer, ``optimizer.pt`` of each checkpoint: there it is found from wherever a
    training goes on. In the place of the ``Trainer``'s random sampler it puts a
    :class:`lightning_ncmtl.clustering.HalvesSampler`, without which an example would come in both halves of the data.

    Args:
        num_clusters: As of ``NetworkClustering``, like the others.
        targets: The per-task parts of the model.
        warmup_steps: By default a shared warm-up lasts half of the training at most, one apart 200 steps.
        freeze_after_epochs: After a warm-up apart, keep the clusters as they are after so many epochs; ``None`` never.
        settings: The other settings of ``NetworkClustering``.

    Raises:
        InputError: At construction or before training starts, if a setting is out of range, a target cannot be
            clustered, the model is sharded, or a checkpoint has no state of clusters.

    ``trainer.state.log_history`` has ``clustering/TARGET/loss`` and ``clustering/TARGET/changed``.
    """

    def __init__(
        self,
        num_clusters: NumClusters = None,
        targets: TargetLike | list[TargetLike] | None = None,
        warmup_steps: int | None = None,
        freeze_after_epochs: float | None = None,
        **settings: Any,
    ) -> None:
        self.clusters = NetworkClustering(None, num_clusters, targets, warmup_steps=warmup_steps, **settings)
        if freeze_after_epochs is not None and not is_number(freeze_after_epochs):
            raise InputError(f"freeze_after_epochs must be a number from 0, found {freeze_after_epochs!r}")
        self._lasts_half = warmup_steps is None and self.clusters.warmup == "shared"
        self.freeze_after_epochs = freeze_after_epochs
        names = [read_target(target).name for target in self.clusters.targets or ()]
        self._key = f"network_clustering({', '.join(names)})"  # a training may have two callbacks
        self._halves: HalvesSampler | None = None
        self._steps_per_epoch = 1
        self._place = 0  # of the next step in its epoch

    @property
    def assignments(self) -> dict[str, Tensor]:
        """The clusters found, ``{target: [N] int64}``; empty before the first clustering."""
        return self.clusters.assignments

    @property
    def targets(self) -> list[TargetLike] | None:
        """What it was told of the targets."""
        return self.clusters.targets

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        """Find the targets; when a training goes on, the weights and the optimizer are those of the checkpoint."""
        if (kind := AcceleratorState().distributed_type.name) in _REFUSED:
            raise InputError(
                f"NetworkClusteringTrainerCallback does not support {kind}, in whose shards tasks cannot be told "
                "apart: use one device, or DDP"
            )
        saved = self._take(optimizer.param_groups)
        self.clusters.reset()
        if saved is not None:
            self.clusters.load_state_dict(saved)
        elif state.global_step:
            raise InputError(
                "the checkpoint has no state of these clusters, as it was saved without this callback, with other "
                "targets or with save_only_model=True: load its weights into the model, and train without "
                "resume_from_checkpoint"
            )
        self.clusters.attach(model, fresh=saved is None)
        if self._lasts_half:
            self.clusters.warmup_steps = max(state.max_steps / 2, 2)  # a step of each half
        if self.clusters.warmup == "shared":
            self._halves = self._halve(args, state, train_dataloader)
            self._steps_per_epoch = -(-len(train_dataloader) // args.gradient_accumulation_steps) if self._halves else 1
        self._place = 0 if args.ignore_data_skip else state.global_step % self._steps_per_epoch
        optimizer = getattr(optimizer, "optimizer", optimizer)  # what accelerate wraps
        self._hook = optimizer.register_state_dict_post_hook(self._put)

    def _halve(self, args: TrainingArguments, state: TrainerState, loader: Any) -> HalvesSampler | None:
        sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
        if isinstance(sampler, RandomSampler) and not sampler.replacement:
            seed = args.seed if args.data_seed is None else args.data_seed
            size = loader.total_batch_size * args.gradient_accumulation_steps
            sampler = HalvesSampler(len(loader.dataset), size, seed)
            loader.set_sampler(sampler)
            if state.is_world_process_zero:
                _logger.info("steps take turns between two halves of the training examples, which never mix")
        elif not isinstance(sampler, HalvesSampler):
            if state.num_train_epochs > 1 and not self.assignments and state.is_world_process_zero:
                warnings.warn(
                    f"examples come in the order of {type(sampler).__name__} rather than in two halves that never mix, "
                    "so that the evidence for clusters is too good: let the Trainer shuffle (train_sampling_strategy "
                    "'random'), give it a HalvesSampler, or choose warmup='apart'",
                    stacklevel=2,
                )
            return None
        return sampler

    def _put(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state["param_groups"][0][self._key] = self.clusters.state_dict()

    def _take(self, groups: list[dict[str, Any]]) -> Any:
        """The state that :meth:`_put` put there, from where it goes; ``None`` if there is none."""
        return send_to_device(groups[0].pop(self._key, None), "cpu")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._halves is not None:
            self._halves.epoch = state.global_step // self._steps_per_epoch

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._place = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clusters.start_step(None if self._halves is None else self._halves.half_of(self._place))
        self._place += 1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clusters.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.freeze_after_epochs is not None and state.epoch >= self.freeze_after_epochs:
            self.clusters.freeze()
        self.clusters.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        for name, (step, loss) in self.clusters.losses.items() if "loss" in logs else ():
            if step == self.clusters.steps:
                figures = {"loss": float(loss), "changed": float(self.clusters.changes[name])}
                for each in (logs, state.log_history[-1]):
                    each.update({f"clustering/{name}/{kind}": value for kind, value in figures.items()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where the best model was loaded, its clusters are those of its checkpoint."""
        self._hook.remove()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            file, saved = Path(state.best_model_checkpoint) / "optimizer.pt", None
            if file.is_file():
                saved = self._take(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["param_groups"])
            if saved is not None:
                self.clusters.load_state_dict(saved)
            elif state.is_world_process_zero:
                warnings.warn(
                    f"the best model is of step {state.best_global_step}, but its clusters are not known, as they are "
                    f"not in {file}: those of the end may be others",
                    stacklevel=2,
                )
        self.clusters.release()
