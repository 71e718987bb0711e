from collections.abc import Callable

import torch
from pytorch_lightning import Trainer
from torch import nn

from lightning_ncmtl import NCMTL, HardShare
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN


def test_equals_ncmtl_without_clustering(
    make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    logits = []
    for system, settings in (
        (NCMTL, {"cluster_features": (8, 6), "num_clusters": (2, 3), "dropout": 0.1}),
        (HardShare, {"features": (8, 6), "dropout": 0.1}),
    ):
        torch.manual_seed(0)
        model = system(HAN(400, 8, 4, num_layers=1), num_tasks=4, **settings)  # type: ignore[operator]
        make_trainer(max_epochs=2).fit(model, datamodule=datamodule)
        rows = next(iter(datamodule.val_dataloader()))
        logits.append(model.eval()(rows["inputs"], rows["task_ids"]))
    assert torch.equal(*logits)


def test_with_shared_layers_only_the_head_belongs_to_a_task() -> None:
    model = HardShare(nn.Linear(4, 5), 3, features=(6,), share_layers=True)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "encoder.weight": (5, 4),
        "encoder.bias": (5,),
        "layers.0.weight": (6, 5),
        "layers.0.bias": (6,),
        "head.weight": (3, 2, 6),
        "head.bias": (3, 2),
    }
    x, tasks = torch.randn(1, 4), torch.arange(3)
    nn.init.normal_(model.head.weight)
    hidden = model.layers[0](model.encoder(x)).relu()[0]
    expected = model.head.weight @ hidden + model.head.bias
    torch.testing.assert_close(model(x.expand(3, 4), tasks), expected)
