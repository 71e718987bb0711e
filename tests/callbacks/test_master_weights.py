"""Optimizers that write weights from copies of their own, as some do in half precision."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from projects import Heads, Stacked
from pytorch_lightning import Trainer

from lightning_ncmtl.callbacks import NetworkClusteringCallback

MakeTrainer = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:batches do not say of which half")


class Master(torch.optim.Adam):
    """Its copies are from the first step, or (``eager``) from its making, before a shared start."""

    def __init__(self, params: Any, lr: float, eager: bool = False, **settings: Any) -> None:
        super().__init__(params, lr, **settings)
        self.copies: dict[Any, Any] = {}
        if eager:
            self.keep()

    def keep(self) -> None:
        self.copies = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            for p, copy in self.copies.items():
                p.copy_(copy)
        super().step()
        self.keep()
        return loss


class Eager(Master):
    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr, eager=True)


def made(make: type[Heads], optimizer: Any) -> Heads:
    model = make()
    model.optimizer = optimizer
    return model


@pytest.mark.parametrize("make", [Heads, Stacked])
@pytest.mark.parametrize("optimizer", [Master, Eager])
@pytest.mark.parametrize("settings", [{}, {"warmup": "apart"}, {"preset": "literal"}], ids=str)
def test_weights_that_are_undone_are_told(
    make_trainer: MakeTrainer, make: type[Heads], optimizer: Any, settings: dict[str, Any]
) -> None:
    targets = "heads" if make is Heads else ["experts", "binary"]
    callback = NetworkClusteringCallback(2, targets, **{"warmup_steps": 24, "freeze_after_epochs": None, **settings})
    with pytest.warns(UserWarning, match="was gone after the next step of the optimizer, .*: choose") as told:
        make_trainer(max_epochs=6, callbacks=[callback]).fit(made(make, optimizer))
    assert sum("was gone" in str(warning.message) for warning in told) == 1


def sgd(params: Any, lr: float) -> Any:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True)


def decay(params: Any, lr: float) -> Any:
    return torch.optim.AdamW(params, lr=4 * lr, weight_decay=0.5)


@pytest.mark.parametrize("make", [Heads, Stacked])
@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, sgd, decay, torch.optim.Adagrad, torch.optim.Rprop]
    + ([torch.optim.Adafactor] if torch.__version__ >= "2.5" else []),
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("settings", [{}, {"warmup": "apart"}, {"warmup": "apart", "warmup_steps": 3}], ids=str)
def test_others_are_not(
    make_trainer: MakeTrainer, make: type[Heads], optimizer: Any, precision: Any, settings: dict[str, Any]
) -> None:
    targets = "heads" if make is Heads else ["experts", "binary"]
    callback = NetworkClusteringCallback(2, targets, **{"warmup_steps": 24, "freeze_after_epochs": None, **settings})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "what network clustering wrote")
        make_trainer(max_epochs=5, callbacks=[callback], precision=precision).fit(made(make, optimizer))
    assert callback.assignments
