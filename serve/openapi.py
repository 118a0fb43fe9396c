"""The gateway's OpenAPI 3.1 document, from the models it knows. tests/test_serve_hostile.py holds the gateway to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.engine import TASK
from serve import openapi_language as language
from serve.openapi_parts import ERROR, OPENAI_ERROR, REFUSALS, SHOWN, get, ref, refusals
from serve.openapi_tasks import SCHEMAS

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
_HEALTH = {
    "type": "object",
    "required": ["status", "models"],
    "properties": {"status": {"const": "ok"}, "models": {"type": "integer", "minimum": 0}},
}


def document(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The whole document. `models` maps a name to its task, version, request and response."""
    paths: dict[str, Any] = {
        "/health": {"get": get("health", "Whether the gateway answers", ref("Health"))},
        "/models": {"get": get("list_models", "Every model that is served", {"type": "array", "items": ref("Model")})},
        "/openapi.json": {"get": get("openapi", "This document", {"type": "object"})},
    }
    names = sorted(name for name, model in models.items() if model["task"] == TASK)
    if names:
        paths |= language.paths(names)
    for name, model in sorted(models.items()):
        paths[f"/models/{name}"] = {"get": get(f"show_{name}", f"What {name} is", ref("Model"), SHOWN)}
        if name not in names:
            paths[f"/models/{name}"]["post"] = _post(name, model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": "1", "description": "Models behind one address, each by its own task."},
        "paths": paths,
        "components": {
            "schemas": {
                "Model": _MODEL,
                "LanguageModel": language.MODEL,
                "Error": ERROR,
                "OpenAIError": OPENAI_ERROR,
                "Health": _HEALTH,
            }
        },
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
            **refusals(REFUSALS, "Error"),
        },
    }
