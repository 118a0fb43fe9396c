"""What a run tells, one JSON object a line in a file of its folder.

Whoever started the run reads along, so that no step waits for a server and no worker imports its client.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "events.jsonl"


class Events:
    """Writes: step and total, with metrics; step, total and resumed at the start; or a warning."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / NAME).open("a", buffering=1)
        # A worker killed while writing leaves half a line.
        self._stream.write("\n")

    def write(self, **event: Any) -> None:
        self._stream.write(json.dumps(event) + "\n")


def read(folder: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The events from byte `offset` on, as far as they are whole, and the offset to go on from."""
    try:
        with (folder / NAME).open("rb") as stream:
            stream.seek(offset)
            raw = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = raw[: raw.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # half a line, of a worker that was killed in the middle of it
    return [event for event in events if isinstance(event, dict)], offset + len(whole)
