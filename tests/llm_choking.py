"""Requests to OpenAI's routes that are wrong in ways that show only inside an engine; each is to be refused with 400.
Those under "a 500 once" were answered so, or would have been."""

from __future__ import annotations

from typing import Any

PLAIN: dict[str, dict[str, Any]] = {
    "completions": {"model": "tiny", "prompt": "hello", "max_tokens": 4},
    "chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
}


def _schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def _user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


_BOTH: list[dict[str, Any]] = [
    # A 500 once.
    _schema({"$ref": "#"}),
    _schema({"anyOf": [{"$ref": "#"}]}),
    {"structured_outputs": {"json": {"$ref": "#"}}},
    {"structured_outputs": {"grammar": "root ::="}},
    {"structured_outputs": {"regex": "\\p{L}"}},
    {"bad_words": ["\ud800"]},
    # What xgrammar would pass over is refused, not left unkept.
    _schema({"type": "integer", "multipleOf": 5}),
    _schema({"type": "array", "uniqueItems": True}),
    _schema({"type": "no such type"}),
    {"response_format": {"type": "json_schema"}},
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"structural_tag": "{"}},
    {"allowed_token_ids": [99_999_999]},
    {"allowed_token_ids": []},
    {"logit_bias": {"99999999": 1}},
    {"logit_bias": {"a": 1}},
    {"max_tokens": 2**70},
    {"min_tokens": 10},
    {"n": 20_000},
    {"n": -1},
    {"seed": 2**80},
    {"stop": [""]},
    {"temperature": "hot"},
    {"top_k": -5},
    {"truncate_prompt_tokens": -5},
    {"prompt_logprobs": 10**9},
]
CHOKING: dict[str, list[dict[str, Any]]] = {
    "completions": [
        *_BOTH,
        {"prompt": []},
        {"prompt": [99_999_999]},
        {"prompt": [-1]},
        {"prompt": [2**70]},
        {"prompt": "\ud800"},
        {"prompt_embeds": "AAAA"},
        {"logprobs": 10**9},
    ],
    "chat/completions": [
        *_BOTH,
        {"messages": [{}]},
        {"messages": ["hi"]},
        _user([{"type": "text"}]),
        _user([None]),
        _user("\udfff"),
        {"chat_template": "{{ 1 / 0 }}"},
        {"tool_choice": "required"},
        {"top_logprobs": 10**9, "logprobs": True},
    ],
}
