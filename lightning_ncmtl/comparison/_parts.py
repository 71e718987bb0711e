"""What the figures of a comparison are made of: rows, lines, dots, names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_ncmtl.drawing import COLORS, DPI, measure_width
from lightning_ncmtl.errors import InputError

STYLES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # with 10 colours: 20 different lines
DOT: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "alpha": 0.5, "markeredgewidth": 0}
MEAN: dict[str, Any] = {"marker": "o", "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8}
ROW = 0.3  # inches for a row with a name


def check(table: pd.DataFrame, *columns: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"the table has no column {missing[0]!r}; to be drawn, it needs {', '.join(columns)}")
    if table.empty:
        raise InputError("the table has no rows: nothing to draw")


def unique(column: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(column))


def list_values(*columns: Iterable[Any]) -> str:
    return ", ".join(unique(str(value) for column in columns for value in column))


def choose_line(number: int) -> dict[str, Any]:
    style = STYLES[number % len(STYLES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": style, "linewidth": 1.2}


def summarize_lines(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest accuracy (%) by system and epoch."""
    return 100 * table.groupby(["system", "epoch"])["accuracy"].agg(["mean", "min", "max"])


def draw_lines(axes: Axes, table: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> None:
    for system, look in looks.items():
        if system not in table.index:
            continue
        line = table.loc[system]
        # A line through a single point cannot be seen
        axes.plot(line.index, line["mean"], marker="." if len(line) == 1 else "", label=system, **look)
        if (line["min"] < line["max"]).any():
            axes.fill_between(line.index, line["min"], line["max"], color=look["color"], alpha=0.12, linewidth=0)
    axes.grid(color="0.92")
    axes.tick_params(labelsize=7, length=2)


def draw_means(axes: Axes, values: Sequence[Any], column: "pd.Series[Any]", heights: "pd.Series[float]") -> None:
    """Draw a dot for each row, over the position of its value, and a line through the means."""
    places = column.map({value: place for place, value in enumerate(values)})
    means = heights.groupby(places).mean()
    axes.plot(means.index, means, color=COLORS[2], linewidth=1.2, **MEAN | {"markersize": 6}, zorder=2)
    axes.plot(places, heights, color=COLORS[0], **DOT, zorder=3)
    axes.grid(axis="y", color="0.92")
    axes.set_xlim(-0.5, len(values) - 0.5)


def name_values(axes: Axes, names: Sequence[str], size: float, upright: bool) -> None:
    """Label the places 0, 1, ..."""
    axes.set_xticks(range(len(names)), names, fontsize=size, parse_math=False, rotation=90 if upright else 0)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(length=2)


def sort_values(values: Sequence[Any]) -> list[Any]:
    """From low to high if all are numbers, or texts that are numbers; else as they are."""
    try:
        return sorted(values, key=float)
    except (TypeError, ValueError):
        return list(values)


def make_dot(color: str, filled: bool) -> dict[str, Any]:
    """A dot that is filled if there is more than chance."""
    return MEAN | {"color": color if filled else "white", "markeredgecolor": color, "markeredgewidth": 1.4}


def make_rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one named row per system, the first on top."""
    names = [str(name) for name in names]
    size = (measure_width(names, 9) + 5.2, ROW * len(names) + 0.9)
    figure = Figure(size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot(ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8, axis="x")
    axes.tick_params(length=2)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    return figure, axes


def write_beside(axes: Axes, row: int, text: str) -> None:
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), fontsize=8.5, va="center_baseline")


def write_p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def set_title(axes: Axes, text: str, size: float, width: float, weight: str = "normal") -> None:
    """A title that is cut short where it is wider than so many inches."""
    shown = text
    while text and measure_width([shown], size) > width:
        text = text[:-1]
        shown = text + "..."
    axes.set_title(shown, fontsize=size, parse_math=False, pad=3, weight=weight)


def set_legend(figure: Figure, handles: Sequence[Any], names: Sequence[Any], **settings: Any) -> None:
    legend = figure.legend(
        handles, [str(name) for name in names], fontsize=9, frameon=False, handlelength=3, **settings
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
