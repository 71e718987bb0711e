"""Figures of a comparison: accuracies, their differences, and how far clusters can be trusted."""

from math import ceil, sqrt

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lightning_ncmtl.comparison._parts import (
    DOT,
    MEAN,
    ROW,
    check,
    choose_line,
    draw_lines,
    draw_means,
    list_values,
    make_dot,
    make_rows,
    name_values,
    set_legend,
    set_title,
    sort_values,
    summarize_lines,
    unique,
    write_beside,
    write_p,
)
from lightning_ncmtl.drawing import COLORS, DPI, measure_width
from lightning_ncmtl.errors import InputError


def draw_curves(curves: pd.DataFrame) -> Figure:
    """Draw the accuracy over the epochs, on average and for each domain (the paper, Fig. 7).

    Lines are means over seeds and folds, bands reach from the lowest to the highest of them.

    Args:
        curves: ``system``, ``seed``, ``fold``, ``epoch``, ``domain`` and ``accuracy`` (0 to 1).

    Returns:
        A figure with one axes for the average, then one for each domain, all with the same scales. These are those of
        the lines; bands may be cut off.
    """
    check(curves, "system", "seed", "fold", "epoch", "domain", "accuracy")
    systems, domains = unique(curves["system"]), unique(curves["domain"])
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
    average = curves.groupby(run, sort=False, dropna=False)["accuracy"].mean().reset_index()
    lines = [summarize_lines(average), *(summarize_lines(table) for _, table in curves.groupby("domain", sort=False))]
    heights = pd.concat([table["mean"] for table in lines])
    margin = max(1, 0.06 * (heights.max() - heights.min()))
    epochs = curves["epoch"].min(), curves["epoch"].max()
    # Before anything is drawn: to fit shared scales again and again takes minutes for 200 domains
    axes[0].set(xlim=(epochs[0] - 0.5, epochs[1] + 0.5), ylim=(heights.min() - margin, heights.max() + margin))
    looks = {system: choose_line(number) for number, system in enumerate(systems)}
    for axis, table in zip(axes, lines, strict=False):
        draw_lines(axis, table, looks)
    set_title(axes[0], "average", size, columns * side, weight="bold")
    for axis, domain in zip(axes[1:], domains, strict=False):
        set_title(axis, str(domain), size, side * 0.9)
    axes[0].xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    for empty in axes[panels:]:
        empty.remove()
    for last in axes[panels - columns : panels]:
        last.tick_params(labelbottom=True)
    figure.supxlabel("epoch", fontsize=9, y=0.06 / height, va="bottom")
    figure.supylabel("accuracy (%)", fontsize=9, x=0.06 / width, ha="left")
    set_legend(figure, [Line2D([], [], **look) for look in looks.values()], systems, loc="upper center", ncols=keys)
    return figure


def draw_accuracy(cells: pd.DataFrame) -> Figure:
    """Draw the accuracy of each system: its mean, and each of its cells as a small dot.

    Args:
        cells: ``system`` and ``accuracy`` (0 to 1), one row per seed and fold.

    Returns:
        A figure with one row per system, the best on top; mean and standard deviation are written beside it.
    """
    check(cells, "system", "accuracy")
    values = {system: 100 * np.asarray(group) for system, group in cells.groupby("system", sort=False)["accuracy"]}
    systems = sorted(values, key=lambda system: -values[system].mean())
    figure, axes = make_rows(systems)
    for row, system in enumerate(systems):
        found = values[system]
        axes.plot(found, [row] * len(found), color=COLORS[0], zorder=3, **DOT)
        axes.plot(found.mean(), row, color=COLORS[2], **MEAN)
        write_beside(axes, row, f"{found.mean():.1f}" + (f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else ""))
    axes.set_xlabel("accuracy (%): cells, mean and standard deviation", fontsize=9)
    return figure


def draw_differences(pairs: pd.DataFrame, baseline: str) -> Figure:
    """Draw the difference of each system to one of them, with its interval.

    Args:
        pairs: Result of :func:`~lightning_ncmtl.comparison.statistics.compare_pairs`.
        baseline: The system to compare with.

    Returns:
        A figure with one row per other system, the best on top. Differences that are significant after the adjustment
        (bootstrap, Holm, 5 %) have a filled dot; they and their p-values are written beside it.

    Raises:
        InputError: If no pair has this baseline.
    """
    check(pairs, "first", "second", "difference", "low", "high", "p_bootstrap_holm")
    found = []
    for pair in pairs.to_dict("records"):
        difference, low, high, p_value = (pair[key] for key in ("difference", "low", "high", "p_bootstrap_holm"))
        if pair["second"] == baseline:
            found.append((pair["first"], difference, low, high, p_value))
        elif pair["first"] == baseline:
            found.append((pair["second"], -difference, -high, -low, p_value))
    if not found:
        raise InputError(
            f"no pair has the baseline {baseline!r}; there are {list_values(pairs['first'], pairs['second'])}"
        )
    found.sort(key=lambda row: -row[1] if np.isfinite(row[1]) else np.inf)
    figure, axes = make_rows([row[0] for row in found])
    axes.axvline(0, color="0.4", linewidth=1, zorder=1)
    for row, (_, difference, low, high, p_value) in enumerate(found):
        if not np.isfinite(difference):
            write_beside(axes, row, "no cells in common")
            continue
        axes.plot([low, high], [row, row], color=COLORS[2], linewidth=1.6, solid_capstyle="butt")
        axes.plot(difference, row, **make_dot(COLORS[2], p_value < 0.05))
        write_beside(axes, row, f"{difference:+.1f}   {write_p(p_value)}")
    label = f"accuracy - that of {baseline}, in points\nand its 95 % interval over documents; p adjusted (Holm)"
    axes.set_xlabel(label, fontsize=9, parse_math=False)
    return figure


def draw_grid(table: pd.DataFrame) -> Figure:
    """Draw the accuracy for each number of clusters in two layers (the paper, Fig. 5).

    Args:
        table: ``first`` and ``second`` number of clusters, and ``accuracy`` (0 to 1); means are over the other columns.

    Returns:
        A figure with a heat map. The accuracies are written in, the best one bold.
    """
    check(table, "first", "second", "accuracy")
    grid = 100 * table.groupby(["first", "second"])["accuracy"].mean().unstack()
    shown = np.asarray(grid, dtype=float)
    size = (max(2.6, 0.5 * shown.shape[1] + 1.2), max(1.6, 0.34 * shown.shape[0] + 0.9))
    figure = Figure(size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot(facecolor="0.93")
    image = axes.imshow(shown, cmap="viridis", aspect="auto", origin="lower", interpolation="nearest")
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            dark = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114)) < 0.5  # ITU-R BT.601
            color, weight = "white" if dark else "black", "bold" if value == np.nanmax(shown) else "normal"
            axes.text(column, row, f"{value:.1f}", color=color, weight=weight, fontsize=8, ha="center", va="center")
    axes.set_xticks(range(shown.shape[1]), [str(value) for value in grid.columns], fontsize=8)
    axes.set_yticks(range(shown.shape[0]), [str(value) for value in grid.index], fontsize=8)
    axes.set_xlabel("clusters, second layer", fontsize=9)
    axes.set_ylabel("clusters,\nfirst layer", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def draw_widths(table: pd.DataFrame) -> Figure:
    """Draw the accuracy over the widths of the network, or over another setting (the paper, Fig. 6).

    Args:
        table: ``width`` (text), ``accuracy`` (0 to 1) and ``seed``.

    Returns:
        A figure with the widths in the order of the table, at equal distances: a line for the means, a dot per row.
    """
    check(table, "width", "accuracy", "seed")
    widths = unique(table["width"])
    names = [str(width) for width in widths]
    pitch = float(np.clip(measure_width(names, 9) + 0.15, 0.5, 1.2))
    width = max(4.0, pitch * len(widths) + 0.9)
    pitch = (width - 0.9) / len(widths)
    upright = measure_width(names, 9) > 0.92 * pitch
    figure = Figure((width, 3 + (measure_width(names, 9) if upright else 0.2)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    draw_means(axes, widths, table["width"], 100 * table["accuracy"])
    name_values(axes, names, 9, upright)
    axes.set_xlabel("width", fontsize=9)
    axes.set_ylabel("accuracy (%)", fontsize=9)
    return figure


def draw_stability(table: pd.DataFrame) -> Figure:
    """Draw how far the clusters of several seeds agree, for each setting and layer, and how far they would by chance.

    Args:
        table: ``setting``, ``layer``, ``ari``, ``null_mean`` and ``null_high``: see
            :class:`~lightning_ncmtl.comparison.statistics.Stability`.

    Returns:
        A figure with one axes per layer, and in it one row per setting: a bar from the mean of chance to its 95 %
        quantile, and a dot, which is filled if it is beyond.
    """
    check(table, "setting", "layer", "ari", "null_mean", "null_high")
    settings, layers = unique(table["setting"]), unique(table["layer"])
    label = measure_width([str(setting) for setting in settings], 9)
    size = (max(5.6, label + 2.2 * len(layers) + 0.4), ROW * len(settings) + 1.2)
    figure = Figure(size, dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False).ravel()
    width = (size[0] - label - 0.4) / len(layers)
    for axis, layer in zip(axes, layers, strict=True):
        axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        for found in table[table["layer"] == layer].to_dict("records"):
            row = settings.index(found["setting"])
            span = found["null_high"] - found["null_mean"]
            axis.barh(row, span, left=found["null_mean"], height=0.7, color="0.78", edgecolor="0.78")
            axis.plot(found["ari"], row, **make_dot(COLORS[0], found["ari"] > found["null_high"]))
        set_title(axis, str(layer), 9, width)
        axis.grid(axis="y", color="0.93")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, length=2)
    axes[0].set_yticks(range(len(settings)), [str(setting) for setting in settings], fontsize=9, parse_math=False)
    axes[0].set_ylim(len(settings) - 0.4, -0.6)
    axes[0].set_xlim(min(-0.1, table["ari"].min() - 0.05, table["null_mean"].min() - 0.05), 1.06)
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
    settings = unique(table["setting"])
    columns = min(3, len(settings))
    rows = ceil(len(settings) / columns)
    figure = Figure((2.7 * columns + 0.5, 2.3 * rows + 0.2), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis, setting in zip(axes, settings, strict=False):
        part = table[table["setting"] == setting]
        values = sort_values(unique(part["value"]))
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        draw_means(axis, values, part["value"], part["ari"])
        names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        name_values(axis, names, 8, upright=measure_width(names, 8) > 0.92 * 2.3 / len(names))
        set_title(axis, str(setting), 9, 2.6)
    for empty in axes[len(settings) :]:
        empty.remove()
    axes[0].set_ylim(min(-0.1, table["ari"].min() - 0.05), 1.05)
    figure.supylabel("ARI with the planted groups", fontsize=9)
    return figure
