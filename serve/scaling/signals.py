"""What is seen of a model's load: from what gateways and replicas tell the Keeper now and then to one number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

OLD_S = 5.0  # what was told longer ago counts no more
_APART_S = 0.2  # two tellings nearer than this say little of what was between them


@dataclass
class _Told:
    """One gateway's word of one application: its counters then, and the requests in hand on average before."""

    at: float  # by the gateway's clock
    heard: float  # by the Keeper's
    request_s: float
    arrived: float
    mean: float
    held: int


@dataclass(frozen=True)
class Traffic:
    """Requests in hand on average, held now, and arrived since the Keeper began."""

    ongoing: float
    held: int
    arrived: float


class Gateways:
    """The loads that gateways told, as traffic by application."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}
        self._arrived: dict[str, float] = {}

    def note(self, gateway: str, loads: Mapping[str, Mapping[str, float]], now: float) -> None:
        """A gateway's word: for each application {ongoing, held, arrived, request_s, at}. `request_s` is the time that
        all requests spent in it together, in seconds, so that its growth over a while is how many there were."""
        for application, load in loads.items():
            key, held = (gateway, application), int(load["held"])
            present = load["ongoing"] + held
            before = self._told.get(key)
            if before is None or load["at"] <= before.at:
                # What came before is of another time: of a Keeper that is no more.
                self._told[key] = _Told(load["at"], now, load["request_s"], load["arrived"], present, held)
                continue
            self._arrived[application] = self._arrived.get(application, 0) + load["arrived"] - before.arrived
            before.heard, before.held, before.arrived = now, held, load["arrived"]
            if (spent := load["at"] - before.at) >= _APART_S:
                before.mean = max(0.0, load["request_s"] - before.request_s) / spent
                before.at, before.request_s = load["at"], load["request_s"]

    def forget(self, gateway: str) -> None:
        for key in [key for key in self._told if key[0] == gateway]:
            del self._told[key]

    def traffic(self, application: str, now: float) -> Traffic:
        told = [one for key, one in self._told.items() if key[1] == application and now - one.heard <= OLD_S]
        held = sum(one.held for one in told)
        # Those that wait do not leave before there is a copy: no average is needed.
        ongoing = sum(max(one.mean, one.held) for one in told)
        return Traffic(ongoing, held, self._arrived.get(application, 0))


class Replicas:
    """How busy the copies of each application keep their cores, by the CPU seconds they told, and their GPUs."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float, float]] = {}  # by replica: when, CPU seconds, cores used
        self._gpus: dict[str, tuple[float, float]] = {}  # by replica: when, share of the time

    def note(self, replica: str, facts: Mapping[str, Any], now: float) -> None:
        self._note_gpu(replica, facts.get("gpu"), now)
        if "cpu_s" not in facts:
            return
        before = self._before.get(replica)
        if before is None:
            self._before[replica] = (now, facts["cpu_s"], -1.0)
        elif now - before[0] >= 0.5:
            used = max(0.0, facts["cpu_s"] - before[1]) / (now - before[0])
            # Half of what was known before: a second alone is too short to judge by.
            self._before[replica] = (now, facts["cpu_s"], used if before[2] < 0 else (used + before[2]) / 2)

    def _note_gpu(self, replica: str, share: float | None, now: float) -> None:
        before = self._gpus.get(replica)
        if share is None:
            self._gpus.pop(replica, None)  # an old number must not go on counting
        elif before is None:
            self._gpus[replica] = (now, share)
        elif now - before[0] >= 0.5:
            self._gpus[replica] = (now, (share + before[1]) / 2)

    def forget(self, replica: str) -> None:
        self._before.pop(replica, None)
        self._gpus.pop(replica, None)

    def value(self, metric: str, replicas: Iterable[tuple[str, Mapping[str, Any]]], num_cpus: float) -> float | None:
        """The metric over the copies that are up ((id, facts) of each); None where none of them tells of it."""
        found = [one for key, facts in replicas if (one := self._of(metric, key, facts, num_cpus)) is not None]
        if not found:
            return None
        return median(found) if metric == "queue_time" else sum(found) / len(found)

    def _of(self, metric: str, key: str, facts: Mapping[str, Any], num_cpus: float) -> float | None:
        if metric == "queue_time":
            return facts.get("queue_p50_s")
        if metric == "gpu":
            return self._gpus[key][1] if key in self._gpus else None
        used = self._before.get(key, (0.0, 0.0, -1.0))[2]
        return None if used < 0 else used / num_cpus
