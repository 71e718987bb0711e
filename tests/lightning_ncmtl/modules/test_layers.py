"""Layers behind an encoder, of all systems."""

from collections.abc import Callable

import pytest
from torch import nn

from lightning_ncmtl import NCMTL, PLE, CrossStitch, HardShare, MMoE, SingleTask, SoftShare
from lightning_ncmtl.encoders import Identity
from lightning_ncmtl.errors import InputError


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cluster_features", NCMTL),
        ("features", HardShare),
        ("features", lambda *given, **layers: HardShare(*given, share_layers=True, **layers)),
        ("features", MMoE),
        ("expert_features", MMoE),
        ("features", PLE),
        ("expert_features", PLE),
        ("features", CrossStitch),
        ("features", SingleTask),
        ("features", SoftShare),
    ],
)
@pytest.mark.parametrize("width", [0, -3])
def test_layers_without_units_are_refused(name: str, make: Callable[..., nn.Module], width: int) -> None:
    with pytest.raises(InputError, match=rf"the widths in {name} must be at least 1, found \[8, {width}\]"):
        make(Identity(4), 3, **{name: [8, width]})


@pytest.mark.parametrize("system", [NCMTL, HardShare, MMoE, PLE, CrossStitch, SingleTask, SoftShare])
@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_dropout_that_is_no_share_is_refused(system: Callable[..., nn.Module], share: float) -> None:
    with pytest.raises(InputError, match=rf"dropout must be at least 0 and less than 1, found {share}"):
        system(Identity(4), 3, dropout=share)
