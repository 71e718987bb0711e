"""What the figures of a comparison are made of."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_ncmtl.drawing import COLORS, DPI, measure_width
from lightning_ncmtl.errors import InputError

DOT: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "alpha": 0.5, "markeredgewidth": 0}
MEAN: dict[str, Any] = {"marker": "o", "markersize": 8, "markeredgecolor": "white", "markeredgewidth": 0.8}


def check(table: pd.DataFrame, *columns: str) -> None:
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"the table has no column {missing[0]!r}; to be drawn, it needs {', '.join(columns)}")
    if table.empty:
        raise InputError("the table has no rows: nothing to draw")


def draw_means(axes: Axes, values: Iterable[Any], column: Any, heights: Any, size: float, pitch: float) -> None:
    """Draw a dot for each row, over the position of its value, ``pitch`` inches apart, and a line through the means."""
    places = column.map({value: place for place, value in enumerate(values)})
    means = heights.groupby(places).mean()
    axes.plot(means.index, means, color=COLORS[2], linewidth=1.2, **MEAN | {"markersize": 6}, zorder=2)
    axes.plot(places, heights, color=COLORS[0], **DOT, zorder=3)
    axes.grid(axis="y", color="0.92")
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    turn = 90 if measure_width(names, size) > 0.92 * pitch else 0
    axes.set_xticks(range(len(names)), names, fontsize=size, parse_math=False, rotation=turn)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(length=2)


def make_dot(color: str, filled: bool) -> dict[str, Any]:
    """A dot that is filled if there is more than chance."""
    return MEAN | {"color": color if filled else "white", "markeredgecolor": color, "markeredgewidth": 1.4}


def make_rows(names: Iterable[Any], columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with a named row for each system or setting, the first on top."""
    names = [str(name) for name in names]
    size = (measure_width(names, 9) + max(5.2, 2.3 * columns + 0.4), 0.3 * len(names) + 1.2)
    figure = Figure(size, dpi=DPI, layout="constrained")
    axes = list(figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0])
    for axis in axes:
        axis.tick_params(labelsize=8, length=2)
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure, axes


def write_beside(axes: Axes, row: int, text: str) -> None:
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), fontsize=8.5, va="center_baseline")


def set_title(axes: Axes, text: str, size: float, width: float, weight: str = "normal") -> None:
    """A title that is cut short where it is wider than so many inches."""
    shown = text = str(text)
    while text and measure_width([shown], size) > width:
        text = text[:-1]
        shown = text + "..."
    axes.set_title(shown, fontsize=size, parse_math=False, pad=3, weight=weight)


def set_legend(figure: Figure, handles: Sequence[Any], names: Iterable[Any], **settings: Any) -> None:
    names = [str(name) for name in names]
    legend = figure.legend(handles, names, fontsize=9, frameon=False, handlelength=3, **settings)
    for text in legend.get_texts():
        text.set_parse_math(False)
