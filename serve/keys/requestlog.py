"""The request log: a line of JSON a request, written by a thread, put aside when it grows.

What was sent is not in it unless asked for, and keys never are: only their first letters.
"""

from __future__ import annotations

import json
import random
from collections import deque
from logging import LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from cluster.settings.access import RequestLog

INPUT_CHARACTERS = 2000
TOGETHER = 256  # lines that go to the disk in one piece
HELD = 20_000  # lines that wait for the disk; the oldest go where it does not keep up
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


class RequestLines:
    """One gateway's file. `note` belongs to the event loop, `write` to one thread."""

    def __init__(self, config: RequestLog, folder: Path, gateway: str) -> None:
        self._config = config
        self.file = folder / f"requests-{gateway}.jsonl"
        self._lines: deque[dict[str, Any]] = deque(maxlen=HELD)
        self._dropped = 0
        self._handler: RotatingFileHandler | None = None

    @property
    def wants_inputs(self) -> bool:
        """Whether `note` is to be given what was sent."""
        return self._config.inputs and self._config.sample > 0

    def note(self, line: dict[str, Any]) -> None:
        """One request. `status` decides whether the sample matters."""
        sample = self._config.sample
        if sample >= 1 or (sample > 0 and (line["status"] >= 400 or random.random() < sample)):
            if len(self._lines) == HELD:
                self._dropped += 1
            self._lines.append(line)

    def write(self) -> None:
        """Bring what there is to the disk. Raises OSError."""
        if not self._lines:
            return
        if self._handler is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _Rotating(
                self.file, maxBytes=int(self._config.max_mb * 2**20), backupCount=self._config.files, encoding="utf-8"
            )
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._emit([{"dropped": dropped, "why": "the disk did not keep up"}])
        while self._lines:
            self._emit([self._lines.popleft() for _ in range(min(len(self._lines), TOGETHER))])

    def close(self) -> None:
        self.write()
        if self._handler is not None:
            self._handler.close()

    def _emit(self, lines: list[dict[str, Any]]) -> None:
        assert self._handler is not None
        text = "\n".join([_encode(line) for line in lines])
        self._handler.emit(LogRecord("requests", 20, "", 0, text, None, None))


class _Rotating(RotatingFileHandler):
    """Readable by its owner alone, and not silent about a full disk."""

    def _open(self) -> Any:
        stream = super()._open()
        Path(self.baseFilename).chmod(0o600)
        return stream

    def handleError(self, record: LogRecord) -> None:
        raise


def shown(body: bytes | None) -> str | None:
    """What of a request's body is written where inputs are asked for."""
    return None if body is None else body[: 4 * INPUT_CHARACTERS].decode("utf-8", "replace")[:INPUT_CHARACTERS]
