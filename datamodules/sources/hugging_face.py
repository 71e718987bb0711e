"""Datasets of the Hugging Face hub, or in its formats on disk."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, get_args

from datasets import ClassLabel, Dataset, load_dataset, load_from_disk

from lightning_ncmtl.datamodules.sources.base import Document, Problem, Source, Split, choose, fingerprint_files
from lightning_ncmtl.datamodules.sources.files import ARROW_DAMAGE, Rows, batch_rows, convert
from lightning_ncmtl.datamodules.sources.rows import Layout, check_columns, domain_name
from lightning_ncmtl.errors import InputError

# What load_dataset takes for a format, and would read the working directory in it.
FORMATS = {"arrow", "audiofolder", "csv", "imagefolder", "json", "pandas", "parquet", "text", "videofolder", "xml"}


class HuggingFace(Source):
    """A dataset whose documents name their domain in a column, or whose configurations are the domains.

    Args:
        path: Name on the hub; or a folder, of data files or written by ``save_to_disk``.
        name: Name of the configuration.
        domain: Column of the domain ...
        configs: ... or the configurations that are the domains.
        text: Column of the text; several are joined by newlines.
        label: Column of the label. Labels with names in the dataset become these names; -1 is unknown.
        split_names: What the dataset calls the splits ``train``, ``test`` and ``unlabel``. The first two are called the
            same by default and the last ``unsupervised``, where the dataset has them.

    Raises:
        InputError: If the settings contradict each other.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        domain: str | None = None,
        configs: list[str] | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        split_names: dict[str, str] | None = None,
    ) -> None:
        if (domain is None) == (not configs) or (configs and name is not None):
            raise InputError(
                "set either data.source.domain, with data.source.name where needed, or data.source.configs: "
                f"found {domain=}, {name=}, {configs=}"
            )
        self.text = check_columns(text, label)
        if unknown := set(split_names or ()) - set(get_args(Split)):
            raise InputError(
                f"data.source.split_names knows {', '.join(get_args(Split))}, found {', '.join(sorted(unknown))}"
            )
        if path in FORMATS or not path:
            raise InputError(f"expected a name on the hub or a folder, found {path!r}: set data.source.path")
        self.path = path
        self.name = name
        self.domain = domain
        self.configs = configs
        self.label = label
        self.split_names = split_names
        self._names = {"train": "train", "test": "test", "unlabel": "unsupervised", **(split_names or {})}
        # Configurations, by the domain that each is; by none where a column tells it
        self._homes: dict[str, str | None] = {config: config for config in configs} if configs else {"": name}
        self._loaded: dict[str, dict[str, Dataset]] = {}  # the same way, and by split

    def domains(self) -> list[str]:
        if self.configs:
            return sorted(set(self.configs))
        data = self._parts("train")[""]
        classes = _classes(data).get(str(self.domain))
        try:
            values = data.unique(self.domain)
        except ARROW_DAMAGE:  # of a kind that has no order, such as lists
            values = []
        found = {domain_name(_class_name(value, classes) if classes else value) for value in values} - {None}
        if not found:
            raise InputError(f"the column {self.domain!r} of {self.path!r} names no domains: set data.source.domain")
        return sorted(map(str, found))

    def splits(self) -> set[Split]:
        return {split for split in get_args(Split) if self._parts(split, required=split in (self.split_names or ()))}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        parts = self._parts(split)
        if domains is not None and (self.configs or "train" in self.splits()):
            choose(domains, self.domains(), repr(self.path))
        layout = self._layout(split, domains)
        for home in domains if self.configs and domains is not None else sorted(self._homes):
            place = f"{self.path}/{home}" if home else self.path
            if home not in parts:
                yield Problem(place, f"the configuration has no split {self._names[split]!r}")
                continue
            data = parts[home].select_columns(layout.columns)
            rows, classes = _rows(data, f"{place}[{self._names[split]}]"), _classes(data)
            named = replace(layout, gaps=self.label not in classes)  # a class may well be called "none"
            yield from convert(rows, partial(_document, named, classes, home))

    def fingerprint(self) -> str:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        loaded = {
            f"{home}/{split}": data for split in sorted(self.splits()) for home, data in self._parts(split).items()
        }
        files = [Path(file["filename"]) for data in loaded.values() for file in data.cache_files]
        prints = {name: data._fingerprint for name, data in loaded.items()}
        return fingerprint_files({"class": "HuggingFace", **settings, "loaded": prints}, files)

    def _parts(self, split: Split, required: bool = True) -> dict[str, Dataset]:
        """The data of a split by domain, where there is any."""
        for home, config in self._homes.items():
            if home not in self._loaded:
                self._loaded[home] = _load(self.path, config)
        name = self._names.get(split, split)
        found = {home: data[name] for home, data in self._loaded.items() if name in data}
        if required and not found:
            others = ", ".join(sorted({other for data in self._loaded.values() for other in data}))
            raise InputError(f"{self.path!r} has no split {name!r} but {others}: set data.source.split_names")
        for data in found.values():
            for column in self._layout(split).columns:
                if column not in data.column_names:
                    raise InputError(
                        f"{self.path!r} has no column {column!r} but {', '.join(data.column_names)}: "
                        "set data.source.text, label and domain"
                    )
        return found

    def _layout(self, split: Split, domains: Collection[str] | None = None) -> Layout:
        return Layout(self.text, None if split == "unlabel" else self.label, self.domain, domains)


def _load(path: str, config: str | None) -> dict[str, Dataset]:
    """All splits of a dataset, by their names."""
    folder = Path(path, config or "")
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            data = load_from_disk(str(folder))
        else:
            data = load_dataset(path, config)
    except Exception as error:  # of many kinds, of several libraries: by the hub, the network, or damaged files
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(
            f"cannot load the dataset {path!r}{f', configuration {config!r}' if config else ''}: set data.source.path, "
            f"and name or configs where it has several ({type(error).__name__}: {reason})"
        ) from error
    return {str(data.split or "train"): data} if isinstance(data, Dataset) else dict(data)


def _document(
    layout: Layout, classes: dict[str, list[str]], home: str, row: dict[str, Any], where: str
) -> Document | None:
    row.update({column: _class_name(row[column], names) for column, names in classes.items()})
    return layout.document(row, where, home)


def _rows(data: Dataset, where: str) -> Rows:
    places = (f"{where}[{number}]" for number in count())
    try:
        for batch in data.with_format("arrow").iter(batch_size=128):
            yield from batch_rows(batch, places)
    except ARROW_DAMAGE as error:
        yield Problem(next(places), f"cannot be read from here on: {error}")


def _classes(data: Dataset) -> dict[str, list[str]]:
    """The names of classes, by the columns that hold numbers of them."""
    return {column: kind.names for column, kind in data.features.items() if isinstance(kind, ClassLabel)}


def _class_name(value: int | None, names: list[str]) -> str | None:
    if value is None or value == -1:
        return None
    if not 0 <= value < len(names):
        raise ValueError(f"expected one of {len(names)} classes, found {value}")
    return names[value]
