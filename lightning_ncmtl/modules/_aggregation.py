"""How the losses or the gradients of tasks become one step, by what TorchJD has for it.

Shapes: N tasks, P tasks that have labels in a batch, R entries of a batch, n numbers of shared parameters.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from lightning_ncmtl.compatibility import DDPStrategy, LightningModule, SingleDeviceStrategy, rank_zero_warn
from lightning_ncmtl.errors import InputError

_OF_MODULES = vars(nn.Module()).keys()


class Aggregation:
    """What a :class:`lightning_ncmtl.modules.MultiTaskModule` does with its ``aggregator``.

    No part of the module's weights, as only training needs it: exported models, evaluation and whatever else loads
    weights know nothing of it, and need no TorchJD.

    Args:
        aggregator: An ``Aggregator`` or a ``Scalarizer``, or what makes it, ``{"class_path", "init_args"}``.
        num_tasks: Number of tasks N.

    Raises:
        InputError: If it is something else, or cannot be made. That a package is missing is said by :meth:`start`.
    """

    def __init__(self, aggregator: nn.Module | Mapping[str, Any], num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self._missing = ""
        self._pending: tuple[Tensor, Tensor] | None = None  # the losses of tasks, and their mean
        self._epoch = 0
        self._ranks = 1
        self._device: torch.device | None = None  # that of training, once it starts
        try:
            from torchjd import Stateful
            from torchjd.aggregation import Aggregator
            from torchjd.scalarization import DWA, FAMO, Scalarizer

            self.module: Any = _make(aggregator)
        except ImportError as error:
            install = ": pip install 'lightning-ncmtl[torchjd]'" if error.name == "torchjd" else ""
            self._missing = f"the aggregator cannot be made: {error}{install}"
            return
        except Exception as error:
            raise InputError(f"the aggregator {aggregator} cannot be made: {error}") from error
        self.name = type(self.module).__name__
        self.scalarizes = isinstance(self.module, Scalarizer)
        if not isinstance(self.module, Aggregator | Scalarizer):
            raise InputError(
                "aggregator must be the class_path of an Aggregator of torchjd.aggregation or a Scalarizer of "
                f"torchjd.scalarization, found {aggregator if isinstance(aggregator, Mapping) else self.name}"
            )
        if isinstance(self.module, FAMO):
            raise InputError("the aggregator FAMO needs each batch twice, which it does not get here: take UW or DWA")
        self._by_epochs = isinstance(self.module, DWA)
        self._stateful: dict[str, Any] = {
            name: part for name, part in self.module.named_modules() if isinstance(part, Stateful)
        }

    def start(self, model: LightningModule, shared: list[nn.Parameter], has_own_loss: bool) -> None:
        """Check whether training can have it.

        Args:
            model: What is trained.
            shared: Its parameters that tasks share.
            has_own_loss: Whether its loss is another than what :meth:`loss` gives.

        Raises:
            InputError: If not.
        """
        if self._missing:
            raise InputError(self._missing)
        if has_own_loss:
            raise InputError(
                f"{type(model).__name__} has a loss of its own, which the aggregator {self.name} cannot divide among "
                "tasks: unset model.aggregator, or take another system, such as HardShare"
            )
        strategy = model.trainer.strategy
        if type(strategy) not in ((SingleDeviceStrategy,) if self.scalarizes else (SingleDeviceStrategy, DDPStrategy)):
            raise InputError(
                f"the aggregator {self.name} needs whole batches and gradients in one place, found the strategy "
                f"{type(strategy).__name__}: set --trainer.devices 1"
                + ("" if self.scalarizes else ", or --trainer.strategy ddp")
            )
        if not self.scalarizes and model.trainer.precision == "16-mixed":
            # What a GradScaler scaled would have to be aggregated as if it was not
            raise InputError(
                f"the aggregator {self.name} does not take scaled gradients, those of 16-mixed: set "
                "--trainer.precision bf16-mixed, or 32-true where the GPU has no bf16"
            )
        if not self.scalarizes and not shared:
            raise InputError(
                f"the aggregator {self.name} works on parameters that tasks share, and there are none: unset "
                "model.aggregator, or take an encoder with parameters"
            )
        if not self.scalarizes and not any(parameter.requires_grad for parameter in shared):
            rank_zero_warn(
                f"the parameters that tasks share are frozen: the aggregator {self.name} has none to work on"
            )
        if (number := getattr(self.module, "n_tasks", self.num_tasks)) != self.num_tasks:
            raise InputError(f"the aggregator {self.name} is for {number} tasks, and there are {self.num_tasks}")
        self._ranks = model.trainer.world_size
        self._device = strategy.root_device
        self.module.to(self._device)

    def leave_gradients_alone(self, model: Any) -> None:
        """Keep DDP from averaging gradients, and from waiting for them: they are averaged here, task by task."""
        if hasattr(model, "require_backward_grad_sync"):
            model.require_backward_grad_sync = False  # as in its no_sync(), until training ends

    def parameters(self) -> Iterable[nn.Parameter]:
        """What it learns itself, such as uncertainties."""
        return () if self._missing else self.module.parameters()

    def loss(self, losses: Tensor, known: Tensor, task_ids: Tensor, epoch: int) -> Tensor:
        """The loss of a batch, 0-d: of the mean loss of each task that has labels, their mean, or the scalarization.

        With several ranks it is of their batches together. So a rank's own is a part, of which the mean over ranks is
        the loss.

        Args:
            losses: ``[R]``, 0 where the label is unknown.
            known: ``[R]``, where it is known.
            task_ids: ``[R]``.
            epoch: The number of the epoch.

        Raises:
            InputError: If tasks are missing that the aggregator needs.
        """
        counts = task_ids.new_zeros(self.num_tasks).index_add(0, task_ids, known.to(task_ids.dtype))
        if self._ranks > 1:
            dist.all_reduce(counts)
        present = counts.nonzero().squeeze(1)
        losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
        sums = losses.new_zeros(self.num_tasks).index_add(0, task_ids, losses)
        if len(present) == 0:
            return sums.sum()
        if self._stateful and len(present) < self.num_tasks:
            raise InputError(
                f"the aggregator {self.name} remembers each task, and a batch has labels of {len(present)} of "
                f"{self.num_tasks}: set data.batches.quota to 1 or more, or take one that does not, such as PCGrad"
            )
        if self._by_epochs and epoch != self._epoch:
            self.module.step()
        self._epoch = epoch
        means = sums[present] / counts[present] * self._ranks
        if self.scalarizes:
            return self._apply(means)
        mean = means.mean()
        self._pending = means, mean
        return mean

    def backward(self, loss: Tensor, shared: list[nn.Parameter], parameters: Iterable[nn.Parameter]) -> None:
        """Add to the gradients: of shared parameters those of the tasks, aggregated; of the others that of the loss.

        Gradients of tasks are computed one after the other. ``torch.vmap`` over tasks, TorchJD's default, can run
        neither layers with weights per task, nor recurrent networks on CUDA, nor compiled functions.

        Args:
            loss: What :meth:`loss` gave, perhaps divided since, as for the accumulation of gradients.
            shared: The parameters that tasks share.
            parameters: These and all others.
        """
        if self._pending is None:
            loss.backward()
            return
        (means, mean), self._pending = self._pending, None
        (factor,) = torch.autograd.grad(loss, mean, retain_graph=True)
        shared = [parameter for parameter in shared if parameter.requires_grad]
        known = {id(parameter) for parameter in shared}
        others = [each for each in parameters if each.requires_grad and id(each) not in known]
        ranks = self._ranks
        sizes = [parameter.numel() for parameter in shared]
        # Aggregators solve equations: in 32 bits at least
        matrix = torch.zeros(len(means), sum(sizes), dtype=means.dtype, device=means.device)
        used: set[int] = set(range(len(shared)) if ranks > 1 else ())
        for row, each in zip(matrix, means.unbind(), strict=True):
            for n, (place, grad) in enumerate(zip(row.split(sizes), _gradients(each, shared), strict=True)):
                if grad is not None:
                    place.copy_(grad.flatten())
                    used.add(n)
        if used:
            _average(matrix, ranks)
            vector = self._apply(matrix) * factor
            if ranks > 1:
                dist.broadcast(vector, 0)  # ranks draw random numbers of their own
            # As ever, parameters that no task used have no gradient, so that optimizers leave them as they are
            _add(shared, [grad if n in used else None for n, grad in enumerate(vector.split(sizes))])
        grads = _gradients(loss, others)
        if ranks > 1:
            full = [torch.zeros_like(like) if grad is None else grad for like, grad in zip(others, grads, strict=True)]
            for grad in full:
                _average(grad, ranks)
            grads = [*full]
        _add(others, grads)

    def _apply(self, values: Tensor) -> Tensor:
        """The vector of a matrix ``[P, n]``, or the number of a vector ``[P]``."""
        try:
            result: Tensor = self.module(values)
        except ValueError as error:  # of TorchJD: what it was made with does not fit the number of tasks
            what = f"labels of {len(values)} tasks" if values.isfinite().all() else "numbers that are not finite"
            raise InputError(f"the aggregator {self.name} found {what}: {error}") from error
        return result

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue exactly: what it learned, and what it remembers, on the CPU."""
        if self._missing:
            return {}
        memory = {name: _memory_of(part) for name, part in self._stateful.items()}
        memory = {name: values for name, values in memory.items() if _is_plain(values)}
        return {
            "name": self.name,
            "epoch": self._epoch,
            "parameters": {name: each.detach().cpu() for name, each in self.module.named_parameters()},
            "devices": [each.device.type if isinstance(each, Tensor) else "" for each in tree_leaves(memory)],
            "memory": tree_map(lambda each: each.cpu() if isinstance(each, Tensor) else each, memory),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`, if training does, and unless that is of another aggregator."""
        if self._device is None or state.get("name") != self.name:
            return
        self._epoch = state["epoch"]
        for name, parameter in self.module.named_parameters():
            parameter.data.copy_(state["parameters"][name])
        leaves, structure = tree_flatten(state["memory"])
        places = [self._device if place not in ("", "cpu") else None for place in state["devices"]]
        moved = [each if place is None else each.to(place) for each, place in zip(leaves, places, strict=True)]
        memory = tree_unflatten(moved, structure)
        for name, part in self._stateful.items():
            for key, value in memory.get(name, {}).items():
                setattr(part, key, value)
        if memory.keys() != self._stateful.keys():
            rank_zero_warn(f"the aggregator {self.name} starts anew: what it remembers cannot be saved")


def _make(value: Any) -> Any:
    """An object from its class path; those among its arguments, too."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    module, _, name = value["class_path"].rpartition(".")
    arguments = {key: _make(each) for key, each in (value.get("init_args") or {}).items()}
    return getattr(import_module(module), name)(**arguments)


def _memory_of(part: nn.Module) -> dict[str, Any]:
    """All attributes, and buffers, which may be ``None``: a state dict would leave out both."""
    return {name: value for name, value in vars(part).items() if name not in _OF_MODULES} | part._buffers


def _is_plain(values: Any) -> bool:
    """Whether checkpoints can hold it, which are loaded with ``weights_only``."""
    plain = (Tensor, bool, int, float, str, torch.dtype, torch.device, type(None))
    return all(type(each) in plain or isinstance(each, Tensor) for each in tree_leaves(values))


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    if not parameters:
        return []
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def _average(values: Tensor, ranks: int) -> None:
    """In the place of values, their mean over ranks."""
    if ranks > 1:
        dist.all_reduce(values)
        values /= ranks


def _add(parameters: list[nn.Parameter], grads: list[Tensor | None]) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            grad = grad.view_as(parameter).to(parameter.dtype)
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
