"""Rows to learn to write from, in one of three forms: texts, prompts with completions, or chats.

Every message begins with the place: "data.train: chats.jsonl".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cluster.errors import InputError
from cluster.spec import Data

FORMS = (("messages",), ("prompt", "completion"), ("text",))
ROLES = ("system", "user", "assistant")
MAX_TURNS = 1000
MAX_CHARACTERS = 10_000_000  # of a row; what is longer than the model reads is cut anyway
_WANTED = "write messages (a chat), prompt and completion, or text, or name the columns by data.columns"
_TURN = pa.struct([("role", pa.large_string()), ("content", pa.large_string())])


def form(names: Sequence[str], roles: dict[str, str], data: Data, *, where: str) -> tuple[str, ...]:
    """The form of a source with these columns: the roles of one of FORMS. Where data.columns names some, only those
    count. Raises InputError where there is none, half of one, or more than one."""
    there = [role for role, column in roles.items() if column in names and (not data.columns or role in data.columns)]
    found = [form for form in FORMS if all(role in there for role in form)]
    left = [role for role in there if role not in {role for form in found for role in form}]
    if len(found) == 1 and not left:
        return found[0]
    shown = ", ".join(repr(roles[role]) for role in there)
    if len(found) > 1:
        one = found[0]
        hint = ", ".join(f"{role}: {roles[role]}" for role in one)
        raise InputError(f"{where}: more than one form to learn from: {shown}; name one, e.g. data.columns: {{{hint}}}")
    if left and not found:
        missing = {"prompt": "completion", "completion": "prompt"}[left[0]]
        raise InputError(f"{where}: a {left[0]} and no {missing}; add the column, or name it by data.columns.{missing}")
    if left:
        raise InputError(
            f"{where}: {', '.join(found[0])} and {', '.join(left)}; leave out one by naming the other in data.columns"
        )
    columns = ", ".join(repr(name) for name in list(names)[:20])
    raise InputError(f"{where}: nothing to learn from in the columns {columns}; {_WANTED}")


def inputs(table: pa.Table, roles: dict[str, str], form: tuple[str, ...], *, where: str) -> pa.Table:
    """The canonical columns of a form: large_string, and for messages a list of {role, content}.

    Raises InputError with the row of a value that cannot be learned from.
    """
    if form == ("messages",):
        name = roles["messages"]
        return pa.table({"messages": _messages(table[name], f"{where}: column {name!r}")})
    return pa.table({role: _texts(table[roles[role]], role, f"{where}: column {roles[role]!r}") for role in form})


def _texts(column: pa.ChunkedArray, role: str, place: str) -> pa.ChunkedArray:
    found = []
    for row, value in enumerate(column.to_pylist(), 1):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{place}: row {row} has {_shown(value)}, not text; name a column of text")
        # A prompt may be nothing at all; there is nothing to learn from an answer that is none.
        if value is None or (role != "prompt" and not value.strip()):
            raise InputError(f"{place}: row {row} has no text; fill or remove it")
        _short_enough(len(value), f"{place}: row {row}")
        found.append(value)
    return pa.chunked_array([pa.array(found, pa.large_string())])


def _messages(column: pa.ChunkedArray, place: str) -> pa.ChunkedArray:
    found = []
    for row, value in enumerate(column.to_pylist(), 1):
        here = f"{place}: row {row}"
        if not isinstance(value, list):
            raise InputError(
                f"{here} has {_shown(value)}, not a list of {{role, content}}; save chats as JSON lines or Parquet"
            )
        if not value:
            raise InputError(f"{here} is a chat without turns; remove it")
        if len(value) > MAX_TURNS:
            raise InputError(f"{here} has {len(value)} turns; {MAX_TURNS} at most")
        turns = [_turn(turn, f"{here}, turn {number}") for number, turn in enumerate(value, 1)]
        for number, turn in enumerate(turns[1:], 2):
            if turn["role"] == "system":
                raise InputError(f"{here}, turn {number}: a system turn in the middle; it can only be the first")
        if turns[-1]["role"] != "assistant":
            raise InputError(
                f"{here} ends with a turn of {turns[-1]['role']}; a chat to learn from ends with the assistant's"
            )
        _short_enough(sum(len(turn["content"]) for turn in turns), here)
        found.append(turns)
    return pa.chunked_array([pa.array(found, pa.large_list(_TURN))])


def _turn(turn: Any, here: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise InputError(f"{here}: {_shown(turn)}, not an object with role and content")
    if other := [key for key, value in turn.items() if key not in ("role", "content") and value is not None]:
        raise InputError(f"{here}: has {', '.join(other)}; only role and content can be learned, remove the rest")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise InputError(f"{here}: role {_shown(role)}; write one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"{here}: content is {_shown(content)}, not text")
    if role == "assistant" and not content.strip():
        raise InputError(f"{here}: the assistant says nothing; fill or remove it")
    return {"role": role, "content": content}


def _short_enough(characters: int, here: str) -> None:
    if characters > MAX_CHARACTERS:
        raise InputError(f"{here} has {characters} characters; {MAX_CHARACTERS} at most, cut it into rows")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]
