"""How values are written in the tables of a report."""

from typing import Any

import pandas as pd


def format_values(values: "pd.Series[Any]", pattern: str) -> "pd.Series[str]":
    """Values as text, empty where there are none."""
    return pd.Series(["" if pd.isna(v) else pattern.format(v) for v in values], values.index, dtype=object)


def drop_empty(table: pd.DataFrame) -> pd.DataFrame:
    """Without columns that are empty."""
    return table.loc[:, (table != "").any()]
