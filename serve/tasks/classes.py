"""From a classifier's logits to [{label, score}], as the Hugging Face clients ask for it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from cluster.errors import InputError

Function = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Parameters:
    """What a request may set: how many labels it wants (None: all), and what turns logits into scores (None: what the
    model was trained with)."""

    top_k: int | None = None
    function_to_apply: Function | None = None


def parameters(value: Any, *, default: Parameters) -> Parameters:
    """A request's `parameters`. Raises InputError, naming the parameter and what it may be."""
    if value is None:
        return default
    if not isinstance(value, dict):
        raise InputError(f"parameters: {value!r:.80} is no object; write {{top_k, function_to_apply}}")
    known = ("top_k", "function_to_apply")
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "this task has top_k and function_to_apply"
            raise InputError(f"parameters: {str(name)[:80]!r} is not a parameter; {hint}")
    top_k = value.get("top_k")
    if top_k is None:
        top_k = default.top_k
    elif isinstance(top_k, float) and top_k.is_integer() and top_k >= 1:
        top_k = int(top_k)  # a number to JavaScript, and to JSON Schema, is whole by its value
    elif isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"parameters.top_k: {top_k!r:.80} is no whole number from 1")
    function = value.get("function_to_apply")
    if function is not None and function not in get_args(Function):
        known_functions = ", ".join(get_args(Function))
        raise InputError(f"parameters.function_to_apply: {function!r:.80}; write one of {known_functions}")
    return Parameters(top_k, function)


def ranked(logits: np.ndarray, labels: list[str], chosen: Parameters, *, natural: Function) -> list[dict[str, Any]]:
    """[{label, score}], best first. `logits` has shape (labels,); `natural` is the model's own function."""
    scores = _FUNCTIONS[chosen.function_to_apply or natural](logits.astype(np.float64))
    order = np.argsort(-scores, kind="stable")[: chosen.top_k]
    return [{"label": labels[index], "score": float(scores[index])} for index in order]


def natural_function(config: Any) -> Function:
    """What a Hugging Face configuration says turns its logits into scores."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))  # does not overflow, unlike 1 / (1 + exp(-x))


def _identity(logits: np.ndarray) -> np.ndarray:
    return logits


_FUNCTIONS = {"softmax": _softmax, "sigmoid": _sigmoid, "none": _identity}
