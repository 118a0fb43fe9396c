"""A commented file to start from, written from the models themselves, so that it cannot fall behind them.

Keys to look at first are written out; every other key stands as `#key: default` under its doc string.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Set
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.spec.sections import Spec

WIDTH = 100
# What a person fills in first, by modality; paths are placeholders.
_MODELS = {
    "text": "distilbert/distilbert-base-uncased",
    "vision": "google/vit-base-patch16-224-in21k",
    "tabular": "sklearn.ensemble.RandomForestClassifier",
}
# What generates text is another kind of model, and its rows are chats: no cells of a table.
_CHAT, _CHATS = "HuggingFaceTB/SmolLM2-135M-Instruct", ("data/train.jsonl", "data/test.jsonl")
_DATA = {"text": ("data/train.csv", "data/test.csv"), "vision": ("data/train", "data/test")}
_FIRST = {
    "train": {"epochs", "learning_rate", "batch_size", "max_length", "parameters"},
    "serve": {"min_replicas", "max_replicas"},
}
# Keys of `train` that a modality makes no use of. What scikit-learn fits has no gradient steps.
_GRADIENTS = {
    "epochs",
    "learning_rate",
    "batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "weight_decay",
    "schedule",
    "warmup_ratio",
    "max_grad_norm",
    "precision",
    "from_scratch",
    "early_stopping_patience",
    "checkpoints_per_epoch",
    "workers",
    "parallel",
    "deepspeed",
    "lora",
    "max_failures",
}
_MEANS_NOTHING = {
    "text": {"parameters", "lora"},
    "vision": {"parameters", "max_length", "lora"},
    "tabular": _GRADIENTS,
    "text-generation": {"parameters", "class_weights"},
}
# And of `serve`: one engine's keys, and what that engine does by itself.
_ENGINE = {"llm"}
_BATCHES = {"max_batch_size", "max_batch_tokens", "batch_wait_ms", "dtype", "shared"}


def template(task: str, *, modality: str, columns: Mapping[str, bool], train: bool, serve: bool, about: str) -> str:
    """The text of a starting file. `columns` maps a role to whether it is required; `about` becomes its first line."""
    lines = [f"# {about}", "# Keys that begin with # stand at their default; take the # away to change one."]
    lines += _live(Spec, "name", f"my-{modality}-model")
    lines += _live(Spec, "task", task)
    writes = task == "text-generation"
    lines += _live(Spec, "model", _CHAT if writes else _MODELS.get(modality, "./model"))
    if train:
        first, held_out = _CHATS if writes else _DATA.get(modality, _DATA["text"])
        roles = {role: role for role, required in columns.items() if required or (writes and role == "messages")}
        shown = {"train": first, "test": held_out}
        if modality == "vision":
            lines += _section("data", modality, shown)  # a folder a class: no columns to name
        else:
            lines += _section("data", modality, {**shown, "columns": roles})
        lines += _section("train", modality, skipped=_MEANS_NOTHING.get(task if writes else modality, set()))
        lines += _section("evaluate", modality)
    if serve:
        nothing = _ENGINE | {"dtype"} if modality == "tabular" else _ENGINE
        lines += _section("serve", modality, skipped=_BATCHES if writes else nothing)
    return "\n".join(lines) + "\n"


def _section(
    name: str, modality: str, shown: Mapping[str, Any] | None = None, *, skipped: Set[str] = frozenset()
) -> list[str]:
    """A section's lines; `shown` are values to write in place of defaults, `skipped` keys that mean nothing here."""
    model = Spec.model_fields[name].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    shown = shown or {}
    live = {*shown, *_FIRST.get(name, ())}
    body: list[str] = []
    for key, field in model.model_fields.items():
        if key in skipped:
            continue
        body += _comment(field, "  ")
        value = shown.get(key, field.get_default(call_default_factory=True))
        body.append(f"  {'' if key in live else '#'}{key}: {_scalar(value)}")
    return ["", f"{name}:", *body]


def _live(model: type[BaseModel], key: str, value: str) -> list[str]:
    return [*_comment(model.model_fields[key], ""), f"{key}: {_scalar(value)}"]


def _comment(field: FieldInfo, indent: str) -> list[str]:
    text = " ".join((field.description or "").split())
    return [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - len(indent), break_on_hyphens=False)]


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value if yaml.safe_load(value) == value and "#" not in value else json.dumps(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
