"""Averaged copies of a module: tasks that share in the module share in its averages, too."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_ncmtl.clustering import Target
from lightning_ncmtl.compatibility import Trainer
from lightning_ncmtl.layers import ClusterLinear, cluster_layers


class Averages:
    """The copies that Lightning's ``WeightAveraging`` and ``StochasticWeightAveraging`` keep of a module.

    An average holds weights from the warm-up and from before tasks came together. Its tasks get their mean over the
    cluster, which is what the average of shared weights would be.

    Args:
        targets: The module's targets, by name.
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = targets
        # The targets and the layers of ours in each copy, by its id: looked up once
        self._copies: dict[int, tuple[dict[str, Target], dict[str, ClusterLinear]]] = {}

    @torch.no_grad()
    def share(self, trainer: Trainer, assignments: Mapping[str, Tensor]) -> None:
        """Give the tasks of each cluster the same weights in every average; a second time it changes nothing."""
        for average in _find(trainer):
            if id(average) not in self._copies:
                targets = {name: target.of(average) for name, target in self._targets.items()}
                self._copies[id(average)] = (targets, cluster_layers(average))
            targets, layers = self._copies[id(average)]
            for name, assignment in assignments.items():
                targets[name].share(assignment)
                if name in layers:
                    layers[name].assignment = assignment.cpu()


def _find(trainer: Trainer) -> list[nn.Module]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    found = [getattr(callback, "_average_model", None) for callback in callbacks]
    return [copy.module if isinstance(copy, AveragedModel) else copy for copy in found if copy is not None]
