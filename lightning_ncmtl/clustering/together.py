"""Sharing of many small layers at once: on a GPU the launch of a kernel takes longer than what it does for one of them.

Their rows lie side by side, each layer filled up with zeros to chunks of :data:`WIDTH` numbers: C chunks, of whose
products and sums those of the layers are made. So the number of kernels does not depend on that of the layers, but for
one that writes each parameter that holds all tasks.

All of it is work for the device: no size or branch depends on a value, so that a CUDA graph could capture it.

Shapes: L layers, N tasks, C chunks, K clusters.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, repeat

import torch
from torch import Tensor

from lightning_ncmtl.clustering._gram import from_host
from lightning_ncmtl.clustering.late import is_ahead_of
from lightning_ncmtl.clustering.layer_state import LayerState, widen
from lightning_ncmtl.clustering.sharing import Shared
from lightning_ncmtl.clustering.target import Target, read_parts

# Numbers of a chunk
WIDTH = 256
# Numbers that a layer has at most, counted as those of its rows or of the products of its chunks, whichever are more;
# and all layers of a batch together, which take a few times as much memory in float64
SMALL, ALL = 2**20, 2**24


def gather(states: Mapping[str, LayerState]) -> list[dict[str, LayerState]]:
    """The layers of each batch: on a GPU those that are small and whole on this rank, of one kind in a batch."""
    batches: list[dict[str, LayerState]] = []
    opened: dict[tuple[object, ...], tuple[dict[str, LayerState], int]] = {}
    for name, state in states.items():
        target = state.target
        if not is_ahead_of(target.device) or target.group is not None:
            continue
        size = -(-target.size // WIDTH) * len(target.tasks) * max(len(target.tasks), WIDTH)
        if size > SMALL:
            continue
        kind = (target.dtype, state.is_settled, state.residual is None)
        batch, total = opened.get(kind, ({}, ALL))
        if total + size > ALL:
            batch, total = {}, 0
            batches.append(batch)
        batch[name] = state
        opened[kind] = batch, total + size
    return batches


class Together:
    """The weights of some layers, of one type and with the same tasks, which are read here.

    Args:
        targets: The layers by name.
        residuals: The residual ``[N, D]`` of each layer; none where layers have none.

    Attributes:
        own: The own weights ``[N, D]`` of each layer by name, see :mod:`lightning_ncmtl.clustering.sharing`.
    """

    def __init__(self, targets: Mapping[str, Target], residuals: Sequence[Tensor] = ()) -> None:
        self._widths = [target.size for target in targets.values()]
        self._weights = self._fill(read_parts(list(targets.values())))
        own = widen(self._weights)
        self._own = own + self._fill([[residual] for residual in residuals]) if residuals else own
        sizes = [-(-width // WIDTH) for width in self._widths]
        layers = tuple(chain.from_iterable(repeat(layer, size) for layer, size in enumerate(sizes)))
        self._layers = from_host(layers, own.device)  # [C], of each chunk
        numbers = torch.arange(len(sizes), device=own.device).unsqueeze(1)
        self._belongs = numbers == self._layers  # [L, C]
        self._sums = self._belongs.double()  # from chunks to layers
        self.own = dict(zip(targets, self._cut(self._own), strict=True))

    def multiply(self) -> Tensor:
        """Inner products ``[L, N, N]`` of each layer's rows less the first of them, in float64."""
        x = self._own.double()
        x = self._chunks(x - x[:1]).transpose(0, 1)
        products = (x @ x.mT).nan_to_num_(0, 0, 0)  # [C, N, N]; one that is not finite would spread to other layers
        return (self._sums @ products.flatten(1)).view(-1, *products.shape[1:])

    def share(self, assignments: Tensor, num_clusters: int, commitment: float) -> tuple[list[Shared], Tensor]:
        """Give the tasks of each cluster the same weights, but for layers with weights that are not finite.

        Args:
            assignments: ``[L, N]``.
            num_clusters: The greatest of all layers.
            commitment: As in :func:`lightning_ncmtl.clustering.share`.

        Returns:
            What that returns for each layer; and whether the weights of each task are not finite, ``[L, N]``.
        """
        clusters = assignments.index_select(0, self._layers)  # [C, N]
        numbers = torch.arange(num_clusters, device=clusters.device).unsqueeze(1)
        members = (clusters.unsqueeze(1) == numbers).double()  # [C, K, N]
        sums = members @ self._chunks(self._own.double()).transpose(0, 1)
        # As in means(): so all tasks of a cluster get the same, and that of equal weights is what they were
        centers = sums.div_(members.sum(2, keepdim=True).clamp_(min=1)).to(self._own.dtype).flatten(0, 1)
        first = num_clusters * torch.arange(len(clusters), device=clusters.device)
        shared = centers.index_select(0, (clusters.T + first).flatten()).view_as(self._own)
        gap = self._own - shared
        squares = torch.linalg.vector_norm(self._chunks(gap), dim=2).double().square_().sum(0)  # [C]
        losses = squares.where(self._belongs, 0).sum(1)  # no product, in which one that is not finite would spread
        weights = shared.to(self._weights.dtype)
        residuals = gap.mul_(1 - commitment)
        if weights.dtype != shared.dtype:
            residuals += shared - weights
        broken = (~self._chunks(self._own).sum(2).isfinite()).double() @ self._sums.T > 0  # [N, L]
        stays = broken.any(0).index_select(0, self._layers).unsqueeze(1)
        weights = self._chunks(self._weights).where(stays, self._chunks(weights)).view_as(weights)
        parts = zip(self._cut(weights), self._cut(residuals), losses, strict=True)
        return [Shared(*part) for part in parts], broken.T

    def _chunks(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), -1, WIDTH)

    def _fill(self, parts: Sequence[Sequence[Tensor]]) -> Tensor:
        """Rows ``[N, D]`` of each layer, which are in parts, side by side and filled up to chunks."""
        zeros = parts[0][0].new_zeros(len(parts[0][0]), WIDTH)
        filled = [[*rows, zeros[:, : -width % WIDTH]] for rows, width in zip(parts, self._widths, strict=True)]
        return torch.cat(list(chain(*filled)), 1)

    def _cut(self, rows: Tensor) -> list[Tensor]:
        """The rows of each layer."""
        sizes = [size for width in self._widths for size in (width, -width % WIDTH)]
        return list(rows.split(sizes, 1)[::2])
