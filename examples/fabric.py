"""Lightning Fabric: which of 12 shops sell alike? It goes on from its last checkpoint, if there is one."""

from pathlib import Path

import torch
from lightning_fabric import Fabric  # or: from lightning.fabric import Fabric
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_ncmtl import NetworkClustering
from lightning_ncmtl.clustering import HalvesSampler

fabric = Fabric(accelerator="cpu", devices=1)
torch.manual_seed(0)
kinds, shop = torch.arange(12) % 3, torch.arange(1200) % 12  # the kinds are planted, and not told to the model
x = torch.randn(1200, 8)
y = (x * torch.randn(3, 8)[kinds[shop]]).sum(1) + 0.5 * torch.randn(1200)
network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12))  # a row of the last layer is a shop
model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=0.01))
clusters = NetworkClustering(network, targets="2", warmup_steps=300)  # before weights are loaded
sampler = HalvesSampler(len(x), examples_per_step=60)
loader = fabric.setup_dataloaders(DataLoader(TensorDataset(x, y, shop), batch_size=60, sampler=sampler))
state = {"model": model, "optimizer": optimizer, "clusters": clusters}
if Path("last.ckpt").exists():
    fabric.load("last.ckpt", state)
for epoch in range(clusters.steps // sampler.steps_per_epoch, 30):
    sampler.epoch = epoch
    for inputs, sales, shops in loader:
        clusters.start_step(sampler.half_of(clusters.steps))
        optimizer.zero_grad()
        fabric.backward(nn.functional.mse_loss(model(inputs).gather(1, shops[:, None])[:, 0], sales))
        clusters.before_step()
        optimizer.step()
        clusters.step()
    fabric.save("next.ckpt", state)
    Path("next.ckpt").replace("last.ckpt")
print("clusters:", clusters.assignments["2"].tolist())
print("adjusted Rand index:", adjusted_rand_score(kinds, clusters.assignments["2"]))
