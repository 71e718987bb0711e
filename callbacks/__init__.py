"""When clustering happens and how it is watched."""

from lightning_ncmtl.callbacks.cluster_report import ClusterReport
from lightning_ncmtl.callbacks.last_checkpoint import Interrupted, LastCheckpoint
from lightning_ncmtl.callbacks.network_clustering import NetworkClusteringCallback
from lightning_ncmtl.callbacks.prediction_writer import PredictionWriter
from lightning_ncmtl.callbacks.resumable_checkpoint import ResumableCheckpoint
from lightning_ncmtl.callbacks.screen import ParameterSummary, TrainingProgress
from lightning_ncmtl.callbacks.step_seed import StepSeed

__all__ = [
    "ClusterReport",
    "Interrupted",
    "LastCheckpoint",
    "NetworkClusteringCallback",
    "ParameterSummary",
    "PredictionWriter",
    "ResumableCheckpoint",
    "StepSeed",
    "TrainingProgress",
]
