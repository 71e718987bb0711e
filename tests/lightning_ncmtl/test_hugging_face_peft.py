"""LoRA adapters of several languages, by PEFT, in Hugging Face's Trainer."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from projects import unshared
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from lightning_ncmtl.hugging_face import NetworkClusteringTrainerCallback

LANGUAGES = ["de", "en", "fr", "it"]


def make_model() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8))
    config = peft.LoraConfig(r=2, target_modules=["query", "value"])
    adapted = peft.get_peft_model(model, config, adapter_name=LANGUAGES[0])
    for name in LANGUAGES[1:]:
        adapted.add_adapter(name, config)
    return adapted


class OfLanguages(Trainer):  # type: ignore[misc]
    """Batches of several languages, each of which goes through its own adapter."""

    def create_optimizer(self, model: Any = None) -> Any:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)  # PEFT freezes all but one, also when a checkpoint is loaded
        return super().create_optimizer(model)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **settings: Any) -> Tensor:
        total, languages = torch.zeros(()), inputs.pop("language")
        for number in languages.unique().tolist():
            model.set_adapter(LANGUAGES[number])
            rows = languages == number
            total = total + rows.sum() * model(**{name: value[rows] for name, value in inputs.items()}).loss
        return total / len(languages)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_share_and_go_on(tmp_path: Path) -> None:
    torch.manual_seed(1)
    words, numbers = torch.randint(20, (96, 5)), torch.arange(96)
    keys = ("input_ids", "labels", "language")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(words, words[:, 0] % 2, numbers % 4, strict=True)]

    def run(name: str, checkpoint: Path | None = None) -> tuple[NetworkClusteringTrainerCallback, dict[str, Tensor]]:
        callback = NetworkClusteringTrainerCallback(2, "**.lora_?.*", warmup_steps=20)
        settings = {"per_device_train_batch_size": 16, "num_train_epochs": 5, "learning_rate": 0.01, "save_steps": 15}
        quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
        args = TrainingArguments(str(tmp_path / name), remove_unused_columns=False, **settings, **quiet)
        trainer = OfLanguages(make_model(), args, train_dataset=rows, callbacks=[callback])
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return callback, trainer.model.state_dict()

    whole, weights = run("whole")
    assert whole.clusters.tasks == LANGUAGES
    adapters = [[value.flatten() for name, value in weights.items() if f".{each}." in name] for each in LANGUAGES]
    assert len(adapters[0]) == 2 * 2 * 2  # layers, places, matrices
    assert unshared(torch.stack([torch.cat(each) for each in adapters]), whole.assignments["**.lora_?.*"]) == 0
    resumed, others = run("resumed", tmp_path / "whole/checkpoint-15")
    assert resumed.clusters.summarize() == whole.clusters.summarize()
    assert all(value.equal(others[name]) for name, value in weights.items())
