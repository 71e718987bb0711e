"""Optimizers that leave alone the weights of tasks that had nothing to learn from in a step.

Shapes: N tasks.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import CompactLinear, CompactModule, PerTask


def keep_absent_tasks(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Make an optimizer leave the weights of absent tasks as they are: no momentum, no weight decay.

    In layers with stacked weights a task that is absent from a batch has gradients of zero, not none, and so momentum
    and weight decay move it on. From now on it is as if each task had an optimizer of its own, that steps only when the
    task is there: weights and state (momentum, averages of squared gradients) of the others stay bitwise the same. What
    all tasks have in common is the number of steps, by which Adam corrects its averages: a task that comes first at
    step 100 takes a smaller first step than an optimizer of its own would.

    A task is absent from a step if its gradients are exactly zero in all stacked layers of the module. So nothing has
    to be counted where gradients are accumulated, clipped, scaled, or averaged over the ranks of DDP.

    After a step, :class:`lightning_ncmtl.callbacks.NetworkClusteringCallback` gives all tasks of a cluster the mean of
    their weights: an absent task moves with its cluster, but adds nothing to its move. So with Adam a cluster moves the
    less, the fewer of its tasks are there, while momentum would have moved the others, too.

    Where clusters are frozen, their tasks have one gradient, and so a cluster is absent from its layer as a whole, if
    all of its tasks are: as in a compact model. For plain SGD that makes no difference. Momentum and weight decay now
    move a cluster as much, however many of its tasks are there.

    It costs a look at the gradients, and for the time of a step a copy of the weights and state of absent tasks (on a
    GPU of all tasks, as it is not waited for).

    Args:
        optimizer: Any that calls its closure once (all of torch.optim but LBFGS). State that it makes in its first step
            must start from zero (not so in Rprop).
        module: Its :class:`lightning_ncmtl.TaskLinear` and :class:`lightning_ncmtl.TaskModule` layers are meant.

    Raises:
        InputError: If the parameters of a layer are sharded, so that no rank sees all of a task.
    """
    layers = _layers(module)
    kept: list[tuple[nn.Parameter, Tensor, Tensor, dict[str, Tensor]]] = []

    @torch.no_grad()
    def keep() -> None:
        kept.clear()
        for stack in _stacks(layers):
            learning = [(p, p.grad) for p in stack if p.grad is not None]
            if learning:
                absent = ~torch.stack([grad.reshape(len(grad), -1).any(1) for _, grad in learning]).any(0)
                for p, _ in learning:
                    state = {name: _rows(values, absent) for name, values in _state(optimizer, p).items()}
                    kept.append((p, absent, _rows(p, absent), state))

    def before(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            keep()
            return None
        # As Lightning calls it: the gradients are those of the closure, which the optimizer calls.
        return args[:1], {**kwargs, "closure": _then(closure, keep)}

    @torch.no_grad()
    def after(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, absent, weights, state in kept:
            _put_back(parameter, absent, weights)
            for name, values in _state(optimizer, parameter).items():
                _put_back(values, absent, state.get(name))
        kept.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _layers(module: nn.Module) -> dict[PerTask, bool]:
    """The stacked layers; and whether they are compact, so that their rows are clusters."""
    compact = {layer.clusters for layer in module.modules() if isinstance(layer, (CompactLinear, CompactModule))}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, PerTask)}
    for name, layer in layers.items():
        parameters = layer.parameters()
        if any(p.ndim == 0 or p.shape[0] != layer.num_tasks or hasattr(p, "device_mesh") for p in parameters):
            raise InputError(
                f"the parameters of {name} are sharded, so that absent tasks cannot be told: leave "
                "update_absent_tasks at True, or choose the strategy 'ddp'"
            )
    return {layer: layer in compact for layer in layers.values()}


def _stacks(layers: dict[PerTask, bool]) -> list[list[nn.Parameter]]:
    """Parameters that are absent together: those of all layers whose rows are tasks, and of each with clusters."""
    stacks: dict[Hashable, list[nn.Parameter]] = {}
    for layer, compact in layers.items():
        alone = compact or layer.frozen_clusters is not None
        stacks.setdefault(layer if alone else layer.num_tasks, []).extend(layer.parameters())
    return list(stacks.values())


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an optimizer has for each row of a parameter, such as momentum; not the number of steps."""
    return {
        name: value
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor) and value.ndim == parameter.ndim and len(value) == len(parameter)
    }


def _rows(values: Tensor, absent: Tensor) -> Tensor:
    """A copy of ``values [N, ...]`` where ``absent [N]``; of all on a GPU, which alone knows how many that are."""
    return values[absent] if values.is_cpu else values.clone()


def _put_back(values: Tensor, absent: Tensor, before: Tensor | None) -> None:
    """Undo a change of the rows ``absent [N]``, given what :func:`_rows` was before; zeros if there was nothing."""
    before = values.new_zeros(()) if before is None else before
    if values.is_cpu:
        values[absent] = before
    else:
        torch.where(absent.view(-1, *[1] * (values.ndim - 1)), before, values, out=values)


def _then(closure: Callable[[], Any], follow: Callable[[], None]) -> Callable[[], Any]:
    def both() -> Any:
        result = closure()
        follow()
        return result

    return both
