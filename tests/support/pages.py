"""Content of pages about runs that nobody trained."""

from typing import Any

import numpy as np
import torch

from lightning_ncmtl.callbacks.page.content import Best, Content
from lightning_ncmtl.clustering.evidence import multiply_halves, weigh_evidence

HOSTILE = [
    "<script>document.title = 'broken into'</script>",
    "\"quoted\" 'twice' & <b>bold</b>",
    "🍎🍏 fruit",
    "مهمة طويلة جدا",
    "a_very_long_name_without_any_place_to_break_" * 4,
    "</title></svg>{{ 7 * 7 }}",
]


def make_content(count: int, groups: int = 3, names: list[str] | None = None, **changes: Any) -> Content:
    """A training of so many tasks, whose groups two halves of the data show.

    Args:
        count: Number of tasks.
        groups: Of tasks that are alike.
        names: Of the first tasks.
        changes: Other values of the content.
    """
    rng = np.random.default_rng(count)
    tasks = [*(names or []), *(f"field {number:03d}" for number in range(count))][:count]
    group = np.arange(count) % groups
    centers = torch.tensor(rng.normal(size=(groups, 64)))[group]
    halves = [centers + torch.tensor(rng.normal(size=(count, 64))) * 1.4 for _ in range(2)]
    evidence = weigh_evidence([multiply_halves(*halves)], permutations=199)
    fine = group + groups * (np.arange(count) // groups % 2) if count >= 4 * groups else group
    layers = {
        name: {
            "num_clusters": len(set(clusters.tolist())),
            "assignment": dict(zip(tasks, clusters.tolist(), strict=True)),
            "frozen_at_step": 581,
            "trace": [[581, clusters.tolist()]],
        }
        for name, clusters in (("cluster_layers.0", group), ("cluster_layers.1", fine))
    }
    found = {
        "num_clusters": evidence.num_clusters,
        "p_value": evidence.p_value,
        "agreement": evidence.agreement,
        "agreement_error": None if np.isnan(evidence.agreement_error) else evidence.agreement_error,
        "gains": {str(k): gain for k, gain in evidence.gains.items()},
    }
    planted = dict(zip(tasks, group.tolist(), strict=True))
    report = {"layers": layers, "evidence": found, "planted": planted, "ari": {"cluster_layers.0": 1.0}}
    accuracy = np.clip(rng.normal(0.9, 0.04, count), 0, 1).round(3)
    steps = 58 * np.arange(1, 21)
    score = {"count": [200.0] * count, "accuracy": accuracy.tolist(), "loss": rng.gamma(2, 0.1, count).tolist()}
    values: dict[str, Any] = {
        "title": "NCMTL on the embedded corpus",
        "stage": "fit",
        "directory": "/home/somebody/runs/2026-11-30_21-45-05-fit",
        "tasks": tasks,
        "report": report,
        "facts": {"system": "NCMTL", "encoder": "HAN", "data": "Synthetic", "tasks": f"{count}, with 2 classes each"},
        "similarities": evidence.similarities.double().numpy(),
        "scores": {"val": score},
        "averages": {"val": {"accuracy": float(accuracy.mean()), "loss": 0.21}},
        "headline": ("accuracy", True),
        "curves": {
            "train/loss": [(int(step), float(0.7 * np.exp(-step / 400) + 0.05)) for step in steps],
            "val/loss": [(int(step), float(0.6 * np.exp(-step / 350) + 0.18)) for step in steps],
            "val/accuracy": [(int(step), float(0.93 - 0.4 * np.exp(-step / 300))) for step in steps],
        },
        "epochs": [(number + 1, int(step)) for number, step in enumerate(steps)],
        "last_step": int(steps[-1]),
        "best": Best("val/accuracy", float(0.93 - 0.4 * np.exp(-steps[-1] / 300)), int(steps[-1]), 20),
        "commands": {"Evaluate on test data": "ncmtl test --ckpt_path '/home/me/my runs/fit/checkpoints/best.ckpt'"},
        "config": "seed_everything: 1\ndata:\n  source: Synthetic\n",
    }
    return Content(**(values | changes))
