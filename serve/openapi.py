"""The gateway's OpenAPI 3.1 document, from the models it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.engine import TASK

_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
_MODEL = {
    "type": "object",
    "required": ["name", "task", "version", "url", "state", "request", "response"],
    "properties": {
        "name": {"type": "string"},
        "task": {"type": "string"},
        "version": {"type": "string", "description": "models:/NAME/VERSION"},
        "url": {"type": "string", "description": "POST a request here"},
        "state": {"type": "string", "enum": ["ready"]},
        "request": {"type": "string", "description": "What the task takes, in short"},
        "response": {"type": "string", "description": "What the task answers, in short"},
    },
}
_REFUSALS = {
    "400": "The request is wrong; `error` says what to send",
    "404": "No such model",
    "413": "The request is too large",
    "429": "The queue is full, or no replica can answer now; Retry-After says when to come back",
    "502": "The model's replica went away in the middle",
    "504": "No answer in time",
}


def document(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole document. `models` maps a name to its task, version, request and response."""
    paths: dict[str, Any] = {
        "/health": {"get": _get("health", "Whether the gateway answers", {"$ref": "#/components/schemas/Health"})},
        "/models": {
            "get": _get(
                "list_models",
                "Every model that is served",
                {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
            )
        },
        "/openapi.json": {"get": _get("openapi", "This document", {"type": "object"})},
    }
    language = sorted(name for name, model in models.items() if model["task"] == TASK)
    if language:
        paths |= _language(language)
    for name, model in sorted(models.items()):
        if name in language:
            paths[f"/models/{name}"] = {
                "get": _get(f"show_{name}", f"What {name} is", {"$ref": "#/components/schemas/Model"})
            }
            continue
        get = _get(f"show_{name}", f"What {name} is", {"$ref": "#/components/schemas/Model"})
        paths[f"/models/{name}"] = {"get": get, "post": _post(name, model)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": "1", "description": "Models behind one address, each by its own task."},
        "paths": paths,
        "components": {
            "schemas": {
                "Model": _MODEL,
                "Error": _ERROR,
                "Health": {
                    "type": "object",
                    "required": ["status", "models"],
                    "properties": {"status": {"const": "ok"}, "models": {"type": "integer", "minimum": 0}},
                },
            }
        },
    }


def _language(names: list[str]) -> dict[str, Any]:
    """OpenAI's routes, over all language models; their bodies are OpenAI's own, which its documents describe."""
    wants = {"chat/completions": "messages", "completions": "prompt"}
    error = {"description": "OpenAI's {error: {message, type, param, code}}"}
    paths: dict[str, Any] = {
        "/v1/models": {"get": _get("list_language_models", "Every language model", {"type": "object"})},
    }
    for route, needed in wants.items():
        schema = {
            "type": "object",
            "required": ["model", needed],
            "properties": {"model": {"enum": names}, "stream": {"type": "boolean"}},
        }
        paths[f"/v1/{route}"] = {
            "post": {
                "operationId": route.replace("/", "_"),
                "summary": f"OpenAI's {route}, by a language model",
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                "responses": {
                    "200": {
                        "description": "OpenAI's answer, or its events where `stream` is true",
                        "content": {
                            "application/json": {"schema": {"type": "object"}},
                            "text/event-stream": {"schema": {"type": "string"}},
                        },
                    },
                    **dict.fromkeys(_REFUSALS, error),
                },
            }
        }
    return paths


def _get(operation: str, summary: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}},
    }


def _post(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    request, response = _SCHEMAS[model["task"]]
    refusals = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for status, text in _REFUSALS.items()
    }
    return {
        "operationId": f"run_{name}",
        "summary": f"{model['task']} by {model['version']}",
        "requestBody": {"required": True, "content": request},
        "responses": {
            "200": {"description": model["response"], "content": {"application/json": {"schema": response}}},
            **refusals,
        },
    }


_TOP_K = {"type": "integer", "minimum": 1, "description": "How many labels"}
_PARAMETERS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"top_k": _TOP_K, "function_to_apply": {"enum": ["softmax", "sigmoid", "none"]}},
}
_LABELS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["label", "score"],
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
    },
}
_TEXT = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["text"],
            "properties": {"text": {"type": "string"}, "text_pair": {"type": "string"}},
        },
    ]
}
_TABLE = {
    "type": "object",
    "description": "Every column with its values",
    "additionalProperties": {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}},
}
_SCHEMAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text-classification": (
        {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {"oneOf": [*_TEXT["oneOf"], {"type": "array", "items": _TEXT, "minItems": 1}]},
                        "parameters": _PARAMETERS,
                    },
                }
            }
        },
        {"type": "array", "items": _LABELS},
    ),
    "image-classification": (
        {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {"type": "string", "contentEncoding": "base64"},
                        "parameters": _PARAMETERS,
                    },
                }
            },
        },
        _LABELS,
    ),
    "tabular-classification": (
        {
            "application/json": {
                "schema": {"type": "object", "required": ["table"], "properties": {"table": _TABLE}},
            }
        },
        {"type": "array", "items": {"type": "string"}},
    ),
}
