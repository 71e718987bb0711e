"""Network clustering without Lightning: targets, k-means for few points, the sharing step, evidence for clusters."""

from lightning_ncmtl.clustering._direct import means
from lightning_ncmtl.clustering._faiss import describe_faiss
from lightning_ncmtl.clustering.choice import choose_num_clusters
from lightning_ncmtl.clustering.evidence import Evidence, group_tasks, multiply_halves, weigh_evidence
from lightning_ncmtl.clustering.halves import HalvesSampler
from lightning_ncmtl.clustering.kmeans import KMeansResult, check_backend, kmeans
from lightning_ncmtl.clustering.network_clustering import NetworkClustering
from lightning_ncmtl.clustering.sharing import align_labels, assign_tasks, share
from lightning_ncmtl.clustering.target import Target
from lightning_ncmtl.clustering.targets import find_targets

__all__ = [
    "Evidence",
    "HalvesSampler",
    "KMeansResult",
    "NetworkClustering",
    "Target",
    "align_labels",
    "assign_tasks",
    "check_backend",
    "choose_num_clusters",
    "describe_faiss",
    "find_targets",
    "group_tasks",
    "kmeans",
    "means",
    "multiply_halves",
    "share",
    "weigh_evidence",
]
