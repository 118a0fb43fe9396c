"""The Keeper: one actor a cluster that knows which replicas there are and what each gateway has in hand.

Not in any request's way. Gateways and replicas go on with what they last heard while it is away, and tell a new one
within a second: nothing that it holds cannot be lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.rollout.watch import Watch
from serve.scaling.report import Report
from serve.scaling.scaler import TICK_S, Copy, Scaler

log = logging.getLogger(__name__)
LOST_S = 5.0  # a replica without a word for so long is taken for lost
GONE_S = 60.0  # and forgotten after so long
LOOK_S = 1.0  # a gateway that asks what is new is answered within so long
MOST_POISON = 1024


@dataclass
class Entry:
    """A replica: what it said of itself, and when (monotonic seconds)."""

    said: dict[str, Any]
    facts: dict[str, Any]
    heard: float
    beat: int = 1
    state: str = "up"  # or "leaving", by its own word, or "lost"
    retiring: bool = False

    def told(self) -> dict[str, Any]:
        return {**self.said, "facts": self.facts, "beat": self.beat, "state": self.state}


@dataclass
class Looking:
    """A gateway: its load by application ({ongoing, held, arrived, failed, again}), the models that it knows with their
    versions and with the applications that it asks for them, and when it last told."""

    load: dict[str, dict[str, float]]
    models: dict[str, str]
    places: dict[str, str]
    heard: float


class Keeper:
    """The actor. All methods run in its one event loop."""

    def __init__(self, is_up: Callable[[str], bool] | None = None) -> None:
        self.is_up = is_up or _is_up
        self.entries: dict[str, Entry] = {}
        self.gateways: dict[str, Looking] = {}
        self.version = 1
        self.began = time.time()
        self.born = time.monotonic()
        self.changed = asyncio.Event()
        self.poison: dict[str, float] = {}  # fingerprints of serve.gateway.suspects, and until when
        self.scaler = Scaler(self._copies, self._versions)
        self.decided = asyncio.Event()
        self.report = Report()
        self.ticking: asyncio.Task[None] | None = None
        self.watch = Watch()

    async def hello(self, said: dict[str, Any], facts: dict[str, Any]) -> None:
        """A replica is there: {id, application, address, node, pid, version}, and how it is."""
        entry = self.entries.get(said["id"])
        if (entry is None or entry.state == "lost") and not await asyncio.to_thread(self.is_up, said["node"]):
            return  # its host was cut off and is back: Ray and Serve have given it up, and it ends in a moment
        entry = self.entries.get(said["id"])
        if entry is None:
            entry = self.entries[said["id"]] = Entry(said, facts, time.monotonic())
            # After this Keeper's own start those come that were up before: no start was seen of them.
            if (parts := said.get("parts")) and said["started"] > self.began:
                decided = self.scaler.came(_copy(entry), parts)
                self.report.started(said["application"], parts, decided)
        else:
            entry.said, entry.facts, entry.heard = said, facts, time.monotonic()
            entry.beat += 1
            if entry.state == "lost":
                entry.state = "up"
        self.scaler.replicas.note(said["id"], facts, time.monotonic())
        self._tick()
        self._news()

    async def leaving(self, key: str) -> None:
        """A replica takes no new requests."""
        if key in self.entries:
            self.entries[key].state = "leaving"
            self._news()

    async def bye(self, key: str) -> None:
        """A replica, or a gateway, has finished and ends."""
        self.gateways.pop(key, None)
        self.scaler.gateways.forget(key)
        self.scaler.replicas.forget(key)
        if self.entries.pop(key, None) is not None:
            self._news()

    async def retires(self, key: str) -> bool:
        """Whether a replica that wants to be replaced may be now: one of an application at a time."""
        mine = self.entries.get(key)
        if mine is None:
            return False
        others = [
            one
            for one in self.entries.values()
            if one is not mine and one.said["application"] == mine.said["application"]
        ]
        if any(one.retiring for one in others):
            return False
        mine.retiring = True
        return True

    async def look(
        self,
        gateway: str,
        seen: int,
        load: dict[str, dict[str, float]],
        models: dict[str, str],
        poison: dict[str, float] | None = None,
        places: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """What a gateway asks again and again, telling its load, its models (versions, and applications in `places`)
        and what it found to be poison (seconds by fingerprint): the directory, as soon as that is newer than `seen`, or
        after a second. It is `whole` once everybody who is there has had the time to say so."""
        self.gateways[gateway] = Looking(load, models, places or {}, time.monotonic())
        self.scaler.gateways.note(gateway, load, time.monotonic())
        self._remember(poison or {})
        await _until(lambda: self.version != seen, self.changed)
        self._age()
        now = time.monotonic()
        return {
            "version": self.version,
            "whole": now - self.born > LOST_S,
            "replicas": [entry.told() for entry in self.entries.values()],
            "poison": {key: until - now for key, until in self.poison.items() if until > now},
            **self._waits(),
        }

    async def load(self, gateway: str, load: dict[str, dict[str, float]]) -> dict[str, Any]:
        """A gateway's load, told between two looks where it changes; answered with how long who waits has to."""
        if (known := self.gateways.get(gateway)) is not None:
            known.load, known.heard = {**known.load, **load}, time.monotonic()
        self.scaler.gateways.note(gateway, load, time.monotonic())
        return self._waits()

    async def scale(self, applications: dict[str, dict[str, Any]], seen: dict[str, int]) -> dict[str, int]:
        """What Serve's controller asks again and again, telling the applications that scale (see Scaler.told): how many
        replicas each should have, as soon as that is not what it has `seen`, or after a second."""
        self.scaler.told(applications)
        self._tick()
        await _until(lambda: self.scaler.wanted() != seen, self.decided)
        return self.scaler.wanted()

    async def rollouts(self, gateway: str, told: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """What a gateway tells of its roll-outs, and what is decided of them; see Watch.hear."""
        return self.watch.hear(gateway, told)

    async def state(self) -> dict[str, Any]:
        """All that is known, for people: replicas, gateways and their loads, roll-outs."""
        self._age()
        now = time.monotonic()
        return {
            "since": self.began,
            "replicas": [{**entry.told(), "heard_s": now - entry.heard} for entry in self.entries.values()],
            "gateways": {
                name: {"load": one.load, "models": one.models, "places": one.places, "heard_s": now - one.heard}
                for name, one in sorted(self.gateways.items())
            },
            "scaling": self.scaler.show(),
            "rollouts": self.watch.told(),
        }

    def _tick(self) -> None:
        """See that decisions are made."""
        if self.ticking is None or self.ticking.done():
            self.ticking = asyncio.get_running_loop().create_task(self._decide())

    async def _decide(self) -> None:
        """Again and again, a few times a second, as long as this lives."""
        while True:
            await asyncio.sleep(TICK_S)
            self._age()
            try:
                if self.scaler.tick():
                    self.decided.set()
                self.report.tell(self.scaler, self._copies(), self._held())
            except Exception:
                log.exception("scaling")  # what was decided last holds

    def _copies(self) -> list[Copy]:
        """The replicas that take requests."""
        return [_copy(entry) for entry in self.entries.values() if entry.state == "up"]

    def _held(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for one in self.gateways.values():
            for name, load in one.load.items():
                held[name] = held.get(name, 0) + int(load["held"])
        return held

    def _versions(self) -> dict[str, set[str]]:
        """What gateways know, by application: of its names all begin with its own, up to a colon."""
        found: dict[str, set[str]] = {}
        for one in self.gateways.values():
            for name, version in one.models.items():
                found.setdefault(name.partition(":")[0], set()).add(version)
        return found

    def _waits(self) -> dict[str, Any]:
        """What a gateway needs to know for those it holds: seconds until a replica is up, and among how many gateways
        the limits are shared."""
        now = time.monotonic()
        sharing = sum(now - one.heard < LOST_S for one in self.gateways.values())
        return {"starts": self.scaler.left(), "sharing": max(1, sharing)}

    def _news(self) -> None:
        self.version += 1
        self.changed.set()

    def _remember(self, poison: dict[str, float]) -> None:
        now = time.monotonic()
        for key, seconds in poison.items():
            if key not in self.poison:
                self._news()
            self.poison[key] = now + seconds
        for key in [key for key, until in self.poison.items() if until <= now]:
            del self.poison[key]
        while len(self.poison) > MOST_POISON:
            del self.poison[next(iter(self.poison))]

    def _age(self) -> None:
        """Who has not been heard of is lost, then forgotten."""
        now = time.monotonic()
        for key, entry in list(self.entries.items()):
            if now - entry.heard > GONE_S:
                del self.entries[key]
                self.scaler.replicas.forget(key)
                self.version += 1
            elif now - entry.heard > LOST_S and entry.state != "lost":
                entry.state = "lost"
                self.version += 1
        for name in [name for name, one in self.gateways.items() if now - one.heard > GONE_S]:
            del self.gateways[name]
            self.scaler.gateways.forget(name)


async def _until(right: Callable[[], bool], event: asyncio.Event) -> None:
    """Until something is right, looked at each time the event is set; for LOOK_S at most."""
    end = time.monotonic() + LOOK_S
    while not right() and (left := end - time.monotonic()) > 0:
        event.clear()
        try:
            async with asyncio.timeout(left):
                await event.wait()
        except TimeoutError:
            return


def _copy(entry: Entry) -> Copy:
    return Copy(entry.said["id"], entry.said["application"], entry.said["version"], entry.facts)


def _is_up(node: str) -> bool:
    """Whether a node is one of the cluster, as Ray knows it."""
    import ray

    return not ray.is_initialized() or any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
