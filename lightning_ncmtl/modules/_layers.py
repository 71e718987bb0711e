"""The network behind a shared encoder: layers from general to specific, the last of which is the head."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import Routing, TaskLinear, route, uncompiled


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Refuse layers without units, by the name of the setting.

    Raises:
        InputError: If a width is less than 1.
    """
    if min(widths, default=1) < 1:
        raise InputError(f"the widths in {name} must be at least 1, found {list(widths)}")


def make_dropout(share: float) -> nn.Dropout:
    """Dropout of a share of the values.

    Raises:
        InputError: If it is not a share, or all of them.
    """
    if not 0 <= share < 1:
        raise InputError(f"dropout must be at least 0 and less than 1, found {share}")
    return nn.Dropout(share)


def make_specific(num_tasks: int, in_features: int, out_features: int) -> TaskLinear:
    """A layer in which all tasks start with the same weights.

    Heads that started apart would pull the cluster layers of their tasks apart, whatever the tasks learn.
    """
    layer = TaskLinear(num_tasks, in_features, out_features)
    layer.reset_parameters(shared=True)
    return layer


def apply_layers(
    layers: Sequence[nn.Module], dropout: nn.Module, x: Tensor, task_ids: Tensor | Routing, num_tasks: int
) -> Tensor:
    """Apply layers, with ReLU and dropout between them.

    Args:
        layers: Of all tasks, ``layer(x)``, or with weights per task, ``layer(x, task_ids)``.
        dropout: What comes behind each ReLU.
        x: ``[R, F]``.
        task_ids: ``[R]``, the task of each row, or what ``route`` made of them.
        num_tasks: Number of tasks N.
    """
    routing = route(task_ids, num_tasks)  # once for all layers
    for number, layer in enumerate(layers):
        x = dropout(x.relu()) if number else x
        x = layer(x) if isinstance(uncompiled(layer), nn.Linear) else layer(x, routing)
    return x
