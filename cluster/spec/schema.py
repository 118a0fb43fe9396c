"""JSON Schema (2020-12) of a model's file and of cluster.yaml, from the models that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from cluster.spec.sections import Spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema(tasks: Mapping[str, str]) -> dict[str, Any]:
    """The schema of a model's file; `tasks` maps each task to what is said of it."""
    schema = schema_of(Spec, identifier="urn:shoal:model:v1", title="Shoal model")
    task = schema["properties"]["task"]
    # enumDescriptions is no keyword of JSON Schema: editors show it beside each choice, validators pass over it.
    schema["properties"]["task"] = {**task, "enum": list(tasks), "enumDescriptions": list(tasks.values())}
    return schema


def schema_of(model: type[BaseModel], *, identifier: str, title: str) -> dict[str, Any]:
    """The schema of any Section, with doc strings as descriptions and every default."""
    tree = model.model_json_schema()
    for section in tree.get("$defs", {}).values():
        section["type"] = ["object", "null"]  # a section with nothing under it is all defaults
    for field in tree["properties"].values():
        if "$ref" in field:
            field["default"] = {}  # each key says its own default
    _without_line_breaks(tree)
    return {"$schema": DIALECT, "$id": identifier, **tree, "title": title}


def _without_line_breaks(tree: Any) -> None:
    if isinstance(tree, dict):
        if isinstance(tree.get("description"), str):
            tree["description"] = " ".join(tree["description"].split())
        for child in tree.values():
            _without_line_breaks(child)
    elif isinstance(tree, list):
        for child in tree:
            _without_line_breaks(child)
