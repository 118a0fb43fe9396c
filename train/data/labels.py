"""Class labels: what a label may be, which there are, and their order."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cluster.errors import InputError

_WHOLE = re.compile(r"^(0|-?[1-9][0-9]*)$", re.ASCII)


def texts(column: pa.ChunkedArray, *, name: str, where: str) -> list[str]:
    """Every row's label as text: 3 and 3.0 are "3", true is "true".

    Raises InputError with the rows that have none, and for values that are no classes.
    """
    labels, missing = [], []
    for row, value in enumerate(column.to_pylist(), 1):
        match value:
            case bool():
                labels.append("true" if value else "false")
            case int():
                labels.append(str(value))
            case float() if math.isfinite(value) and value.is_integer():
                labels.append(str(int(value)))
            case str() if value.strip():
                labels.append(value)
            case None | str():
                missing.append(row)
            case float() if math.isnan(value):
                missing.append(row)
            case _:
                shown = repr(value)[:60]
                raise InputError(
                    f"{where}: label column {name!r}: row {row} has {shown}; a class is text, a whole number, or true "
                    "and false"
                )
    if missing:
        raise InputError(
            f"{where}: label column {name!r}: {len(missing)} rows have no label (row {_some(missing)}); label or "
            "remove them"
        )
    return labels


def classes(labels: Sequence[str], *, name: str, where: str) -> list[str]:
    """The classes of the training rows, sorted; by number where all are whole numbers.

    Raises InputError where there is one class only.
    """
    found = set(labels)
    if len(found) == 1:
        raise InputError(
            f"{where}: label column {name!r}: one class only, {labels[0]!r}, in {len(labels)} rows; learning to tell "
            "classes apart needs rows of two at least"
        )
    if all(_WHOLE.match(label) for label in found):
        return sorted(found, key=int)
    return sorted(found)


def index(labels: Sequence[str], known: Sequence[str], *, where: str) -> np.ndarray:
    """Place in `known` of every label: int64, one a row.

    Raises InputError naming labels that training has not seen, and rows.
    """
    place = {label: number for number, label in enumerate(known)}
    unseen: dict[str, list[int]] = {}
    for row, label in enumerate(labels, 1):
        if label not in place:
            unseen.setdefault(label, []).append(row)
    if unseen:
        few = "; ".join(f"{label!r} in row {_some(rows)}" for label, rows in list(unseen.items())[:3])
        more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
        shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise InputError(
            f"{where}: labels that no training row has: {few}{more}; training has {shown}: add training rows of them, "
            "or remove these"
        )
    return np.array([place[label] for label in labels], dtype=np.int64)


def _some(rows: list[int]) -> str:
    return ", ".join(str(row) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
