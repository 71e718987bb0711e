"""Hugging Face's Trainer: which of 12 shops sell alike? It goes on from its last checkpoint, if there is one."""

from pathlib import Path

import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn
from transformers import Trainer, TrainingArguments

from lightning_ncmtl.hugging_face import NetworkClusteringTrainerCallback

torch.manual_seed(0)
kinds, shop = torch.arange(12) % 3, torch.arange(1200) % 12  # the kinds are planted, and not told to the model
x = torch.randn(1200, 8)
y = (x * torch.randn(3, 8)[kinds[shop]]).sum(1) + 0.5 * torch.randn(1200)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.heads = nn.Linear(8, 16), nn.ModuleList(nn.Linear(16, 1) for _ in range(12))

    def forward(self, inputs, shops, labels):
        hidden = self.base(inputs).relu()
        out = torch.cat([head(hidden) for head in self.heads], 1).gather(1, shops[:, None])[:, 0]
        return {"loss": nn.functional.mse_loss(out, labels), "logits": out}


rows = [{"inputs": x[n], "shops": shop[n], "labels": y[n]} for n in range(1200)]
settings = {"num_train_epochs": 30, "per_device_train_batch_size": 60, "learning_rate": 0.01, "save_steps": 150}
args = TrainingArguments("run", use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=150, **settings)
callback = NetworkClusteringTrainerCallback(targets="heads")
trainer = Trainer(Model(), args, train_dataset=rows, callbacks=[callback])
trainer.train(resume_from_checkpoint=any(Path("run").glob("checkpoint-*")))

print("clusters:", callback.assignments["heads"].tolist())
print("adjusted Rand index:", adjusted_rand_score(kinds, callback.assignments["heads"]))
