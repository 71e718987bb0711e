"""All that needs a GPU, in one run: the tests of tests/gpu, the benchmarks, and a training of the paper's setting.

    make gpu FDU_MTL=FOLDER VECTORS=FILE

writes ``results/gpu.md`` from what ran: what the machine is, and what each command printed. Without ``--fdu_mtl`` there
is no training of ``configs/paper.yaml``. Exits with 1 where a command failed; the report has what the others found.
"""

import argparse
import csv
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
TAIL = 20  # lines that are shown of a command that failed, or that prints no Markdown


class Part(NamedTuple):
    """One command of the run.

    Attributes:
        title: Heading of its section.
        command: Arguments of Python.
        markdown: Whether it prints Markdown, which is then taken as it is.
    """

    title: str
    command: list[str]
    markdown: bool = True


class Outcome(NamedTuple):
    """What came of a command: the exit status, what it printed, what it printed to stderr, and its seconds."""

    status: int
    output: str
    errors: str
    seconds: float


def plan(fdu_mtl: str | None, vectors: str | None, run_dir: str) -> list[Part]:
    """The commands, the tests first."""
    real = [] if fdu_mtl is None else ["--fdu_mtl", fdu_mtl]
    parts = [
        Part("Tests", ["-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-rs"], markdown=False),
        Part("K-means", ["benchmarks/kmeans.py", "--device", "cuda"]),
        Part("Layers per task", ["benchmarks/task_layers.py", "--device", "cuda"]),
        Part("Clustering in a training", ["benchmarks/overhead.py", "--accelerator", "gpu", "--paper", *real]),
    ]
    if fdu_mtl is not None:
        command = ["-m", "lightning_ncmtl", "fit", "--config", "lightning_cli.yaml", "--config", "configs/paper.yaml"]
        command += [f"--data.source.path={fdu_mtl}", f"--data.text.vectors={vectors or 'null'}", "--seed_everything=1"]
        command += ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
        parts.append(Part("The paper's setting, one fold and one seed", [*command, f"--run_dir={run_dir}"], False))
    return parts


def run(command: list[str]) -> Outcome:
    """Run Python at the root of the checkout, and show what it prints."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        settings = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": errors, "text": True, "errors": "replace"}
        lines = []
        with subprocess.Popen([sys.executable, *command], **settings) as process:  # type: ignore[call-overload]
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        errors.seek(0)
        return Outcome(process.returncode, "".join(lines), errors.read(), time.monotonic() - start)


def version(package: str) -> str:
    """``none`` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def ask(*command: str) -> str:
    """What a command says in a line."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_machine() -> dict[str, str]:
    """The card and the versions of all that computes on it."""
    number = torch.cuda.current_device()
    driver = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={number}")
    changed = ", with changes" if ask("git", "status", "--porcelain") else ""
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    memory = torch.cuda.get_device_properties(number).total_memory / 2**30
    faiss = [f"{name} {version(name)}" for name in ("faiss-gpu", "faiss-gpu-cu12", "faiss-cpu")]
    return {
        "card": f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, compute capability {capability}",
        "driver": driver,
        "torch": str(torch.__version__),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "Lightning": version("pytorch-lightning"),
        "FAISS": ", ".join(name for name in faiss if not name.endswith(" none")) or "none",
        "others": ", ".join(f"{name} {version(name)}" for name in ("fast-pytorch-kmeans", "flash-kmeans")),
        "Python": platform.python_version(),
        "CPU": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": ask("git", "rev-parse", "HEAD") + changed,
    }


def summarize_run(run_dir: Path) -> list[str]:
    """The figures of a training, from its ``metrics.csv``."""
    with (run_dir / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/accuracy")]
    header = ["epoch", "val/accuracy", "val/loss"]
    found = [[row.get(name) or "" for name in header] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *found)]


def make_report(machine: dict[str, str], outcomes: list[tuple[Part, Outcome]], run_dir: Path) -> str:
    """Markdown of what ran, and of nothing else."""
    lines = ["# On a GPU", "", "What `make gpu` found. Nothing here was written by hand.", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in machine.items()]
    for part, outcome in outcomes:
        lines += ["", f"## {part.title}", "", f"`python {' '.join(part.command)}`, {outcome.seconds:.0f} s", ""]
        if outcome.status:
            lines += [f"**Failed** with exit status {outcome.status}:", ""]
        if part.markdown and outcome.output.strip():
            lines += [outcome.output.strip()]
        elif not part.markdown and not outcome.status and (run_dir / "metrics.csv").exists() and "fit" in part.command:
            lines += summarize_run(run_dir)
        else:
            lines += ["```", *outcome.output.strip().splitlines()[-TAIL:], "```"]
        if outcome.status and outcome.errors.strip():
            lines += ["", "```", *outcome.errors.strip().splitlines()[-TAIL:], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fdu_mtl", help="folder of FDU-MTL")
    parser.add_argument("--vectors", help="file of word vectors with 200 dimensions, for configs/paper.yaml")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu.md")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a GPU, and torch sees none: install a torch for CUDA, see docs/gpu.md")
    machine, outcomes = describe_machine(), []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "paper"
        for part in plan(arguments.fdu_mtl, arguments.vectors, str(run_dir)):
            print(f"== {part.title}", flush=True)
            outcomes.append((part, run(part.command)))
            # After each: nothing is lost if this is cut short
            arguments.output.write_text(make_report(machine, outcomes, run_dir), encoding="utf-8")
    if failed := [part.title for part, outcome in outcomes if outcome.status]:
        sys.exit(f"failed: {', '.join(failed)}; {arguments.output} has the rest")


if __name__ == "__main__":
    main()
