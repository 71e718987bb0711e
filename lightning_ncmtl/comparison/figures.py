"""Figures of a comparison: what systems reach, their differences, and how far clusters can be trusted."""

from functools import partial
from math import ceil, sqrt
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lightning_ncmtl.comparison._axes import (
    DOT,
    MEAN,
    check,
    draw_means,
    make_dot,
    make_rows,
    set_legend,
    set_title,
    write_beside,
)
from lightning_ncmtl.comparison.measure import ACCURACY, Measure
from lightning_ncmtl.drawing import COLORS, DPI, measure_width
from lightning_ncmtl.errors import InputError

_STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # with 10 colours: 20 different lines


def draw_curves(curves: pd.DataFrame, measure: Measure = ACCURACY) -> Figure:
    """Draw accuracy, or another measure, over the epochs, on average and for each domain (the paper, Fig. 7).

    Lines are means over seeds and folds, bands reach from the lowest to the highest of them.

    Args:
        curves: ``system``, ``seed``, ``fold``, ``epoch``, ``domain`` and the measure, ``accuracy`` (0 to 1).
        measure: What is drawn, as in all of these figures.

    Returns:
        A figure with one axes for the average, then one for each domain, all with the same scales. These are those of
        the lines; bands may be cut off.
    """
    check(curves, "system", "seed", "fold", "epoch", "domain", measure.name)
    curves = curves.dropna(subset=[measure.name])  # of domains that lack documents of a class
    systems, domains = curves["system"].unique(), curves["domain"].unique()
    panels = len(domains) + 1
    columns = panels if panels <= 3 else ceil(sqrt(panels))
    rows = ceil(panels / columns)
    side, size = (2.2, 8) if panels <= 30 else (1.35, 7)
    width = max(columns * side, 3.4) + 0.65
    keys = max(1, min(len(systems), int((width - 0.2) / (measure_width(systems, 9) + 0.75))))
    legend = 0.2 * ceil(len(systems) / keys) + 0.15
    height = rows * side * 0.85 + 0.55 + legend
    figure = Figure((width, height), dpi=DPI)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    # Constrained layout would take two minutes for 200 domains
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.1 / width, wspace=0.12, hspace=0.3 / (0.85 * side - 0.3))
    figure.subplots_adjust(bottom=0.5 / height, top=1 - (legend + 0.25) / height)

    run = ["system", "seed", "fold", "epoch"]
    average = curves.groupby(run, sort=False, dropna=False)[measure.name].mean().reset_index()
    tables = [average, *(table for _, table in curves.groupby("domain", sort=False))]
    groups = [table.groupby(["system", "epoch"])[measure.name] for table in tables]
    lines = [measure.scale * group.agg(["mean", "min", "max"]) for group in groups]
    heights = pd.concat(lines)["mean"]
    margin = max(0.01 * measure.scale, 0.06 * (heights.max() - heights.min()))
    epochs = curves["epoch"].min(), curves["epoch"].max()
    # Before anything is drawn: to fit shared scales again and again takes minutes for 200 domains
    axes[0].set(xlim=(epochs[0] - 0.5, epochs[1] + 0.5), ylim=(heights.min() - margin, heights.max() + margin))
    looks: dict[Any, dict[str, Any]] = {
        system: {"color": COLORS[number % len(COLORS)], "linestyle": _STYLES[number % len(_STYLES)], "linewidth": 1.2}
        for number, system in enumerate(systems)
    }
    for axis, table in zip(axes, lines, strict=False):
        for system, look in looks.items():
            if system not in table.index:
                continue
            line = table.loc[system]
            # A line through a single point cannot be seen
            axis.plot(line.index, line["mean"], marker="." if len(line) == 1 else "", **look)
            if (line["min"] < line["max"]).any():
                axis.fill_between(line.index, line["min"], line["max"], color=look["color"], alpha=0.12, linewidth=0)
        axis.grid(color="0.92")
        axis.tick_params(labelsize=7, length=2)
    set_title(axes[0], "average", size, columns * side, weight="bold")
    for axis, domain in zip(axes[1:], domains, strict=False):
        set_title(axis, domain, size, side * 0.9)
    axes[0].xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    for empty in axes[panels:]:
        empty.remove()
    for last in axes[panels - columns : panels]:
        last.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=9, y=0.06 / height, va="bottom")
    figure.supylabel(measure.label, fontsize=9, x=0.06 / width, ha="left")
    set_legend(figure, [Line2D([], [], **look) for look in looks.values()], systems, loc="upper center", ncols=keys)
    return figure


def draw_systems(cells: pd.DataFrame, measure: Measure = ACCURACY) -> Figure:
    """Draw the accuracy of each system, or another measure: its mean, and each of its cells as a small dot.

    Args:
        cells: ``system`` and the measure, ``accuracy`` (0 to 1), one row per seed, fold and split.
        measure: What is drawn.

    Returns:
        A figure with one row per system, the best on top; mean and standard deviation are written beside it.
    """
    check(cells, "system", measure.name)
    groups = measure.scale * cells.set_index("system")[measure.name]
    systems = groups.groupby("system", sort=False).agg(["mean", "std"])
    systems = systems.sort_values("mean", ascending=not measure.higher_is_better)
    figure, (axes,) = make_rows(systems.index)
    for row, (system, (mean, deviation)) in enumerate(systems.iterrows()):
        found = groups[[system]]
        axes.plot(found, [row] * len(found), color=COLORS[0], zorder=3, **DOT)
        axes.plot(mean, row, color=COLORS[2], **MEAN)
        digits = measure.digits
        write_beside(axes, row, f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(found) > 1 else ""))
    axes.set_xlabel(f"{measure.label}: cells, mean and standard deviation", fontsize=9)
    return figure


def draw_differences(pairs: pd.DataFrame, baseline: str, measure: Measure = ACCURACY) -> Figure:
    """Draw the difference of each system to one of them, with its interval.

    Args:
        pairs: Result of :func:`~lightning_ncmtl.comparison.statistics.compare_pairs`.
        baseline: The system to compare with.
        measure: What differs.

    Returns:
        A figure with one row per other system, the best on top. Differences that are significant after the adjustment
        (of accuracies the bootstrap, else the t-test; Holm, 5 %) have a filled dot; they and their p-values are written
        beside it.

    Raises:
        InputError: If no pair has this baseline.
    """
    over, test = ("documents", "p_bootstrap_holm") if measure.is_accuracy else ("cells", "p_t_holm")
    check(pairs, "first", "second", "difference", "low", "high", test)
    signs = {"difference": 0 - pairs["difference"], "low": -pairs["high"], "high": -pairs["low"]}
    turned = pairs.assign(first=pairs["second"], second=pairs["first"], **signs)
    both = pd.concat([pairs, turned])
    mine = both[both["second"] == baseline]
    found = mine.sort_values("difference", ascending=not measure.higher_is_better, kind="stable")
    if found.empty:
        raise InputError(f"no pair has the baseline {baseline!r}; there are {', '.join(pd.unique(both['first']))}")
    figure, (axes,) = make_rows(found["first"])
    axes.axvline(0, color="0.4", linewidth=1, zorder=1)
    for row, pair in enumerate(found.itertuples()):
        if not np.isfinite(pair.difference):
            write_beside(axes, row, "no cells in common")
            continue
        p_value = getattr(pair, test)
        axes.plot([pair.low, pair.high], [row, row], color=COLORS[2], linewidth=1.6, solid_capstyle="butt")
        axes.plot(pair.difference, row, **make_dot(COLORS[2], p_value < 0.05))
        p = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if np.isfinite(p_value) else ""
        write_beside(axes, row, f"{pair.difference:+.{measure.digits}f}   {p}")
    points = ", in points" if measure.is_accuracy else ""
    label = f"{measure.name} - that of {baseline}{points}\nand its 95 % interval over {over}; p adjusted (Holm)"
    axes.set_xlabel(label, fontsize=9, parse_math=False)
    return figure


def draw_grid(table: pd.DataFrame, measure: Measure = ACCURACY) -> Figure:
    """Draw accuracy, or another measure, for each number of clusters in two layers (the paper, Fig. 5).

    Args:
        table: ``first`` and ``second`` number of clusters, and the measure; means are over the other columns.
        measure: What is drawn.

    Returns:
        A figure with a heat map. The values are written in, the best one bold.
    """
    check(table, "first", "second", measure.name)
    grid = measure.scale * table.groupby(["first", "second"])[measure.name].mean().unstack()
    shown = np.asarray(grid, dtype=float)
    size = (max(2.6, 0.5 * shown.shape[1] + 1.2), max(1.6, 0.34 * shown.shape[0] + 0.9))
    figure = Figure(size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot(facecolor="0.93")
    image = axes.imshow(shown, cmap="viridis", aspect="auto", origin="lower", interpolation="nearest")
    best = np.nanmax(shown) if measure.higher_is_better else np.nanmin(shown)
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            dark = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114)) < 0.5  # ITU-R BT.601
            color, weight = "white" if dark else "black", "bold" if value == best else "normal"
            text = f"{value:.{measure.digits}f}"
            axes.text(column, row, text, color=color, weight=weight, fontsize=8, ha="center", va="center")
    axes.set_xticks(range(shown.shape[1]), [str(value) for value in grid.columns], fontsize=8)
    axes.set_yticks(range(shown.shape[0]), [str(value) for value in grid.index], fontsize=8)
    axes.set_xlabel("clusters, second layer", fontsize=9)
    axes.set_ylabel("clusters,\nfirst layer", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_widths(table: pd.DataFrame, measure: Measure = ACCURACY) -> Figure:
    """Draw accuracy, or another measure, over the widths of the network or another setting (the paper, Fig. 6).

    Args:
        table: ``width`` (text), the measure, ``accuracy`` (0 to 1), and ``seed``.
        measure: What is drawn.

    Returns:
        A figure with the widths in the order of the table, at equal distances: a line for the means, a dot per row.
    """
    check(table, "width", measure.name, "seed")
    widths = table["width"].unique()
    longest = measure_width([str(width) for width in widths], 9)
    width = max(4.0, float(np.clip(longest + 0.15, 0.5, 1.2)) * len(widths) + 0.9)
    pitch = (width - 0.9) / len(widths)
    figure = Figure((width, 3 + (longest if longest > 0.92 * pitch else 0.2)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    draw_means(axes, widths, table["width"], measure.scale * table[measure.name], 9, pitch)
    axes.set_xlabel("width", fontsize=9)
    axes.set_ylabel(measure.label, fontsize=9)
    return figure


def draw_agreement(table: pd.DataFrame) -> Figure:
    """Draw how far the halves of the data agree on what is similar.

    Args:
        table: ``setting``, ``agreement`` and ``num_clusters`` (lists, of its cells), and ``mean``, ``low`` and ``high``
            (see :class:`~lightning_ncmtl.comparison.agreement.Agreement`).

    Returns:
        A figure with one row per setting: a small dot for each cell, and one for the mean with its interval, which is
        filled if all of it is above 0.
    """
    check(table, "setting", "agreement", "num_clusters", "mean", "low", "high")
    figure, (axes,) = make_rows(table["setting"])
    axes.axvline(0, color="0.4", linewidth=1, zorder=1)
    for row, found in enumerate(table.itertuples()):
        axes.plot(found.agreement, [row] * len(found.agreement), color=COLORS[0], zorder=3, **DOT)
        axes.plot([found.low, found.high], [row, row], color=COLORS[2], linewidth=1.6, solid_capstyle="butt")
        axes.plot(found.mean, row, **make_dot(COLORS[2], found.low > 0))
        numbers = ", ".join(str(number) for number in sorted(set(found.num_clusters)))
        write_beside(axes, row, f"{found.mean:.2f}   K = {numbers}")
    axes.set_xlabel("agreement of halves: cells, mean and its 95 % interval", fontsize=9)
    return figure


def draw_stability(table: pd.DataFrame) -> Figure:
    """Draw how far the clusters of several seeds agree, for each setting and layer, and how far they would by chance.

    Args:
        table: ``setting``, ``layer``, ``ari``, ``null_mean`` and ``null_high``: see
            :class:`~lightning_ncmtl.comparison.agreement.Stability`.

    Returns:
        A figure with one axes per layer, and in it one row per setting: a bar from the mean of chance to its 95 %
        quantile, and a dot, which is filled if it is beyond.
    """
    check(table, "setting", "layer", "ari", "null_mean", "null_high")
    settings, layers = list(table["setting"].unique()), table["layer"].unique()
    figure, axes = make_rows(settings, len(layers))
    for axis, layer in zip(axes, layers, strict=True):
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        for found in table[table["layer"] == layer].itertuples():
            row, span = settings.index(found.setting), found.null_high - found.null_mean
            axis.barh(row, span, left=found.null_mean, height=0.7, color="0.78", edgecolor="0.78")
            axis.plot(found.ari, row, **make_dot(COLORS[0], found.ari > found.null_high))
        set_title(axis, layer, 9, 2.2)
    axes[0].set_xlim(min(-0.1, table[["ari", "null_mean"]].min(axis=None) - 0.05), 1.06)
    figure.supxlabel("adjusted Rand index, mean over pairs of seeds", fontsize=9)
    dots = [Line2D([], [], linestyle="", **make_dot(COLORS[0], beyond)) for beyond in (True, False)]
    names = ["seeds, beyond chance", "within", "chance: mean to 95 %"]
    set_legend(figure, [*dots, Patch(color="0.78")], names, loc="outside upper center", ncols=3)
    return figure


def draw_recovery(table: pd.DataFrame) -> Figure:
    """Draw how well planted groups are found.

    Args:
        table: ``setting`` (what is varied), ``value``, ``seed`` and ``ari``, the agreement with the planted groups.

    Returns:
        A figure with one axes per setting: its values in their order, at equal distances, a line for the means and a
        dot per row.
    """
    check(table, "setting", "value", "seed", "ari")
    settings = table["setting"].unique()
    columns = min(3, len(settings))
    rows = ceil(len(settings) / columns)
    figure = Figure((2.7 * columns + 0.5, 2.3 * rows + 0.2), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis, setting in zip(axes, settings, strict=False):
        part = table[table["setting"] == setting]
        # From low to high where they are numbers, or texts that are numbers; else as they are
        values = part["value"].drop_duplicates().sort_values(key=partial(pd.to_numeric, errors="coerce"), kind="stable")
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        draw_means(axis, values, part["value"], part["ari"], 8, 2.3 / len(values))
        set_title(axis, setting, 9, 2.6)
    for empty in axes[len(settings) :]:
        empty.remove()
    axes[0].set_ylim(min(-0.1, table["ari"].min() - 0.05), 1.05)
    figure.supylabel("ARI with the planted groups", fontsize=9)
    return figure
