"""K-means over few points in many dimensions, and the sharing step of network clustering, without Lightning."""

from lightning_ncmtl.clustering.kmeans import KMeansResult, check_backend, kmeans
from lightning_ncmtl.clustering.sharing import align_labels, assign_tasks, cluster_centers, share

__all__ = ["KMeansResult", "align_labels", "assign_tasks", "check_backend", "cluster_centers", "kmeans", "share"]
