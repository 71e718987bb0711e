"""Projects in the shapes that public ones have: what is per task, and where. Small, of our own making."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

TASKS = 6
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox"]


def inputs(rows: int = 96, seed: int = 0) -> list[Tensor]:
    """``[rows, 8]``, a number for each of six tasks of two kinds ``[rows, 6]``, and one task of each ``[rows]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator)
    y = x[:, :4].sum(1, keepdim=True) * torch.tensor([1.0, -1.0] * 3) + 0.1 * torch.randn(rows, 6, generator=generator)
    return [x, y, torch.arange(rows) // (rows // TASKS)]


class Shape(LightningModule):
    """What all have; ``accumulate``: batches for a step of the optimizer."""

    accumulate = 1

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        return F.mse_loss(self(x), y)

    def per_task(self) -> list[list[Any]]:
        """By hand: for each target, what each task has of its own."""
        raise NotImplementedError

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(*batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*inputs()), batch_size=16)


def mlp(*sizes: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes[:-1])]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def mix(gate: nn.Module, x: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Experts ``[B, D]`` each, as much of each as a gate wants."""
    return torch.einsum("be,bed->bd", gate(x).softmax(1), torch.stack(list(experts), 1))


class MMoE(Shape):
    """A recommender: experts for all, a gate and a tower for each label of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(8, 8, 5) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(8, 3) for _ in range(TASKS))
        self.towers = nn.ModuleList(mlp(5, 4, 1) for _ in range(TASKS))

    def forward(self, x: Tensor) -> Tensor:
        experts = [expert(x).relu() for expert in self.experts]
        pairs = zip(self.gates, self.towers, strict=True)
        return torch.cat([tower(mix(gate, x, experts)) for gate, tower in pairs], 1)

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(x), (y > 0).float())

    def per_task(self) -> list[list[Any]]:
        return [list(self.towers)]


class PLE(Shape):
    """Two levels of experts, shared ones and some of each task, whose outputs go up by task."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for _ in range(2):
            level = nn.Module()
            level.shared = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
            level.experts = nn.ModuleDict({name: nn.ModuleList([nn.Linear(8, 8), mlp(8, 4, 8)]) for name in NAMES})
            level.gates = nn.ModuleDict({name: nn.Linear(8, 4) for name in NAMES})
            self.levels.append(level)
        self.towers = nn.ModuleDict({name: nn.Linear(8, 1) for name in NAMES})

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for name in NAMES:
            up = x
            for level in self.levels:
                experts = [expert(up).relu() for expert in [*level.shared, *level.experts[name]]]  # type: ignore[union-attr, misc, index]
                up = mix(level.gates[name], up, experts)  # type: ignore[index]
            out.append(self.towers[name](up))
        return torch.cat(out, 1)

    def per_task(self) -> list[list[Any]]:
        both = [nn.ModuleList([level.experts[name] for level in self.levels]) for name in NAMES]  # type: ignore[index, union-attr]
        return [both, list(self.towers.values())]


class Molecules(Shape):
    """Properties of molecules, many of them not measured: one layer for all, whose rows are tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = mlp(8, 8, TASKS)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(x)  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        measured = (y * 100).long() % 3 != 0
        return F.mse_loss(self(x)[measured], y[measured])

    def per_task(self) -> list[list[Any]]:
        last = self.predictor[-1]
        return [list(torch.cat([last.weight, last.bias[:, None]], 1))]  # type: ignore[index]


class MeanAndVariance(Molecules):
    """The same with two rows for each task: all means, then all variances."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = mlp(8, 8, 2 * TASKS)

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        mean, variance = self(x).chunk(2, 1)
        return F.gaussian_nll_loss(mean, y, F.softplus(variance) + 1e-3)

    def per_task(self) -> list[list[Any]]:
        ((*rows,),) = super().per_task()
        return [[torch.cat(pair) for pair in zip(rows[:TASKS], rows[TASKS:], strict=True)]]


class Retina(Shape):
    """Recordings: a core for all, and a readout of four neurons for each session, from which each batch is."""

    accumulate = TASKS

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Conv1d(1, 3, 3)
        self.readout = nn.ModuleDict()
        for name in NAMES:
            self.readout[name] = nn.Module()
            self.readout[name].masks = nn.Parameter(torch.randn(4, 6))
            self.readout[name].features = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.respond(x, name) for name in NAMES], 1)

    def respond(self, x: Tensor, name: str) -> Tensor:
        readout = self.readout[name]
        seen = torch.einsum("bcw,nw->bnc", self.core(x.unsqueeze(1)), readout.masks)
        return F.softplus((seen * readout.features.weight).sum(2) + readout.features.bias)  # type: ignore[union-attr, operator]

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        session = int(task_ids[0])
        assert task_ids.eq(session).all()
        spikes = y[:, session, None].clamp(min=0).expand(-1, 4)
        return F.poisson_nll_loss(self.respond(x, NAMES[session]), spikes, log_input=False)

    def per_task(self) -> list[list[Any]]:
        return [list(self.readout.values())]


class Domains(Shape):
    """Adaptation from many sources: a network, with a batch norm, and a classifier for each; they shall agree."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(8, 8)
        self.domain_nets = nn.ModuleList(nn.Sequential(mlp(8, 6, 4), nn.BatchNorm1d(4)) for _ in range(TASKS))
        self.classifiers = nn.ModuleList(nn.Linear(4, 2) for _ in range(TASKS))

    def forward(self, x: Tensor) -> Tensor:
        both = zip(self.domain_nets, self.classifiers, strict=True)
        return torch.stack([classify(net(self.features(x))).softmax(1) for net, classify in both]).mean(0)

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        target, total, answers = self.features(x.flip(1)), torch.zeros(()), []
        for domain, (net, classify) in enumerate(zip(self.domain_nets, self.classifiers, strict=True)):
            source, there = net(self.features(x)), net(target)
            total = total + F.cross_entropy(classify(source), (y[:, domain] > 0).long())
            total = total + (source.mean(0) - there.mean(0)).square().sum()
            answers.append(classify(there).softmax(1))
        return total + torch.stack(answers).var(0).mean()

    def per_task(self) -> list[list[Any]]:
        return [list(self.domain_nets), list(self.classifiers)]


class Forecast(Shape):
    """A network for each variable of a series, from which some are selected; several quantiles of what comes."""

    quantiles = (0.1, 0.5, 0.9)

    def __init__(self) -> None:
        super().__init__()
        self.selection = nn.ModuleDict({name: mlp(1, 5, 4) for name in NAMES})
        self.weights, self.output = nn.Linear(TASKS, TASKS), nn.Linear(4, len(self.quantiles))

    def forward(self, x: Tensor) -> Tensor:
        values = [net(x[:, [place]]).tanh() for place, net in enumerate(self.selection.values())]
        return self.output(mix(self.weights, x[:, :TASKS], values))  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        error, quantiles = y[:, :1] - self(x), torch.tensor(self.quantiles)
        return torch.maximum(quantiles * error, (quantiles - 1) * error).mean()

    def per_task(self) -> list[list[Any]]:
        return [list(self.selection.values())]


class Agents(Shape):
    """Agents with an actor and a critic each, which see the same."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.agents = nn.ModuleDict(
            {name: nn.ModuleDict({"actor": mlp(8, 5, 3), "critic": mlp(8, 5, 1)}) for name in NAMES}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x).relu()
        return torch.cat([torch.cat([agent["actor"](x), agent["critic"](x)], 1) for agent in self.agents.values()], 1)  # type: ignore[index]

    def loss(self, x: Tensor, y: Tensor, task_ids: Tensor) -> Tensor:
        total = torch.zeros(())
        for reward, out in zip(y.T, self(x).split(4, 1), strict=True):
            advantage = (reward - out[:, 3]).detach()
            total = total + (reward - out[:, 3]).square().mean() - (advantage * out[:, :3].log_softmax(1)[:, 0]).mean()
        return total

    def per_task(self) -> list[list[Any]]:
        return [[agent[part] for agent in self.agents.values()] for part in ("actor", "critic")]  # type: ignore[index]


class Speakers(Shape):
    """Layers for all speakers, with an adapter for each of them in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(2):
            adapters = nn.ModuleDict({name: mlp(8, 2, 8) for name in NAMES})
            self.layers.append(nn.ModuleDict({"base": nn.Linear(8, 8), "adapters": adapters}))
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for name in NAMES:
            y = x
            for layer in self.layers:
                y = layer["base"](y).relu()  # type: ignore[index]
                y = y + layer["adapters"][name](y)  # type: ignore[index]
            out.append(self.last(y))
        return torch.cat(out, 1)

    def per_task(self) -> list[list[Any]]:
        return [[nn.ModuleList([layer["adapters"][name] for layer in self.layers]) for name in NAMES]]  # type: ignore[index]
