# %% [markdown]
# # Tables of features: which of 24 tasks are alike?
#
# 24 hospitals each want to tell which patients will come back, from 10 measurements of each patient and 100 patients of
# their own. What matters differs between three kinds of hospitals, but nobody knows the kinds. Should all hospitals
# share one network, have one each, or something between? Network clustering finds out.
#
#     python examples/feature_tables.py
#
# takes about 15 seconds on one core, and leaves no files. All data is made up. With the seeds 0 to 4 it finds the three
# kinds (adjusted Rand index 1.0), and the area under the ROC curve on new patients is 0.03 to 0.04 above that of a
# network for each hospital, and 0.13 to 0.26 above that of one for all. It needs so many patients: with 48 to train on
# instead of 90, the index was 1.0, 1.0, 0.42 and 0.87 with the seeds 0 to 3.

# %%
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import Trainer, seed_everything
from torchmetrics.functional.clustering import adjusted_rand_score

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import BatchSettings, MultiDomainDataModule, SplitSettings
from lightning_ncmtl.datamodules.sources import FeatureTables
from lightning_ncmtl.encoders import Identity

# Of no use to a reader: advice about worker processes (all data is in memory), and warnings of torch 2.13 to others
warnings.filterwarnings("ignore", ".*does not have many workers|`isinstance.treespec|Sparse invariant checks")

# %% [markdown]
# Each kind of hospital has weights of its own for the measurements; a patient comes back with the probability that the
# logistic function of the weighted sum says. The tables are as yours would be: a row for each patient, with a column of
# the task. (A CSV or Parquet file would do as well, or one file for each hospital.)

# %%
TASKS, KINDS, FEATURES = 24, 3, 10
SEED = 0
rng = np.random.default_rng(SEED)
weights = rng.standard_normal((KINDS, FEATURES))
kinds = np.arange(TASKS) % KINDS


def write_table(file: Path, rows_per_task: int) -> str:
    task = np.repeat(np.arange(TASKS), rows_per_task)
    x = rng.standard_normal((len(task), FEATURES))
    probability = 1 / (1 + np.exp(-(x * weights[kinds[task]]).sum(1)))
    names = np.array([f"hospital{number:02d}" for number in task])
    np.savez(file, measured=x, hospital=names, returned=(rng.random(len(task)) < probability).astype(int))
    return str(file)


folder = tempfile.TemporaryDirectory()
source = FeatureTables(
    path=write_table(Path(folder.name) / "train.npz", 100),
    test_path=write_table(Path(folder.name) / "test.npz", 200),
    features="measured*",  # the columns of the matrix are measured1, measured2, ...
    label="returned",
    task="hospital",
)
data = MultiDomainDataModule(
    source,
    split=SplitSettings(validation_size=0.1),
    batches=BatchSettings(size=64),
    cache_dir=folder.name,
)

# %% [markdown]
# A network for each task from the input on, whose two layers are clustered. `None` is the number of clusters for which
# there is evidence: two halves of the rows must agree on it. (With fewer than nine tasks there never is enough: halves
# agree too often by chance.) 1 and 24 clusters are what one would do without: share all, share nothing.


# %%
def train(num_clusters: int | None) -> tuple[float, torch.Tensor]:
    """AUROC on new rows, averaged over the tasks, and the cluster of each task."""
    seed_everything(SEED)
    model = NCMTL(
        Identity(FEATURES),
        TASKS,
        cluster_features=[16],
        task_names=data.domains,
        metrics=["AUROC"],
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.003),
    )
    clustering = NetworkClusteringCallback(targets=["cluster_layers.0", "head"], num_clusters=num_clusters)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=30,
        callbacks=[clustering],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.name,
    )
    trainer.fit(model, data)
    (result,) = trainer.test(model, data, verbose=False)
    if (evidence := clustering.clusters.evidence) is not None:
        print(f"evidence for {evidence.num_clusters} clusters, p = {evidence.p_value:.3f}")
    return result["test/AUROC"], clustering.assignments["head"]


found = {name: train(number) for name, number in {"auto": None, "K = 1": 1, "K = N": TASKS}.items()}

# %%
for name, (auroc, _) in found.items():
    print(f"{name:<6}AUROC {auroc:.3f}")
clusters = found["auto"][1]
for cluster in clusters.unique():
    print(f"cluster {cluster}: {', '.join(np.array(data.domains)[clusters == cluster])}")
print(f"adjusted Rand index: {adjusted_rand_score(clusters, torch.tensor(kinds)):.3f}")
folder.cleanup()
