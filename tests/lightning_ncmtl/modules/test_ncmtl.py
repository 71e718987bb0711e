from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_ncmtl import NCMTL
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError


def test_the_stack_is_encoder_cluster_layers_head() -> None:
    model = NCMTL(nn.Linear(10, 7), num_tasks=12, num_classes=3)
    shapes = [(layer.in_features, layer.out_features, layer.num_clusters) for layer in model.cluster_layers]
    assert shapes == [(7, 32, "auto"), (32, 32, "auto"), (32, 16, "auto")]  # the widths of the paper, 4.1
    assert tuple(model.head.weight.shape) == (12, 3, 16)
    logits = model(torch.randn(5, 10), torch.tensor([0, 11, 3, 3, 7]))
    assert logits.shape == (5, 3)


def test_numbers_of_clusters_are_given_or_chosen() -> None:
    for numbers in ((3, 5, 10), (1, "auto", 12), "auto"):
        model = NCMTL(nn.Linear(10, 7), num_tasks=12, num_clusters=numbers)
        expected = ["auto"] * 3 if numbers == "auto" else list(numbers)
        assert [layer.num_clusters for layer in model.cluster_layers] == expected
    assert len(NCMTL(nn.Linear(10, 7), 12, cluster_features=[4]).cluster_layers) == 1
    with pytest.raises(InputError, match="need one value per layer, found .32, 32, 16. and .2, 'auto'."):
        NCMTL(nn.Linear(10, 7), num_tasks=12, num_clusters=[2, "auto"])


def test_all_tasks_start_as_one_network() -> None:
    model = NCMTL(nn.Linear(10, 7), num_tasks=12).eval()
    x = torch.randn(1, 10).expand(12, 10)
    logits = model(x, torch.arange(12))
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_a_task_is_computed_with_its_own_weights() -> None:
    model = NCMTL(nn.Linear(4, 4), 3, cluster_features=(5,), num_clusters=(2,)).eval()
    for parameter in (*model.cluster_layers.parameters(), *model.head.parameters()):
        nn.init.normal_(parameter)
    x, task = torch.randn(1, 4), 2
    layer, head = model.cluster_layers[0], model.head
    hidden = (model.encoder(x) @ layer.weight[task].T + layer.bias[task]).relu()
    torch.testing.assert_close(model(x, torch.tensor([task])), hidden @ head.weight[task].T + head.bias[task])


def test_an_empty_batch_gives_no_logits() -> None:
    model = NCMTL(nn.Linear(10, 7), num_tasks=12)
    assert model(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": (3, 5)}, "one value per layer"),
        ({"num_clusters": (3, 5, 13)}, "between 1 and the number of tasks 12, found 13"),
        ({"task_names": ["a", "b"]}, "each of the 12 tasks, found 2 names"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NCMTL(nn.Linear(10, 7), num_tasks=12, **settings)  # type: ignore[arg-type]


def test_fit_logs_every_task(
    make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(task_names=datamodule.domains), datamodule=datamodule)
    accuracies = {name for name in trainer.callback_metrics if name.startswith("val/accuracy")}
    kinds = ("val/accuracy", "val/accuracy_clean")
    assert accuracies == {*kinds, *(f"{kind}/{domain}" for kind in kinds for domain in datamodule.domains)}
    assert "train/loss" in trainer.callback_metrics


def test_python_checkpoint_loads_with_weights_only(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:
    model = make_model()
    trainer = make_trainer(max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, "it")])
    trainer.fit(model, datamodule=datamodule)
    encoder = HAN(vocab_size=400, embedding_dim=8, hidden_size=4, num_layers=1)
    loaded = NCMTL.load_from_checkpoint(tmp_path / "it.ckpt", encoder=encoder, weights_only=True)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.hparams.num_clusters == (2, 3)
    data = MultiDomainDataModule.load_from_checkpoint(tmp_path / "it.ckpt", source=datamodule.source, weights_only=True)
    assert data.tokenizer is not None
    assert datamodule.tokenizer is not None
    assert data.tokenizer.get_vocab() == datamodule.tokenizer.get_vocab()


def test_checkpoint_of_another_model_is_refused(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(), datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    other = make_model(cluster_features=(8, 5))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError, match=r"another model: it has cluster_layers.1.bias of shape \[4, 6\], this model"):
        make_trainer().validate(other, datamodule=datamodule, ckpt_path=tmp_path / "it.ckpt", weights_only=True)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_pretrained_vectors_are_loaded_once(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
) -> None:
    (tmp_path / "v.txt").write_text(f"opinion1 {' 1' * 7} 2\n".replace("  ", " "))
    datamodule.text = replace(datamodule.text, vectors=str(tmp_path / "v.txt"))
    model = make_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    make_trainer(max_steps=1).fit(model, datamodule=datamodule)
    assert datamodule.tokenizer is not None
    row = model.encoder.embedding.weight[datamodule.tokenizer.token_to_id("opinion1")]
    assert row.tolist() == [1.0] * 7 + [2.0]
    with torch.no_grad():
        row.zero_()  # as if learned
    before = model.encoder.embedding.weight.clone()
    make_trainer(max_steps=1).fit(model, datamodule=datamodule)
    assert torch.equal(model.encoder.embedding.weight, before)
    other = make_model(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    other.load_state_dict(model.state_dict())
    make_trainer(max_steps=1).fit(other, datamodule=datamodule)
    assert torch.equal(other.encoder.embedding.weight, before), "weights that were loaded are learned, too"


def test_scheduler_steps_each_epoch(
    make_model: Callable[..., NCMTL], make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    model = make_model(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
    )
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, datamodule=datamodule)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125
