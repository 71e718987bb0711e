import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_ncmtl import NCMTL, SingleTask
from lightning_ncmtl.callbacks import PredictionWriter
from lightning_ncmtl.datamodules import MultiDomainDataModule


@pytest.mark.parametrize("name", [None, "deep/er/out.jsonl"])
def test_predictions_are_in_the_order_of_the_input(
    make_model: Callable[..., NCMTL],
    make_trainer: Callable[..., Trainer],
    datamodule: MultiDomainDataModule,
    tmp_path: Path,
    name: str | None,
) -> None:
    domains = datamodule.domains
    rows = [{"text": "w1 " * (40 - n) + f"opinion{n % 12}", "domain": domains[n % 4]} for n in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    datamodule.predict_path = str(tmp_path / "in.jsonl")
    datamodule.setup("fit")
    writer = PredictionWriter(None if name is None else str(tmp_path / name))
    trainer = make_trainer(callbacks=[writer])
    model = make_model()
    batches = trainer.predict(model, datamodule=datamodule)
    assert batches is not None

    lines = [json.loads(line) for line in (tmp_path / (name or "predictions.jsonl")).read_text().splitlines()]
    assert [(line["text"], line["domain"]) for line in lines] == [(row["text"], row["domain"]) for row in rows]
    by_index = {
        int(index): row.tolist()
        for batch in batches
        for index, row in zip(batch["index"], batch["probabilities"], strict=True)
    }
    for index, line in enumerate(lines):
        names, probabilities = list(line["probabilities"]), list(line["probabilities"].values())
        assert names == [str(name) for name in datamodule.class_names]
        assert probabilities == by_index[index]
        assert sum(probabilities) == pytest.approx(1)
        assert str(line["prediction"]) == names[0 if probabilities[0] >= probabilities[1] else 1]


def test_what_is_kept_until_the_end_is_not_the_memory_of_the_batches() -> None:
    """Workers of a loader share memory, of which as many pieces can be kept as a process may open files."""
    writer: Any = PredictionWriter()
    writer.on_predict_batch_end(None, None, {"index": torch.arange(3).share_memory_()}, None)
    assert writer._outputs[0]["index"].tolist() == [0, 1, 2]
    assert not writer._outputs[0]["index"].is_shared()


class Named(LightningDataModule):
    """Four documents of two domains, of which each has other classes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def predict_rows(self) -> list[tuple[dict[str, str], str]]:
        return [({"text": text}, domain) for text, domain in zip(["1st", "2nd", "3rd", "4th"], "abba", strict=True)]

    def predict_dataloader(self) -> Any:
        task_ids, index = torch.tensor([1, 0, 1, 0]), torch.tensor([2, 0, 1, 3])
        torch.manual_seed(0)
        inputs = torch.randn(4, 3)
        return DataLoader([{"inputs": inputs, "task_ids": task_ids, "index": index}], batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [None, ["bad", "good", 7, 10]])
@pytest.mark.parametrize("own", [False, True])
def test_classes_have_the_names_of_the_data(
    make_trainer: Callable[..., Trainer], tmp_path: Path, names: list[Any] | None, own: bool
) -> None:
    classes = [[0, 2], [1, 2, 3]]
    called = names or [0, 1, 2, 3]
    attributes: dict[str, Any] = {} if names is None else {"class_names": names}
    if own:
        attributes["domain_classes"] = {"a": [called[0], called[2]], "b": [called[1], called[2], called[3]]}
    trainer = make_trainer(callbacks=[PredictionWriter()])
    model = SingleTask(nn.Linear(3, 3), 2, num_classes=4, features=(), task_classes=classes)
    (batch,) = trainer.predict(model, datamodule=Named(**attributes))  # type: ignore[misc]
    rows = batch["probabilities"][batch["index"].argsort()].tolist()
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [({"text": line["text"]}, line["domain"]) for line in lines] == Named().predict_rows()
    assert [list(line) for line in lines] == [["text", "domain", "prediction", "probabilities"]] * 4
    for line, row, mine in zip(lines, rows, [classes[task] for task in (0, 1, 1, 0)], strict=True):
        assert line["prediction"] == called[row.index(max(row))]
        assert line["prediction"] in [called[place] for place in mine]
        expected = {str(called[place]): row[place] for place in mine}
        assert line["probabilities"] == (expected if own else row)
        assert sum(row[place] for place in mine) == pytest.approx(1)


class Wide(LightningDataModule):
    """Rows that are predicted in several tasks each, in batches in another order."""

    rows = (("b", "a"), ("a", "b"), ("a",), ("b",))

    def predict_rows(self) -> list[tuple[dict[str, Any], list[str]]]:
        return [({"name": f"n{index}"}, list(tasks)) for index, tasks in enumerate(self.rows)]

    def predict_dataloader(self) -> Any:
        batches = []
        for chosen in ([2, 0], [3, 1]):
            entries = [(place, index, "ab".index(t)) for place, index in enumerate(chosen) for t in self.rows[index]]
            rows, index, task_ids = torch.tensor(entries).T
            inputs = torch.eye(4, 3)[chosen]
            batches.append({"inputs": inputs, "task_ids": task_ids, "index": index, "rows": rows})
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [2, 1])
def test_a_row_of_several_tasks_is_one_line(make_trainer: Callable[..., Trainer], tmp_path: Path, limit: int) -> None:
    model = SingleTask(nn.Linear(3, 3), 2, features=()).eval()
    make_trainer(callbacks=[PredictionWriter()], limit_predict_batches=limit).predict(model, datamodule=Wide())
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == {2: ["n0", "n1", "n2", "n3"], 1: ["n0", "n2"]}[limit]
    for line in lines:
        index = int(line["name"][1])
        assert list(line) == ["name", "predictions"]
        assert list(line["predictions"]) == list(Wide.rows[index])
        for task, found in line["predictions"].items():
            with torch.no_grad():
                row = model(torch.eye(4, 3)[[index]], torch.tensor(["ab".index(task)])).softmax(1)[0]
            assert found["probabilities"] == pytest.approx(row.tolist())
            assert found["prediction"] == row.argmax()
