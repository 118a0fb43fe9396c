"""A request's body as what a task reads: JSON, text, or a file with parameters, in whichever way a client sends it.

Clients that send bytes mostly say nothing of their type, curl calls JSON a form, and browsers call it text: what a body
is shows in its first byte. `Content-Type` decides only for multipart/form-data and text/plain.

Nothing is ever fetched: a file is sent, not named. A replica that fetches what strangers name asks in their place the
services that only it can reach (server-side request forgery).
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from cluster.errors import InputError
from serve.asgi import read_json
from serve.tasks.multipart import Part, parts

MAX_QUERY_FIELDS = 64
# Names of the one field of a form that holds the input.
_INPUT_FIELDS = ("inputs", "file", "image", "table", "data")
_URL = re.compile(r"\s*(?!data:)([a-z][a-z0-9+.-]{1,20})://", re.IGNORECASE)
_LONGEST_URI_HEAD = 200


@dataclass(frozen=True)
class Content:
    """A request. Either `file` (bytes) is there, or `value`, the JSON as it came; `parameters` is what the request
    sets, from its query string and, which wins, its body; None where it sets nothing."""

    value: Any = None
    file: bytes | None = None
    parameters: Any = None


@dataclass(frozen=True)
class Reader:
    """Reads the requests of one task. `wants` says what it takes, for messages; `names` are the members of a JSON
    object that hold the input."""

    wants: str
    names: tuple[str, ...] = field(default=("inputs",))

    def json(self, body: bytes, content_type: str, query: Mapping[str, str]) -> Content:
        """A request of a task on text or tables. text/plain that is no JSON object is the input itself. Raises
        InputError."""
        media = _media(content_type)
        if media == "multipart/form-data":
            part, parameters = self._form(body, content_type)
            value: Any = _text(part)
            if part.media == "application/json" or value.lstrip()[:1] in ("{", "["):
                value = read_json(part.data, wants=self.wants)
            return Content({self.names[0]: value}, None, _merged(query, parameters))
        if media == "text/plain" and body and body.lstrip()[:1] not in (b"{", b"["):
            return Content({self.names[0]: _decoded(body)}, None, _merged(query, None))
        value = read_json(body, wants=self.wants)
        parameters = value.get("parameters") if isinstance(value, dict) else None
        return Content(value, None, _merged(query, parameters))

    def bytes(self, body: bytes, content_type: str, query: Mapping[str, str]) -> Content:
        """A request of a task on files: raw, in a form, or in JSON as base64. Raises InputError."""
        if not body:
            raise InputError(f"the request is empty; this model takes {self.wants}")
        if _media(content_type) == "multipart/form-data":
            part, parameters = self._form(body, content_type)
            # A form's text field holds what JSON would.
            data = part.data if part.is_file else self.file(_text(part), part.name)
            return Content(None, data, _merged(query, parameters))
        if body.lstrip()[:1] != b"{":  # no picture and no sound starts with a brace
            return Content(None, body, _merged(query, None))
        value = read_json(body, wants=self.wants)
        for name in self.names:
            if isinstance(value.get(name), str):
                return Content(None, self.file(value[name], name), _merged(query, value.get("parameters")))
        raise InputError(f"the request has no `{self.names[0]}` in base64; this model takes {self.wants}")

    def file(self, text: str, name: str) -> bytes:
        """The bytes of a JSON member: base64, or a data: URI of it. Raises InputError, also where it is an address."""
        if found := _URL.match(text[:_LONGEST_URI_HEAD]):
            raise InputError(
                f"{name}: {found[1].lower()}:// addresses are not fetched; send the file's bytes as the body, or as "
                f"base64; this model takes {self.wants}"
            )
        if text[:5].lower() == "data:":
            head, comma, text = text.partition(",")
            if not comma or len(head) > _LONGEST_URI_HEAD or not head.lower().endswith(";base64"):
                raise InputError(f"{name}: a data: URI that is not base64; write data:image/png;base64,...")
        try:
            # Python's encodebytes and MIME break base64 into lines; anything else that is not of it is a fault.
            return binascii.a2b_base64("".join(text.split()), strict_mode=True)
        except ValueError:
            raise InputError(f"{name}: not base64; this model takes {self.wants}") from None

    def _form(self, body: bytes, content_type: str) -> tuple[Part, Any]:
        """A form's one input, and its parameters: a field `parameters` in JSON."""
        inputs: Part | None = None
        parameters: Any = None
        for part in parts(body, content_type):
            if part.name == "parameters" and not part.data:
                continue  # an empty field of an HTML form
            if part.name == "parameters":
                parameters = read_json(part.data, wants='parameters in JSON, e.g. parameters={"top_k": 2}')
            elif part.name in _INPUT_FIELDS:
                if inputs is not None:
                    raise InputError(
                        f"the form has both {inputs.name} and {part.name}: send one input a request"
                        if inputs.name != part.name
                        else f"the form has {part.name} twice: send one input a request"
                    )
                inputs = part
            else:
                raise InputError(
                    f"the form's field {part.name[:80]!r} is none of {', '.join(_INPUT_FIELDS)} and parameters"
                )
        if inputs is None:
            raise InputError(f"the form has no field {_INPUT_FIELDS[0]} or {_INPUT_FIELDS[1]} with the input")
        return inputs, parameters


def read_query(query_string: bytes) -> dict[str, str]:
    """A query string by name. Raises InputError where a name comes twice, or there are too many."""
    if not query_string:
        return {}
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise InputError(
            f"the query string has more than {MAX_QUERY_FIELDS} fields; send parameters in the body"
        ) from None
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the query string has {twice[:80]!r} twice; write it once")
    return found


def _merged(query: Mapping[str, str], parameters: Any) -> Any:
    """Parameters of the query string (?top_k=2, or ?parameters={...}: JS clients that send bytes have no other place),
    and over them those of the body."""
    if not query:
        return parameters
    given: dict[str, Any] = {}
    for name, text in query.items():
        value = _guessed(text)
        if name == "parameters" and isinstance(value, dict):
            given |= value
        else:
            given[name] = value
    if parameters is None:
        return given
    return {**given, **parameters} if isinstance(parameters, dict) else parameters


def _guessed(text: str) -> Any:
    """A query's value: JSON where it is some, else the text. Nothing is written by leaving it out."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if value is None else value


def _media(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _text(part: Part) -> str:
    return _decoded(part.data)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("the text is not UTF-8; send it as UTF-8") from None
