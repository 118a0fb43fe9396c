"""A CustomResourceDefinition's schema as a strict one: what an API server would drop, fill in or refuse is told before.

What an API server makes of openAPIV3Schema stands in its documentation of structural schemas: unknown fields are
pruned, defaults are filled in, int-or-string and CEL rules are extensions of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
_KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")


def strict(schema: Schema) -> dict[str, Any]:
    """A JSON Schema (2020-12) that refuses unknown fields; what has a default need not be given."""
    result: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in result:
        result["type"] = [result["type"], "null"]
    if "items" in schema:
        result["items"] = strict(schema["items"])
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        result["properties"] = {key: strict(child) for key, child in properties.items()}
        more = schema.get("additionalProperties", False)
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            more = True
        result["additionalProperties"] = strict(more) if isinstance(more, Mapping) else more
        result["required"] = [key for key in schema.get("required", ()) if "default" not in properties.get(key, {})]
    return result


class Resource:
    """One version of a CRD, ready to check resources of its kind. Raises KeyError where the CRD has not the version."""

    def __init__(self, crd: Schema, version: str = "v1") -> None:
        from jsonschema import Draft202012Validator

        served = {one["name"]: one for one in crd["spec"]["versions"]}
        # A resource's metadata are every resource's: a CRD says nothing of them.
        free = {"metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        schema = served[version]["schema"]["openAPIV3Schema"]
        self.schema = {**schema, "properties": {**schema["properties"], **free}}
        self.validator = Draft202012Validator(strict(self.schema))

    def faults(self, value: Any) -> Iterator[tuple[str, str]]:
        """Every fault of a resource as its path and what is wrong, by the strict schema and by the CEL rules."""
        for error in self.validator.iter_errors(value):
            yield ".".join(map(str, error.absolute_path)), error.message[:300]
        yield from _rules(self.schema, value, ())


def _rules(schema: Schema, value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The CEL rules that a value breaks. Those about a change (oldSelf) have nothing to compare with here."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield ".".join(path), rule.get("message") or rule["rule"]
    if isinstance(value, dict):
        for key, child in value.items():
            below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(below, Mapping):
                yield from _rules(below, child, (*path, str(key)))
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, child in enumerate(value):
            yield from _rules(schema["items"], child, (*path, str(index)))


def _holds(rule: str, value: Any) -> bool:
    import cel

    try:
        return cel.evaluate(rule, {"self": value}) is True
    except (ValueError, TypeError, RuntimeError):
        return False  # it cannot be evaluated on such a value, which an API server refuses too
