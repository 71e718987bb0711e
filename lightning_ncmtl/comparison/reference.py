"""References from outside for rows of features: models of scikit-learn, for all tasks together or for each."""

from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.base import clone, is_regressor
from sklearn.dummy import DummyClassifier
from sklearn.utils import all_estimators

from lightning_ncmtl.comparison.measure import calibrated
from lightning_ncmtl.comparison.outcomes import Found, values_of
from lightning_ncmtl.comparison.plan import Cell
from lightning_ncmtl.comparison.tfidf import TFIDF
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Source
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.losses import UNLABELLED
from lightning_ncmtl.modules import MultiTaskModule

REFERENCES = ("tfidf", "reference")  # settings in the place of those of a network
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


def find_reference(cell: Cell, data: Any) -> TFIDF | Reference | None:
    """The model of scikit-learn that a cell consists of, if it is not a network.

    Args:
        cell: The cell.
        data: The parsed settings of its data. Files are not read.

    Raises:
        InputError: If its settings cannot be used, or it cannot read what the source has, or predict what labels are.
    """
    found = [(kind, settings[kind]) for settings in cell.settings for kind in REFERENCES if kind in settings]
    if not found:
        return None
    kind, settings = found[-1]
    if kind == "tfidf" and _has_features(data.source):
        raise InputError(f"{cell.system!r}: tfidf reads texts, and the data has features: choose reference")
    if kind == "reference" and not _has_features(data.source):
        raise InputError(f"{cell.system!r}: reference reads features, and the data has texts: choose tfidf")
    try:
        model = TFIDF(**(settings or {})) if kind == "tfidf" else Reference(**{"seed": cell.seed, **(settings or {})})
    except TypeError as error:
        raise InputError(f"{cell.system!r} has the {kind} settings {settings}: {error}") from error
    regression, regressor = data.labels.regression, isinstance(model, Reference) and model.is_regressor
    if isinstance(regression, bool) and regression != regressor:
        wanted = "numbers: choose a regressor" if regression else "classes: choose a classifier"
        raise InputError(f"{cell.system!r}: the labels are {wanted}, found {type(model.model).__name__}")
    return model


def refer(model: TFIDF | Reference, data: MultiDomainDataModule, network: MultiTaskModule, test: bool) -> Found:
    """Fit a reference, and evaluate it as a network.

    Args:
        model: The reference.
        data: The data.
        network: A network for these data, whose metrics are used.
        test: Whether to look at test rows.

    Returns:
        What goes into the result, and outcomes by stage.

    Raises:
        InputError: If tasks are of different kinds, or scikit-learn refuses the rows.
    """
    data.setup("fit")
    regression = isinstance(model, Reference) and model.is_regressor
    if regression and len(network.regression_tasks) == data.num_tasks:
        for buffer, values in zip((network.value_mean, network.value_scale), data.value_scale(), strict=True):
            buffer.copy_(values)
    elif regression or network.regression_tasks:
        raise InputError(
            "a reference is for tasks of one kind: choose data.domains that all predict numbers, and a regressor, or "
            "all have classes, and a classifier"
        )
    documents = _labelled(data, "train")
    target = "values" if regression else "labels"
    model.fit(_inputs(data, documents), *(documents[name].to_numpy() for name in ("task_ids", target)))
    if test:
        data.setup("test")
    result: dict[str, Any] = {"parameters": model.parameters, "clusters": {}, "ari": None, "curves": {}}
    if isinstance(model, Reference):  # the scores of TFIDF are no probabilities
        network.metrics = calibrated(network.metrics)
    outcomes = {}
    for stage, split in (("val", "validation"), ("test", "test"))[: 1 + test]:
        documents = _labelled(data, split)
        names = {"domain": "task_ids", "document": "index", "clean": "clean"}
        outcome = {ours: documents[name].to_numpy() for ours, name in names.items() if name in documents}
        columns = {name: torch.tensor(documents[name].to_numpy()) for name in ("task_ids", "labels", target)}
        outputs = torch.tensor(model.logits(_inputs(data, documents), outcome["domain"], data.num_classes))
        if not regression:
            outputs = network.masked(outputs, columns["task_ids"])
        network.metrics.reset()
        network.evaluate(outputs, columns)
        network.metrics.compute()
        outcomes[stage] = outcome | {"correct": (outputs.argmax(1) == columns["labels"]).numpy()}
        result[stage] = values_of(outcomes[stage], data.domains, network.metrics)
    return result | {"last": result["val"]}, outcomes


def _inputs(data: MultiDomainDataModule, documents: pd.DataFrame) -> Any:
    """What a reference reads of documents: texts, or standardised features ``[n, F]``."""
    return documents["text"] if data.scaling is None else data.scaling(pa.array(documents["features"])).numpy()


def _labelled(data: MultiDomainDataModule, split: str) -> pd.DataFrame:
    """The documents of a split that have a label, by number; those with several once in each domain."""
    documents: Any = data.documents(split).to_pandas()  # type: ignore[arg-type]
    kinds = {"labels": int} | ({"values": float} if "values" in documents else {})
    known = documents.explode(["task_ids", *kinds]).dropna(subset=["labels"])  # not those without any label
    rows: pd.DataFrame = known.astype({"task_ids": int, **kinds})
    labelled = rows["labels"] != UNLABELLED
    labelled |= rows["values"].notna() if "values" in rows else False
    return rows[labelled].sort_values(["index", "task_ids"])


def _has_features(source: Any) -> bool:
    while "source" in (source.init_args or ()):  # as ShuffledDomains, which deals another one
        source = source.init_args.source
    module, _, name = source.class_path.rpartition(".")
    return getattr(import_module(module), name).features is not Source.features


def _count(model: Any) -> float:
    if isinstance(model, DummyClassifier):
        return 0
    if hasattr(model, "coef_"):
        return int(model.coef_.size + np.size(model.intercept_))
    trees = np.ravel(getattr(model, "estimators_", [model]))
    return sum(tree.tree_.node_count if hasattr(tree, "tree_") else np.nan for tree in trees)
