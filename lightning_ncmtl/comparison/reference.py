"""References from outside for rows of features: classifiers of scikit-learn, for all tasks together or for each."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.utils import all_estimators

from lightning_ncmtl.comparison.plan import Cell
from lightning_ncmtl.comparison.tfidf import TFIDF
from lightning_ncmtl.datamodules.sources import Source
from lightning_ncmtl.errors import InputError

REFERENCES = ("tfidf", "reference")  # settings in the place of those of a network
_LEAST = 1e-12  # a probability of zero has no logarithm


class Reference:
    """A classifier of scikit-learn on standardised features.

    Args:
        model: Name of a class of scikit-learn that tells probabilities, such as ``LogisticRegression`` or
            ``RandomForestClassifier``.
        per_task: Whether each task has a model of its own. A task whose training rows are of one class says this class.
        seed: Seed of a model that draws at random.
        settings: Arguments of the class.

    Raises:
        InputError: If there is no such class.
        TypeError: If it does not have such arguments.
    """

    def __init__(self, model: str, per_task: bool = False, seed: int = 0, **settings: Any) -> None:
        kind: Any = dict(all_estimators(type_filter="classifier")).get(model)
        if not hasattr(kind, "predict_proba"):
            raise InputError(
                f"reference.model {model!r} is no classifier of scikit-learn that tells probabilities: choose "
                "LogisticRegression, RandomForestClassifier or another one"
            )
        self.name, self.per_task = model, per_task
        self.model = kind(**settings)
        if "random_state" in self.model.get_params() and "random_state" not in settings:
            self.model.set_params(random_state=seed)

    def fit(self, features: NDArray[Any], tasks: NDArray[Any], labels: NDArray[Any]) -> "Reference":
        """Learn from training rows: their features ``[n, F]``, and task and label ``[n]`` of each.

        Raises:
            InputError: If scikit-learn refuses the settings or the rows.
        """
        try:
            self._models = {
                task: self._fit_one(features[rows], labels[rows]) for task, rows in self._parts(tasks).items()
            }
        except ValueError as error:
            raise InputError(f"{self.name} cannot be fitted: {str(error).splitlines()[0]}") from error
        return self

    def logits(self, features: NDArray[Any], tasks: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
        """Logarithms of the probabilities of all classes, ``[n, num_classes]``."""
        logits = np.full((len(features), num_classes), np.log(_LEAST))
        for task, rows in self._parts(tasks).items():
            if task in self._models:
                model = self._models[task]
                probabilities = model.predict_proba(features[rows])
                logits[np.ix_(rows, model.classes_)] = np.log(np.maximum(probabilities, _LEAST))
        return logits

    @property
    def parameters(self) -> float:
        """Number of learned weights of linear models, or of nodes of trees; NaN of others."""
        return sum(map(_count, self._models.values()))

    def _parts(self, tasks: NDArray[Any]) -> dict[int, NDArray[np.int64]]:
        """The rows that each model is of."""
        if not self.per_task:
            return {0: np.arange(len(tasks))}
        return {int(task): np.flatnonzero(tasks == task) for task in np.unique(tasks)}

    def _fit_one(self, features: NDArray[Any], labels: NDArray[Any]) -> Any:
        model = clone(self.model) if len(np.unique(labels)) > 1 else DummyClassifier(strategy="prior")
        return model.fit(features, labels)


def find_reference(cell: Cell, source: Any) -> TFIDF | Reference | None:
    """The model of scikit-learn that a cell consists of, if it is not a network.

    Args:
        cell: The cell.
        source: The parsed settings of the source of its data (``class_path`` and ``init_args``), whose files are not
            read.

    Raises:
        InputError: If its settings cannot be used, or it cannot read what the source has.
    """
    found = [(kind, settings[kind]) for settings in cell.settings for kind in REFERENCES if kind in settings]
    if not found:
        return None
    kind, settings = found[-1]
    if kind == "tfidf" and _has_features(source):
        raise InputError(f"{cell.system!r}: tfidf reads texts, and the data has features: choose reference")
    if kind == "reference" and not _has_features(source):
        raise InputError(f"{cell.system!r}: reference reads features, and the data has texts: choose tfidf")
    try:
        return TFIDF(**(settings or {})) if kind == "tfidf" else Reference(**{"seed": cell.seed, **(settings or {})})
    except TypeError as error:
        raise InputError(f"{cell.system!r} has the {kind} settings {settings}: {error}") from error


def _has_features(source: Any) -> bool:
    while "source" in (source.init_args or ()):  # as ShuffledDomains, which deals another one
        source = source.init_args.source
    module, _, name = source.class_path.rpartition(".")
    return getattr(import_module(module), name).features is not Source.features


def _count(model: Any) -> float:
    if isinstance(model, DummyClassifier):
        return 0
    if hasattr(model, "coef_"):
        return int(model.coef_.size + model.intercept_.size)
    trees = np.ravel(getattr(model, "estimators_", [model]))
    return sum(tree.tree_.node_count if hasattr(tree, "tree_") else np.nan for tree in trees)
