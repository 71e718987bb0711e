"""Kill trainings at random moments (SIGKILL), resume them, and compare with a training that ran through.

    python tests/slow/kill_and_resume.py --trials 20 --devices 1

Each trial trains from the command line, is killed one to three times at moments drawn at random from the whole of the
training, and goes on each time from the newest checkpoint, which may lie anywhere in an epoch. It survives if it ends
bitwise where the training that ran through ended: weights, optimizer, clusters, residuals, history, place in the data,
and every metric that was written after the last kill. Takes about half a minute per trial.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# Dropout, an optimizer with state, a warm-up, clustering and frozen clusters; a checkpoint every other step.
SETTINGS = [
    "--data.source.num_domains=6",
    "--data.source.num_groups=2",
    "--data.source.train_documents=60",
    "--data.split.validation_size=11",
    "--data.batches.size=16",
    "--model.encoder.init_args.embedding_dim=8",
    "--model.encoder.init_args.hidden_size=4",
    "--model.cluster_features=[8,6]",
    "--model.num_clusters=[2,3]",
    "--model.dropout=0.2",
    "--clustering.warmup_epochs=1",
    "--clustering.freeze_after_epochs=5",
    "--checkpoint.every_n_train_steps=2",
    "--checkpoint.monitor=null",
    "--checkpoint.save_top_k=-1",
    "--checkpoint.filename={step}",
    "--trainer.max_epochs=7",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--report.pictures=false",
]


def start(run_dir: Path, place: Sequence[str], checkpoint: Path | None) -> subprocess.Popen[bytes]:
    """Start a training on some devices and wait until its run directory is there."""
    arguments = ["fit", *SETTINGS, *place, f"--run_dir={run_dir}"]
    arguments += [f"--ckpt_path={checkpoint}"] if checkpoint else []
    process = subprocess.Popen(
        [sys.executable, "-m", "lightning_ncmtl", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(run_dir.parent / f"{run_dir.name}.log").open("wb"),
        start_new_session=True,
    )
    while not (run_dir / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.01)
    return process


def finish(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    if process.wait() != 0:
        log = run_dir.parent / f"{run_dir.name}.log"
        raise RuntimeError(f"the training in {run_dir} failed:\n{log.read_text()}")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest of all runs of a trial."""
    files = sorted(folder.glob("*/checkpoints/*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    return files[-1] if files else None


def end_of(folder: Path) -> dict[str, Any]:
    """Everything that must be equal, from the newest checkpoint: that of the last step."""
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    content = torch.load(checkpoint, weights_only=True)
    callbacks = {name: content["callbacks"][name] for name in ("NetworkClusteringCallback", "ClusterReport")}
    keys = ("epoch", "global_step", "state_dict", "optimizer_states", "MultiDomainDataModule", "loops")
    return {**{key: content[key] for key in keys}, **callbacks}


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested structures differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, (a, b) in pairs for found in differences(a, b, f"{place}/{number}")]
    return [] if type(one) is type(other) and one == other else [f"{place}: {one!r} != {other!r}"[:200]]


def metrics_of(run_dir: Path) -> dict[tuple[str, str], str]:
    """All metrics that a run wrote, by name and step, as text."""
    if not (run_dir / "metrics.csv").exists():  # killed behind the last step: nothing was left to do
        return {}
    with (run_dir / "metrics.csv").open() as file:
        return {(name, row["step"]): value for row in csv.DictReader(file) for name, value in row.items() if value}


def trial(
    folder: Path, place: Sequence[str], duration: float, expected: Path, rng: random.Random
) -> tuple[list[str], int]:
    """Kill, resume and compare; returns the newest checkpoint at each kill, and the number of metrics compared."""
    kills = rng.randint(1, 3)
    moments = []
    for number in range(20):
        checkpoint, run_dir = newest_checkpoint(folder), folder / str(number)
        process = start(run_dir, place, checkpoint)
        if len(moments) < kills:
            try:
                process.wait(rng.uniform(0, duration))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                moments.append(str(end_of(folder)["global_step"]) if newest_checkpoint(folder) else "none")
                continue
        finish(process, run_dir)
        break
    wrong = differences(end_of(folder), end_of(expected.parent))
    ours, theirs = metrics_of(run_dir), metrics_of(expected)
    first = min((int(step) for _, step in ours), default=sys.maxsize)
    theirs = {key: value for key, value in theirs.items() if int(key[1]) >= first}
    wrong += [f"metrics {key}" for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if wrong:
        raise AssertionError("\n".join(wrong[:10]))
    return moments, len(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    place = [f"--trainer.accelerator={settings.accelerator}", f"--trainer.devices={settings.devices}"]
    place += ["--trainer.strategy=ddp"] if settings.devices > 1 else []
    rng = random.Random(settings.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole/0"
        whole.parent.mkdir()
        process = start(whole, place, None)
        begin = time.time()
        finish(process, whole)
        last = newest_checkpoint(whole.parent)
        assert last is not None
        duration = last.stat().st_mtime - begin
        print(
            f"the training that runs through: {end_of(whole.parent)['global_step']} steps in {duration:.1f} s",
            flush=True,
        )
        survived = tried = 0
        while tried < settings.trials:
            folder = Path(tempfile.mkdtemp(dir=temporary))
            try:
                moments, metrics = trial(folder, place, duration, whole, rng)
                if not moments:  # it ended before it could be killed
                    continue
                result = f"killed behind the checkpoints of steps {', '.join(moments)}; equal, with {metrics} metrics"
                survived += 1
            except (AssertionError, RuntimeError) as error:
                result = f"FAILED\n{error}"
            tried += 1
            print(f"{tried}: {result}", flush=True)
    print(f"survived {survived} of {settings.trials}")
    sys.exit(survived < settings.trials)


if __name__ == "__main__":
    main()
