from typing import Any

import pytest
import torch
from torch import nn

from lightning_ncmtl import NCMTL
from lightning_ncmtl.encoders import MLP, Identity
from lightning_ncmtl.errors import InputError


def test_identity_leaves_features_as_they_are() -> None:
    encoder = Identity(5)
    features = torch.randn(4, 5)
    assert torch.equal(encoder(features), features)
    assert encoder.out_features == 5
    assert not list(encoder.parameters())
    dropped = Identity(5, dropout=0.5)(torch.ones(400, 5))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_mlp_by_hand() -> None:
    torch.manual_seed(0)
    encoder = MLP(3, sizes=(6, 2), dropout=0.3).eval()
    first, second = (part for part in encoder.layers if isinstance(part, nn.Linear))
    features = torch.randn(7, 3)
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    expected = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(encoder(features), expected)
    assert encoder.out_features == 2
    assert encoder(torch.zeros(0, 3)).shape == (0, 2)


@pytest.mark.parametrize("encoder", [Identity(4), MLP(4, sizes=(6,))])
def test_a_model_reads_rows_of_features(encoder: nn.Module) -> None:
    model = NCMTL(encoder, 3, cluster_features=(5,), num_clusters=(2,))
    assert model(torch.randn(6, 4), torch.tensor([0, 2, 1, 0, 0, 2])).shape == (6, 2)
    assert model(torch.randn(2, 4), torch.tensor([0, 2, 1]), torch.tensor([0, 0, 1])).shape == (3, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Identity(0), "Identity reads features, found in_features=0: for texts, set model.encoder to one"),
        (lambda: MLP(0), "MLP reads features, found in_features=0"),
        (lambda: MLP(3, sizes=()), "sizes must be at least 1, found sizes=0"),
        (lambda: MLP(3, sizes=(4, 0)), "sizes must be at least 1, found sizes=0"),
        (lambda: MLP(3, dropout=1.0), "dropout must be at least 0 and less than 1, found 1.0"),
        (lambda: Identity(3, dropout=-0.1), "dropout must be at least 0 and less than 1, found -0.1"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
