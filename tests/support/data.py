"""Data modules from plain settings, which need not be told apart in tests."""

from dataclasses import fields
from typing import Any

from lightning_ncmtl.datamodules import BatchSettings, LabelSettings, MultiDomainDataModule, SplitSettings, TextSettings
from lightning_ncmtl.datamodules.sources import Source

GROUPS: dict[str, Any] = {
    "split": SplitSettings,
    "labels": LabelSettings,
    "text": TextSettings,
    "batches": BatchSettings,
}
RENAMED = {"batch_size": ("batches", "size"), "fold_seed": ("split", "seed")}
PLACES = {field.name: (group, field.name) for group, kind in GROUPS.items() for field in fields(kind)} | RENAMED
del PLACES["seed"], PLACES["size"]  # data.seed is another


def group_settings(**settings: Any) -> dict[str, Any]:
    """Settings of all groups, and others, to arguments of the data module."""
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    others = {}
    for name, value in settings.items():
        if name in PLACES:
            group, field = PLACES[name]
            groups[group][field] = value
        else:
            others[name] = value
    return {**{name: kind(**groups[name]) for name, kind in GROUPS.items()}, **others}


def make_data(source: Source, **settings: Any) -> MultiDomainDataModule:
    return MultiDomainDataModule(source, **group_settings(**settings))
