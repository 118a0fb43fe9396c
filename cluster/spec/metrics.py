"""Which way a metric is good."""

from __future__ import annotations

# Metrics of which less is better, and the best that can be. All others are scores from 0 to 1, of which more is.
LOWER = {"perplexity": 1.0, "wer": 0.0, "cer": 0.0, "rmse": 0.0, "mase": 0.0}


def reached(metric: str, value: float, bound: float) -> bool:
    """Whether a value passes a gate: at least the bound, or at most where less is better. Not a number never does."""
    return value <= bound if metric in LOWER else value >= bound


def in_words(metric: str, bound: float) -> str:
    """A gate for people: "f1 0.85", "perplexity at most 12"."""
    return f"{metric} at most {bound:g}" if metric in LOWER else f"{metric} {bound:g}"
