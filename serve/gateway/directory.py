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
        self.lost = False
        self.beat = 0
        self.shunned_until = 0.0


class Directory:
    """The replicas by application. All methods belong to one event loop."""

    def __init__(self) -> None:
        self.replicas: dict[str, dict[str, Replica]] = {}
        self.waiting: dict[str, list[asyncio.Future[None]]] = {}

    def update(self, entries: Iterable[Mapping[str, Any]], *, whole: bool = True) -> None:
        """What the Keeper knows now. A replica that is gone from it gets nothing more, unless the Keeper is so young
        that it has yet to hear of all there are: then what it does not name is not `whole`.

        One that is lost (it was heard of no more, and did not say that it leaves) gets nothing more either; its
        connections are cut as soon as another is up, so that what waits there goes to that one. Until then it may still
        answer what it has.
        """
        seen: set[str] = set()
        for entry in entries:
            name, key = entry["application"], entry["id"]
            known = self.replicas.setdefault(name, {}).get(key)
            if known is None or known.peer.address != entry["address"]:
                if known is not None:
                    known.peer.cut("it is at another address now")
                known = self.replicas[name][key] = Replica(entry)
            seen.add(key)
            known.facts = entry["facts"]
            # What it said to us itself comes before what the Keeper has heard; none comes back.
            known.leaving = known.leaving or entry["state"] == "leaving"
            known.lost = entry["state"] == "lost"
            if entry["beat"] != known.beat:
                known.beat, known.shunned_until = entry["beat"], 0.0
        for name, replicas in list(self.replicas.items()):
            if whole:
                for key in [key for key in replicas if key not in seen]:
                    gone = replicas.pop(key)
                    gone.peer.cut("it is gone") if gone.lost else gone.peer.retire()
            if any(not one.lost and not one.leaving for one in replicas.values()):
                for one in replicas.values():
                    if one.lost:
                        one.peer.cut("it is not heard of any more")
            if not replicas:
                del self.replicas[name]
        for name in [name for name in self.waiting if self._fit(name)]:
            for waiter in self.waiting.pop(name):
                if not waiter.done():
                    waiter.set_result(None)

    def pick(self, application: str, *, avoid: Iterable[str] = (), prefer: str = "") -> Replica | None:
        """The replica with the least in hand, by chance among equals; none of `avoid`. Those that tell in their facts
        that they have `prefer` loaded come first, where one of them is not busy."""
        fit = [one for one in self._fit(application) if one.id not in avoid]
        if prefer and (having := [one for one in fit if prefer in one.facts.get("loaded", ())]):
            fit = having
        if len(fit) < 2:
            return fit[0] if fit else None
        least = min(one.ongoing for one in fit)
        return random.choice([one for one in fit if one.ongoing == least])

    def unmet(self, applications: Iterable[str]) -> list[str]:
        """Those that have had no replica since this gateway started."""
        return sorted({name for name in applications if name not in self.replicas})

    def shun(self, replica: Replica) -> None:
        """Its connection broke: it is most likely dead."""
        replica.shunned_until = time.monotonic() + SHUNNED_S

    def news(self, application: str) -> asyncio.Future[None]:
        """Done when there is a replica of an application that takes requests: the Keeper has told of one, or one that
        was shunned is to be tried again, for the Keeper may be away."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        waiting = self.waiting.setdefault(application, [])
        waiting.append(waiter)
        shunned = [one for one in self.replicas.get(application, {}).values() if not one.leaving and not one.lost]
        timer = None
        if shunned:
            again = min(one.shunned_until for one in shunned) - time.monotonic()
            timer = loop.call_later(max(again, 0.01), _wake, waiter)

        def forget(_: object) -> None:
            if timer is not None:
                timer.cancel()
            if waiter in waiting:  # those whose clients left do not pile up until the next news
                waiting.remove(waiter)

        waiter.add_done_callback(forget)
        return waiter

    def _fit(self, application: str) -> list[Replica]:
        """Those that may be asked now."""
        now = time.monotonic()
        replicas = self.replicas.get(application, {}).values()
        return [one for one in replicas if not one.leaving and not one.lost and one.shunned_until <= now]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
