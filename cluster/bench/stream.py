"""What a streamed answer of a language model says, read from its pieces after the run: while it lasts nothing is
parsed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cluster.bench.connection import Shot


@dataclass(frozen=True)
class Stream:
    """`tokens` as the server counts them (`counted`), else one an event with text; times are seconds: of the first
    event with text after the request was due, and between each two of them. `fault` is an error inside the stream."""

    tokens: int
    counted: bool
    first_s: float
    gaps_s: list[float]
    text: str
    fault: str = ""


def read(shot: Shot) -> Stream:
    """The events of OpenAI's chat and completion streams."""
    times: list[float] = []
    texts: list[str] = []
    tokens, fault, ended = 0, "", False
    for when, data in _events(shot):
        if data == b"[DONE]":
            ended = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            fault = "an event that is no JSON"
            continue
        if not isinstance(event, dict):
            continue
        if "error" in event:
            fault = "an error in the stream"
        if text := _text(event):
            times.append(when)
            texts.append(text)
        if isinstance(usage := event.get("usage"), dict):
            tokens = int(usage.get("completion_tokens") or 0)
    if not fault and not ended:
        fault = "a stream without its end"
    gaps = [after - before for before, after in pairwise(times)]
    first = times[0] - shot.due if times else 0.0
    return Stream(tokens or len(times), tokens > 0, first, gaps, "".join(texts), fault)


def _events(shot: Shot) -> list[tuple[float, bytes]]:
    """(time, data) of each event; one that comes in several pieces is there with the last of them."""
    found: list[tuple[float, bytes]] = []
    rest = b""
    for when, piece in shot.pieces or ():
        *lines, rest = (rest + piece).split(b"\n")
        found += [(when, line[5:].strip()) for line in lines if line.startswith(b"data:")]
    if rest.startswith(b"data:"):
        found.append((shot.done, rest[5:].strip()))
    return found


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return ""
    delta = choices[0].get("delta")
    if isinstance(delta, dict):  # thoughts are tokens as well
        return str(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or "")
    return str(choices[0].get("text") or "")
