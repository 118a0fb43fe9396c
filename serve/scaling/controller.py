"""In the process of Serve's controller: what the Keeper wants, kept at hand, so that the policy that Serve calls ten
times a second for every application never waits for anybody.

A thread asks the Keeper again and again. While that is away the last answer holds; before there was one, what Serve
has.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

STALE_S = 5.0  # an application whose policy was not called for so long is gone
RETRY_S = 0.5


@dataclass
class _Told:
    keys: dict[str, Any]
    version: str
    target: int
    running: int
    called: float


class Wanted:
    """The numbers by application, and the thread that fetches them."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._wanted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._fresh = threading.Event()

    def of(self, application: str, keys: dict[str, Any], version: str, *, target: int, running: int) -> int:
        """How many there should be. Returns at once; never raises but for a fault of ours."""
        with self._lock:
            if application not in self._told:
                self._fresh.set()
            self._told[application] = _Told(keys, version, target, running, time.monotonic())
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._follow, name="shoal-wanted", daemon=True)
                self._thread.start()
            return self._wanted.get(application, target)

    def _follow(self) -> None:
        """Until no application is left that scales."""
        import ray

        from serve.asking import keeper

        while told := self._current():
            self._fresh.clear()
            applications = {
                name: {"keys": one.keys, "version": one.version, "target": one.target, "running": one.running}
                for name, one in told.items()
            }
            try:
                # It answers when a number changes, or after a second.
                answer: Any = ray.get(keeper().scale.remote(applications, dict(self._wanted)), timeout=10)
            except Exception:
                self._fresh.wait(RETRY_S)
                continue
            with self._lock:
                self._wanted = {name: number for name, number in answer.items() if name in self._told}

    def _current(self) -> dict[str, _Told]:
        """What is told of, without those that are gone; the thread ends where nothing is."""
        now = time.monotonic()
        with self._lock:
            for name in [name for name, one in self._told.items() if now - one.called > STALE_S]:
                del self._told[name]
                self._wanted.pop(name, None)
            if not self._told:
                self._thread = None
            return dict(self._told)


WANTED = Wanted()  # one a process: Serve makes a policy object for each configuration it is given
