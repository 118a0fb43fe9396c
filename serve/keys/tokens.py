"""Tokens of a language model's answer, read off the bytes that pass by.

An answer that is not streamed says them in `usage`. A stream says them in a last event, where it is asked to: where the
client did not ask, we do, and that event is left out again on the way back. Where a stream breaks off before it, its
events are counted as one token each, and the request's bytes as a quarter of a token: `counted` is False then.
"""

from __future__ import annotations

import json

_USAGE = b'"usage":'
_NULLS = (b'"usage":null', b'"usage": null')  # an event that has none yet, as OpenAI's own streams say
BYTES_A_TOKEN = 4
HELD_BYTES = 1 << 20


def with_usage(body: bytes) -> tuple[bytes, bool]:
    """A request (JSON, an object) for an engine, so that a stream says what it used; and whether the client did not ask
    for that, so that the event is not for it."""
    if b'"stream"' not in body:
        return body, False
    request = json.loads(body)
    options = request.get("stream_options")
    if not request.get("stream") or not isinstance(options, dict | None) or (options or {}).get("include_usage"):
        return body, False
    request["stream_options"] = {**(options or {}), "include_usage": True}
    return json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass"), True


def read_usage(answer: bytes) -> tuple[int, int] | None:
    """Input and output tokens that a JSON answer tells; None where it tells none.

    The bytes `"usage":` cannot stand inside a JSON string, whose quotes are escaped: nothing that a model says can pass
    for them.
    """
    at = answer.rfind(_USAGE)
    if at < 0:
        return None
    try:
        text = answer[at + len(_USAGE) :].decode("utf-8", "replace").lstrip()
        usage, _ = json.JSONDecoder().raw_decode(text)
        told = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return told if min(told) >= 0 else None


class Stream:
    """A stream of server-sent events on its way to a client. Costs about a microsecond a chunk."""

    __slots__ = ("_hidden", "_rest", "_sent", "_usage")

    def __init__(self, request_bytes: int, *, hidden: bool) -> None:
        """`hidden`: the event of usage is not for the client."""
        self._hidden, self._sent = hidden, request_bytes
        self._rest = b""
        self._usage: tuple[int, int] | int = 0  # what was told, or the events so far

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to send on: all whole events but a hidden one. What is left of an event waits for its end."""
        data = self._rest + chunk if self._rest else chunk
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            if len(data) > HELD_BYTES:  # no event of an engine is so long: whatever it is, it is not ours to hold
                self._rest = b""
                return data
            self._rest = data
            return b""
        if end != len(data):
            self._rest, data = data[end:], data[:end]
        else:
            self._rest = b""
        if _USAGE in data and data.count(_USAGE) > sum(map(data.count, _NULLS)):
            return self._looked_through(data)
        if isinstance(self._usage, int):
            self._usage += data.count(b"\n\n")
        return data

    def end(self) -> bytes:
        """What was left at the end, where the last event has none."""
        rest, self._rest = self._rest, b""
        return rest

    @property
    def counted(self) -> bool:
        """Whether the engine said them."""
        return not isinstance(self._usage, int)

    def tokens(self) -> tuple[int, int]:
        """Input and output tokens, as far as they are known now."""
        if isinstance(self._usage, int):
            return self._sent // BYTES_A_TOKEN, self._usage
        return self._usage

    def _looked_through(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        for event in data.split(b"\n\n")[:-1]:
            usage = read_usage(event) if _USAGE in event else None
            if usage is not None:
                self._usage = usage
                if self._hidden and b'"choices":[]' in event.replace(b" ", b""):
                    continue
            elif isinstance(self._usage, int):
                self._usage += 1
            kept.append(event + b"\n\n")
        return b"".join(kept)
