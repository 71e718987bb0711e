"""All that a data module makes of a corpus, as plain values; and a program that writes it down, or hangs."""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import make_data

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Document, Problem, Tables
from lightning_ncmtl.errors import InputError

SETTINGS: dict[str, Any] = {"validation_size": 4, "min_frequency": 1, "batch_size": 8}


def everything(data: MultiDomainDataModule) -> dict[str, Any]:
    """Batches of all stages there are, vocabulary, classes and counts; or why there are none."""
    try:
        data.setup("fit")
        loaders = {"train": data.train_dataloader(), "validation": data.val_dataloader()}
        if "test" in data.source.splits():
            data.setup("test")
            loaders["test"] = data.test_dataloader()
        if data.predict_path is not None:
            data.setup("predict")
            loaders["predict"] = data.predict_dataloader()
        batches = {stage: [plain(batch) for batch in loader] for stage, loader in loaders.items()}
    except InputError as error:
        return {"refused": str(error)}
    return {"batches": batches, "counts": data.counts, "copies": data.copies, **data.state_dict()}


def plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    return values if isinstance(values, int) else values.tolist()


class Hanging(Tables):
    """Says that it was read, and never ends."""

    _told: Path

    def read(self, *args: Any) -> Iterator[Document | Problem]:
        for number, item in enumerate(super().read(*args)):
            if number == 1100:
                self._told.touch()
                time.sleep(600)
            yield item


def work(folder: Path, name: str, others: list[str]) -> None:
    """Write ``NAME.json``, with a cache in the folder, as soon as the ``others`` are there, too; or hang."""
    pattern, there = f"{folder}/corpus/*.csv", folder / f"{name}.there"
    source = Tables(pattern)
    if name == "hanging":
        source = Hanging(pattern)
        source._told = there
    else:
        there.touch()
    while not all((folder / f"{other}.there").exists() for other in others):
        time.sleep(0.001)
    data = make_data(source, cache_dir=str(folder / "cache"), **SETTINGS)
    (folder / f"{name}.json").write_text(json.dumps(everything(data)))


def main(folder: Path) -> None:
    """Processes that start together: one hangs while it writes, of which the id is told, and two wait for it."""
    names = ["hanging", "one", "two"]
    pids = []
    for name in names:  # forked, as it takes long to import
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                work(folder, name, [other for other in names if name != other and name != "hanging"])
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    print(pids[0], flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
