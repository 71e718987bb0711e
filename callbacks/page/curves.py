"""Values over a training, and what each number of clusters is worth, as shapes of an SVG."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import NamedTuple

import numpy as np

from lightning_ncmtl.callbacks.page.flow import Label

_WIDTH, _HEIGHT = 400.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 22.0, 38.0
_MOST = 400  # points of a line
_DOTS = 40  # points up to which each has a dot
_LARGEST = 1e300  # beyond, as of a training that diverged, nothing can be measured


class Mark(NamedTuple):
    """Something that happened at a step."""

    x: float
    text: str
    anchor: str
    y: float


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: What it is of.
        style: Number of its style.
        path: The line.
        dots: Its points, each with what it says; only where they are few.
    """

    name: str
    style: int
    path: str
    dots: list[Label]


class Chart(NamedTuple):
    """A chart.

    Attributes:
        title: What it shows.
        about: Its content in a sentence.
        width: Of the picture.
        height: Of the picture.
        box: Left, upper, right and lower edge of the place of the lines.
        lines: The lines.
        x_ticks: Places and labels along the lower edge.
        y_ticks: The same along the left edge.
        x_name: What is along the lower edge.
        marks: What happened when.
        chosen: A point to stand out.
        keyed: Whether the lines need a key.
    """

    title: str
    about: str
    width: float
    height: float
    box: tuple[float, float, float, float]
    lines: list[Line]
    x_ticks: list[Label]
    y_ticks: list[Label]
    x_name: str
    marks: list[Mark]
    chosen: Label | None = None
    keyed: bool = True


def chart_curves(
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    epochs: Sequence[tuple[int, int]],
    last_step: int,
    happened: Mapping[str, int],
    best: tuple[int, float] | None = None,
    least: float = 0.0,
) -> Chart | None:
    """A chart of values over the steps of a training, in epochs if these are known; ``None`` without finite values.

    Args:
        title: What it shows.
        curves: Step and value, for each line.
        epochs: Number of each epoch and its last step.
        last_step: Where the training ended.
        happened: What happened at which step.
        best: Step and value of the point to stand out.
        least: Smallest distance of the numbers along the left edge: 1 of counts.
    """
    finite = {name: [(step, value) for step, value in line if abs(value) < _LARGEST] for name, line in curves.items()}
    finite = {name: line for name, line in finite.items() if line}
    if not finite:
        return None
    end = max(1, last_step, *(line[-1][0] for line in finite.values()))
    values = [value for line in finite.values() for _, value in line]
    y_values, y_labels = find_ticks(min(values), max(values), least)
    low, high = min(y_values[0], *values), max(y_values[-1], *values)
    box = (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM)

    def place(step: float, value: float) -> tuple[float, float]:
        x = box[0] + (box[2] - box[0]) * step / end
        return x, box[3] - (box[3] - box[1]) * (value - low) / (high - low)

    when = {step: f"epoch {epoch}, step {step:,}" for epoch, step in epochs}
    lines = []
    for style, (name, line) in enumerate(finite.items()):
        shown = line[:: max(1, -(-len(line) // _MOST))]
        points = [place(*point) for point in shown]
        dots = [
            Label(x, y, "", f"{name}, {when.get(step, f'step {step:,}')}: {value:.4g}")
            for (x, y), (step, value) in zip(points, shown, strict=True)
            if len(shown) <= _DOTS
        ]
        lines.append(Line(name, style % 4, "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), dots))
    if len(epochs) > 1:
        every = _round_up(max(1.0, (len(epochs) - 0.5) / 7))
        x_ticks = [Label(place(step, 0)[0], box[3], str(epoch), "") for epoch, step in epochs if epoch % every == 0]
        x_name = "epoch"
    else:
        steps, labels = find_ticks(0, end)
        x_ticks = [
            Label(place(step, 0)[0], box[3], text, "") for step, text in zip(steps, labels, strict=True) if step <= end
        ]
        x_name = "step"
    marks = []
    for number, (text, step) in enumerate(happened.items()):
        x = place(min(step, end), 0)[0]
        marks.append(Mark(x, text, "end" if x > (box[0] + box[2]) / 2 else "start", box[1] + 10 + 13 * number))
    y_ticks = [Label(box[0], place(0, y)[1], text, "") for y, text in zip(y_values, y_labels, strict=True)]
    about = "; ".join(f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in finite.items())
    chosen = None
    if best is not None and abs(best[1]) < _LARGEST:
        chosen = Label(*place(*best), "best", f"best: {best[1]:.4g}, {when.get(best[0], f'step {best[0]:,}')}")
    return Chart(title, about, _WIDTH, _HEIGHT, box, lines, x_ticks, y_ticks, x_name, marks, chosen)


def chart_gains(gains: Mapping[int, float], chosen: int) -> Chart:
    """A chart of the gain of each number of clusters, which is 0 for one.

    Args:
        gains: The gains of other numbers.
        chosen: The number that was found.
    """
    points = {1: 0.0, **gains}
    values = list(points.values())
    y_values, y_labels = find_ticks(min(values), max(values))
    low, high = min(y_values[0], *values), max(y_values[-1], *values)
    box = (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM)
    wide = log10(max(points)) or 1.0

    def place(number: int, gain: float) -> tuple[float, float]:  # of many tasks, few numbers are tried, and their own
        x = box[0] + 10 + (box[2] - box[0] - 24) * log10(number) / wide
        return x, box[3] - (box[3] - box[1]) * (gain - low) / (high - low)

    spots = {number: place(number, gain) for number, gain in points.items()}
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots.values())
    dots = [
        Label(x, y, "", f"{number} cluster{'s' * (number != 1)}: gain {points[number]:.3g}")
        for number, (x, y) in spots.items()
    ]
    ticks = [number for number in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if number <= max(points)]
    x_ticks = [Label(place(number, 0)[0], box[3], str(number), "") for number in ticks]
    y_ticks = [Label(box[0], place(1, y)[1], text, "") for y, text in zip(y_values, y_labels, strict=True)]
    lines = [Line("gain", 0, path, dots)]
    about = f"gain per task of 1 to {max(points)} clusters; {chosen} found, with {points[chosen]:.3g}"
    name = "number of clusters (log scale)"
    found = Label(*spots[chosen], f"{chosen} found", dots[list(points).index(chosen)].title)
    title = "What each number of clusters is worth"
    return Chart(title, about, _WIDTH, _HEIGHT, box, lines, x_ticks, y_ticks, name, [], found, keyed=False)


def find_ticks(low: float, high: float, least: float = 0.0) -> tuple[list[float], list[str]]:
    """About five round numbers, not nearer than ``least``, around ``low`` and ``high``; and how they are written.

    >>> find_ticks(0.12, 0.93)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0'])
    """
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * max(largest, 1e-300):
        around = 0.1 * largest if largest > 1e-300 else 1.0
        low, high = low - around, high + around
    size = max(least, _round_up((high - low) / 5))
    first, last = floor(low / size + 1e-9), -floor(-high / size + 1e-9)
    values = [number * size for number in range(first, last + 1)]
    digits = max(0, -floor(log10(size) + 1e-9))
    plain = max(abs(values[0]), abs(values[-1])) < 1e5 and digits <= 4
    values = [float(np.round(value, digits + 2)) if plain else value for value in values]
    return values, [f"{value:.{digits}f}" if plain else f"{value:.2g}" for value in values]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 and so on."""
    power = 10.0 ** floor(log10(value) + 1e-9)
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
