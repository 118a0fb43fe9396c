"""What each task takes and answers, as JSON Schema: one entry a task that has a handler in serve.tasks."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TOP_K: Schema = {"type": "integer", "minimum": 1, "description": "How many labels"}
_FUNCTION: Schema = {"enum": ["softmax", "sigmoid", "none"], "description": "What turns the model's values into scores"}
_PARAMETERS: Schema = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "properties": {
        "top_k": {**_TOP_K, "type": ["integer", "null"]},
        "function_to_apply": {**_FUNCTION, "enum": [*_FUNCTION["enum"], None]},
    },
}
_FORM_PARAMETERS: Schema = {**_PARAMETERS, "type": "object"}
_NO_PARAMETERS: Schema = {"type": ["object", "null"], "maxProperties": 0}
_LABELS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["label", "score"],
        "additionalProperties": False,
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
    },
}
_TEXT: Schema = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["text"],
            "properties": {"text": {"type": "string"}, "text_pair": {"type": ["string", "null"]}},
        },
    ]
}
_CELL: Schema = {"type": ["string", "number", "boolean", "null"]}
_TABLE: Schema = {
    "description": "Every column with its values, or rows; the model's own columns must be there",
    "anyOf": [
        {"type": "object", "minProperties": 1, "additionalProperties": {"type": "array", "items": _CELL}},
        {"type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": _CELL}},
    ],
}
_FILE: Schema = {"type": "string", "format": "binary"}
PICTURES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream")


def _json(required: str, schema: Schema, parameters: Schema) -> Schema:
    return {
        "schema": {
            "type": "object",
            "required": [required],
            "properties": {required: schema, "parameters": parameters},
        }
    }


def _form(field: str, schema: Schema, parameters: Schema | None = None) -> Schema:
    """A form; `parameters` and a table are JSON in it, by OpenAPI's rule for objects."""
    properties = {field: schema} if parameters is None else {field: schema, "parameters": parameters}
    return {"schema": {"type": "object", "required": [field], "additionalProperties": False, "properties": properties}}


# Task: (request by media type, what the query string may set, answer).
SCHEMAS: dict[str, tuple[dict[str, Schema], dict[str, Schema], Schema]] = {
    "text-classification": (
        {
            "application/json": _json(
                "inputs",
                {"anyOf": [*_TEXT["anyOf"], {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1024}]},
                _PARAMETERS,
            ),
            "text/plain": {"schema": {"type": "string"}},
            "multipart/form-data": _form("inputs", {"type": "string"}, _FORM_PARAMETERS),
        },
        {"top_k": _TOP_K, "function_to_apply": _FUNCTION},
        {"type": "array", "items": _LABELS},
    ),
    "image-classification": (
        {
            **{media: {"schema": _FILE} for media in PICTURES},
            "application/json": _json(
                "inputs",
                {"type": "string", "contentEncoding": "base64", "description": "Base64, or a data: URI of it"},
                _PARAMETERS,
            ),
            "multipart/form-data": _form("file", _FILE, _FORM_PARAMETERS),
        },
        {"top_k": _TOP_K, "function_to_apply": _FUNCTION},
        _LABELS,
    ),
    "tabular-classification": (
        {
            "application/json": _json("table", _TABLE, _NO_PARAMETERS),
            "multipart/form-data": _form("table", _TABLE),
        },
        {},
        {"type": "array", "items": {"type": "string"}},
    ),
}
