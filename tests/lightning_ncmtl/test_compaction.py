import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data import make_data
from projects import Heads, Stacked, data, rows_of, unshared
from pytorch_lightning import LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import Dim

from lightning_ncmtl import NCMTL, ClusterLinear, compact, compaction, count_parameters, load, save
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.compaction import count_bytes
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Synthetic
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.errors import InputError
from tests.support.device import DEVICE, DeviceCalls

MakeTrainer = Callable[..., Trainer]
Fitted = tuple[Heads, dict[str, Tensor]]


class Normed(Heads):
    """Heads with buffers, which tasks of a cluster do not share."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.BatchNorm1d(8), head) for name, head in self.heads.items()})


def fit(model: Heads, targets: list[str], make_trainer: MakeTrainer, num_clusters: Any = 2) -> dict[str, Tensor]:
    callback = NetworkClusteringCallback(num_clusters, targets, warmup_steps=2)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    model.eval()
    return callback.assignments


def outputs(model: nn.Module) -> Tensor:
    x, _, task_ids = data(seed=5)[:]
    with torch.no_grad():
        out: Tensor = model(x, task_ids)
    return out


@pytest.mark.parametrize(
    ("make", "targets", "width"),
    [
        (Heads, ["heads"], 51),
        (Heads, ["heads.*.0"], 45),
        (Normed, ["heads"], 67),
        (Stacked, ["experts", "binary"], 46),
        (Stacked, ["binary.weight"], 5),
    ],
)
def test_user_modules_give_bitwise_the_same_from_fewer_weights(
    make: type[Heads], targets: list[str], width: int, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    model = make()
    assignments = fit(model, targets, make_trainer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = compact(model, assignments)
    assert torch.equal(outputs(small), outputs(model))
    assert not small.training
    assert count_parameters(small)[""] == count_parameters(model)[""] - 4 * width  # two sets instead of six
    for name, value in model.state_dict().items():  # the original stays
        assert torch.equal(value, before[name])

    save(small, tmp_path / "it")
    weights = load_file(tmp_path / "it/model.safetensors")
    floats = sum(value.numel() for value in weights.values() if value.is_floating_point())
    buffers = sum(b.numel() for b in small.buffers() if b.is_floating_point())
    assert floats == count_parameters(small)[""] + buffers
    loaded = load(tmp_path / "it", module=make())
    assert torch.equal(outputs(loaded), outputs(model))
    assert count_parameters(loaded) == count_parameters(small)


def test_bytes_by_hand() -> None:
    """Weights of 4 tasks, then of 2 clusters, with the assignment of each task; what is tied counts once."""
    layer = ClusterLinear(4, 3, 2, num_clusters=2)
    model = nn.ModuleDict({"layer": layer, "other": nn.Linear(5, 1, bias=False).half()})
    assert count_bytes(model) == 4 * (4 * 3 * 2 + 4 * 2) + 2 * 5
    small = compact(model, {"layer": torch.tensor([0, 1, 1, 0])})
    assert count_bytes(small) == 4 * (2 * 3 * 2 + 2 * 2) + 8 * 4 + 2 * 5
    assert count_bytes(nn.ModuleDict({"one": layer, "other": layer})) == count_bytes(layer)


def test_a_compact_module_trains_on_with_shared_weights(make_trainer: MakeTrainer) -> None:
    model = Heads()
    (assignment,) = fit(model, ["heads"], make_trainer).values()
    small = compact(model, {"heads": assignment})
    make_trainer(max_epochs=1).fit(small.train())
    rows = rows_of(small)
    assert unshared(rows, assignment) == 0
    assert not torch.equal(outputs(small), outputs(model))


def test_our_layers(
    make_model: Callable[..., NCMTL], make_trainer: MakeTrainer, datamodule: MultiDomainDataModule, tmp_path: Path
) -> None:
    model = make_model()
    trainer = make_trainer(max_epochs=2, callbacks=[NetworkClusteringCallback(warmup_epochs=1)])
    trainer.fit(model, datamodule=datamodule)
    small = compact(model.eval())
    sizes = [(sum(p.numel() for p in layer.parameters())) for layer in model.cluster_layers]
    assert count_parameters(small)["cluster_layers"] == sizes[0] * 2 // 4 + sizes[1] * 3 // 4
    batches = list(datamodule.val_dataloader())
    for batch in batches:
        expected = model(batch["inputs"], batch["task_ids"])
        torch.testing.assert_close(small(batch["inputs"], batch["task_ids"]), expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="task id 4 is out of range: the layer has tasks 0 to 3"):
        small(batches[0]["inputs"], torch.full_like(batches[0]["task_ids"], 4))

    save(small, tmp_path / "it", {"note": "any JSON"})
    assert json.loads((tmp_path / "it/settings.json").read_text())["data"] == {"note": "any JSON"}
    loaded = load(tmp_path / "it", module=make_model())
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    trainer.test(loaded, datamodule=datamodule, verbose=False)
    found = trainer.callback_metrics
    trainer.test(model, datamodule=datamodule, verbose=False)
    assert found["test/accuracy"] == trainer.callback_metrics["test/accuracy"]


def test_a_module_is_built_again_from_its_hparams(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Saved(LightningModule):
        def __init__(self, width: int, names: list[str]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in names)

    globals()["Saved"] = Saved
    Saved.__qualname__ = "Saved"
    model = Saved(3, ["a", "b", "c"])
    for head in model.heads:
        head.load_state_dict(model.heads[0].state_dict())
    save(compact(model, {"heads": torch.tensor([1, 1, 0])}), tmp_path / "it")
    loaded = load(tmp_path / "it")
    assert isinstance(loaded, Saved)
    assert loaded.heads[0].weight is loaded.heads[1].weight
    assert loaded.heads[0].weight is not loaded.heads[2].weight
    del globals()["Saved"]
    with pytest.raises(InputError, match=r"Saved cannot be built from its settings: import the module that defines it"):
        load(tmp_path / "it")


def test_what_cannot_be_compacted(make_trainer: MakeTrainer, make_model: Callable[..., NCMTL]) -> None:
    model = Heads()
    assignments = fit(model, ["heads"], make_trainer)
    with pytest.raises(InputError, match="Heads has no clusters to compact: give the callback's assignments"):
        compact(model)
    with pytest.raises(InputError, match="NCMTL has no clusters to compact"):
        compact(make_model())
    with pytest.raises(InputError, match=r"tasks of cluster 0 of heads have different weights"):
        compact(model, {"heads": torch.zeros(6, dtype=torch.int64)})
    with pytest.raises(InputError, match="heads has 6 tasks, found an assignment of 5"):
        compact(model, {"heads": assignments["heads"][:5]})
    with pytest.raises(InputError, match="names nothing in the module"):
        compact(model, {"nothing": assignments["heads"]})
    with pytest.raises(InputError, match="Heads is compact already"):
        compact(compact(model, assignments), assignments)
    model.requires_grad_(False)  # frozen for use, not for training
    assert compact(model, assignments)


def test_what_cannot_be_saved_or_loaded(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    model = Heads()
    assignments = fit(model, ["heads"], make_trainer)
    with pytest.raises(InputError, match="Heads is not compact"):
        save(model, tmp_path / "it")
    save(compact(model, assignments), tmp_path / "it")
    with pytest.raises(InputError, match="is not empty: choose another one"):
        save(compact(model, assignments), tmp_path / "it")
    with pytest.raises(InputError, match="holds no compact module: there is no settings.json"):
        load(tmp_path)
    with pytest.raises(InputError, match="the weights in .* do not fit the module"):
        load(tmp_path / "it", module=Normed())
    settings = json.loads((tmp_path / "it/settings.json").read_text())
    settings["hyper_parameters"] = {"speed": 3}
    (tmp_path / "it/settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=re.escape("load(folder, module=...)")):
        load(tmp_path / "it")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_is_kept(make_trainer: MakeTrainer, tmp_path: Path, dtype: torch.dtype) -> None:
    model = Heads()
    assignments = fit(model, ["heads"], make_trainer)
    small = compact(model.to(dtype), assignments)
    save(small, tmp_path / "it")
    loaded = load(tmp_path / "it", module=Heads())
    for name, value in small.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
def test_compiled_modules_give_a_plain_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Compiled as a whole, in a task, in a stack, or as a layer of ours."""

    class Compiled(Stacked):
        def __init__(self) -> None:
            super().__init__()
            self.binary = torch.compile(self.binary, backend="eager")  # type: ignore[assignment]
            self.heads = Heads().heads
            self.heads["bee"] = torch.compile(self.heads["bee"], backend="eager")  # type: ignore[assignment]
            self.cluster = torch.compile(ClusterLinear(6, 8, 8, num_clusters=2), backend="eager")

        def forward(self, x: Tensor, task_ids: Tensor) -> Tensor:
            hidden = self.cluster(self.backbone(x).relu(), task_ids)
            hidden = torch.einsum("bi,boi->bo", hidden, self.experts[task_ids]).tanh()
            return self.binary(hidden).gather(1, task_ids.unsqueeze(1)).squeeze(1)

    model = Compiled()
    callback = NetworkClusteringCallback(2, ["binary", "heads", "cluster"], warmup_steps=2)
    make_trainer(max_epochs=2, callbacks=[callback]).fit(model)
    assert torch.equal(model.cluster.assignment, callback.assignments["cluster"])
    small = compact(torch.compile(model.eval(), backend="eager"), callback.assignments)
    assert not any(isinstance(module, torch._dynamo.OptimizedModule) for module in small.modules())
    assert not any("_orig_mod" in name for name in small.state_dict())
    torch.testing.assert_close(outputs(small), outputs(model), rtol=0, atol=1e-6)
    save(small, tmp_path / "small")
    for fresh in (Compiled(), torch.compile(Compiled(), backend="eager")):
        loaded = load(tmp_path / "small", module=fresh)
        assert not any(isinstance(module, torch._dynamo.OptimizedModule) for module in loaded.modules())
        torch.testing.assert_close(outputs(loaded), outputs(small), rtol=0, atol=0)
    default = NetworkClusteringCallback(warmup_steps=2)  # finds the layer of ours, under its plain name
    make_trainer(max_epochs=1, callbacks=[default]).fit(Compiled())
    assert list(default.assignments) == ["cluster"]


def test_tasks_are_found_by_name(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Not by their place, which another version of the module may have changed."""

    class Reordered(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict(reversed(self.heads.items()))

    model = Heads()
    assignments = fit(model, ["heads"], make_trainer, num_clusters=3)
    save(compact(model, assignments), tmp_path / "it")
    loaded = load(tmp_path / "it", module=Reordered())
    x = torch.randn(5, 8)
    for name, head in model.heads.items():
        assert torch.equal(head(x), loaded.heads[name](x))  # type: ignore[operator, index]
    renamed = Heads()
    renamed.heads["gnu"] = renamed.heads.pop("fox")
    with pytest.raises(InputError, match="other tasks in heads than were saved: ant, .*gnu instead of ant, .*fox"):
        load(tmp_path / "it", module=renamed)


def test_only_modules_are_built(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    """The folder may come from elsewhere."""
    model = Heads()
    save(compact(model, fit(model, ["heads"], make_trainer)), tmp_path / "it")
    settings = json.loads((tmp_path / "it/settings.json").read_text())
    settings |= {"class": "os.system", "hyper_parameters": {"command": f"touch {tmp_path / 'broken_into'}"}}
    (tmp_path / "it/settings.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="the settings name os.system as the module, which is none"):
        load(tmp_path / "it")
    assert not (tmp_path / "broken_into").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [("settings.json", "{"), ("settings.json", "{}"), ("settings.json", "[]"), ("model.safetensors", "half")],
)
def test_broken_folders(tmp_path: Path, make_trainer: MakeTrainer, file: str, content: str) -> None:
    model = Heads()
    save(compact(model, fit(model, ["heads"], make_trainer)), tmp_path / "it")
    (tmp_path / "it" / file).write_text(content)
    with pytest.raises(InputError, match="holds no compact module that can be read"):
        load(tmp_path / "it", module=Heads())
    (tmp_path / "it" / file).unlink()
    with pytest.raises(InputError, match="holds no compact module"):
        load(tmp_path / "it", module=Heads())


def test_settings_that_json_would_change_are_not_used(tmp_path: Path) -> None:
    class Indexed(LightningModule):
        def __init__(self, names: dict[int, str]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.heads = nn.ModuleList(nn.Linear(1, 1) for _ in names)

    model = Indexed({0: "a", 1: "b"})
    small = compact(model, {"heads": torch.tensor([0, 1])})
    save(small, tmp_path / "it")
    assert json.loads((tmp_path / "it/settings.json").read_text())["hyper_parameters"] is None
    loaded = load(tmp_path / "it", module=Indexed({0: "a", 1: "b"}))
    assert torch.equal(loaded.heads[1].weight, model.heads[1].weight)  # type: ignore[index, union-attr]
    with pytest.raises(InputError, match="data must be plain JSON values"):
        save(small, tmp_path / "other", {"names": {0: "a"}})


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
def test_torch_export(make_trainer: MakeTrainer, source: Synthetic) -> None:
    """With any number of documents; torch unrolls LSTMs, so that sentences and words keep their number, a small one."""
    datamodule = make_data(source, batch_size=16, validation_size=11, vocab_size=400, max_sentences=3, max_words=8)
    torch.manual_seed(0)
    encoder = HAN(vocab_size=400, embedding_dim=8, hidden_size=4, num_layers=2)
    model = NCMTL(encoder, num_tasks=4, cluster_features=(8, 6), num_clusters=(2, 3))
    callback = NetworkClusteringCallback(warmup_steps=2)
    make_trainer(max_epochs=1, callbacks=[callback]).fit(model, datamodule=datamodule)
    small = compact(model.eval())
    batches = [(batch["inputs"], batch["task_ids"]) for batch in datamodule.val_dataloader()]
    lengths = [batch["sentence_lengths"] for batch, _ in batches]
    room = (max(map(len, lengths)), int(torch.cat(lengths).max()))

    def pad(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        lengths = torch.ones(room[0], dtype=torch.int64)
        lengths[: len(inputs["sentence_lengths"])] = inputs["sentence_lengths"]
        tokens = torch.zeros(room, dtype=torch.int64)
        for row, sentence in zip(tokens, inputs["tokens"].split(inputs["sentence_lengths"].tolist()), strict=False):
            row[: len(sentence)] = sentence
        return {**inputs, "tokens": tokens, "sentence_lengths": lengths}

    documents = Dim("documents")
    shapes = {"tokens": None, "sentence_lengths": None, "document_lengths": {0: documents}}
    inputs, task_ids = batches[0]
    program = torch.export.export(small, (pad(inputs), task_ids), dynamic_shapes=(shapes, {0: documents}), strict=False)
    assert len({len(tasks) for _, tasks in batches}) > 1
    for inputs, task_ids in batches:
        expected = small(inputs, task_ids)
        torch.testing.assert_close(program.module()(pad(inputs), task_ids), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
@pytest.mark.parametrize(("make", "targets"), [(Heads, ["heads"]), (Stacked, ["experts", "binary"])])
def test_torch_export_of_user_modules(make: type[Heads], targets: list[str], make_trainer: MakeTrainer) -> None:
    model = make()
    small = compact(model, fit(model, targets, make_trainer))
    rows = Dim("rows")
    x, _, task_ids = data(10)[:]
    program = torch.export.export(small, (x, task_ids), dynamic_shapes=({0: rows}, {0: rows}), strict=False)
    for count in (1, 7, 50):
        x, _, task_ids = data(count, seed=count)[:]
        torch.testing.assert_close(program.module()(x, task_ids), small(x, task_ids), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:Guards may run slower"
)
def test_classes_of_tasks_are_kept(tmp_path: Path) -> None:
    def make() -> NCMTL:
        classes = [[0, 1], [2, 3, 4], [4], [0, 1, 2, 3, 4]]
        return NCMTL(nn.Linear(3, 6), 4, num_classes=5, cluster_features=(8,), num_clusters=(2,), task_classes=classes)

    model = make().eval()
    model.cluster_layers[0].assignment = torch.tensor([0, 1, 1, 0])
    small = compact(model)
    save(small, tmp_path / "it")
    assert not any("output_mask" in name for name in load_file(tmp_path / "it/model.safetensors"))
    loaded = load(tmp_path / "it", module=make())
    rows = Dim("rows")
    x, task_ids = torch.randn(9, 3), torch.arange(9) % 4
    program = torch.export.export(small, (x, task_ids), dynamic_shapes=({0: rows}, {0: rows}), strict=False)
    for count in (9, 5):
        expected = model(x[:count], task_ids[:count])
        assert expected.isneginf().sum(1).tolist() == [3, 2, 4, 0, 3, 2, 4, 0, 3][:count]
        for compacted in (small, loaded, program.module()):
            torch.testing.assert_close(compacted(x[:count], task_ids[:count]), expected, rtol=0, atol=1e-6)


def test_what_is_kept_lies_where_the_weights_are() -> None:
    """As on a GPU, beside which tensors of the CPU cannot be used."""
    model, assignment = Stacked().to(DEVICE), torch.arange(6) % 2
    with DeviceCalls() as calls:
        compaction._restructure(model, {"binary": assignment}, ["binary"])
        shape = model.binary.weight.shape
    assert shape[0] == 6
    assert calls.mixed == []
    assert {each.device for each in model.buffers()} == {DEVICE}
