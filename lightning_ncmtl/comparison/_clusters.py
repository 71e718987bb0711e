"""Tables of the clusters that systems found: how alike they are over cells, and what evidence there was for them."""

from typing import Any

import numpy as np
import pandas as pd

from lightning_ncmtl.comparison._tables import drop_empty, format_values
from lightning_ncmtl.comparison.agreement import assignment_stability, mean_agreement
from lightning_ncmtl.comparison.plan import NAMES


def find_choices(results: list[dict[str, Any]]) -> pd.DataFrame:
    """The layers of each cell in which there was a choice of clusters, and their agreement with planted groups."""
    rows = [
        {
            **{key: result[key] for key in NAMES},
            "layer": layer,
            "clusters": what["num_clusters"],
            "assignment": what["assignment"],
            "planted": np.nan if result["ari"] is None else result["ari"][layer],
        }
        for result in results
        for layer, what in result["clusters"].items()
        if 1 < what["num_clusters"] < len(result["domains"]) and what["assignment"]
    ]
    return pd.DataFrame(rows, columns=[*NAMES, "layer", "clusters", "assignment", "planted"])


def find_stability(choices: pd.DataFrame) -> pd.DataFrame:
    """Stability over seeds, and agreement with planted groups, of each layer in which there was a choice."""
    keys = ["system", "sweep", "value", "layer", "clusters"]
    rows = []
    for key, group in choices.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, key, strict=True)) | {"cells": len(group)}
        if len(group) > 1:
            row |= assignment_stability(list(group["assignment"]))._asdict()
        rows.append(row | {"planted": group["planted"].mean(), "planted_sd": group["planted"].std()})
    stability = ["cells", "ari", "null_mean", "null_high", "p_value", "planted", "planted_sd"]
    return pd.DataFrame(rows, columns=[*keys, *stability]).rename(columns={"system": "setting"})


def readable_stability(clusters: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "setting": clusters["setting"],
        "layer": clusters["layer"],
        "K": clusters["clusters"],
        "stability": format_values(clusters["ari"], "{:.2f}"),
        "by chance": format_values(clusters["null_mean"], "{:.2f}, ") + format_values(clusters["null_high"], "{:.2f}"),
        "p": format_values(clusters["p_value"], "{:.3f}"),
        "planted": format_values(clusters["planted"], "{:.2f}") + format_values(clusters["planted_sd"], " ± {:.2f}"),
        "cells": clusters["cells"],
    }
    return drop_empty(pd.DataFrame(columns))


def find_evidence(results: list[dict[str, Any]]) -> pd.DataFrame:
    """What halves of the data say, of each setting that has looked at them; lists have an element for each cell."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if result.get("evidence"):
            groups.setdefault(result["system"], []).append(result)
    names = ["agreement", "agreement_error", "num_clusters", "p_value"]
    rows = []
    for setting, group in groups.items():
        found = {name: [result["evidence"][name] for result in group] for name in names}
        mean = mean_agreement(found["agreement"], found["agreement_error"], len(group[0]["domains"]))
        seeds = [f"{result['seed']}" + f"/{result['fold']}" * (result["fold"] is not None) for result in group]
        rows.append({"setting": setting, **mean._asdict(), **found, "seed": seeds})
    return pd.DataFrame(rows, columns=["setting", "mean", "low", "high", *names, "seed"])


def readable_evidence(evidence: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "setting": evidence["setting"],
        "agreement": format_values(evidence["mean"], "{:.2f}"),
        "interval": format_values(evidence["low"], "{:.2f} to ") + format_values(evidence["high"], "{:.2f}"),
        "K": evidence["num_clusters"].map(lambda found: ", ".join(map(str, found))),
        "p": evidence["p_value"].map(lambda found: ", ".join(f"{p:.3g}" for p in found)),
        "seed": evidence["seed"].map(", ".join),
    }
    return drop_empty(pd.DataFrame(columns))
