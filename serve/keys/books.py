"""What a gateway keeps of its requests until it is written: usage, summed in memory and written every few seconds in
one transaction by a thread, which reads the keys anew as well and brings the request log to the disk.

On a clean stop everything is written; where the store is away then, it is put into a file in $SHOAL_HOME, which the
next gateway on this machine writes. A gateway that is killed (-9) loses what it had not written: at most FLUSH_S
seconds, or what came since the store went away.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

from cluster.accounts import Counts, Slot, StoreAway, Usage
from cluster.accounts.usage import HOUR
from cluster.errors import ShoalError
from serve.keys.known import EVERY_S, Known
from serve.keys.requestlog import RequestLines
from serve.keys.tally import Tally

FLUSH_S = 3.0
ROWS = 50_000  # that wait for a store that is away; beyond that only those that are there already are added to


class Books:
    """One gateway's. `add` belongs to the event loop; the rest to its thread."""

    def __init__(
        self,
        usage: Usage,
        known: Known | None,
        lines: RequestLines,
        *,
        tally: Tally,
        folder: Path,
        writer: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._usage, self._known, self._lines, self._tally = usage, known, lines, tally
        self._folder, self._writer, self._clock = folder, writer, clock
        self._lock = threading.Lock()
        self._open: dict[Slot, Counts] = {}
        self._sending: dict[Slot, Counts] = {}
        self._batch = 0
        self._lost = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._faults: dict[str, str] = {}
        self._log = logging.getLogger("shoal")

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="shoal-books", daemon=True)
        self._thread.start()

    def add(self, tenant: str, key: str, model: str, verb: str, counts: Counts) -> None:
        """Note what a request came to."""
        slot = Slot(int(self._clock()) // HOUR * HOUR, tenant, key, model, verb)
        with self._lock:
            found = self._open.get(slot)
            if found is not None:
                found.add(counts)
            elif len(self._open) < ROWS:
                self._open[slot] = counts
            else:
                self._lost += counts.requests

    def flush(self) -> bool:
        """Write the usage there is. Whether the store took it; what it did not take stays, and is sent again as the
        same batch, so that one whose answer got lost is not counted twice."""
        if not self._sending:
            with self._lock:
                self._sending, self._open = self._open, {}
                lost, self._lost = self._lost, 0
            self._batch += bool(self._sending)
            if lost:
                self._log.warning("usage: %d requests are not counted: too much waits for access.store", lost)
        try:
            self._usage.add(self._sending, writer=self._writer, batch=self._batch)
        except ShoalError as error:
            self._told("usage", error.message)
            return False
        self._sending = {}
        self._told("usage", "")
        return True

    def stop(self, timeout: float = 15) -> None:
        """Write everything and end the thread."""
        self._stopping.set()
        if self._known is not None:
            self._known.wake()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        flushed, began = time.monotonic(), True
        while not self._stopping.is_set():
            if self._known is not None:
                answers = self._known.refresh()
                self._told("keys", "" if answers else self._known.fault)
            if began or time.monotonic() - flushed >= FLUSH_S:
                took = self.flush()
                if began and took:
                    self._take_up()
                    began = False
                flushed = time.monotonic()
            self._write_lines()
            self._tally.tell()
            if self._known is not None:
                self._known.wait(EVERY_S)
            else:
                self._stopping.wait(EVERY_S)
        # What is being sent, and then what came meanwhile.
        if not (self.flush() and self.flush()):
            self._put_aside()
        self._write_lines(last=True)

    def _write_lines(self, *, last: bool = False) -> None:
        try:
            self._lines.close() if last else self._lines.write()
            self._told("log", "")
        except OSError as error:
            self._told("log", f"{self._lines.file}: {error.strerror}")

    def _put_aside(self) -> None:
        """Into a file of its own, each batch with its number: it may be in the store, and its answer lost."""
        batches = [(self._batch, self._sending), (self._batch + 1, self._open)]
        told = [
            {
                "writer": self._writer,
                "batch": batch,
                "rows": [[*slot, *astuple(counts)] for slot, counts in rows.items()],
            }
            for batch, rows in batches
            if rows
        ]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / f"{self._writer}.part"
            part.write_text(json.dumps(told), encoding="utf-8")
            os.replace(part, part.with_suffix(".json"))
            self._log.warning("usage: access.store is away; %s holds what was not written", part.with_suffix(".json"))
        except OSError as error:
            self._log.warning("usage: what was not written is lost: %s", error)

    def _take_up(self) -> None:
        """Write what gateways before could not. A batch that is written twice counts once."""
        for file in sorted(self._folder.glob("*.json")):
            try:
                for batch in json.loads(file.read_text(encoding="utf-8")):
                    width = len(Slot._fields)
                    rows = {Slot(*row[:width]): Counts(*row[width:]) for row in batch["rows"]}
                    self._usage.add(rows, writer=batch["writer"], batch=batch["batch"])
                file.unlink(missing_ok=True)
            except StoreAway:
                return
            except (OSError, ValueError, TypeError, KeyError) as error:
                self._log.warning("usage: %s cannot be read: %s; it stays where it is", file, error)

    def _told(self, what: str, fault: str) -> None:
        """Say a fault once, and once that it is over."""
        before = self._faults.get(what, "")
        if fault and not before:
            self._log.warning("%s: %s", what, fault)
        elif before and not fault:
            self._log.warning("%s: back again", what)
        self._faults[what] = fault
