"""The Keeper's part of scaling: for every application that scales, what is seen of it, what is decided, and what became
of it. What it holds can be lost: the controller tells the keys and Serve's numbers anew every second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.scaling.decide import Keys, Seen, State, decide
from serve.scaling.prometheus import Queries
from serve.scaling.signals import Gateways, Replicas
from serve.scaling.starts import Starts
from serve.scaling.windows import least

TICK_S = 0.25
FORGET_S = 15.0  # an application of which the controller tells no more
_CHANGES = 50


@dataclass
class Application:
    """What the controller told of one, and what is decided. `target` and `running` are Serve's numbers."""

    told: Mapping[str, Any]
    keys: Keys
    state: State
    heard: float
    target: int = 0
    running: int = 0
    changes: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_CHANGES))


@dataclass(frozen=True)
class Copy:
    """A replica as the Keeper has it."""

    id: str
    application: str
    version: str
    facts: Mapping[str, Any]


class Scaler:
    """All methods belong to one event loop. Times are monotonic; `wall` is seconds since 1970."""

    def __init__(self, copies: Callable[[], list[Copy]], versions: Callable[[], dict[str, set[str]]]) -> None:
        """`copies`: the replicas that take requests; `versions`: those that the gateways know, by application."""
        self.copies = copies
        self.versions = versions
        self.gateways = Gateways()
        self.replicas = Replicas()
        self.queries = Queries()
        self.applications: dict[str, Application] = {}
        self.starts: dict[str, Starts] = {}
        self.tried: dict[str, set[str]] = {}

    def told(self, applications: Mapping[str, Mapping[str, Any]]) -> None:
        """The controller's word: for each {keys, version, target, running}."""
        now = time.monotonic()
        for name, one in applications.items():
            keys = Keys.of(one["keys"])
            known = self.applications.get(name)
            if known is None:
                known = self.applications[name] = Application(one, keys, State(one["target"]), now)
            known.told, known.keys, known.heard = one, keys, now
            known.target, known.running = one["target"], one["running"]

    def came(self, copy: Copy, parts: Mapping[str, float]) -> float | None:
        """A replica is up that was not before; `parts` are the times of its start. Returns when it was decided on; None
        where it was not here: the first ones of a model, those of a new version."""
        self.tried.setdefault(copy.application, set()).add(copy.version)
        starts = self.starts.setdefault(copy.application, Starts())
        ready = parts.get("ready", time.time())
        decided = starts.since
        starts.measured(ready - (decided if decided is not None else parts.get("process", ready)))
        return decided

    def tick(self) -> bool:
        """Decide anew for all; whether a number changed."""
        now, wall = time.monotonic(), time.time()
        copies: dict[str, list[Copy]] = {}
        for copy in self.copies():
            copies.setdefault(copy.application, []).append(copy)
        versions = self.versions()
        changed = False
        for name, one in list(self.applications.items()):
            if now - one.heard > FORGET_S:
                del self.applications[name]
                continue
            up = copies.get(name, [])
            before, seen = one.state.wanted, self._seen(name, one, up, versions, now, wall)
            if decide(one.keys, seen, one.state):
                changed = True
                change = {"at": wall, "from": before, "to": one.state.wanted, "why": one.state.why}
                one.changes.append({**change, "up": seen.up, "held": seen.held})
        for name in {*self.applications, *versions}:
            self._note_start(name, len(copies.get(name, [])), wall)
        return changed

    def wanted(self) -> dict[str, int]:
        return {name: one.state.wanted for name, one in self.applications.items()}

    def left(self) -> dict[str, int]:
        """Seconds until an application that has too few copies has one more, for who waits for it."""
        now = time.time()
        return {name: one.left(now) for name, one in self.starts.items()}

    def show(self) -> dict[str, Any]:
        """For people: for each application how many are wanted and why, what was decided when, and why its metric
        cannot be read (`trouble`)."""
        now, shown = time.monotonic(), {}
        copies = self.copies()
        for name, one in sorted(self.applications.items()):
            traffic = self.gateways.traffic(name, now)
            shown[name] = {
                "version": one.told["version"],
                "wanted": one.state.wanted,
                "why": one.state.why,
                "trouble": self._trouble(one, [copy for copy in copies if copy.application == name]),
                "target": one.target,
                "running": one.running,
                "ongoing": round(traffic.ongoing, 2),
                "held": traffic.held,
                "tried": self._tried(name, one.told["version"], self.versions()),
                "start_s": round(self.starts[name].usual(), 2) if name in self.starts else None,
                "changes": list(one.changes),
            }
        return shown

    def _trouble(self, one: Application, up: list[Copy]) -> str:
        """Why the metric is not known, where somebody told: as long as it is not, the number stays as it is."""
        keys = one.told["keys"]
        if keys["metric"] == "prometheus":
            return self.queries.trouble(keys["prometheus"], keys["query"])
        if keys["metric"] == "gpu":
            return next((copy.facts["gpu_trouble"] for copy in up if "gpu_trouble" in copy.facts), "")
        return ""

    def _seen(
        self,
        name: str,
        one: Application,
        up: list[Copy],
        versions: Mapping[str, set[str]],
        now: float,
        wall: float,
    ) -> Seen:
        traffic, told, metric = self.gateways.traffic(name, now), one.told, one.keys.metric
        value: float | None = None
        if metric == "prometheus":
            value = self.queries.value(told["keys"]["prometheus"], told["keys"]["query"])
        elif metric != "ongoing":
            value = self.replicas.value(metric, [(copy.id, copy.facts) for copy in up], told["keys"]["num_cpus"])
        # A window opens for those who wait at its start: copies start before it by as long as that takes.
        lead = self.starts[name].usual() if name in self.starts else 0.0
        schedule = told["keys"]["schedule"]
        return Seen(
            now,
            ongoing=traffic.ongoing,
            held=traffic.held,
            arrived=traffic.arrived,
            up=len(up),
            value=value,
            least=max(least(schedule, wall), least(schedule, wall + lead)) if schedule else 0,
            untried=not self._tried(name, told["version"], versions),
        )

    def _tried(self, name: str, version: str, versions: Mapping[str, set[str]]) -> bool:
        """Whether a version was ever up: its copies were heard of, or a gateway was told of it, which comes after."""
        return version in self.tried.get(name, ()) or version in versions.get(name, ())

    def _note_start(self, name: str, up: int, wall: float) -> None:
        """Since when a copy is waited for."""
        starts = self.starts.setdefault(name, Starts())
        one = self.applications.get(name)
        enough = one.state.wanted if one is not None else 1
        if up >= enough:
            starts.since = None
        elif starts.since is None:
            starts.since = wall
