import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from sklearn.preprocessing import StandardScaler

from lightning_ncmtl.datamodules.features import Scaling
from lightning_ncmtl.errors import InputError


def table(values: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> Dataset:
    """In several chunks."""
    kind = pa.list_(pa.float64(), values.shape[1])
    chunks = [pa.array(part.tolist(), kind) for part in np.array_split(values, 3)]
    return Dataset(pa.table({"features": pa.chunked_array(chunks, kind)}))


def test_equals_scikit_learn_on_the_rows_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of values far from zero, too, and read a few at a time."""
    monkeypatch.setattr("lightning_ncmtl.datamodules.features._ROWS", 7)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((100, 3)) * [1, 1e-3, 1e4] + [0, 5, 1.7e9]
    places = np.flatnonzero(rng.random(100) < 0.6)
    data = table(values)
    scaling = Scaling.learn(["a", "b", "c"], data, places)
    expected = StandardScaler().fit(values[places]).transform(values)
    found = scaling(data.data.column("features"))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert scaling(data.data.column("features").slice(5, 3)).shape == (3, 3)
    assert scaling(data.data.column("features").slice(0, 0)).shape == (0, 3)


def test_constant_features_are_named_and_become_zero(caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([[0.1, 1, 7], [0.1, 2, 7], [0.1, 3, 7], [5, 4, 7]])
    with caplog.at_level("INFO"):
        scaling = Scaling.learn(["a", "b", "c"], table(values), np.arange(3))
    assert caplog.messages == ["train: 2 of 3 features are constant and become 0: 'a', 'c'"]
    np.testing.assert_allclose(scaling(table(values).data.column("features"))[:, 1], (values[:, 1] - 2) * 1.5**0.5)
    assert not scaling(table(values).data.column("features"))[:, [0, 2]].any()
    again = Scaling.from_plain(scaling.plain())
    assert scaling.plain()["deviation"] == [None, pytest.approx((2 / 3) ** 0.5), None]
    assert again.plain() == scaling.plain()
    assert torch.equal(again(table(values).data.column("features")), scaling(table(values).data.column("features")))


@pytest.mark.parametrize("values", [[1e300, -1e300], [1e-300, 2e-300]])
def test_features_whose_squares_cannot_be_held(values: list[float]) -> None:
    with pytest.raises(InputError, match="the feature 'b' cannot be standardised, found values from .*e.*: scale it"):
        Scaling.learn(["a", "b"], table(np.array([[1, values[0]], [2, values[1]]])), np.arange(2))
