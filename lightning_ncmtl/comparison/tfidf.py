"""The reference from outside: TF-IDF features and a linear model, by scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC


class TFIDF:
    """A linear support vector machine on TF-IDF of words and pairs of words.

    Args:
        per_domain: Whether each domain also has features of its own beside those for all (Daumé III, ACL 2007).
        cost: Inverse strength of the regularisation.
    """

    def __init__(self, per_domain: bool = False, cost: float = 1.0) -> None:
        self.per_domain = per_domain
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\S+")
        self.model = LinearSVC(C=cost, random_state=0)

    def fit(self, texts: Sequence[str], tasks: Sequence[int], labels: Sequence[int]) -> "TFIDF":
        """Learn from training documents: their texts, and task and label of each."""
        self._num_tasks = max(tasks) + 1
        self.model.fit(self._features(self.vectorizer.fit_transform(texts), tasks), labels)
        return self

    def logits(self, texts: Sequence[str], tasks: ArrayLike, num_classes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Scores of documents for all classes ``[n, num_classes]``; minus infinity for those that it has not seen."""
        found = self.model.decision_function(self._features(self.vectorizer.transform(texts), tasks))
        logits = np.full((len(found), num_classes), -np.inf)
        # Of two classes there is one score: that of the second
        logits[:, self.model.classes_] = np.stack([-found, found], 1) / 2 if found.ndim == 1 else found
        return logits

    @property
    def parameters(self) -> int:
        """Number of learned weights."""
        return int(self.model.coef_.size + self.model.intercept_.size)

    def _features(self, shared: Any, tasks: ArrayLike) -> Any:
        if not self.per_domain:
            return shared
        of_task = [sparse.diags_array(np.equal(tasks, task).astype(float)) @ shared for task in range(self._num_tasks)]
        return sparse.hstack([shared, *of_task], format="csr")
