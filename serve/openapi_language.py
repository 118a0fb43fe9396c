"""OpenAI's routes in the OpenAPI document: of their bodies what clients set most; vLLM takes more, and so may they."""

from __future__ import annotations

from typing import Any

from serve.openapi_parts import REFUSALS, SHOWN, get, ref, refusals

Schema = dict[str, Any]

MODEL: Schema = {
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
_TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
_PART: Schema = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]},
    },
}
_TOKEN_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT: Schema = {"anyOf": [{"type": "string", "minLength": 1}, _TEXTS, _TOKEN_IDS]}
_FORMAT: Schema = {
    "description": "Form of the answer",
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object"]}},
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name", "schema"],
                    "properties": {"name": {"type": "string"}, "schema": {"type": "object"}},
                },
            },
        },
    ],
}
_TOOL: Schema = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "parameters": {"type": "object", "description": "JSON Schema of the arguments"},
            },
        },
    },
}
_PENALTY: Schema = {"type": "number", "minimum": -2, "maximum": 2}
# What both routes take.
_BOTH: Schema = {
    "stream": {"type": "boolean"},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": "integer", "minimum": 1},
    "n": {"type": "integer", "minimum": 1, "description": "Answers"},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "seed": {"type": ["integer", "null"]},
    "stop": {"anyOf": [{"type": "string"}, _TEXTS]},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "response_format": _FORMAT,
}
# Route: what it needs, and what it takes beside that.
_ROUTES: dict[str, tuple[str, Schema]] = {
    "chat/completions": (
        "messages",
        {
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "logprobs": {"type": "boolean"},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "tools": {"type": "array", "items": _TOOL, "minItems": 1},
            "tool_choice": {"enum": ["none", "auto", "required"]},
        },
    ),
    "completions": (
        "prompt",
        {
            "prompt": _PROMPT,
            "echo": {"type": "boolean"},
            "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
        },
    ),
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
    "properties": {"choices": {"type": "array", "items": {"type": "object"}}},
}
_LIST: Schema = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": ref("LanguageModel")}},
}


def paths(names: list[str]) -> dict[str, Any]:
    """The routes by path, over the language models of these names."""
    found: dict[str, Any] = {
        "/v1/models": {"get": get("list_language_models", "Every language model", _LIST, error="OpenAIError")}
    }
    for name in names:
        summary = f"{name} as OpenAI lists it"
        shown = get(f"show_language_{name}", summary, ref("LanguageModel"), SHOWN, error="OpenAIError")
        found[f"/v1/models/{name}"] = {"get": shown}
    for route, (needed, own) in _ROUTES.items():
        body = {
            "type": "object",
            "required": ["model", needed],
            "properties": {"model": {"enum": names}, **own, **_BOTH},
        }
        found[f"/v1/{route}"] = {
            "post": {
                "operationId": route.replace("/", "_"),
                "summary": f"OpenAI's {route}, by a language model",
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": {
                    "200": {
                        "description": "OpenAI's answer, or its events where `stream` is true",
                        "content": {
                            "application/json": {"schema": _ANSWER},
                            "text/event-stream": {"schema": {"type": "string"}},
                        },
                    },
                    **refusals(REFUSALS, "OpenAIError"),
                },
            }
        }
    return found
