"""How the tasks of a fresh training start: from the same weights, or, as in the paper, from independent ones."""

from collections.abc import Mapping

import torch
from torch import nn

from lightning_ncmtl.clustering._ranks import say, warn
from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import TaskLinear, TaskModule


def start_alike(targets: Mapping[str, Target], first: str) -> list[str]:
    """Give all tasks of each target the weights of the first.

    Args:
        targets: By name.
        first: The name of the first task, for the message.

    Returns:
        The names of the targets in which that changed anything.
    """
    changed = []
    for name, target in targets.items():
        if not target.is_alike():
            rows = target.read()
            target.write(rows[0].expand_as(rows))
            say(f"shared start: all tasks of {name} start from the weights of {first!r}")
            changed.append(name)
    return changed


def check_alike(targets: Mapping[str, Target], shared_warmup: bool) -> None:
    """Tell if tasks differ in a training that goes on and had no shared start.

    Args:
        targets: By name.
        shared_warmup: Whether they are to share at once.

    Raises:
        InputError: If they are, which they cannot without losing what they learned.
    """
    different = [name for name, target in targets.items() if not target.is_alike()]
    if not different:
        return
    began = f"the training began without network clustering, and the tasks of {', '.join(different)} differ by now"
    anew = "begin anew, or load the weights of the checkpoint into the module and train without ckpt_path"
    if shared_warmup:
        raise InputError(f"{began}, which a shared warm-up would undo: {anew}; or choose warmup='apart'")
    warn(f"{began}, also by their random start, by which clusters may group them: {anew}, for a shared start")


def start_apart(module: nn.Module, seed: int) -> None:
    """Draw weights of its own for every task of every layer of this package, heads included."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in module.named_modules():
        if isinstance(layer, TaskLinear):
            layer.reset_parameters(generator=generator)
        elif isinstance(layer, TaskModule):
            warn(
                f"preset 'literal' draws no weights for {name}, a TaskModule, whose tasks start as they are: draw them "
                "before training, if they should start apart"
            )
