import numpy as np
import pytest

from lightning_ncmtl.comparison.tfidf import TFIDF

# "sharp" is good of knives and bad of music.
TEXTS = ["sharp thing", "dull thing"] * 20
TASKS = [0] * 20 + [1] * 20
LABELS = [1, 0] * 10 + [0, 1] * 10


@pytest.mark.parametrize("per_domain", [False, True])
def test_features_of_domains_learn_what_differs_between_domains(per_domain: bool) -> None:
    model = TFIDF(per_domain).fit(TEXTS, TASKS, LABELS)
    found = model.logits(TEXTS, TASKS, 2).argmax(1)
    assert (found == LABELS).mean() == (1 if per_domain else pytest.approx(0.5))
    # Two words and a pair with each of the first words; two domains; one intercept.
    features = 5
    assert model.parameters == features * (3 if per_domain else 1) + 1


def test_documents_of_unseen_words_get_a_class() -> None:
    model = TFIDF(per_domain=True).fit(TEXTS, TASKS, LABELS)
    assert np.isfinite(model.logits(["nothing known", ""], [1, 0], 2)).all()


@pytest.mark.parametrize("labels", [[1, 3] * 20, [1, 3, 2, 3] * 10])
def test_scores_are_those_of_the_classes_that_were_seen(labels: list[int]) -> None:
    """One for each class that training had, whose highest is what the model predicts."""
    model = TFIDF().fit(TEXTS, TASKS, labels)
    logits = model.logits(TEXTS, TASKS, 5)
    assert np.isfinite(logits).all(axis=0).tolist() == [label in labels for label in range(5)]
    expected = model.model.predict(model.vectorizer.transform(TEXTS))
    assert logits.argmax(1).tolist() == expected.tolist()


def test_equal_to_a_fit_per_domain_where_nothing_is_shared() -> None:
    """With words of its own for each domain, the shared features say the same as those of the domain."""
    texts = [f"{word}{task}" for task in range(2) for word in ("good", "bad") for _ in range(5)]
    tasks, labels = [0] * 10 + [1] * 10, ([1] * 5 + [0] * 5) * 2
    for per_domain in (False, True):
        assert np.array_equal(TFIDF(per_domain).fit(texts, tasks, labels).logits(texts, tasks, 2).argmax(1), labels)
