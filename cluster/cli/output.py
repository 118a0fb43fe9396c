"""What the verbs print: bars on a terminal, plain lines elsewhere, JSON lines for machines.

A verb's result goes to standard output, as text or, with --json, as the last line. Progress and remarks go to standard
error as text, or with --json to standard output as objects with an `event` key.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_S = 3.0  # between two lines of one stage, where the output is no terminal


class Output:
    """Use as a context manager; `progress` fits cluster.progress.Progress."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._errors = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        self._stages: dict[str, tuple[float, float]] = {}  # stage: when it began, when it was last told of

    def __enter__(self) -> Output:
        if self._errors.is_terminal and not self.as_json:
            self._bars = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._errors,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def progress(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Tell how far a stage is; `total` 0 where the end is not known."""
        if self._bars is not None:
            if stage not in self._ids:
                self._ids[stage] = self._bars.add_task(stage, total=total or None, note=note)
            self._bars.update(self._ids[stage], completed=done, total=total or None, note=note)
            return
        now = time.monotonic()
        began, told = self._stages.get(stage, (now, float("-inf")))
        finished = total > 0 and done >= total
        # Rarer as a stage grows long: a run of an hour is no thousand lines.
        if now - told < max(QUIET_S, (now - began) / 20) and not finished:
            return
        if finished and told == float("inf"):
            return
        self._stages[stage] = (began, float("inf") if finished else now)
        left = (now - began) / done * (total - done) if done > 0 and total > 0 else None
        if self.as_json:
            self._json(
                {
                    "event": "progress",
                    "stage": stage,
                    "done": done,
                    "total": total,
                    "note": note,
                    "left_s": left and round(left, 1),
                }
            )
            return
        share = f" {100 * done / total:.0f}%" if total > 0 else ""
        remaining = f", {_clock(left)} left" if left is not None and not finished else ""
        self._errors.print(f"{stage}{share}{remaining}{f', {note}' if note else ''}", markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A remark for a person; with --json an object."""
        if self.as_json:
            self._json({"event": "message", "text": text})
        else:
            self._errors.print(text, markup=False, soft_wrap=True)

    def result(self, value: Any, text: str | None = None) -> None:
        """The verb's answer, once, last: JSON with --json, else `text`."""
        self.__exit__(None, None, None)
        if self.as_json:
            self._json(value)
        elif text:
            print(text, flush=True)  # noqa: T201 - this is where the command line prints

    def _json(self, value: Any) -> None:
        print(json.dumps(value, default=str), file=sys.stdout, flush=True)  # noqa: T201


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def table(columns: list[str], rows: list[list[Any]]) -> str:
    """Rows as text under headings, columns aligned; no box, so that it can be cut and pasted."""
    cells = [columns, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)
