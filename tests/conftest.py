"""What several tests share: small corpora and quiet trainers."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if "NCMTL_TEST_CACHE" not in os.environ:  # a cache for this run, which processes that it starts share
    os.environ["NCMTL_TEST_CACHE"] = os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="ncmtl-test-")
    atexit.register(shutil.rmtree, os.environ["NCMTL_TEST_CACHE"], ignore_errors=True)

import datasets
import pytest
import torch
from data import make_data
from pytorch_lightning import Trainer

from lightning_ncmtl import NCMTL
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Synthetic
from lightning_ncmtl.encoders import HAN
from lightning_ncmtl.torch_versions import RESHARDS

collect_ignore = ["slow", "support"]  # programs that tests, or people, start
_NEED = {  # packages that the environment of the oldest versions does not have
    "peft": ["callbacks/test_shapes_of_projects.py", "lightning_ncmtl/test_hugging_face_peft.py"],
    "torchjd": ["lightning_ncmtl/modules/test_aggregation.py"],
    "transformers": ["lightning_ncmtl/test_hugging_face.py"],
}
for package, files in _NEED.items():
    if find_spec(package) is None:
        collect_ignore += files
if not RESHARDS:  # sharded parameters are refused
    collect_ignore += ["callbacks/test_network_clustering_sharded.py", "lightning_ncmtl/clustering/test_slices.py"]
datasets.disable_progress_bars()
torch.set_num_threads(1)  # tiny models


@pytest.fixture
def source() -> Synthetic:
    return Synthetic(num_domains=4, num_groups=2, train_documents=40, test_documents=21, opinion_words=12)


@pytest.fixture
def datamodule(source: Synthetic) -> MultiDomainDataModule:
    return make_data(source, batch_size=16, validation_size=11, vocab_size=400, min_frequency=1)


@pytest.fixture
def make_model() -> Callable[..., NCMTL]:
    def make(**settings: Any) -> NCMTL:
        torch.manual_seed(0)
        encoder = HAN(vocab_size=400, embedding_dim=8, hidden_size=4, num_layers=1)
        return NCMTL(encoder, **{"num_tasks": 4, "cluster_features": (8, 6), "num_clusters": (2, 3), **settings})

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**settings: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(**{**defaults, **settings})

    return make


@pytest.fixture(params=["apart", "shared"])
def clustering(request: pytest.FixtureRequest) -> Callable[..., NetworkClusteringCallback]:
    """The callback on the project of tests/support/projects.py, with either warm-up."""

    def make(**settings: Any) -> NetworkClusteringCallback:
        defaults = {"num_clusters": 2, "targets": "heads", "warmup_steps": 2, "warmup": request.param}
        return NetworkClusteringCallback(**{**defaults, **settings})

    return make
