"""What was found out, in words for people who have not read how."""

from collections.abc import Iterable
from math import floor

from lightning_ncmtl.callbacks.page.content import Content
from lightning_ncmtl.callbacks.page.text import plural
from lightning_ncmtl.clustering.evidence import LEVEL

_UNTESTED = (
    "No evidence was weighed for them: they were given, or found after a warm-up apart. Whether chance would do as "
    "well is not known."
)


def tell_result(content: Content) -> str:
    """How many clusters there are, in a sentence."""
    if not content.report["layers"]:
        return "Tasks were not clustered."
    if not content.layers:
        return "There are no clusters yet."
    count, numbers = len(content.tasks), [layer["num_clusters"] for layer in content.layers.values()]
    if set(numbers) == {1}:
        return f"No clusters: all {plural(count, 'task')} share one set of weights."
    if set(numbers) == {count}:
        return f"No clusters: each of {plural(count, 'task')} keeps weights of its own."
    if len(set(numbers)) == 1:
        return f"{plural(count, 'task')} in {plural(numbers[0], 'cluster')}."
    return f"{plural(count, 'task')} in {_join(map(str, numbers))} clusters, layer by layer."


def tell_why(content: Content) -> str:
    """Why so many."""
    if not content.report["layers"]:
        return "The model has no cluster layers, or no network clustering took part in the training."
    if not content.layers:
        return "The training ended within the warm-up, in which no tasks are grouped: train longer."
    evidence = content.report["evidence"]
    numbers = {layer["num_clusters"] for layer in content.layers.values()}
    found, p_value = (1, 1.0) if evidence is None else (evidence["num_clusters"], evidence["p_value"])
    if evidence is None:
        words = _UNTESTED if content.divided else "No evidence was weighed: their number was given."
    elif found == 1 and p_value < LEVEL:
        words = (
            "Tasks differ, but each in its own way: no way to group them predicts the other half of the data better "
            f"than one set of weights for all does ({tell_p(p_value)})."
        )
    elif found == 1:
        words = (
            "There is no evidence for clusters: two disjoint halves of the data do not agree on groups of tasks more "
            f"than chance does ({tell_p(p_value)})."
        )
    else:
        what = "that every task differs" if found == len(content.tasks) else f"on {plural(found, 'cluster')}"
        words = f"Two disjoint halves of the data agree {what} ({tell_p(p_value)})."
    if evidence is not None and numbers != {found}:
        given = _join(map(str, sorted(numbers)))
        words += f" The number of clusters was not left to the evidence: it was given as {given}."
    ari = content.report["ari"] or {}
    if indices := {ari[name] for name in content.divided if name in ari}:
        same = " They are the planted groups (adjusted Rand index 1)."
        told = _join(f"{index:.2f}" for index in sorted(indices))
        words += same if min(indices) == 1 else f" Adjusted Rand index with the planted groups: {told} (1: the same)."
    return words


def tell_p(p_value: float) -> str:
    """A p-value, with what it means."""
    often = 1 / max(p_value, 1e-9)
    said = f"p = {p_value:.3g}"
    if often >= 2:
        said += f": tasks in random order do as well in about 1 of {floor(often + 0.5):,} cases"
    elif p_value < 1:
        said += f": tasks in random order do as well in {100 * p_value:.0f} % of the cases"
    else:
        said += ": tasks in random order always do as well"
    return said


def tell_agreement(content: Content) -> str:
    """What the halves agree on, and how sure that is."""
    evidence = content.report["evidence"]
    error = evidence["agreement_error"]
    spread = f" ± {error:.2f} (standard error)" if error is not None else ""
    return (
        f"Agreement of the halves: {evidence['agreement']:.2f}{spread}. It is the correlation, over all pairs of "
        "tasks, of how similar they are in one half of the data and in the other: 1 if the halves say the same, about "
        "0 if there is nothing to find."
    )


def tell_gains(content: Content) -> str:
    """Which number of clusters was taken, and why."""
    evidence = content.report["evidence"]
    gains, found = {1: 0.0, **{int(k): gain for k, gain in evidence["gains"].items()}}, evidence["num_clusters"]
    best = max(gains, key=lambda k: gains[k])
    words = (
        "The gain says how much better the clusters of one half predict the tasks in the other half than one set of "
        "weights for all does, whose gain is 0. At most it is 1; less than 0 is worse than sharing everything. "
    )
    if found == 1 and gains[best] <= 0:
        return words + "No number of clusters has a gain, so all tasks share."
    if found == 1:
        return words + (
            f"{plural(best, 'cluster')} would have the best gain, {gains[best]:.2f}, but chance does as well too "
            "often: all tasks share."
        )
    if found == best:
        return words + f"{plural(found, 'cluster')} have the best gain, {gains[found]:.2f}."
    return words + (
        f"{best} clusters have the best gain, {gains[best]:.2f}; {found} are the fewest within a standard error of "
        f"that, with {gains[found]:.2f}."
    )


def tell_best(content: Content) -> str:
    """Which epoch was the best, and whether it has the clusters; empty if none was chosen."""
    best = content.best
    if best is None:
        return ""
    number = f"Epoch {best.epoch} was the best" if best.epoch is not None else "The best checkpoint was chosen"
    words = f"{number} by {best.monitor}: {best.value:.4g}."
    starts = [layer["trace"][0][0] for layer in content.divided.values() if layer["trace"]]
    if best.step is not None and starts and best.step < min(starts):
        words += " It is of a time before tasks were clustered: only the last checkpoint has the clusters."
    return words


def _join(parts: Iterable[str]) -> str:
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last
