"""What is written of a comparison: ``results.csv``, ``pairs.csv``, ``clusters.csv``, ``report.md`` and ``figures``."""

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
from lightning_ncmtl.comparison._clusters import (
    find_choices,
    find_evidence,
    find_stability,
    readable_evidence,
    readable_stability,
)
from lightning_ncmtl.comparison._tables import drop_empty, format_values
from lightning_ncmtl.comparison.measure import CALIBRATION, Measure, measure_of
from lightning_ncmtl.comparison.plan import NAMES, OUTCOMES, Cell, Sweep, folder_of, hash_code
from lightning_ncmtl.comparison.statistics import CellKey, compare_pairs
from lightning_ncmtl.errors import InputError

_TEMPLATE = Path(__file__).with_name("report.md.j2")


def write_report(cells: list[Cell], sweeps: Mapping[str, Sweep], output: Path, baseline: str, console: Console) -> None:
    """Write everything about finished cells, and show the table of what systems reach.

    Args:
        cells: The cells.
        sweeps: What varies in some of them.
        output: The folder.
        baseline: The system that figures compare the others with.
        console: Where the table is shown.

    Raises:
        InputError: If cells were trained for different metrics.
    """
    results = [result for cell in cells if (result := cell.read_result()) is not None]
    stage = "test" if cells[0].test else "val"
    measure, *others = dict.fromkeys(measure_of(result) for result in results)
    if others:
        raise InputError(
            f"the best epochs of some systems were chosen by {measure.name}, of others by {others[0].name}: set "
            "checkpoint.monitor for all of them in common"
        )
    table = pd.DataFrame([_row(result, stage, measure) for result in results])
    main, variations = table[table["sweep"].isna()], table[table["sweep"].notna()]
    pairs = _pairs([cell for cell in cells if cell.sweep is None], main, stage, results, measure, baseline)
    choices = find_choices(results)
    clusters, evidence = find_stability(choices), find_evidence(results)
    for name, content in {"results": table, "pairs": pairs, "clusters": clusters}.items():
        content.to_csv(output / f"{name}.csv", index=False)
    summary = _summary(main, measure)
    trainings = {cell.directory: result for cell, result in zip(cells, results, strict=True)}.values()
    other_code = [code for result in trainings if (code := result.get("code", "unknown")) != hash_code()]
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(_TEMPLATE.read_text())
    text = template.render(
        tables={
            "systems": summary,
            "domains": _by_domain(main, measure),
            "pairs": _readable_pairs(pairs, measure),
            "variations": _summary(variations, measure),
            "evidence": readable_evidence(evidence),
            "clusters": readable_stability(clusters),
            "copies": _copies(results[0]),
        },
        stage=stage,
        measure=measure,
        title=_title(measure),
        skipped=int(max(result[stage].get("skipped", 0) for result in results)),
        first=cells[0].name,
        trainings=len(trainings),
        seeds=sorted({cell.seed for cell in cells}),
        folds=sorted({cell.fold for cell in cells if cell.fold is not None}),
        splits=sorted({cell.split for cell in cells if cell.split is not None}),
        environments=sorted({", ".join(f"{k} {v}" for k, v in result["environment"].items()) for result in results}),
        baseline=baseline,
        most_test=(_test_fraction(results[0], stage) or 0) > 0.5,
        code=hash_code(),
        other_code=other_code,
    )
    (output / "report.md").write_text(text, encoding="utf-8")
    for name, figure in _figures(results, sweeps, table, pairs, choices, clusters, evidence, baseline, measure):
        (output / "figures").mkdir(exist_ok=True)
        figure.savefig(output / "figures" / f"{name}.png", dpi=100)
    _show(summary, measure, console)
    if other_code:
        console.print(f"{len(other_code)} of {len(trainings)} results come from other code: see the report")
    console.print(f"Report: {escape(str(output / 'report.md'))}", soft_wrap=True)


def _title(measure: Measure) -> str:
    return measure.name[0].upper() + measure.name[1:]


def _row(result: dict[str, Any], stage: str, measure: Measure) -> dict[str, Any]:
    name, metrics, evidence = measure.name, result[stage], result.get("evidence") or {}
    return {
        **{key: result[key] for key in NAMES},
        name: metrics[name],
        **({"accuracy_clean": metrics.get("accuracy_clean", np.nan)} if measure.is_accuracy else {}),
        f"validation_{name}": result["val"][name],
        f"last_epoch_{name}": result["last"].get(name, np.nan),
        "best_epoch": result.get("best_epoch", np.nan),
        "clustered_from_epoch": result.get("clustered_from_epoch", np.nan),
        "parameters": result["parameters"],
        "shared_parameters": result.get("compact_parameters", np.nan),
        "seconds": round(result["seconds"], 1),
        **{name: evidence.get(name, np.nan) for name in ("agreement", "agreement_error", "p_value")},
        "clusters_found": evidence.get("num_clusters", np.nan),
        **{f"ari/{layer}": value for layer, value in (result["ari"] or {}).items()},
        **metrics,
    }


def _summary(table: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """One row per system, in the order in which they were given; the best values bold."""
    groups, beside = table.groupby("system", sort=False), {*table} - {measure.name}
    first, last = (format_values(epoch, "{:.0f}") for epoch in (groups["best_epoch"].min(), groups["best_epoch"].max()))
    columns = {
        measure.epoch: _spread(groups[measure.name], measure),
        **({"without copies": _spread(groups["accuracy_clean"], measure)} if measure.is_accuracy else {}),
        **({"last epoch": _spread(groups[f"last_epoch_{measure.name}"], measure)} if measure.monitored else {}),
        **({"ECE": _spread(groups[CALIBRATION.name], CALIBRATION)} if CALIBRATION.name in beside else {}),
        **({"chosen": first.where(first == last, first + " to " + last)} if measure.monitored else {}),
        "parameters": format_values(groups["parameters"].first(), "{:,.0f}"),
        "shared": format_values(groups["shared_parameters"].mean(), "{:,.0f}"),
        "seconds": format_values(groups["seconds"].mean(), "{:,.0f}"),
        "cells": format_values(groups.size(), "{}"),
    }
    return drop_empty(pd.DataFrame(columns).reset_index(names="system"))


def _by_domain(table: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """One row per domain, one column per system."""
    groups = table.groupby("system", sort=False)
    prefix = f"{measure.name}/"
    domains = [name for name in table if name.startswith(prefix) and table[name].notna().any()]
    rows = {name.removeprefix(prefix): _spread(groups[name], measure) for name in domains}
    return pd.DataFrame(rows).T.reset_index(names="domain")


def _pairs(
    cells: list[Cell],
    table: pd.DataFrame,
    stage: str,
    results: list[dict[str, Any]],
    measure: Measure,
    baseline: str,
) -> pd.DataFrame:
    """The tests, of systems that were evaluated on the same documents."""
    outcomes: dict[CellKey, dict[str, Any]] = {}
    corpora: dict[str, set[tuple[int | None, bytes]]] = {}
    for cell in cells:
        with np.load(cell.directory / OUTCOMES) as arrays:
            names = {name.removeprefix(f"{stage}_"): name for name in arrays.files if name.startswith(f"{stage}_")}
            found = outcomes[cell.system, cell.seed, cell.part] = {ours: arrays[name] for ours, name in names.items()}
        documents = np.stack([found["domain"], found["document"]]).tobytes()
        corpora.setdefault(cell.system, set()).add((cell.part, documents))
    if cells[0].split is not None:
        table = table.assign(fold=table["split"])
    tables = [
        table[table["system"].map(corpora.get) == corpus] for corpus in dict.fromkeys(map(frozenset, corpora.values()))
    ]
    fraction = _test_fraction(results[0], stage)
    known = outcomes if measure.is_accuracy else None
    pairs = [compare_pairs(part, known, measure=measure, baseline=baseline, test_fraction=fraction) for part in tables]
    return pd.concat(pairs, ignore_index=True)


def _test_fraction(result: dict[str, Any], stage: str) -> float | None:
    """Documents that evaluate per document that evaluates or trains, in one fold or split of several."""
    if result["split"] is None:
        return 1 / result["folds"] if result.get("folds") else None
    counts = pd.DataFrame(result["copies"]).sum(axis=1)
    tested = counts["test" if stage == "test" else "validation"]
    return float(tested / (tested + counts["train"]))


def _readable_pairs(pairs: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    def p(name: str) -> "pd.Series[str]":
        plain, adjusted = (
            format_values(pairs[column], "{:.3f}").mask(pairs[column] < 0.001, "< 0.001")
            for column in (name, f"{name}_holm")
        )
        return plain.where(plain == "", plain + " (" + adjusted + ")")

    signed = f"{{:+.{measure.digits + 1}f}}"
    columns = {
        "first": pairs["first"],
        "second": pairs["second"],
        "difference": format_values(pairs["difference"], signed),
        "interval": format_values(pairs["low"], signed + " to ") + format_values(pairs["high"], signed),
        "cells": format_values(pairs["wins"], "{:.0f}") + format_values(pairs["cells"], " of {}"),
        "domains": format_values(pairs["domain_wins"], "{:.0f}") + format_values(pairs["domains"], " of {:.0f}"),
        "p, documents": p("p_bootstrap"),
        "p, cells": p("p_t"),
        "p, domains": p("p_domains"),
    }
    return drop_empty(pd.DataFrame(columns))


def _copies(result: dict[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(result["copies"], orient="index")
    return pd.concat([table, table.sum().to_frame("all").T]).reset_index(names="domain")


def _spread(groups: Any, measure: Measure) -> "pd.Series[str]":
    """Mean and standard deviation of each group; the best mean is bold."""
    means, pattern = measure.scale * groups.mean(), f"{{:.{measure.digits}f}}"
    shown = format_values(means, pattern)
    texts = shown + format_values(measure.scale * groups.std(), f" ± {pattern}")
    best = means.max() if measure.higher_is_better else means.min()
    return texts.mask(shown == pattern.format(best), "**" + texts + "**")


def _figures(
    results: list[dict[str, Any]],
    sweeps: Mapping[str, Sweep],
    table: pd.DataFrame,
    pairs: pd.DataFrame,
    choices: pd.DataFrame,
    clusters: pd.DataFrame,
    evidence: pd.DataFrame,
    baseline: str,
    measure: Measure,
) -> Iterator[tuple[str, Figure]]:
    yield measure.name, figures.draw_systems(table[table["sweep"].isna()], measure)
    compared = [*pairs["first"], *pairs["second"]]
    if compared:
        yield "differences", figures.draw_differences(pairs, baseline if baseline in compared else compared[0], measure)
    main = [result for result in results if result["sweep"] is None]
    curves = [
        {"epoch": epoch, "domain": domain, measure.name: value, **{key: result[key] for key in NAMES}}
        for result in main
        for domain, values in result["curves"].items()
        if domain
        for epoch, value in zip(result["epochs"], values, strict=True)
    ]
    if curves:
        yield "epochs", figures.draw_curves(pd.DataFrame(curves), measure)
    flows: dict[str, Figure] = {}
    for result in main:
        layers = {name: layer["assignment"] for name, layer in result["clusters"].items() if layer["assignment"]}
        name = f"clusters-{folder_of(result['system'])}"
        if layers and name not in flows:
            flows[name] = draw_flow(layers, result["domains"])
    yield from flows.items()
    if len(evidence):
        yield "agreement", figures.draw_agreement(evidence)
    stability = clusters[clusters["ari"].notna()]
    if len(stability):
        yield "stability", figures.draw_stability(stability)
    for name, sweep in sweeps.items():
        part = table[table["sweep"] == name]
        if part.empty or sweep.figure == "recovery":
            continue
        layered = [list(result["clusters"].values()) for result in results if result["sweep"] == name]
        if sweep.figure == "grid" and all(len(layers) > 1 for layers in layered):
            first, second = ([layers[number]["num_clusters"] for layers in layered] for number in (0, 1))
            figure = figures.draw_grid(part.assign(first=first, second=second), measure)
        else:
            figure = figures.draw_widths(part.rename(columns={"value": "width"}), measure)
        yield f"sweep-{folder_of(name)}", figure
    recovery = choices["sweep"].isin([name for name, sweep in sweeps.items() if sweep.figure == "recovery"])
    found = choices[recovery & choices["planted"].notna()].drop_duplicates(NAMES)  # the first layer with a choice
    if len(found):
        yield "recovery", figures.draw_recovery(found.rename(columns={"sweep": "setting", "planted": "ari"}))


def _show(summary: pd.DataFrame, measure: Measure, console: Console) -> None:
    """What fits into 80 columns; the rest is in the report."""
    shown = Table("system", title=_title(measure), title_justify="left")
    for title in (measure.name, "parameters", "cells"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in summary[["system", measure.epoch, "parameters", "cells"]].itertuples(index=False):
        shown.add_row(*(re.sub(r"\*\*(.*)\*\*", r"[bold]\1[/bold]", escape(text)) for text in row))
    console.print(shown)
