"""A training run on several hosts as somebody sees it who watches its events, and what the loss of a host costs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hosts_netns import Hosts

from train import events


class Run:
    """A training run that somebody watches by its file of events: `told` is when (seconds) what was written."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        self.hosts, self._name = hosts, name
        self.told: list[tuple[float, dict[str, Any]]] = []
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        self._over.set()
        self._reader.join()

    def _read(self) -> None:
        offset = 0
        while not self._over.wait(0.02):
            for folder in (self.hosts.home / "runs").glob(f"{self._name}-*"):
                found, offset = events.read(folder, offset)
                self.told += [(time.monotonic(), event) for event in found]

    def until(self, right: Any, *, since: float, patience_s: float = 150) -> tuple[float, dict[str, Any]]:
        """The first event since then that is right, and when it was."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            for when, event in list(self.told):
                if when >= since and right(event):
                    return when, event
            time.sleep(0.05)
        raise TimeoutError(f"{self.told[-3:]}\n{self.hosts.tails()}")

    def reach(self, step: int, *, since: float = 0) -> None:
        """Wait until that step is done, by workers that wrote since then."""
        self.until(lambda event: "metrics" in event and event["step"] >= step, since=since)

    def rate(self, last: int, *, since: float = 0) -> float:
        """Steps a second over the last so many points of the curve, of those written since then."""
        points = [(when, event["step"]) for when, event in self.told if "metrics" in event and when >= since][-last:]
        return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])

    def somewhere(self) -> int:
        """A host other than the head that has a worker."""
        workers = {n: [p.name() for p in self.hosts.processes(n)] for n in range(2, self.hosts.count + 1)}
        return next(n for n, names in workers.items() if any("RayTrainWorker" in name for name in names))


@dataclass
class Fault:
    """What a lost host cost a run, seconds by part and steps that were done again."""

    seen: float  # until Ray gave the host up
    restarted: float  # from then until the workers were there again, with the last checkpoint
    step: float  # from then until a step was done
    again: int

    @property
    def whole(self) -> float:
        return self.seen + self.restarted + self.step


def lost(run: Run, happens: Callable[[], object], then: Callable[[], object] = lambda: None) -> Fault:
    """Let a host be lost, and do `then` once Ray knows."""
    began = time.monotonic()
    happens()
    dead = began + run.hosts.wait(run.hosts.count - 1)
    then()
    restarted, event = run.until(lambda event: "resumed" in event, since=began)
    first, _ = run.until(lambda event: "metrics" in event, since=restarted)
    before = max(each["step"] for when, each in run.told if when < restarted and "metrics" in each)
    return Fault(dead - began, restarted - dead, first - restarted, before - event["resumed"])
