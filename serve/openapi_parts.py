"""What the parts of the OpenAPI document share: errors, what any request may be refused with, a GET."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
OPENAI_ERROR = {
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
# What any request may be answered, by whom it may: HAProxy before the gateway, the gateway, a replica.
REFUSALS = {
    "400": "The request is wrong; `error` says what to send",
    "401": "A key is needed, or the one that was sent is not good",
    "403": "The key does not allow this",
    "404": "No such model",
    "405": "Not this method; Allow says which",
    "408": "The request did not come in time",
    "413": "The request, or what it unpacks to, is too large",
    "422": "The same bytes were at work on two replicas as each died",
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
SHOWN = (*_LISTED, "404")


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def get(
    operation: str,
    summary: str,
    schema: Mapping[str, Any],
    statuses: tuple[str, ...] = _LISTED,
    error: str = "Error",
) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **refusals(statuses, error)},
    }


def refusals(statuses: Iterable[str], error: str) -> dict[str, Any]:
    return {
        status: {
            "description": REFUSALS[status],
            "content": {"application/json": {"schema": ref(error)}},
            **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        }
        for status in statuses
    }
