"""Content becomes HTML: one file without references, which keeps its sense without JavaScript."""

from base64 import b64encode
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_ncmtl.callbacks.page import words
from lightning_ncmtl.callbacks.page.content import Content
from lightning_ncmtl.callbacks.page.curves import Chart, chart_curves, chart_gains
from lightning_ncmtl.callbacks.page.flow import lay_out_flow
from lightning_ncmtl.callbacks.page.similarity import LEVELS, lay_out_similarity
from lightning_ncmtl.callbacks.page.table import STAGES, group_layers, make_columns, rank_tasks, ranking, write_number
from lightning_ncmtl.callbacks.page.text import plural

_FOLDER = Path(__file__).parent
_MOST_CHARTS = 6


def render_page(content: Content) -> str:
    """Write the page about a run.

    Args:
        content: What there is to say.

    Returns:
        HTML that refers to nothing outside of itself.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,  # names of tasks are users' texts
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    divided, evidence = content.divided, content.report["evidence"]
    similarity = None
    if content.similarities is not None and evidence is not None:
        shown = next(iter([*divided.values(), *content.layers.values()]), None)
        clusters = [0] * len(content.tasks) if shown is None else shown["clusters"]
        similarity = lay_out_similarity(content.similarities, clusters, content.tasks)
    return environment.get_template("page.html.j2").render(
        content=content,
        # A script runs only if this is its hash, so none that a name or a setting might smuggle in
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        script=Markup(script),
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        words=words,
        figures=_key_figures(content),
        plural=plural,
        columns=make_columns(content),
        order=rank_tasks(content),
        ranked=ranking(content),
        groups=group_layers(content),
        flow=lay_out_flow({name: layer["clusters"] for name, layer in content.layers.items()}, content.tasks)
        if divided
        else None,
        similarity=similarity,
        levels=LEVELS,
        gains=None
        if evidence is None
        else chart_gains({int(k): gain for k, gain in evidence["gains"].items()}, evidence["num_clusters"]),
        charts=_draw_curves(content),
        settling=_draw_settling(content),
    )


def _key_figures(content: Content) -> list[tuple[str, str, str]]:
    """What to see first: names, values and what else is to be said of them."""
    numbers = dict.fromkeys(str(layer["num_clusters"]) for layer in content.layers.values())
    figures = [("tasks", f"{len(content.tasks):,}", ""), ("clusters", " · ".join(numbers) or "none", "")]
    for stage in ("test", "val"):
        if content.headline is not None and content.headline[0] in content.averages.get(stage, {}):
            name = content.headline[0]
            value = write_number(name, content.averages[stage][name])
            end = "average over tasks" + ", at the end" * (stage == "val" and content.stage == "fit")
            figures += [(f"{STAGES[stage]} {name}", value, end)] if value else []
    if content.best is not None:
        monitor, value, epoch = content.best.monitor, f"{content.best.value:.4g}", content.best.epoch
        if epoch is None or not content.epochs:
            figures.append(("best", value, monitor))
        else:
            figures.append(("best epoch", f"{epoch} of {content.epochs[-1][0]}", f"{monitor} {value}"))
    if (evidence := content.report["evidence"]) is not None:
        figures.append(("evidence", f"p = {evidence['p_value']:.3g}", "against tasks in random order"))
    return figures


def _draw_curves(content: Content) -> list[Chart]:
    """A chart for each value, of training and validation: the loss, what the best epoch was chosen by, and others."""
    named: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for stage, called in (("val", "validation"), ("train", "training")):
        for key in [key for key in content.curves if key.startswith(f"{stage}/")]:
            named.setdefault(key.split("/", 1)[1], {})[called] = list(content.curves[key])
    first = "" if content.best is None else content.best.monitor.split("/", 1)[-1]
    order = sorted(named, key=lambda name: (name != "loss", name != first))
    # What is equal all the time, such as accuracies where there are no copies, is one chart
    titles: dict[str, str] = {}
    for name in order:
        same = next((other for other in titles if named[other] == named[name]), name)
        titles[same] = f"{titles[same]}, {name}" if same in titles else name
    charts = []
    for name, title in list(titles.items())[:_MOST_CHARTS]:
        best = content.best if name == first else None
        point = None if best is None or best.step is None else (best.step, best.value)
        chart = chart_curves(title, named[name], content.epochs, content.last_step, _happened(content), point)
        charts += [] if chart is None else [chart]
    return charts


def _happened(content: Content) -> dict[str, int]:
    """When tasks were first clustered, and when for good; in layers in which there was a choice."""
    layers = content.divided.values()
    first = [layer["trace"][0][0] for layer in layers if layer["trace"]]
    last = [layer["frozen_at_step"] for layer in layers if layer["frozen_at_step"] is not None]
    if not first:
        return {}
    if last and max(last) == min(first):
        return {"clustered": min(first)}
    return {"clustered": min(first), **({"frozen": max(last)} if last else {})}


def _draw_settling(content: Content) -> list[Chart]:
    """How clusters settled, where they were looked for again and again."""
    moves: dict[str, list[tuple[int, float]]] = {}
    for name, layer in content.divided.items():
        trace, total = layer["trace"], 0
        points = [(trace[0][0], 0.0)] if len(trace) > 1 else []
        for (_, old), (step, new) in pairwise(trace):
            points.append((step, float(total)))  # a step, not a slope
            total += sum(one != other for one, other in zip(old, new, strict=True))
            points.append((step, float(total)))
        moves[name] = [*points, (max(content.last_step, points[-1][0]), float(total))] if points else []
    losses = {}
    for name, layer in content.divided.items():
        end = layer["frozen_at_step"] or content.last_step + 1  # from then on there is none
        losses[name] = [(step, loss) for step, loss in content.losses.get(name, ()) if step < end]
    settings = (content.epochs, content.last_step, _happened(content))
    charts = [
        chart_curves("clustering loss", losses, *settings),
        chart_curves("changes of cluster so far", moves, *settings, least=1),
    ]
    return [chart for chart in charts if chart is not None]
