"""Which replicas there are, as the Keeper tells it, and which of them a request goes to."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from serve.gateway.wire import Peer

# A replica whose connections broke is left alone until the Keeper has heard of it since then, or for so long.
SHUNNED_S = 5.0


class Replica:
    """A replica as this gateway sees it. `ongoing` counts what this gateway has sent it; `facts` are its own words."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.id: str = entry["id"]
        self.application: str = entry["application"]
        self.peer = Peer(entry["address"])
        self.ongoing = 0
        self.facts: Mapping[str, Any] = {}
        self.leaving = False
        self.beat = 0
        self.shunned_until = 0.0


class Directory:
    """The replicas by application. All methods belong to one event loop."""

    def __init__(self) -> None:
        self.replicas: dict[str, dict[str, Replica]] = {}
        self.waiting: dict[str, list[asyncio.Future[None]]] = {}

    def update(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """What the Keeper knows now. A replica that is gone from it gets nothing more; one that is lost (it was heard
        of no more, and did not say that it leaves) has its connections cut, so that what waits there goes elsewhere."""
        seen: set[str] = set()
        for entry in entries:
            name, key = entry["application"], entry["id"]
            known = self.replicas.setdefault(name, {}).get(key)
            if entry["state"] == "lost":
                if known is not None:
                    known.peer.cut("it is not heard of any more")
                continue
            if known is None or known.peer.address != entry["address"]:
                known = self.replicas[name][key] = Replica(entry)
            seen.add(key)
            known.facts = entry["facts"]
            known.leaving = entry["state"] == "leaving"
            if entry["beat"] != known.beat:
                known.beat, known.shunned_until = entry["beat"], 0.0
            if not known.leaving:
                for waiter in self.waiting.pop(name, ()):
                    if not waiter.done():
                        waiter.set_result(None)
        for replicas in self.replicas.values():
            for key in [key for key in replicas if key not in seen]:
                del replicas[key]

    def pick(self, application: str, *, avoid: Iterable[str] = (), prefer: str = "") -> Replica | None:
        """The replica with the least in hand, by chance among equals; none of `avoid`. Those that tell in their facts
        that they have `prefer` loaded come first, where one of them is not busy."""
        now = time.monotonic()
        fit = [
            one
            for one in self.replicas.get(application, {}).values()
            if not one.leaving and one.shunned_until <= now and one.id not in avoid
        ]
        if prefer and (having := [one for one in fit if prefer in one.facts.get("loaded", ())]):
            fit = having
        if len(fit) < 2:
            return fit[0] if fit else None
        least = min(one.ongoing for one in fit)
        return random.choice([one for one in fit if one.ongoing == least])

    def shun(self, replica: Replica) -> None:
        """Its connection broke: it is most likely dead."""
        replica.shunned_until = time.monotonic() + SHUNNED_S

    def news(self, application: str) -> asyncio.Future[None]:
        """Done when the Keeper next tells of a replica of an application that takes requests."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(application, []).append(waiter)
        return waiter
