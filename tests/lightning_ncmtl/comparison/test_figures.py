from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures import check_texts, laid_out, read
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from lightning_ncmtl.comparison.figures import (
    draw_agreement,
    draw_curves,
    draw_differences,
    draw_grid,
    draw_recovery,
    draw_stability,
    draw_systems,
    draw_widths,
)
from lightning_ncmtl.comparison.measure import Measure
from lightning_ncmtl.errors import InputError

NAMES = ["ncmtl", "a rather long name of a system", "$x_1$ & $y$", "hard", "soft", "single", "asp", "7", "8", "9", "10"]
NAMES += ["a system that is called by a very, very long name"]


def texts(figure: Figure) -> list[Text]:
    """All that can be read."""
    found: list[Text] = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    for axes in figure.axes:  # matplotlib keeps labels of ticks that are out of sight
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            hidden = {id(label) for tick in ticks for label in (tick.label1, tick.label2)}
            found = [text for text in found if id(text) not in hidden]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def check_legible(figure: Figure) -> None:
    check_texts(figure, texts(laid_out(figure)))


def dots(axes: Axes, filled: bool | None = None) -> list[tuple[float, float]]:
    """Places of all that has a marker."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "", None)]
    if filled is not None:
        lines = [line for line in lines if (to_rgb(line.get_markerfacecolor()) != (1, 1, 1)) == filled]
    places = [np.stack([np.asarray(data, dtype=float) for data in line.get_data()], axis=1) for line in lines]
    return [(float(x), float(y)) for x, y in np.concatenate(places)] if places else []


def legend(figure: Figure) -> list[str]:
    return read(figure.legends[0].get_texts())


def curves(systems: int, domains: int, epochs: int = 6, seeds: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (
            system,
            seed,
            None,
            epoch,
            f"{('books', 'a_long_name_of_a_domain', '$x_1$')[domain % 3]}{domain}",
            rng.random(),
        )
        for system, seed, domain, epoch in product(NAMES[:systems], range(seeds), range(domains), range(1, epochs + 1))
    ]
    return pd.DataFrame(rows, columns=["system", "seed", "fold", "epoch", "domain", "accuracy"])


def cells(systems: int, seeds: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [(system, 0.5 + 0.3 * rng.random()) for system in NAMES[:systems] for _ in range(seeds)]
    return pd.DataFrame(rows, columns=["system", "accuracy"])


def stability(settings: int, layers: Sequence[str]) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = [
        (f"ncmtl, {setting} clusters", layer, 2 * rng.random() - 1, 0.01, 0.2)
        for setting in range(settings)
        for layer in layers
    ]
    return pd.DataFrame(rows, columns=["setting", "layer", "ari", "null_mean", "null_high"])


@pytest.mark.parametrize(("systems", "domains", "epochs"), [(1, 1, 6), (3, 2, 1), (12, 16, 30), (2, 61, 3)])
def test_curves_can_be_read(systems: int, domains: int, epochs: int) -> None:
    table = curves(systems, domains, epochs)
    figure = draw_curves(table)
    check_legible(figure)
    assert len(figure.axes) == domains + 1
    assert legend(figure) == NAMES[:systems]
    lines = figure.legends[0].get_lines()
    assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == systems  # type: ignore[attr-defined]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "average"
    for title, domain in zip(titles[1:], table["domain"].unique(), strict=True):
        assert title == domain or (title.endswith("...") and domain.startswith(title[:-3]))


def test_curves_are_means_and_bands_reach_to_the_ends() -> None:
    table = curves(2, 3, seeds=3)
    figure = draw_curves(table)
    for axes, domain in zip(figure.axes, [None, *table["domain"].unique()], strict=True):
        for line, band, system in zip(axes.lines, axes.collections, NAMES, strict=False):
            chosen = table[table["system"] == system]
            wide = chosen.pivot_table(index="epoch", columns="seed", values="accuracy", aggfunc="mean")
            if domain is not None:
                wide = chosen[chosen["domain"] == domain].pivot(index="epoch", columns="seed", values="accuracy")
            assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3, 4, 5, 6]
            np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), 100 * wide.mean(axis=1))
            edges = np.asarray(band.get_paths()[0].vertices)
            for epoch, row in wide.iterrows():
                heights = edges[edges[:, 0] == epoch, 1]
                np.testing.assert_allclose([heights.min(), heights.max()], [100 * row.min(), 100 * row.max()])


def test_domains_without_values_have_no_panel() -> None:
    table = curves(2, 3, seeds=2)
    known = table["domain"] != "a_long_name_of_a_domain1"
    figure = draw_curves(table.assign(accuracy=table["accuracy"].where(known)))
    assert [axes.get_title() for axes in figure.axes] == ["average", "books0", "$x_1$2"]


def test_curves_of_one_seed_have_no_bands_and_may_lack_systems() -> None:
    table = curves(2, 2, seeds=1)
    table = table[(table["system"] != NAMES[0]) | (table["domain"] == "books0")]
    figure = draw_curves(table)
    assert [len(axes.collections) for axes in figure.axes] == [0, 0, 0]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 1]
    colors = [axes.lines[-1].get_color() for axes in figure.axes]
    assert len(set(colors)) == 1


def test_curves_of_200_domains() -> None:
    figure = draw_curves(curves(1, 200, epochs=2, seeds=1))
    assert len(figure.axes) == 201
    assert figure.bbox.width < 4000
    assert figure.bbox.height < 4000


@pytest.mark.parametrize("systems", [1, 2, 12])
def test_accuracy_rows_are_sorted_and_show_every_cell(systems: int) -> None:
    table = cells(systems)
    figure = draw_systems(table)
    check_legible(figure)
    axes = figure.axes[0]
    means = 100 * table.groupby("system")["accuracy"].mean().sort_values(ascending=False)
    assert read(axes.get_yticklabels()) == list(means.index)
    found = dots(axes)
    for row, (system, mean) in enumerate(means.items()):
        values = 100 * table.loc[table["system"] == system, "accuracy"]
        assert sorted(x for x, y in found if y == row) == pytest.approx(sorted([*values, mean]))
        assert axes.texts[row].get_text() == f"{mean:.1f} ± {values.std():.1f}"
    low, high = axes.get_ylim()
    assert low > high  # the first row is on top


def test_accuracy_of_one_cell_has_no_deviation() -> None:
    figure = draw_systems(cells(1, seeds=1))
    assert "±" not in figure.axes[0].texts[0].get_text()


def differences() -> pd.DataFrame:
    rows = [
        ("a", "base", -1.5, -2.0, -1.0, 0.0004),
        ("base", "b", -3.0, -4.0, -2.0, 0.049),
        ("base", "a long name of a system that is good", 0.5, -0.5, 1.5, 0.4),
        ("a", "b", 9.0, 8.0, 10.0, 0.01),
        ("new", "base", np.nan, np.nan, np.nan, np.nan),
    ]
    return pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p_bootstrap_holm"])


def test_differences_are_those_to_the_baseline() -> None:
    figure = draw_differences(differences(), "base")
    check_legible(figure)
    axes = figure.axes[0]
    assert read(axes.get_yticklabels()) == ["b", "a long name of a system that is good", "a", "new"]
    assert dots(axes, filled=True) == [(3, 0), (-1.5, 2)]
    assert dots(axes, filled=False) == [(-0.5, 1)]
    intervals = [sorted(np.asarray(line.get_xdata()).tolist()) for line in axes.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert intervals == [[0, 0], [2, 4], [-1.5, 0.5], [-2, -1]]
    assert read(axes.texts) == ["+3.0   p = 0.049", "-0.5   p = 0.400", "-1.5   p < 0.001", "no cells in common"]
    assert axes.get_xlabel().startswith("accuracy - that of base, in points")


def test_differences_of_another_metric_are_tested_over_cells() -> None:
    """In its own unit, the best on top, with the t-test in the place of the bootstrap."""
    measure = Measure("CalibrationError", higher_is_better=False)
    rows = [("base", "a", 0.02, 0.01, 0.03, 0.04), ("base", "b", -0.01, np.nan, np.nan, np.nan)]
    pairs = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p_t_holm"])
    figure = draw_differences(pairs, "base", measure)
    check_legible(figure)
    axes = figure.axes[0]
    assert read(axes.get_yticklabels()) == ["a", "b"]
    assert read(axes.texts) == ["-0.020   p = 0.040", "+0.010   "]
    assert dots(axes, filled=True) == [(-0.02, 0)]
    assert axes.get_xlabel().startswith("CalibrationError - that of base\nand its 95 % interval over cells")


def test_systems_by_another_metric_are_in_its_unit_and_order() -> None:
    table = cells(3).rename(columns={"accuracy": "CalibrationError"})
    axes = draw_systems(table, Measure("CalibrationError", higher_is_better=False)).axes[0]
    means = table.groupby("system")["CalibrationError"].mean().sort_values()
    assert read(axes.get_yticklabels()) == list(means.index)
    assert [text.get_text().split(" ")[0] for text in axes.texts] == [f"{mean:.3f}" for mean in means]
    assert axes.get_xlabel().startswith("CalibrationError: cells")


def test_differences_to_a_system_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no pair has the baseline 'bass'; there are a, base, new, b, a long name"):
        draw_differences(differences(), "bass")


def test_grid_has_the_means_in_its_cells() -> None:
    rows = [(1, 10, 0.8), (1, 10, 0.9), (10, 10, 0.7), (1, 9, 0.75), (2, 10, 0.899)]
    figure = draw_grid(pd.DataFrame(rows, columns=["first", "second", "accuracy"]))
    check_legible(figure)
    axes = figure.axes[0]
    assert read(axes.get_xticklabels()) == ["9", "10"]
    assert read(axes.get_yticklabels()) == ["1", "2", "10"]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "75.0", (1, 0): "85.0", (1, 1): "89.9", (1, 2): "70.0"}
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"] == ["89.9"]
    shown: NDArray[np.float64] = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan)
    np.testing.assert_allclose(shown, np.array([[75, 85], [np.nan, 89.9], [np.nan, 70]]))


@pytest.mark.parametrize("side", [1, 14])
def test_grid_can_be_read(side: int) -> None:
    rows = [(first, second, 0.8 + first / 100) for first, second in product(range(1, side + 1), repeat=2)]
    figure = draw_grid(pd.DataFrame(rows, columns=["first", "second", "accuracy"]))
    check_legible(figure)
    assert len(figure.axes[0].texts) == side**2
    colors = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert colors["81.0"] == "white"
    assert side == 1 or colors["94.0"] == "black"


@pytest.mark.parametrize("widths", [["32"], ["8", "16", "4"], [f"a long name {number}" for number in range(20)]])
def test_widths_are_in_their_order(widths: list[str]) -> None:
    rows = [(width, 0.7 + number / 50 + seed / 100, seed) for number, width in enumerate(widths) for seed in range(3)]
    figure = draw_widths(pd.DataFrame(rows, columns=["width", "accuracy", "seed"]))
    check_legible(figure)
    axes = figure.axes[0]
    assert read(axes.get_xticklabels()) == widths
    means, seeds = axes.lines
    np.testing.assert_allclose(np.asarray(means.get_ydata(), dtype=float), [71 + 2 * n for n in range(len(widths))])
    assert len(seeds.get_xdata()) == 3 * len(widths)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.asarray(seeds.get_ydata(), dtype=float)[:3], [70, 71, 72])


def agreements(settings: int) -> pd.DataFrame:
    rows = []
    for number, setting in enumerate(NAMES[:settings]):
        mean = 0.6 - 0.1 * number
        rows.append((setting, [mean - 0.1, mean, mean + 0.1], [3, 14, 3], mean, mean - 0.15, mean + 0.15))
    return pd.DataFrame(rows, columns=["setting", "agreement", "num_clusters", "mean", "low", "high"])


@pytest.mark.parametrize("settings", [1, 2, 12])
def test_agreement_has_a_row_for_each_setting(settings: int) -> None:
    table = agreements(settings)
    figure = draw_agreement(table)
    check_legible(figure)
    axes = figure.axes[0]
    assert read(axes.get_yticklabels()) == NAMES[:settings]
    assert read(axes.texts) == [f"{mean:.2f}   K = 3, 14" for mean in table["mean"]]
    above = [(mean, row) for row, mean in enumerate(table["mean"]) if mean > 0.15]
    assert dots(axes, filled=False) == [(mean, row) for row, mean in enumerate(table["mean"]) if mean <= 0.15]
    found = dots(axes, filled=True)
    cells = [(value, row) for row, values in enumerate(table["agreement"]) for value in values]
    assert sorted(found) == sorted([*above, *cells])
    lines = [line.get_xydata() for line in axes.lines if line.get_linewidth() == 1.6]
    expected = [[(low, row), (high, row)] for row, (low, high) in enumerate(table[["low", "high"]].to_numpy())]
    np.testing.assert_allclose(np.array(lines), expected)


def test_agreement_of_few_tasks_has_no_interval() -> None:
    figure = draw_agreement(agreements(1).assign(low=np.nan, high=np.nan))
    check_legible(figure)
    assert dots(figure.axes[0], filled=False) == [(0.6, 0)]


@pytest.mark.parametrize(
    ("settings", "layers"),
    [(1, ["one"]), (4, ["words", "sentences", "a_very_long_name.of_a_module.layers.3"]), (25, ["1", "2"])],
)
def test_stability_can_be_read(settings: int, layers: list[str]) -> None:
    table = stability(settings, layers)
    figure = draw_stability(table)
    check_legible(figure)
    assert len(figure.axes) == len(layers)
    assert read(figure.axes[0].get_yticklabels()) == list(table["setting"].unique())
    for axes, layer in zip(figure.axes, layers, strict=True):
        values = table.loc[table["layer"] == layer, "ari"].tolist()
        beyond = [(value, row) for row, value in enumerate(values) if value > 0.2]
        assert dots(axes, filled=True) == beyond
        assert dots(axes, filled=False) == [(value, row) for row, value in enumerate(values) if value <= 0.2]
        assert min(axes.get_xlim()) < min(values)
        for bar in axes.patches:
            box = bar.get_extents().transformed(axes.transData.inverted())
            assert (box.x0, box.x1) == pytest.approx((0.01, 0.2))
    assert legend(figure) == ["seeds, beyond chance", "within", "chance: mean to 95 %"]


def test_stability_of_a_layer_that_some_settings_lack() -> None:
    figure = draw_stability(stability(3, ["one", "two"]).drop(index=3))
    assert [len(dots(axes)) for axes in figure.axes] == [3, 2]
    assert sorted(y for _, y in dots(figure.axes[1])) == [0, 2]


def test_recovery_has_a_panel_per_setting() -> None:
    values: dict[str, list[Any]] = {
        "noise": [0.4, 0.0, 0.1],
        "tasks": ["100", "20", "50"],
        "warm-up steps": [0, 100, 300, 1000, 3000, 10000],
        "initial": ["k-means", "another one"],
    }
    rows = [
        (setting, value, seed, 0.1 * position + 0.2 * seed)
        for setting, sweep in values.items()
        for position, value in enumerate(sweep)
        for seed in range(2)
    ]
    figure = draw_recovery(pd.DataFrame(rows, columns=["setting", "value", "seed", "ari"]))
    check_legible(figure)
    assert [axes.get_title() for axes in figure.axes] == list(values)
    assert [read(axes.get_xticklabels()) for axes in figure.axes] == [
        ["0", "0.1", "0.4"],
        ["20", "50", "100"],
        ["0", "100", "300", "1000", "3000", "10000"],
        ["k-means", "another one"],
    ]
    means = [np.asarray(axes.lines[1].get_ydata(), dtype=float) for axes in figure.axes]
    np.testing.assert_allclose(means[0], [0.2, 0.3, 0.1])
    np.testing.assert_allclose(means[3], [0.1, 0.2])
    seeds = np.stack([np.asarray(data, dtype=float) for data in figure.axes[1].lines[2].get_data()], axis=1)
    np.testing.assert_allclose(seeds, [(2, 0), (2, 0.2), (0, 0.1), (0, 0.3), (1, 0.2), (1, 0.4)])


def test_recovery_worse_than_chance_stays_in_the_picture() -> None:
    table = pd.DataFrame({"setting": "a", "value": [1, 2], "seed": 0, "ari": [-0.5, np.nan]})
    figure = draw_recovery(table)
    check_legible(figure)
    assert figure.axes[0].get_ylim()[0] < -0.5


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (draw_curves, curves(1, 1), "domain"),
        (draw_systems, cells(1), "accuracy"),
        (draw_agreement, agreements(1), "num_clusters"),
        (draw_stability, stability(1, ["one"]), "null_high"),
        (lambda table: draw_differences(table, "base"), differences(), "low"),
        (draw_grid, pd.DataFrame({"first": [1], "second": [1], "accuracy": [0.5]}), "second"),
        (draw_widths, pd.DataFrame({"width": ["1"], "accuracy": [0.5], "seed": [0]}), "seed"),
        (draw_recovery, pd.DataFrame({"setting": ["a"], "value": [1], "seed": [0], "ari": [0.5]}), "value"),
    ],
)
def test_tables_that_cannot_be_drawn(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, column: str) -> None:
    with pytest.raises(InputError, match=f"no column '{column}'; to be drawn, it needs"):
        draw(table.drop(columns=column))
    with pytest.raises(InputError, match="no rows: nothing to draw"):
        draw(table[:0])
