"""Duplicates within and between splits, and the validation split that is made where none is given."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from cluster.errors import InputError


@dataclass(frozen=True)
class Rows:
    """One split: canonical input columns, a label a row as text (none where the task has no classes), and what makes
    two rows the same."""

    inputs: pa.Table
    labels: list[str]
    keys: list[bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: Sequence[int] | np.ndarray) -> Rows:
        """The rows at these places, in this order."""
        places = np.asarray(chosen, dtype=np.int64)
        return Rows(
            self.inputs.take(pa.array(places)),
            [self.labels[i] for i in places] if self.labels else [],
            [self.keys[i] for i in places],
        )


def keys(inputs: pa.Table, labels: Sequence[str] | None) -> list[bytes]:
    """A digest a row, equal where rows are.

    With `labels` these count too: rows of a table may agree by chance, an equal text or picture is the same one.
    """
    result = []
    row = 0
    for batch in inputs.to_batches(max_chunksize=1024):
        for values in zip(*(column.to_pylist() for column in batch.columns)):
            content = values if labels is None else (*values, labels[row])
            result.append(hashlib.blake2b(repr(content).encode("utf-8", "surrogatepass"), digest_size=16).digest())
            row += 1
    return result


def duplicates(splits: Mapping[str, Rows]) -> dict[str, int]:
    """How many rows of a split ("train") stand earlier in it too, and how many of one stand in another
    ("train-test": rows of train that stand in test)."""
    counts = {name: len(rows) - len(set(rows.keys)) for name, rows in splits.items()}
    for first, second in combinations(splits, 2):
        there = set(splits[second].keys)
        counts[f"{first}-{second}"] = sum(key in there for key in splits[first].keys)
    return counts


def conflicts(splits: Mapping[str, Rows]) -> int:
    """How many different inputs stand with more than one label, over all splits."""
    seen: dict[bytes, set[str]] = {}
    for rows in splits.values():
        for key, label in zip(rows.keys, rows.labels):
            seen.setdefault(key, set()).add(label)
    return sum(len(labels) > 1 for labels in seen.values())


def drop_duplicates(splits: Mapping[str, Rows]) -> dict[str, Rows]:
    """Each split with the first of equal rows only, and training without what stands in validation or test.

    Raises InputError where no training row is left.
    """
    held_out = {key for name, rows in splits.items() if name != "train" for key in rows.keys}
    result = {}
    for name, rows in splits.items():
        seen = set(held_out) if name == "train" else set()
        chosen = []
        for place, key in enumerate(rows.keys):
            if key not in seen:
                seen.add(key)
                chosen.append(place)
        result[name] = rows.take(chosen)
    if not len(result["train"]):
        raise InputError(
            "data.drop_duplicates: every training row stands in data.validation or data.test too; give other rows to "
            "data.train"
        )
    return result


def hold_out(rows: Rows, *, share: float, seed: int) -> tuple[Rows, Rows]:
    """Training and validation rows: `share` of every class, rounded so that the whole is right, one row at least in
    all, and one of every class left in training. Both keep the order of `rows`. Rows without labels are one class.

    Raises InputError where no class has a row to spare.
    """
    classes = rows.labels or [""] * len(rows)
    if not rows.labels and len(rows) < 2:
        raise InputError("data.validation_split: one row, so none can be held out; add rows, or give data.validation")
    counts = Counter(classes)
    spare = {label: count - 1 for label, count in counts.items()}
    if not any(spare.values()):
        raise InputError(
            f"data.validation_split: {len(rows)} rows and {len(counts)} classes: no class has two rows, so none can be "
            "held out; is this the label (data.columns.label)? add rows, or give data.validation"
        )
    # Largest remainder: whole parts first, then the classes that lost most to rounding, in a fixed order.
    goal = max(1, round(share * len(rows)))
    quota = {label: min(int(share * count), spare[label]) for label, count in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(share * counts[label] - quota[label]), label))
    while sum(quota.values()) < goal and any(quota[label] < spare[label] for label in counts):
        for label in by_remainder:
            if sum(quota.values()) < goal and quota[label] < spare[label]:
                quota[label] += 1
    random = np.random.default_rng(seed)
    labels = np.array(classes, dtype=object)
    held = [random.permutation(np.flatnonzero(labels == label))[: quota[label]] for label in sorted(counts)]
    places = np.sort(np.concatenate(held))
    return rows.take(np.setdiff1d(np.arange(len(rows)), places)), rows.take(places)
