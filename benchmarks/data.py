"""What the data module costs: start-up, documents per second, padding, waiting in a training step, and memory.

    python benchmarks/data.py --fdu_mtl FOLDER --documents 2000000

prints Markdown. Without ``--fdu_mtl`` the first parts take a made corpus of 20,000 documents. All times are of one run
on one machine: compare them with each other. Memory is what the process alone holds (RssAnon of Linux), not the pages
of files that the system can drop.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from lightning_ncmtl import NCMTL
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.batches import collate
from lightning_ncmtl.datamodules.sources import FDUMTL, Document, Source, Split
from lightning_ncmtl.encoders import HAN, NGram


class Made(Source):
    """Random documents of 5 to 60 words in 20 domains."""

    def __init__(self, documents: int) -> None:
        self.documents = documents

    def domains(self) -> list[str]:
        return [f"domain{number:02d}" for number in range(20)]

    def splits(self) -> set[Split]:
        return {"train"}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document]:
        rng = np.random.default_rng(0)
        words = np.array([f"word{number}" for number in range(20_000)])
        names = self.domains()
        for start in range(0, self.documents, 1000):
            lengths = rng.integers(5, 60, 1000)
            drawn = words[(rng.random(lengths.sum()) ** 3 * len(words)).astype(int)].tolist()
            ends = lengths.cumsum()
            for number in range(min(1000, self.documents - start)):
                text = " ".join(drawn[ends[number] - lengths[number] : ends[number]])
                yield Document(text, {names[number % 20]: number % 3 % 2})

    def fingerprint(self) -> str:
        return f"made {self.documents}"


def rows(title: str, header: Iterable[str], body: Iterable[Iterable[object]]) -> None:
    print(f"\n{title}\n")
    for number, cells in enumerate([header, *body]):
        cells = [str(cell) for cell in cells]
        print("| " + " | ".join(cells) + " |")
        if not number:
            print("|" + " --- |" * len(cells))


def start_up(source: Source, cache_dir: str) -> MultiDomainDataModule:
    """Twice from disk to batches: with nothing there, and with what the first time has left."""
    table = []
    for state in ("cold", "warm"):
        times = [time.perf_counter()]
        data = MultiDomainDataModule(source, cache_dir=cache_dir)
        times.append(time.perf_counter())
        data.setup("fit")
        times.append(time.perf_counter())
        batches = iter(data.train_dataloader())
        documents = len(next(batches)["labels"])
        times.append(time.perf_counter())
        documents += sum(len(batch["labels"]) for batch in batches)
        times.append(time.perf_counter())
        steps = np.diff(times)
        rate = documents / (times[-1] - times[0])
        table.append([state, *(f"{step:.2f}" for step in steps), f"{times[3] - times[0]:.2f}", f"{rate:,.0f}"])
    header = ["", "read", "copies, vocabulary", "encode, first batch", "all other batches"]
    rows("Seconds from disk to batches", [*header, "start to first batch", "documents/s, whole epoch"], table)
    return data


def plain_loader(data: MultiDomainDataModule) -> "DataLoader[Any]":
    """Random batches by torch's own sampler: each document is looked up by itself."""
    documents: Any = data.train_dataloader().dataset

    class Rows(torch.utils.data.Dataset[pa.Table]):
        def __len__(self) -> int:
            return len(documents)

        def __getitem__(self, place: int) -> pa.Table:
            row = documents.table[[documents.places[place]]]
            return row.append_column("index", pa.array([documents.places[place]]))

    return DataLoader(
        Rows(), data.batch_size, shuffle=True, collate_fn=lambda tables: collate(pa.concat_tables(tables))
    )


def padding(data: MultiDomainDataModule) -> None:
    """Of rows of documents, each as long as the longest of its batch."""
    table = []
    for name, loader in (("mixed batches", data.train_dataloader()), ("plain random batches", plain_loader(data))):
        real = padded = documents = 0
        start = time.perf_counter()
        for batch in loader:
            inputs = batch["inputs"]
            ends = inputs["sentence_lengths"].cumsum(0)[inputs["document_lengths"].cumsum(0) - 1]
            lengths = ends.diff(prepend=ends.new_zeros(1))
            real, padded = real + int(lengths.sum()), padded + len(lengths) * int(lengths.max())
            documents += len(lengths)
        rate = documents / (time.perf_counter() - start)
        table.append([name, f"{padded / real:.3f}", f"{rate:,.0f}"])
    rows("Padding, and batches alone", ["", "padded / real words", "documents/s"], table)


def waiting(data: MultiDomainDataModule) -> None:
    """What part of a training step is spent on waiting for the next batch."""
    table = []
    words = data.vocab_size
    for name, encoder, steps in (("NGram", NGram(words, 64), 200), ("HAN", HAN(words, 64, 32, 1), 60)):
        for workers in (0, 1):
            data.num_workers = workers
            model = NCMTL(encoder, data.num_tasks, num_classes=data.num_classes, num_clusters=(2, 2, 2))
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            batches = iter(data.train_dataloader())
            next(batches)  # workers start
            waited, start = 0.0, time.perf_counter()
            for _ in range(steps):
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(batch["inputs"], batch["task_ids"]), batch["labels"]).backward()
                optimizer.step()
            whole = time.perf_counter() - start
            table.append(
                [name, workers, f"{waited / steps * 1e3:.2f}", f"{whole / steps * 1e3:.1f}", f"{waited / whole:.1%}"]
            )
    data.num_workers = 0
    rows("Waiting for batches", ["encoder", "num_workers", "waiting, ms", "step, ms", "part"], table)


def held() -> float:
    """Memory of this process alone, in MiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def memory_of(documents: int) -> None:
    """Run by a process of its own: print the greatest memory of each part, beyond what the imports take."""
    datasets.disable_progress_bars()
    peaks: dict[str, float] = {}
    times: dict[str, float] = {}
    part = "start"
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks[part] = max(peaks.get(part, 0), held())

    before = held()
    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()

        def end(name: str, following: str) -> None:
            nonlocal part, clock
            times[name], clock = time.perf_counter() - clock, time.perf_counter()
            part = following

        part = "read"
        data = MultiDomainDataModule(Made(documents), cache_dir=folder, num_proc=1)
        end("read", "copies, vocabulary")
        data.setup("fit")
        end("copies, vocabulary", "encode")
        loader = data.train_dataloader()
        end("encode", "one epoch")
        for _ in loader:
            pass
        end("one epoch", "end")
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
    done.set()
    watcher.join()
    print(
        json.dumps({"peaks": {name: peaks.get(name, before) - before for name in times}, "times": times, "disk": size})
    )


def memory(documents: int) -> None:
    table = []
    for count in (documents // 100, documents // 10, documents):
        command = [sys.executable, __file__, "--memory_of", str(count)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        cells = [f"{found['peaks'][name]:,.0f} ({found['times'][name]:,.0f} s)" for name in found["times"]]
        table.append([f"{count:,}", *cells, f"{found['disk']:,.0f}"])
    header = ["documents", "read", "copies, vocabulary", "encode", "one epoch", "on disk, MiB"]
    rows("Peak memory beyond the imports, in MiB", header, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fdu_mtl", help="folder of FDU-MTL")
    parser.add_argument(
        "--documents", type=int, default=200_000, help="size of the largest corpus to measure memory with"
    )
    parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory_of(arguments.memory_of)
        return
    datasets.disable_progress_bars()
    source = FDUMTL(arguments.fdu_mtl) if arguments.fdu_mtl else Made(20_000)
    with tempfile.TemporaryDirectory() as cache_dir:
        data = start_up(source, cache_dir)
        padding(data)
        waiting(data)
    memory(arguments.documents)


if __name__ == "__main__":
    main()
