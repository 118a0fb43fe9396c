"""The Keeper: one actor a cluster that knows which replicas there are and what each gateway has in hand.

Not in any request's way. Gateways and replicas go on with what they last heard while it is away, and tell a new one
within a second: nothing that it holds cannot be lost.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from serve.rollout.watch import Watch

NAME = "shoal:keeper"
NAMESPACE = "shoal"
BEAT_S = 1.0  # between two words of a replica
LOST_S = 5.0  # a replica without a word for so long is taken for lost
GONE_S = 60.0  # and forgotten after so long
LOOK_S = 1.0  # a gateway that asks what is new is answered within so long
PACE_S = 0.1  # and not more often than that


@dataclass
class Entry:
    """A replica: what it said of itself, and when (monotonic seconds)."""

    said: dict[str, Any]
    facts: dict[str, Any]
    heard: float
    beat: int = 1
    state: str = "up"  # or "leaving", by its own word, or "lost"

    def told(self) -> dict[str, Any]:
        return {**self.said, "facts": self.facts, "beat": self.beat, "state": self.state}


@dataclass
class Looking:
    """A gateway: its load by application ({ongoing, held, arrived, failed, again}), the models that it knows with their
    versions, and when it last told."""

    load: dict[str, dict[str, float]]
    models: dict[str, str]
    heard: float


class Keeper:
    """The actor. All methods run in its one event loop."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.gateways: dict[str, Looking] = {}
        self.version = 1
        self.began = time.time()
        self.changed = asyncio.Event()
        self.watch = Watch()

    async def hello(self, said: dict[str, Any], facts: dict[str, Any]) -> None:
        """A replica is there: {id, application, address, node, pid, version}, and how it is."""
        entry = self.entries.get(said["id"])
        if entry is None:
            entry = self.entries[said["id"]] = Entry(said, facts, time.monotonic())
        else:
            entry.said, entry.facts, entry.heard = said, facts, time.monotonic()
            entry.beat += 1
            if entry.state == "lost":
                entry.state = "up"
        self._news()

    async def leaving(self, key: str) -> None:
        """A replica takes no new requests."""
        if key in self.entries:
            self.entries[key].state = "leaving"
            self._news()

    async def bye(self, key: str) -> None:
        """A replica, or a gateway, has finished and ends."""
        self.gateways.pop(key, None)
        if self.entries.pop(key, None) is not None:
            self._news()

    async def look(
        self, gateway: str, seen: int, load: dict[str, dict[str, float]], models: dict[str, str]
    ) -> dict[str, Any]:
        """What a gateway asks again and again, telling its load and its models: the directory, as soon as that is newer
        than `seen`, or after a second."""
        self.gateways[gateway] = Looking(load, models, time.monotonic())
        until = time.monotonic() + LOOK_S
        while self.version == seen and (left := until - time.monotonic()) > 0:
            self.changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self.changed.wait()
            except TimeoutError:
                break
        self._age()
        return {"version": self.version, "replicas": [entry.told() for entry in self.entries.values()]}

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
                name: {"load": one.load, "models": one.models, "heard_s": now - one.heard}
                for name, one in sorted(self.gateways.items())
            },
            "rollouts": self.watch.told(),
        }

    def _news(self) -> None:
        self.version += 1
        self.changed.set()

    def _age(self) -> None:
        """Who has not been heard of is lost, then forgotten."""
        now = time.monotonic()
        for key, entry in list(self.entries.items()):
            if now - entry.heard > GONE_S:
                del self.entries[key]
                self.version += 1
            elif now - entry.heard > LOST_S and entry.state != "lost":
                entry.state = "lost"
                self.version += 1
        for name in [name for name, one in self.gateways.items() if now - one.heard > GONE_S]:
            del self.gateways[name]


def keeper() -> Any:
    """The actor's handle; the first who asks makes it. It lives until its cluster ends."""
    import ray

    return (
        ray.remote(Keeper)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=10_000,
        )
        .remote()
    )
