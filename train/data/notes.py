"""What a person should know about prepared data, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences from a report: duplicates, conflicts, files passed over, classes that a split is without."""
    said = []
    dropped = {split: count for split, count in report["dropped"].items() if count}
    if dropped:
        said.append(f"duplicates dropped: {_counts(dropped)}")
    # What was dropped is not there any more: only what is left of it is worth a word.
    left = {} if dropped else {name: count for name, count in report["duplicates"].items() if count}
    inside = {name: count for name, count in left.items() if "-" not in name}
    if inside:
        said.append(f"exact duplicates, {_counts(inside)}; data.drop_duplicates: true drops them")
    for name, count in left.items():
        first, dash, second = name.partition("-")
        if dash:
            hint = "; it scores too well by that, data.drop_duplicates: true drops them" if first == "train" else ""
            said.append(f"rows of {first} that stand in {second} too: {count}{hint}")
    if report["conflicting_labels"]:
        said.append(f"inputs that stand with more than one label: {report['conflicting_labels']}")
    if report["skipped"]:
        said.append(f"files passed over, no pictures by their ending: {_counts(report['skipped'])}")
    for split, classes in report["classes"].items():
        without = [label for label, count in classes.items() if not count]
        if without:
            said.append(f"{split} has no row of {', '.join(without[:5])}{', ...' if len(without) > 5 else ''}")
    return said


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {split}" for split, count in counts.items())
