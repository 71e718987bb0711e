"""Tiny random models, saved as Hugging Face saves them."""

import copy
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from tiny_models import save_model
from torch import Tensor

from lightning_ncmtl import ASPMTL, NCMTL
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.encoders import Transformer, transformer
from lightning_ncmtl.errors import InputError

transformers = pytest.importorskip("transformers")
DOCUMENTS = [[2, 7, 9, 3], [2, 30, 31, 32, 7, 8, 3], [2, 3]]
MODELS = ["Bert", "Roberta", "DistilBert"]


def batch(documents: list[list[int]]) -> dict[str, Tensor]:
    """The words of each document but the last are its first sentence."""
    return {
        "tokens": torch.tensor([word for document in documents for word in document]),
        "sentence_lengths": torch.tensor([length for document in documents for length in (len(document) - 1, 1)]),
        "document_lengths": torch.full((len(documents),), 2),
    }


def token_vectors(path: str, document: list[int]) -> Tensor:
    model = transformers.AutoModel.from_pretrained(path).eval()
    vectors: Tensor = model(input_ids=torch.tensor([document])).last_hidden_state[0]
    return vectors


@pytest.mark.parametrize("model", MODELS)
def test_equals_the_model_on_one_document_after_the_other(tmp_path: Path, model: str) -> None:
    path = save_model(tmp_path, model)
    vectors = [token_vectors(path, document) for document in DOCUMENTS]
    mean, first = Transformer(path).eval(), Transformer(path, pooling="first").eval()
    assert mean.out_features == 16
    torch.testing.assert_close(mean(batch(DOCUMENTS)), torch.stack([x.mean(0) for x in vectors]))
    torch.testing.assert_close(first(batch(DOCUMENTS)), torch.stack([x[0] for x in vectors]))


def test_the_padding_is_that_of_the_config(tmp_path: Path) -> None:
    encoder, seen = Transformer(save_model(tmp_path, "Roberta")), []
    encoder.model.register_forward_pre_hook(lambda *args: seen.append(args[2]["input_ids"]), with_kwargs=True)
    encoder(batch([[2, 3], [2, 7, 8, 3]]))
    assert seen[0].tolist() == [[2, 3, 1, 1], [2, 7, 8, 3]]


@pytest.mark.parametrize("model", MODELS)
def test_all_parameters_learn(tmp_path: Path, model: str) -> None:
    """Also, there is none that has no part in the outcome, on which distributed training would fail."""
    encoder = Transformer(save_model(tmp_path, model))
    assert all(module.training for module in encoder.modules())
    (encoder(batch(DOCUMENTS)) * torch.arange(16.0).cos()).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(batch(DOCUMENTS)).isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_long_documents_are_read_from_their_start(tmp_path: Path, model: str) -> None:
    path = save_model(tmp_path, model)
    document = [2, *range(10, 40), 3]
    for setting, read in ((None, 20), (5, 5)):
        encoder = Transformer(path, max_tokens=setting).eval()
        expected = token_vectors(path, document[:read]).mean(0)
        torch.testing.assert_close(encoder(batch([document]))[0], expected)


def test_weights_may_be_frozen_or_random(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    assert not any(p.requires_grad for p in Transformer(path, freeze=True).parameters())
    expected = token_vectors(path, DOCUMENTS[0]).mean(0)
    (tmp_path / "model.safetensors").unlink()
    encoder = Transformer(path, pretrained=False).eval()
    assert not torch.allclose(encoder(batch(DOCUMENTS[:1]))[0], expected)


def test_weights_of_16_bits_are_trained_in_32(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    transformers.AutoModel.from_pretrained(path).bfloat16().save_pretrained(path)
    for pretrained in (True, False):
        assert {p.dtype for p in Transformer(path, pretrained=pretrained).parameters()} == {torch.float32}


def test_a_copy_is_one_of_its_own(tmp_path: Path) -> None:
    encoder = Transformer(save_model(tmp_path)).eval()
    other = copy.deepcopy(encoder)
    before = encoder(batch(DOCUMENTS))
    assert torch.equal(other(batch(DOCUMENTS)), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(encoder(batch(DOCUMENTS)), before)


def test_private_encoders_are_pretrained_too(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    encoder = Transformer(path).eval()
    for private in ASPMTL(encoder, 2).eval().private_encoders:
        assert torch.equal(private(batch(DOCUMENTS)), encoder(batch(DOCUMENTS)))
    encoder = Transformer(path, pretrained=False).eval()
    for private in ASPMTL(encoder, 2).eval().private_encoders:
        assert not torch.allclose(private(batch(DOCUMENTS)), encoder(batch(DOCUMENTS)))


def test_it_trains_in_a_network(
    tmp_path: Path, make_trainer: Callable[..., Trainer], datamodule: MultiDomainDataModule
) -> None:
    torch.manual_seed(0)
    path = save_model(tmp_path, vocab_size=400, max_position_embeddings=200)
    model = NCMTL(Transformer(path, vocab_size=400), num_tasks=4, cluster_features=(8,), num_clusters=(2,))
    trainer = make_trainer(max_epochs=1, precision="bf16-mixed")
    trainer.fit(model, datamodule=datamodule)
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "max"}, "pooling must be mean or first, found 'max'"),
        ({"dropout": 1}, "dropout must be at least 0 and less than 1, found 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1 and at most the 20 of '.*', found 0"),
        ({"max_tokens": 21}, "max_tokens must be at least 1 and at most the 20 of '.*', found 21"),
        ({"vocab_size": 51}, "the tokenizer of the data has 51 words, more than the 50 of '.*': tokenise with the"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transformer(save_model(tmp_path), **arguments)


def test_a_model_without_positions_needs_max_tokens(tmp_path: Path) -> None:
    transformers.XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=24).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not say how many tokens it can read: set max_tokens"):
        Transformer(str(tmp_path), pretrained=False)
    assert Transformer(str(tmp_path), pretrained=False, max_tokens=7)(batch(DOCUMENTS)).shape == (3, 16)
    with pytest.raises(InputError, match="max_tokens must be at least 1, found 0"):
        Transformer(str(tmp_path), pretrained=False, max_tokens=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is no folder or name on the hub of a model that can be read: "),
        ("{}", "is no folder or name on the hub of a model that can be read: "),
        ('{"model_type": "bert", "hidden_size": "big"}', "of a model that can be read: .*hidden_size"),
        ('{"model_type": "bert"}', "of a model that can be read: .*no file named model.safetensors"),
        ('{"model_type": "bart"}', r"is an encoder with a decoder \(bart\): choose one without a decoder"),
        ('{"model_type": "vit"}', r"is no model of text \(vit\): choose an encoder of text"),
    ],
)
def test_folders_without_an_encoder_of_text_are_refused(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(InputError, match="is no folder or name on the hub of a model") as none:
        Transformer(str(tmp_path))
    assert "\n" not in str(none.value)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=message) as found:
        Transformer(str(tmp_path))
    assert "\n" not in str(found.value)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 3}, "lack 16 of the model's parameters, such as encoder.layer.2"),
        ({"intermediate_size": 32}, "of a model that can be read: "),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            Transformer(path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="of a model that can be read: .*metadata"):
        Transformer(path)


def test_transformers_is_not_needed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    cls = runpy.run_path(transformer.__file__)["Transformer"]
    with pytest.raises(InputError, match=r"needs transformers: pip install 'lightning-ncmtl\[transformers\]'"):
        cls("anywhere")
