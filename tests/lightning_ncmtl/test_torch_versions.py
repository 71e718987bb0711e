"""The versions of torch differ in how a module finds out who traces it."""

import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl.clustering import _slices, find_targets, target
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.torch_versions import is_exporting


class Tells(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if is_exporting() else x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_only_torch_export_is_exporting() -> None:
    """Up to torch 2.11 ``torch.compiler.is_exporting`` is true of compiled modules, too."""
    module, x = Tells(), torch.zeros(3)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert compiled(x).tolist() == [0, 0, 0]
    assert torch.export.export(module, (x,), strict=False).module()(x).tolist() == [1, 1, 1]
    assert compiled(x).tolist() == module(x).tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.skipif(torch.__version__ < "2.12", reason="strict exports look like compiled calls up to torch 2.11")
def test_strict_exports_are_exports() -> None:
    assert torch.export.export(Tells(), (torch.zeros(3),), strict=True).module()(torch.zeros(3)).tolist() == [1, 1, 1]


def test_sharded_parameters_need_a_newer_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slices, "mesh_of", lambda parameter: "a mesh")
    monkeypatch.setattr(target, "RESHARDS", False)
    message = r"heads\.0\.weight of the target 'heads' is sharded, which needs torch 2\.11 or newer: found torch 2\."
    with pytest.raises(InputError, match=message):
        find_targets(nn.ModuleDict({"heads": nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])}), ["heads"])
