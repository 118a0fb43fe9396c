"""The gateway's OpenAPI 3.1 document, from the models it knows. tests/test_serve_hostile.py holds the gateway to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.engine import TASK
from serve.openapi_tasks import SCHEMAS

_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["integer", "string", "null"]},
            },
        }
    },
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
_LANGUAGE_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "root": {"type": "string", "description": "models:/NAME/VERSION"},
        "parent": {"type": "string", "description": "The model that this one is an adapter of"},
        "max_model_len": {"type": ["integer", "null"], "description": "Tokens of prompt and answer together"},
    },
}
_HEALTH = {
    "type": "object",
    "required": ["status", "models"],
    "properties": {"status": {"const": "ok"}, "models": {"type": "integer", "minimum": 0}},
}
# What any request may be answered, by whom it may: HAProxy before the gateway, the gateway, a replica.
_REFUSALS = {
    "400": "The request is wrong; `error` says what to send",
    "401": "A key is needed, or the one that was sent is not good",
    "403": "The key does not allow this",
    "404": "No such model",
    "405": "Not this method; Allow says which",
    "408": "The request did not come in time",
    "413": "The request, or what it unpacks to, is too large",
    "429": "The queue is full, a limit is reached, or no replica can answer now; Retry-After says when to come back",
    "500": "The model failed on this request",
    "502": "The model's replica went away in the middle",
    "504": "No answer in time",
}
_HEADERS = {
    "405": {"Allow": {"schema": {"type": "string"}}},
    "429": {"Retry-After": {"schema": {"type": "integer", "minimum": 0}, "required": True}},
}
_LISTED = ("400", "401", "403", "408", "429")
_SHOWN = (*_LISTED, "404")


def document(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole document. `models` maps a name to its task, version, request and response."""
    paths: dict[str, Any] = {
        "/health": {"get": _get("health", "Whether the gateway answers", _ref("Health"))},
        "/models": {
            "get": _get("list_models", "Every model that is served", {"type": "array", "items": _ref("Model")})
        },
        "/openapi.json": {"get": _get("openapi", "This document", {"type": "object"})},
    }
    language = sorted(name for name, model in models.items() if model["task"] == TASK)
    if language:
        paths |= _language(language)
    for name, model in sorted(models.items()):
        paths[f"/models/{name}"] = {"get": _get(f"show_{name}", f"What {name} is", _ref("Model"), _SHOWN)}
        if name not in language:
            paths[f"/models/{name}"]["post"] = _post(name, model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": "1", "description": "Models behind one address, each by its own task."},
        "paths": paths,
        "components": {
            "schemas": {
                "Model": _MODEL,
                "LanguageModel": _LANGUAGE_MODEL,
                "Error": _ERROR,
                "OpenAIError": _OPENAI_ERROR,
                "Health": _HEALTH,
            }
        },
    }


def _language(names: list[str]) -> dict[str, Any]:
    """OpenAI's routes, over all language models. Of their bodies what is needed to be understood; the rest is OpenAI's,
    which its documents describe."""
    part = {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    }
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "user", "assistant"]},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": part, "minItems": 1}]},
        },
    }
    prompt = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}]}
    wants = {
        "chat/completions": ("messages", {"type": "array", "items": message, "minItems": 1}),
        "completions": ("prompt", prompt),
    }
    paths: dict[str, Any] = {
        "/v1/models": {
            "get": _get(
                "list_language_models",
                "Every language model",
                {
                    "type": "object",
                    "required": ["object", "data"],
                    "properties": {
                        "object": {"const": "list"},
                        "data": {"type": "array", "items": _ref("LanguageModel")},
                    },
                },
                error="OpenAIError",
            )
        },
    }
    for name in names:
        summary = f"{name} as OpenAI lists it"
        shown = _get(f"show_language_{name}", summary, _ref("LanguageModel"), _SHOWN, error="OpenAIError")
        paths[f"/v1/models/{name}"] = {"get": shown}
    for route, (needed, schema) in wants.items():
        properties = {
            "model": {"enum": names},
            needed: schema,
            "stream": {"type": "boolean"},
            "max_tokens": {"type": "integer", "minimum": 1},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        }
        answer = {
            "type": "object",
            "required": ["id", "object", "created", "model", "choices"],
            "properties": {"choices": {"type": "array", "items": {"type": "object"}}},
        }
        paths[f"/v1/{route}"] = {
            "post": {
                "operationId": route.replace("/", "_"),
                "summary": f"OpenAI's {route}, by a language model",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "required": ["model", needed], "properties": properties}
                        }
                    },
                },
                "responses": {
                    "200": {
                        "description": "OpenAI's answer, or its events where `stream` is true",
                        "content": {
                            "application/json": {"schema": answer},
                            "text/event-stream": {"schema": {"type": "string"}},
                        },
                    },
                    **_refusals(_REFUSALS, "OpenAIError"),
                },
            }
        }
    return paths


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _get(
    operation: str,
    summary: str,
    schema: Mapping[str, Any],
    refusals: tuple[str, ...] = _LISTED,
    error: str = "Error",
) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **_refusals(refusals, error)},
    }


def _post(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    request, query, response = SCHEMAS[model["task"]]
    return {
        "operationId": f"run_{name}",
        "summary": f"{model['task']} by {model['version']}",
        "parameters": [{"name": key, "in": "query", "schema": schema} for key, schema in query.items()],
        "requestBody": {"required": True, "content": request},
        "responses": {
            "200": {"description": model["response"], "content": {"application/json": {"schema": response}}},
            **_refusals(_REFUSALS, "Error"),
        },
    }


def _refusals(statuses: Any, error: str) -> dict[str, Any]:
    return {
        status: {
            "description": _REFUSALS[status],
            "content": {"application/json": {"schema": _ref(error)}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status in statuses
    }
