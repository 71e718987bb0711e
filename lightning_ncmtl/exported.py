"""What ``ncmtl export`` writes, and ``ncmtl predict --model FOLDER`` reads: a model, and how it reads new data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_ncmtl.compaction import load, save
from lightning_ncmtl.compatibility import LightningModule
from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.whole_files import whole

_SETTINGS, _TOKENIZER = "settings.json", "tokenizer.json"
_LEARNED = ("scaling",)  # of what is saved of the data: what is no argument of the data module


def write(model: LightningModule, data: MultiDomainDataModule, folder: Path) -> None:
    """Write a compact model, and what of its data reading new rows needs: nothing of files.

    Args:
        model: From :func:`lightning_ncmtl.compact`.
        data: The data, with its vocabulary or scaling.
        folder: Where to; it must be new or empty.

    Raises:
        InputError: As :func:`lightning_ncmtl.save`.
    """
    state = {name: value for name, value in data.state_dict().items() if name not in ("tokenizer", "documents")}
    if data.features is None:
        # Of a source of texts, it matters only whether a text may have labels in several domains.
        label = {"task": "label"} if data.source.multi_label else "label"
        source = {
            "class_path": "lightning_ncmtl.datamodules.sources.Tables",
            "init_args": {"train": [], "label": label},
        }
    else:
        source = data.source.settings_of_new()
    text = {} if data.features is not None else {"vocab_size": data.vocab_size, **data.text.limits}
    with whole(folder) as part:
        save(model, part, {**state, "source": source, "text": text})
        if data.tokenizer is not None:
            data.tokenizer.save(str(part / _TOKENIZER))


def find_folder(subcommand: str, model: str | None, checkpoint: str | None) -> str | None:
    """The folder that ``--model`` names, if it is not a class.

    Args:
        subcommand: What is to run.
        model: The value of ``--model``.
        checkpoint: That of ``--ckpt_path``.

    Raises:
        InputError: If ``predict`` has neither of both, both, or no such folder; or another subcommand has one.
    """
    if subcommand != "predict":
        if model is not None and (Path(model) / _SETTINGS).is_file():
            raise InputError(f"only predict takes an exported model, found --model {model!r}: set --ckpt_path")
        return None
    wanted = "set --ckpt_path to a checkpoint, or --model to a folder that 'ncmtl export' wrote"
    if model is None and checkpoint is None:
        raise InputError(f"predict needs a trained model: {wanted}")
    if model is not None and checkpoint is not None:
        raise InputError(
            f"predict takes one model, found --model {model!r} and --ckpt_path {checkpoint!r}: leave out one"
        )
    if model is not None and not (Path(model) / _SETTINGS).is_file():
        raise InputError(f"--model {model!r} is no exported model, with a {_SETTINGS}: {wanted}")
    return model


def config_of(folder: str) -> dict[str, Any]:
    """The settings of model and data of ``ncmtl predict``.

    Raises:
        InputError: If the folder does not hold them.
    """
    settings = _read(folder)
    data = {name: value for name, value in settings["data"].items() if name not in _LEARNED}
    data["classes"] = short_classes(data["classes"])
    data["labels"] = {"regression": data.pop("regression", False)}
    own = {name: value for name, value in settings["hyper_parameters"].items() if not name.startswith("_")}
    return {"model": {"class_path": settings["class"], "init_args": own}, "data": data}


def restore(folder: str, model: LightningModule, data: MultiDomainDataModule) -> None:
    """Give model and data what was learned.

    Raises:
        InputError: As :func:`lightning_ncmtl.load`, and where the data has other settings.
    """
    load(folder, model)
    tokenizer = Path(folder) / _TOKENIZER
    state = {"tokenizer": tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None}
    data.load_state_dict({**_read(folder)["data"], **state})


def short_classes(classes: Mapping[str, Sequence[Any]]) -> Any:
    """A list where it says as much: jsonargparse's time for a dict grows with the square of its size.

    ``None`` where no task has classes.
    """
    first, *others = classes.values()
    return (classes if any(names != first for names in others) else first) or None


def _read(folder: str) -> dict[str, Any]:
    file = Path(folder) / _SETTINGS
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        complete = settings["data"].keys() >= {"domains", "classes", "features", "scaling", "source", "text"}
        if complete and isinstance(settings["class"], str) and isinstance(settings["hyper_parameters"], dict):
            return dict(settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({type(error).__name__}): export the model anew") from error
    raise InputError(f"{str(file)!r} does not say how to read data: take a folder that 'ncmtl export' wrote")
