import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning import Trainer

from lightning_ncmtl import NCMTL
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
        assert line["probabilities"] == by_index[index]
        assert sum(line["probabilities"]) == pytest.approx(1)
        assert line["prediction"] == (0 if line["probabilities"][0] >= line["probabilities"][1] else 1)
