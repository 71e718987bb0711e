"""Names of columns as settings and tables write them: case and spaces around a name make no difference."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches


def fold(name: str) -> str:
    """A name without what makes no difference."""
    return name.strip().casefold()


def find_column(column: str, found: Collection[str]) -> str | None:
    """The one of the names found that is meant: the same, or the only one that folds to the same."""
    if column in found:
        return column
    alike = [name for name in found if fold(name) == fold(column)]
    return alike[0] if len(alike) == 1 else None


def match_columns(columns: Collection[str], found: Sequence[str], optional: Collection[str] = ()) -> list[str]:
    """The names found, those that are needed as the settings write them.

    Args:
        columns: The names needed, each once.
        found: The names that the table has.
        optional: Those needed that need not be there.

    Raises:
        ValueError: If one that is needed is missing, or there twice.
    """
    counts = Counter(found)
    names = list(found)
    if odd := [column for column in columns if counts[column] != 1]:
        needed = set(columns)
        places: dict[str, list[int]] = {}
        for place, name in enumerate(found):
            if name not in needed:
                places.setdefault(fold(name), []).append(place)
        for column in odd:
            alike = places.get(fold(column), [])
            if not counts[column] and len(alike) == 1:
                names[alike.pop()] = column
            elif counts[column] or alike or column not in optional:
                count = counts[column] or len(alike)
                raise ValueError(f"{f'{count} columns' if count else 'no column'} {describe(column, found)}")
    return names


def describe(column: str, found: Iterable[str]) -> str:
    """A name that was not found once, those there are, and which of them may be meant; for messages."""
    names = list(found)
    shown = ", ".join(repr(name[:40]) for name in names[:20]) + (", ..." if len(names) > 20 else "")
    near = get_close_matches(fold(column), list(map(fold, names)), n=1, cutoff=0.75)
    meant = next((f" (is {name[:40]!r} meant?)" for name in names if [fold(name)] == near), "")
    return f"{column!r} among {shown or 'none'}{meant if column not in names else ''}"
