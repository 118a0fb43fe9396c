"""How far two versions' answers to the same request agree, from 0 to 1: by what the answer is made of."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

CLOSE = 0.05  # numbers that differ by no more than this share of the greater one are the same answer
ALIKE = 0.95  # cosine of two vectors that are
VECTOR = 16  # so many numbers in a row are one vector, and not as many answers


def agreement(old: bytes, new: bytes) -> float:
    """Of two JSON answers; of any others whether they are the same bytes."""
    try:
        return _agree(json.loads(old), json.loads(new))
    except (ValueError, RecursionError):
        return float(old == new)


def _agree(old: Any, new: Any) -> float:
    if _number(old) and _number(new):
        return float(math.isclose(old, new, rel_tol=CLOSE, abs_tol=1e-9))
    if isinstance(old, list) and isinstance(new, list):
        if (best := _best(old)) is not None:
            return float(_best(new) == best)
        if len(old) != len(new):
            return 0.0
        if len(old) >= VECTOR and all(map(_number, old)) and all(map(_number, new)):
            return float(_cosine(old, new) >= ALIKE)
        return sum(map(_agree, old, new)) / len(old) if old else 1.0
    if isinstance(old, dict) and isinstance(new, dict):
        # The score is how sure it is, not what it says.
        said = [key for key in old if key != "score"]
        if set(said) != {key for key in new if key != "score"}:
            return 0.0
        return min((_agree(old[key], new[key]) for key in said), default=1.0)
    return float(type(old) is type(new) and old == new)


def _best(answer: list[Any]) -> Any:
    """The label on top of a ranking [{label, score}, ...]; None where it is none. One that stands at a place (a box, a
    span) is no ranking."""
    if not answer or not all(isinstance(one, dict) and set(one) == {"label", "score"} for one in answer):
        return None
    return max(answer, key=lambda one: one["score"] if _number(one["score"]) else -math.inf)["label"]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cosine(old: list[float], new: list[float]) -> float:
    lengths = math.hypot(*old) * math.hypot(*new)
    return sum(map(operator.mul, old, new)) / lengths if lengths else float(old == new)
