"""What is written of a comparison: ``results.csv``, ``pairs.csv``, ``report.md`` and ``figures``."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_ncmtl.callbacks.cluster_pictures import draw_flow
from lightning_ncmtl.comparison import figures
from lightning_ncmtl.comparison.plan import OUTCOMES, Cell, Sweep, folder_of, hash_code
from lightning_ncmtl.comparison.statistics import CellKey, assignment_stability, compare_pairs

_TEMPLATE = Path(__file__).with_name("report.md.j2")
_KEYS = ["system", "sweep", "value", "seed", "fold"]


def write_report(cells: list[Cell], sweeps: Mapping[str, Sweep], output: Path, baseline: str, console: Console) -> None:
    """Write everything about finished cells, and show the table of accuracies.

    Args:
        cells: The cells.
        sweeps: What varies in some of them.
        output: The folder.
        baseline: The system that figures compare the others with.
        console: Where the table is shown.
    """
    results = [result for cell in cells if (result := cell.read_result()) is not None]
    stage = "test" if cells[0].test else "val"
    table = pd.DataFrame([_row(result, stage) for result in results])
    table.to_csv(output / "results.csv", index=False)
    main = table[table["sweep"].isna()]
    pairs = _pairs([cell for cell in cells if cell.sweep is None], main, stage, results[0].get("folds"))
    pairs.to_csv(output / "pairs.csv", index=False)
    clusters = _clusters(results)
    clusters.to_csv(output / "clusters.csv", index=False)
    tables = {
        "accuracy": _summary(main),
        "domains": _by_domain(main),
        "pairs": _readable_pairs(pairs),
        "variations": _summary(table[table["sweep"].notna()]),
        "clusters": _readable_clusters(clusters),
        "copies": _copies(results),
    }
    environments = {", ".join(f"{name} {value}" for name, value in r["environment"].items()) for r in results}
    by_directory = {cell.directory: result for cell, result in zip(cells, results, strict=True)}
    other_code = [r.get("code", "unknown") for r in by_directory.values() if r.get("code") != hash_code()]
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(_TEMPLATE.read_text())
    text = template.render(
        tables=tables,
        stage=stage,
        first=cells[0].name,
        trainings=len(by_directory),
        seeds=sorted({result["seed"] for result in results}),
        folds=sorted({result["fold"] for result in results if result["fold"] is not None}),
        environments=sorted(environments),
        code=hash_code(),
        other_code=other_code,
    )
    (output / "report.md").write_text(text, encoding="utf-8")
    for name, figure in _figures(results, stage, sweeps, main, pairs, clusters, baseline):
        (output / "figures").mkdir(exist_ok=True)
        figure.savefig(output / "figures" / f"{name}.png", dpi=100)
    _show(main, console)
    if other_code:
        console.print(f"{len(other_code)} of {len(by_directory)} results come from other code: see the report")
    console.print(f"Report: {escape(str(output / 'report.md'))}", soft_wrap=True)


def _row(result: dict[str, Any], stage: str) -> dict[str, Any]:
    curve = result["curves"].get("")
    epochs = result.get("epochs")
    metrics = result[stage]
    row = {key: result[key] for key in _KEYS} | {
        "accuracy": metrics["accuracy"],
        "accuracy_clean": metrics.get("accuracy_clean"),
        "validation_accuracy": result["val"]["accuracy"],
        "last_epoch_accuracy": result["last"]["accuracy"],
        "best_epoch": None if epochs is None else epochs[int(np.argmax(curve))],
        "clustered_from_epoch": result.get("clustered_from_epoch"),
        "parameters": result["parameters"],
        "shared_parameters": result.get("compact_parameters"),
        "seconds": round(result["seconds"], 1),
    }
    row |= {f"ari/{layer}": value for layer, value in (result["ari"] or {}).items()}
    return row | dict(metrics)


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per system, in the order in which they were given; the best values bold."""
    columns = {"best epoch": "accuracy", "without copies": "accuracy_clean", "last epoch": "last_epoch_accuracy"}
    groups = list(table.groupby("system", sort=False))
    rows: dict[str, list[str]] = {"system": [str(name) for name, _ in groups]}
    for title, column in columns.items():
        if table[column].notna().any():
            rows[title] = _percent([group[column] for _, group in groups])
    if table["best_epoch"].notna().any():
        rows["chosen"] = [_range(group["best_epoch"]) for _, group in groups]
    rows["parameters"] = [f"{group['parameters'].iloc[0]:,}" for _, group in groups]
    if table["shared_parameters"].notna().any():
        shared = [group["shared_parameters"].mean() for _, group in groups]
        rows["shared"] = ["" if np.isnan(value) else f"{value:,.0f}" for value in shared]
    rows["seconds"] = [f"{group['seconds'].mean():,.0f}" for _, group in groups]
    rows["cells"] = [str(len(group)) for _, group in groups]
    return pd.DataFrame(rows)


def _range(epochs: "pd.Series[float]") -> str:
    low, high = epochs.min(), epochs.max()
    return "" if np.isnan(low) else f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _by_domain(table: pd.DataFrame) -> pd.DataFrame:
    """One row per domain, one column per system."""
    prefix = "accuracy/"
    groups = list(table.groupby("system", sort=False))
    rows = []
    for column in [c for c in table.columns if c.startswith(prefix) and table[c].notna().any()]:
        values = _percent([group[column] for _, group in groups])
        rows.append([column.removeprefix(prefix), *values])
    return pd.DataFrame(rows, columns=["domain", *(name for name, _ in groups)])


def _percent(groups: list["pd.Series[float]"]) -> list[str]:
    """Mean and standard deviation of each; the highest mean is bold."""
    means = [100 * group.mean() for group in groups]
    best = max((round(mean, 1) for mean in means if not np.isnan(mean)), default=None)
    texts = []
    for mean, group in zip(means, groups, strict=True):
        text = "" if np.isnan(mean) else f"{mean:.1f}"
        if text and len(group) > 1:
            text += f" ± {100 * group.std():.1f}"
        texts.append(f"**{text}**" if text and round(mean, 1) == best else text)
    return texts


def _pairs(cells: list[Cell], table: pd.DataFrame, stage: str, folds: int | None) -> pd.DataFrame:
    """The tests, of systems that were evaluated on the same documents."""
    outcomes: dict[CellKey, dict[str, Any]] = {}
    corpora: dict[str, set[tuple[int | None, bytes]]] = {}
    for cell in cells:
        with np.load(cell.directory / OUTCOMES) as arrays:
            prefix = f"{stage}_"
            outcomes[cell.system, cell.seed, cell.fold] = {
                name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)
            }
            documents = outcomes[cell.system, cell.seed, cell.fold]
            both = np.stack([documents["domain"], documents["document"]]).tobytes()
            corpora.setdefault(cell.system, set()).add((cell.fold, both))
    parts = []
    for corpus in dict.fromkeys(map(frozenset, corpora.values())):
        mine = {system for system, found in corpora.items() if found == corpus}
        own = {key: value for key, value in outcomes.items() if key[0] in mine}
        parts.append(
            compare_pairs(table[table["system"].isin(mine)], own, test_fraction=None if not folds else 1 / folds)
        )
    return pd.concat(parts, ignore_index=True)


def _readable_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    def p(values: "pd.Series[float]") -> list[str]:
        return ["" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}" for value in values]

    return pd.DataFrame(
        {
            "first": pairs["first"],
            "second": pairs["second"],
            "difference": [f"{value:+.2f}" for value in pairs["difference"]],
            "interval": [f"{low:+.2f} to {high:+.2f}" for low, high in zip(pairs["low"], pairs["high"], strict=True)],
            "p, documents": p(pairs["p_bootstrap"]),
            "Holm": p(pairs["p_bootstrap_holm"]),
            "p, cells": p(pairs["p_t"]),
        }
    )


def _clusters(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Stability over seeds (and agreement with planted groups) of each layer in which there was a choice."""
    found: dict[tuple[str, str, str, int, int], dict[str, list[Any]]] = {}
    for result in results:
        for layer, what in result["clusters"].items():
            clusters = what["num_clusters"]
            if 1 < clusters < len(result["domains"]) and what["assignment"]:
                key = (result["system"], result["sweep"], result["value"], layer, clusters)
                entry = found.setdefault(key, {"assignments": [], "ari": []})
                entry["assignments"].append(what["assignment"])
                if result["ari"] is not None:
                    entry["ari"].append(result["ari"][layer])
    rows = []
    for (system, sweep, value, layer, clusters), entry in found.items():
        row = {"setting": system, "sweep": sweep, "value": value, "layer": layer, "clusters": clusters}
        row["cells"] = len(entry["assignments"])
        if len(entry["assignments"]) > 1:
            stability = assignment_stability(entry["assignments"])
            names = ("ari", "null_mean", "null_high", "p_value")
            row |= dict(zip(names, stability, strict=True))
        if entry["ari"]:
            row |= {"planted": np.mean(entry["ari"]), "planted_sd": pd.Series(entry["ari"]).std()}
        rows.append(row)
    columns = ["setting", "sweep", "value", "layer", "clusters", "cells", "ari", "null_mean", "null_high", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "planted", "planted_sd"])


def _readable_clusters(clusters: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame({"setting": clusters["setting"], "layer": clusters["layer"], "K": clusters["clusters"]})
    several = clusters["cells"] > 1
    table["stability"] = [f"{ari:.2f}" if many else "" for ari, many in zip(clusters["ari"], several, strict=True)]
    chance = zip(clusters["null_mean"], clusters["null_high"], several, strict=True)
    table["by chance"] = [f"{mean:.2f}, {high:.2f}" if many else "" for mean, high, many in chance]
    table["p"] = ["" if np.isnan(value) else f"{value:.3f}" for value in clusters["p_value"].astype(float)]
    if clusters["planted"].notna().any():
        planted = zip(clusters["planted"], clusters["planted_sd"], strict=True)
        table["planted"] = [
            "" if np.isnan(mean) else f"{mean:.2f}" if np.isnan(sd) else f"{mean:.2f} ± {sd:.2f}"
            for mean, sd in planted
        ]
    table["cells"] = clusters["cells"]
    return table


def _copies(results: list[dict[str, Any]]) -> pd.DataFrame:
    """Of the first cell."""
    copies = results[0]["copies"]
    table = pd.DataFrame([{"domain": domain, **counts} for domain, counts in copies.items()])
    total = table.drop(columns="domain").sum()
    return pd.concat([table, pd.DataFrame([{"domain": "all", **total}])], ignore_index=True)


def _figures(
    results: list[dict[str, Any]],
    stage: str,
    sweeps: Mapping[str, Sweep],
    main: pd.DataFrame,
    pairs: pd.DataFrame,
    clusters: pd.DataFrame,
    baseline: str,
) -> Iterator[tuple[str, Figure]]:
    yield "accuracy", figures.draw_accuracy(main)
    compared = [*pairs["first"], *pairs["second"]]
    if compared:
        yield "differences", figures.draw_differences(pairs, baseline if baseline in compared else compared[0])
    curves = [
        {"epoch": epoch, "domain": domain, "accuracy": accuracy, **{key: result[key] for key in _KEYS}}
        for result in results
        if result["sweep"] is None and result["curves"]
        for domain, values in result["curves"].items()
        for epoch, accuracy in zip(result["epochs"], values, strict=True)
        if domain
    ]
    if curves:
        yield "epochs", figures.draw_curves(pd.DataFrame(curves))
    drawn = set()
    for result in results:
        layers = {name: layer["assignment"] for name, layer in result["clusters"].items() if layer["assignment"]}
        if layers and result["sweep"] is None and result["system"] not in drawn:
            drawn.add(result["system"])
            yield f"clusters-{folder_of(result['system'])}", draw_flow(layers, result["domains"])
    stability = clusters[clusters["ari"].notna()]
    if len(stability):
        yield "stability", figures.draw_stability(stability)
    recovery = []
    for name, sweep in sweeps.items():
        mine = [result for result in results if result["sweep"] == name]
        if sweep.figure == "recovery":
            recovery += [
                {"setting": name, "value": result["value"], "seed": result["seed"], "ari": ari}
                for result in mine
                if (ari := _planted(result)) is not None
            ]
            continue
        if not mine:
            continue
        rows = [{"width": result["value"], "accuracy": _row(result, stage)["accuracy"], **result} for result in mine]
        if sweep.figure == "grid" and all(len(row["clusters"]) > 1 for row in rows):
            for row in rows:
                row["first"], row["second"] = [layer["num_clusters"] for layer in row["clusters"].values()][:2]
            yield f"sweep-{folder_of(name)}", figures.draw_grid(pd.DataFrame(rows)[["first", "second", "accuracy"]])
        else:
            yield f"sweep-{folder_of(name)}", figures.draw_widths(pd.DataFrame(rows)[["width", "accuracy", "seed"]])
    if recovery:
        yield "recovery", figures.draw_recovery(pd.DataFrame(recovery))


def _planted(result: dict[str, Any]) -> float | None:
    """Agreement with the planted groups of the first layer in which there was a choice."""
    for layer, what in result["clusters"].items():
        if 1 < what["num_clusters"] < len(result["domains"]) and what["assignment"]:
            return None if result["ari"] is None else float(result["ari"][layer])
    return None


def _show(table: pd.DataFrame, console: Console) -> None:
    """What fits into 80 columns; the rest is in the report."""
    shown = Table("system", title="Accuracy", title_justify="left")
    for title in ("accuracy", "parameters", "cells"):
        shown.add_column(title, justify="right", no_wrap=True)
    groups = list(table.groupby("system", sort=False))
    accuracies = _percent([group["accuracy"] for _, group in groups])
    for (name, group), accuracy in zip(groups, accuracies, strict=True):
        bold = re.sub(r"\*\*(.*)\*\*", r"[bold]\1[/bold]", accuracy)
        shown.add_row(escape(str(name)), bold, f"{group['parameters'].iloc[0]:,}", str(len(group)))
    console.print(shown)
