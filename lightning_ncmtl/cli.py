"""The subcommands of the command line that work on one model: ``ncmtl fit | validate | test | predict | export``."""

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_utilities.core import rank_zero
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import lightning_ncmtl.encoders
import lightning_ncmtl.modules  # noqa: F401
from lightning_ncmtl.callbacks import (
    ClusterReport,
    Interrupted,
    LastCheckpoint,
    NetworkClusteringCallback,
    ParameterSummary,
    PredictionWriter,
    ResumableCheckpoint,
    StepSeed,
    TrainingProgress,
)
from lightning_ncmtl.compaction import compact, count_bytes, count_parameters
from lightning_ncmtl.compatibility import (
    ArgsType,
    Callback,
    CSVLogger,
    LightningArgumentParser,
    LightningCLI,
    LightningModule,
    ModelSummary,
    ProgressBar,
    SaveConfigCallback,
    SIGTERMException,
    TensorBoardLogger,
    TorchCheckpointIO,
    Trainer,
    attributes,
    find_callbacks,
    rank_zero_info,
    rank_zero_only,
)
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError, find_message
from lightning_ncmtl.exported import config_of, find_folder, restore, short_classes, write
from lightning_ncmtl.layers import cluster_layers
from lightning_ncmtl.usage import DEFAULT_CONFIG, usage
from lightning_ncmtl.whole_files import WholeCheckpoints
from lightning_ncmtl.wrong_settings import check_files, check_groups, explain_value, parse

_RESULTS = ("checkpoints", "compact", "metrics.csv", "predictions.jsonl", "report.html")  # of a run
RUN_DIR = "NCMTL_RUN_DIR"  # how the main process tells the processes that DDP starts


class NCMTLTrainer(Trainer):
    """A trainer that can also ``export``.

    Attributes:
        command: The command that makes it, by which a report says what to do next.
    """

    command = "ncmtl"

    def export(
        self,
        model: LightningModule,
        datamodule: MultiDomainDataModule,
        ckpt_path: str | None = None,
        output: str | None = None,
    ) -> None:
        """Save a trained model with one set of weights per cluster, for use without a checkpoint.

        Args:
            model: The model.
            datamodule: The data, of which the vocabulary or the scaling is saved.
            ckpt_path: The checkpoint.
            output: A new folder; ``compact`` in a run directory by default.
        """
        if ckpt_path is None:
            raise InputError("export needs a trained model: set --ckpt_path")
        content = torch.load(ckpt_path, map_location="cpu", weights_only=True)
        if type(datamodule).__qualname__ not in content:
            raise InputError(f"{ckpt_path!r} was not written by 'ncmtl fit': it holds no vocabulary")
        datamodule.load_state_dict(content[type(datamodule).__qualname__])
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
        clustering = _clustering_of(content)
        found = clustering.assignments
        layers = {name: layer for name, layer in cluster_layers(model).items() if layer.assignment.min() < 0}
        if not found and layers:
            rank_zero_info(
                f"{ckpt_path!r} is of a time before tasks were clustered: each keeps its own weights. Of the end of "
                "the training are last.ckpt and, with checkpoint.monitor: null, best.ckpt"
            )
            found = {name: torch.arange(len(layer.assignment)) for name, layer in layers.items()}
        small = compact(model, found, clustering.targets)
        folder = Path(output or Path(self.default_root_dir) / "compact")
        write(small, datamodule, folder)
        before, after = count_parameters(model), count_parameters(small)
        table = Table("", "before", "after", title="Parameters", title_justify="left")
        for name in before:
            table.add_row(name or "all", f"{before[name]:,}", f"{after[name]:,}")
        table.add_row("memory", *(f"{count_bytes(module) / 2**20:,.2f} MiB" for module in (model, small)))
        console = Console()
        console.print(table)
        console.print(f"Compact model: {escape(str(folder))}", soft_wrap=True)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration as ``config.yaml`` in the run directory, and in every checkpoint."""

    _text: str | None = None  # written once: with a thousand tasks that takes as long as all else in a checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._text is None:
            self._text = self._config(trainer)
        checkpoint["config"] = self._text

    def _config(self, trainer: Trainer) -> str:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        # What the settings left to the data is written down, so that the checkpoint does without the data.
        data = attributes(trainer).datamodule
        config["data"] |= {"domains": data.domains, "features": data.features}
        config["data"]["classes"] = short_classes(data.domain_classes)
        for key in ("config", "ckpt_path", "run_dir"):
            config.pop(key, None)
        return _dump(config)


class NCMTLCLI(LightningCLI):
    """LightningCLI with the clustering, the checkpoints and a run directory at the top level of the configuration.

    Settings come from, each over the one before: the packaged ``lightning_cli.yaml``; the checkpoint, where
    ``--ckpt_path`` names a file, or the exported model, where ``predict`` has a ``--model``; each ``--config``; the
    other arguments.
    """

    exported: str | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Where all files of the run go; runs/TIME by default."
        )
        parser.add_lightning_class_args(NetworkClusteringCallback, "clustering")
        parser.add_lightning_class_args(ClusterReport, "report")
        parser.add_lightning_class_args(ResumableCheckpoint, "checkpoint")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "clustering.seed", compute_fn=int)
        # When instantiated, not when parsed: these the model keeps as its hyperparameters.
        for source, target in (
            ("num_classes", "num_classes"),
            ("num_tasks", "num_tasks"),
            ("domains", "task_names"),
            ("task_classes", "task_classes"),
            ("regression_tasks", "regression_tasks"),
            ("vocab_size", "encoder.init_args.vocab_size"),
            ("num_features", "encoder.init_args.in_features"),
        ):
            parser.link_arguments(f"data.{source}", f"model.init_args.{target}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a list of arguments, under which lies the configuration of the checkpoint or folder that they name."""
        arguments = sys.argv[1:] if args is None else list(args)
        checkpoint = find_option("--ckpt_path", arguments)
        place, subcommand = next(((i, a) for i, a in enumerate(arguments) if a in self.subcommands()), (-1, ""))
        model, others = _take_option("--model", arguments)
        if not {"-h", "--help"}.intersection(arguments):
            self.exported = find_folder(subcommand, model, checkpoint)
        if checkpoint is not None and subcommand:
            arguments[place + 1 : place + 1] = ["--config", _config_of(checkpoint, subcommand)]
        elif self.exported is not None:
            place = others.index(subcommand)
            arguments = [*others[: place + 1], "--config", _dump(config_of(self.exported)), *others[place + 1 :]]
        check_files(arguments)
        self.config = parse(parser, arguments, self._subcommand_parsers.get(subcommand, parser))
        check_groups(self.config[self.config.subcommand])
        if checkpoint is None and self.config[self.config.subcommand].get("ckpt_path") is not None:
            raise InputError("ckpt_path stands in a configuration file: give --ckpt_path on the command line instead")

    def _parse_ckpt_path(self) -> None:
        """Replaced by :meth:`parse_arguments`: Lightning's lets the checkpoint override the command line."""

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(find_message(error) or explain_value(error)) from error

    def after_fit(self) -> None:
        """Tell where the best epoch is of a time before tasks were clustered."""
        checkpoint = attributes(self.trainer).checkpoint_callback
        best = Path(getattr(checkpoint, "best_model_path", ""))
        clustered = any(each.assignments for each in find_callbacks(self.trainer, NetworkClusteringCallback))
        if clustered and checkpoint.monitor and best.is_file():
            content = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
            if not _clustering_of(content).assignments:
                rank_zero_info(
                    f"the best epoch, {content['epoch'] + 1}, is of a time before tasks were clustered; last.ckpt has "
                    "the clusters (checkpoint.monitor: null keeps the last epoch as best.ckpt)"
                )

    def before_validate(self) -> None:
        """Refuse a model that was not trained, whose metrics would look like any others."""
        if self.config[self.subcommand].get("ckpt_path") is None:
            raise InputError(f"{self.subcommand} needs a trained model: set --ckpt_path to a checkpoint")

    before_test = before_validate

    def before_predict(self) -> None:
        if self.exported is not None:
            restore(self.exported, self.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        assert self.subcommand is not None
        settings = self.config[self.subcommand]
        parent = settings.trainer.default_root_dir or "runs"
        run_dir = _make_run_dir(settings.run_dir, str(parent), self.subcommand)
        if settings.trainer.logger in (None, True):
            kwargs["logger"] = [logger(run_dir, name="", version="") for logger in (CSVLogger, TensorBoardLogger)]
        callbacks = self.config_init[self.subcommand].trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        for wanted, kind, ours in (
            (settings.trainer.enable_progress_bar, ProgressBar, TrainingProgress),
            (settings.trainer.enable_model_summary, ModelSummary, ParameterSummary),
        ):
            if wanted is not False and not any(isinstance(callback, kind) for callback in callbacks):
                callbacks = [*callbacks, ours()]
        trainer = super().instantiate_trainer(default_root_dir=run_dir, callbacks=callbacks, **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        clustering = self.config_init[self.subcommand].clustering
        if self.subcommand == "fit" and self.datamodule.num_tasks < 2 and cluster_layers(self.model):
            raise InputError(
                f"there is one domain, {self.datamodule.domains[0]!r}, and clusters need two: name files or a column "
                "of domains in data.source, or set model to HardShare"
            )
        if clustering.clusters.targets is None and not cluster_layers(self.model):
            rank_zero_info(f"{type(self.model).__name__} has no cluster layers: nothing is clustered")
            attributes(trainer).callbacks.remove(clustering)
        return trainer


def main(args: list[str]) -> None:
    """Run a subcommand of a LightningCLI.

    Args:
        args: The arguments.
    """
    try:
        make_cli(args)
    except Interrupted as stop:
        if stop.code:  # other processes leave it to the first
            print(f"Interrupted. To go on: ncmtl fit --ckpt_path {shlex.quote(str(stop.checkpoint))}")
        raise
    except SIGTERMException:  # of Lightning, while no model is trained; its exit status would be 0
        sys.exit(128 + signal.SIGTERM)
    finally:
        os.environ.pop(RUN_DIR, None)


def make_cli(args: list[str], cli_class: type[NCMTLCLI] = NCMTLCLI, save_last: bool = True) -> NCMTLCLI:
    """Make a command line, which runs its subcommand.

    Args:
        args: The arguments.
        cli_class: What to make.
        save_last: Whether ``fit`` keeps the last state, too, beside the best.
    """
    # Each run has a directory of its own, so a checkpoint always comes from another one.
    warnings.filterwarnings("ignore", "The dirpath has changed from")
    # Nor has its directory any results, see _make_run_dir.
    warnings.filterwarnings("ignore", "Experiment logs directory")
    # pytorch-lightning 2.6 with torch 2.13
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated", FutureWarning)
    # A picture has boxes in the place of letters that its font lacks; names are in the report, too
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    rank_zero.log.addFilter(_is_of_use)
    callbacks: list[Callback] = [StepSeed()]
    if save_last:  # Lightning's own save_last keeps the last checkpoint that was among the best.
        callbacks.append(LastCheckpoint())
    return cli_class(
        LightningModule,
        MultiDomainDataModule,
        trainer_class=NCMTLTrainer,
        subclass_mode_model=True,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},  # of a run that was refused, which left nothing else
        auto_configure_optimizers=False,
        trainer_defaults={"callbacks": callbacks},
        parser_kwargs={
            "description": "Network clustering for multi-task learning. All subcommands: ncmtl --help",
            "exit_on_error": False,
            **{
                name: {"default_config_files": [str(DEFAULT_CONFIG)], "usage": usage(name), "exit_on_error": False}
                for name in NCMTLCLI.subcommands()
            },
        },
        args=args,
    )


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not what Lightning says of other products, of hardware that is not there, and of our own callbacks."""
    return not record.getMessage().startswith(("💡 Tip", "TPU available: False", "Trainer already configured with"))


def find_option(option: str, arguments: Sequence[str]) -> str | None:
    """The value of an option, before all arguments can be parsed; ``None`` without it."""
    return _take_option(option, arguments)[0]


def _take_option(option: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of an option, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value", nargs="?")
    found, others = parser.parse_known_args(arguments)
    return found.value, others


def _clustering_of(checkpoint: dict[str, Any]) -> NetworkClusteringCallback:
    """The clustering that a checkpoint has; without clusters before tasks were clustered, or where there is none."""
    clustering = NetworkClusteringCallback()
    states = checkpoint.get("callbacks", {}).items()
    for state in (state for key, state in states if key.startswith(clustering.state_key)):
        clustering = NetworkClusteringCallback(targets=state.get("targets"), warmup=state["kind"])
        clustering.load_state_dict(state)
    return clustering


def _config_of(checkpoint: str, subcommand: str) -> str:
    """The configuration in a checkpoint, as YAML; empty if it was not written by this command line."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise InputError(f"{checkpoint!r} is not a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise InputError(f"{checkpoint!r} is not a checkpoint of a Lightning trainer")
    config = yaml.safe_load(content.get("config", "{}"))
    if subcommand != "fit":  # the machine that evaluates need not be the one that trained
        kept = ("seed_everything", "data", "model", "clustering", "checkpoint")
        config = {key: config[key] for key in kept if key in config}
    return _dump(config)


def _dump(config: dict[str, Any]) -> str:
    """YAML in which texts are in quotes: some readers take a plain ``1e3`` for a number."""
    return yaml.safe_dump(config, default_style='"')


def _make_run_dir(wanted: str | None, parent: str, subcommand: str) -> str:
    if RUN_DIR in os.environ:  # a process that DDP started
        return os.environ[RUN_DIR]
    if wanted is not None and any((Path(wanted) / name).exists() for name in _RESULTS):
        raise InputError(f"the directory {wanted!r} already holds a run: choose another --run_dir")
    run_dir = Path(wanted or f"{parent}/{datetime.now():%Y-%m-%d_%H-%M-%S}-{subcommand}")
    if getattr(rank_zero_only, "rank", 0) != 0:
        return str(run_dir)  # rank 0's is broadcast
    while True:
        try:
            run_dir.mkdir(parents=True, exist_ok=wanted is not None)
            break
        except OSError as error:
            if not isinstance(error, FileExistsError) or wanted is not None:
                raise InputError(f"the run directory {str(run_dir)!r} cannot be made: {error.strerror}") from error
            # Another run started in the same second
            run_dir = run_dir.with_name(f"{run_dir.name}x")
    os.environ[RUN_DIR] = str(run_dir)
    return str(run_dir)
