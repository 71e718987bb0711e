"""References from outside for rows of features: models of scikit-learn, for all tasks together or for each."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_regressor
from sklearn.dummy import DummyClassifier
from sklearn.utils import all_estimators

from lightning_ncmtl.errors import InputError

_LEAST = 1e-12  # a probability of zero has no logarithm


class Reference:
    """A model of scikit-learn on standardised features: a classifier, or a regressor where tasks predict numbers.

    Args:
        model: Name of a class of scikit-learn that tells probabilities, such as ``LogisticRegression`` or
            ``RandomForestClassifier``, or of a regressor, such as ``Ridge`` or ``RandomForestRegressor``.
        per_task: Whether each task has a model of its own. A task whose training rows are of one class says this class.
            To predict numbers, each task needs training rows.
        seed: Seed of a model that draws at random.
        settings: Arguments of the class.

    Raises:
        InputError: If there is no such class.
        TypeError: If it does not have such arguments.
    """

    def __init__(self, model: str, per_task: bool = False, seed: int = 0, **settings: Any) -> None:
        kind: Any = dict(all_estimators(type_filter=["classifier", "regressor"])).get(model)
        if kind is None or not (hasattr(kind, "predict_proba") or is_regressor(kind())):
            raise InputError(
                f"reference.model {model!r} is no classifier of scikit-learn that tells probabilities, and no "
                "regressor: choose LogisticRegression, RandomForestClassifier, Ridge or another one"
            )
        self.name, self.per_task = model, per_task
        self.model = kind(**settings)
        self.is_regressor = is_regressor(self.model)
        if "random_state" in self.model.get_params() and "random_state" not in settings:
            self.model.set_params(random_state=seed)

    def fit(self, features: NDArray[Any], tasks: NDArray[Any], labels: NDArray[Any]) -> "Reference":
        """Learn from training rows: their features ``[n, F]``, and task and label, or number, ``[n]`` of each.

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
        """Logarithms of the probabilities of all classes, ``[n, num_classes]``; or numbers ``[n, 1]``.

        Raises:
            InputError: If a task has numbers to predict, and had no training rows.
        """
        if self.is_regressor:
            numbers = np.empty((len(features), 1))
            for task, rows in self._parts(tasks).items():
                if task not in self._models:
                    raise InputError(
                        f"{self.name} cannot predict task {task}, which has no training rows: pool the tasks"
                    )
                numbers[rows, 0] = self._models[task].predict(features[rows])
            return numbers
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
        learns = self.is_regressor or len(np.unique(labels)) > 1
        model = clone(self.model) if learns else DummyClassifier(strategy="prior")
        return model.fit(features, labels)


def _count(model: Any) -> float:
    if isinstance(model, DummyClassifier):
        return 0
    if hasattr(model, "coef_"):
        return int(model.coef_.size + np.size(model.intercept_))
    trees = np.ravel(getattr(model, "estimators_", [model]))
    return sum(tree.tree_.node_count if hasattr(tree, "tree_") else np.nan for tree in trees)
