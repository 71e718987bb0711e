"""A plain loop: which of 12 shops sell alike? Network clustering is five lines, with a sampler of two halves."""

import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ncmtl import NetworkClustering
from lightning_ncmtl.clustering import HalvesSampler

torch.manual_seed(0)
kinds, shop = torch.arange(12) % 3, torch.arange(1200) % 12  # the kinds are planted, and not told to the model
x = torch.randn(1200, 8)
y = (x * torch.randn(3, 8)[kinds[shop]]).sum(1) + 0.5 * torch.randn(1200)

model = nn.ModuleDict({"base": nn.Linear(8, 16), "heads": nn.ModuleList(nn.Linear(16, 1) for _ in range(12))})
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
clusters = NetworkClustering(model, targets="heads", warmup_steps=300)
sampler = HalvesSampler(len(x), examples_per_step=60)
loader = DataLoader(TensorDataset(x, y, shop), batch_size=60, sampler=sampler)
for _ in range(30):
    for inputs, sales, shops in loader:
        clusters.start_step(sampler.half_of(clusters.steps))
        hidden = model["base"](inputs).relu()
        out = torch.cat([head(hidden) for head in model["heads"]], 1).gather(1, shops[:, None])[:, 0]
        optimizer.zero_grad()
        nn.functional.mse_loss(out, sales).backward()
        clusters.before_step()
        optimizer.step()
        clusters.step()

print("clusters:", clusters.assignments["heads"].tolist())
print("adjusted Rand index:", adjusted_rand_score(kinds, clusters.assignments["heads"]))
