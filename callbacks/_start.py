"""How the tasks of a fresh training start: from independent weights, as in the paper, or from the same."""

from collections.abc import Mapping

import torch
from torch import nn

from lightning_ncmtl.clustering import Target
from lightning_ncmtl.compatibility import rank_zero_info, rank_zero_warn
from lightning_ncmtl.layers import TaskLinear, TaskModule


def start_apart(module: nn.Module, seed: int) -> None:
    """Draw weights of its own for every task of every layer of ours, heads included."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in module.named_modules():
        if isinstance(layer, TaskLinear):
            layer.reset_parameters(generator=generator)
        elif isinstance(layer, TaskModule):
            rank_zero_warn(
                f"preset 'literal' draws no weights for {name}, a TaskModule, whose tasks start as they are: draw them "
                "before training, if they shall start apart"
            )


def start_alike(targets: Mapping[str, Target], first: str) -> None:
    """Give all tasks of each target the weights of the first, whose name is given."""
    for name, target in targets.items():
        rows = target.read()
        if target.total(rows.ne(rows[0]).sum()):
            target.write(rows[0].expand_as(rows))
            rank_zero_info(f"shared start: all tasks of {name} start from the weights of {first!r}")
