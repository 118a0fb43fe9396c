"""The gateway's part: which version a request goes to, what came of it, and the old version's answer where the new one
fails. Nobody's request fails because a new version does, as long as asking twice is allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.monitoring.rollout import Versions
from serve.asgi import Disconnected, Message, Send
from serve.asking import ask
from serve.gateway import visit
from serve.gateway.body import Body
from serve.gateway.errand import WHOLE_BYTES, Errand
from serve.gateway.forward import Forwarder
from serve.rollout import entry, split
from serve.rollout.agree import agreement
from serve.rollout.stats import AGES, Stats

TELL_S = 0.5  # between two words with the Keeper
SHADOWS = 8  # shadowed requests under way, at most; more are not asked
SHADOW_S = 60.0  # and how long one may take


class Heard:
    """A `send` that notes what goes through it: the status, and with `keep` the body, where it is small."""

    def __init__(self, send: Send, *, keep: bool = False, refuse: Callable[[int], bool] = lambda status: False) -> None:
        """An answer whose status `refuse`s it is kept back: `status` tells of it, and nothing of it is sent."""
        self._send, self._keep, self._refuse = send, keep, refuse
        self.status = 0
        self.chunks: list[bytes] = []
        self.size = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif self._keep:
            chunk = message.get("body", b"")
            self.size += len(chunk)
            if self.size > WHOLE_BYTES:
                self._keep = False
                self.chunks.clear()
            else:
                self.chunks.append(chunk)
        if not self._refuse(self.status):
            await self._send(message)

    @property
    def body(self) -> bytes | None:
        """The whole body; None where it was not kept."""
        return b"".join(self.chunks) if self._keep else None


class Course:
    """A roll-out as one gateway sees it."""

    def __init__(self, name: str, model: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self.name = name
        self.id: str = found["id"]
        self.old, self.new = Stats(), Stats()
        self.began: dict[object, tuple[bool, float]] = {}  # of each request under way: whether the new one's, and when
        self.shadows: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        self.verdict: tuple[str, str] | None = None
        self.learn(model, found)

    def learn(self, model: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """The same roll-out with other shares, or in another state. What the Keeper said holds until the configuration
        says so as well."""
        self.found = dict(found)
        self.model = {**model, "application": found["application"], "version": found["version"]}
        if self.verdict is not None:
            self.decided(*self.verdict)
        if self.state in entry.ENDS:
            self.ended.set()

    @property
    def state(self) -> str:
        return self.found["state"]

    @property
    def weight(self) -> float:
        return 0.0 if self.ended.is_set() else self.found["keys"]["canary"]

    @property
    def shadow(self) -> float:
        return self.found["keys"]["shadow"] if self.state == entry.RUNNING else 0.0

    def decided(self, state: str, reason: str) -> None:
        """What the Keeper says, before the configuration does."""
        self.verdict = (state, reason)
        if self.state == entry.RUNNING:
            self.found |= {"state": state, "reason": reason}
            if state in entry.ENDS:
                self.ended.set()

    def told(self) -> dict[str, Any]:
        now = time.perf_counter()
        for stats, new in ((self.old, False), (self.new, True)):
            stats.ages = [now - began for of_new, began in self.began.values() if of_new is new][:AGES]
        found = {key: value for key, value in self.found.items() if key not in entry.INNER}
        return {"found": found, "old": self.old.told(), "new": self.new.told()}


class Steering:
    """All roll-outs at a gateway. All methods belong to one event loop."""

    def __init__(self, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.courses: dict[str, Course] = {}
        self.versions = Versions()

    def learn(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        """The gateway's configuration, as it is now."""
        for name in list(self.courses):
            found = entry.going_on(models.get(name))
            if found is None or found["id"] != self.courses[name].id:
                self.courses.pop(name).ended.set()
        for name, model in models.items():
            if (found := entry.going_on(model)) is not None:
                if name in self.courses:
                    self.courses[name].learn(model, found)
                else:
                    self.courses[name] = Course(name, model, found)

    async def follow(self, gateway: str) -> None:
        """Tell the Keeper what came of the requests and hear what it decided, as long as this lives."""
        while True:
            await asyncio.sleep(TELL_S)
            if not self.courses:
                continue
            self.versions.flush()
            told = {name: course.told() for name, course in self.courses.items()}
            with contextlib.suppress(Exception):  # it is another one soon, and is told all of it again
                decided = await ask("rollouts", gateway, told)
                for name, verdict in decided.items():
                    if (course := self.courses.get(name)) is not None and course.id == verdict["id"]:
                        course.decided(verdict["state"], verdict["reason"])

    async def send(self, errand: Errand) -> None:
        """Answer the client, by one version or the other; raises what Forwarder.send does."""
        course = self.courses.get(errand.name)
        if course is None:
            await self.forwarder.send(errand)
            return
        ticket = visit.of(errand.scope).ticket
        who = split.client(errand.scope["headers"], ticket.origin if ticket is not None else "")
        if split.place(who, course.found["version"]) >= course.weight:
            await self._old(course, errand)
        elif not await self._new(course, errand):
            await self._old(course, errand, instead=True)

    async def _old(self, course: Course, errand: Errand, *, instead: bool = False) -> None:
        """By the old version. `instead` of the new one, whose fault it is where this goes well."""
        shadowed = not instead and errand.body.whole is not None and random.random() < course.shadow
        errand.send = heard = Heard(errand.send, keep=shadowed)
        try:
            seconds = await self._timed(course, errand, new=False)
        except Disconnected:
            raise
        except Exception:
            course.old.failed()
            raise
        if heard.status >= 500:
            course.old.failed()
        elif heard.status < 400:
            course.old.answered(seconds)
        if instead and (heard.status < 400 or heard.status >= 500):
            course.new.failed()
            self.versions.note(course.name, course.found["version"], "canary", None, failed=True)
        self.versions.note(course.name, course.found["previous"], "old", seconds, failed=heard.status >= 500)
        if shadowed and heard.status == 200 and heard.body is not None and len(course.shadows) < SHADOWS:
            task = asyncio.create_task(self._shadow(course, errand, heard.body))
            course.shadows.add(task)
            task.add_done_callback(course.shadows.discard)

    async def _new(self, course: Course, errand: Errand) -> bool:
        """By the new version; False where it has not answered and the old one is to. Only what has begun, or may not be
        asked twice, ends here for better or worse."""
        if self.forwarder.directory.pick(course.model["application"]) is None:
            return False  # it runs always: where none is up, it has died
        twice = errand.body.whole is not None and self.forwarder.may_run_twice(errand)
        heard = Heard(errand.send, refuse=(lambda status: status >= 400) if twice else lambda status: False)
        asking = dataclasses.replace(errand, model=course.model, send=heard, again=False, held=not twice)
        going = asyncio.ensure_future(self._timed(course, asking, new=True))
        over = asyncio.ensure_future(course.ended.wait())
        try:
            await asyncio.wait((going, over), return_when=asyncio.FIRST_COMPLETED)
            if not going.done() and twice and not asking.begun:
                going.add_done_callback(lambda done: done.cancelled() or done.exception())
                return False  # rolled back: nobody waits for it any more
            seconds = await going
        except Disconnected:
            raise
        except Exception:
            if asking.begun:
                course.new.failed()
            if asking.begun or not twice:
                raise
            return False
        finally:
            over.cancel()
            going.cancel()
        if twice and heard.status >= 400:
            # The client's fault, or the new version's? The old one knows. One that is full is asked of nothing. The
            # request may have ended a replica: the old version's is the second and the last.
            errand.again = errand.again and heard.status != 502
            if heard.status != 429:
                return False
            await self._old(course, errand)
            return True
        if heard.status < 400:
            course.new.answered(seconds)
        elif heard.status >= 500:
            course.new.failed()
        errand.model, errand.answered_by, errand.asked = course.model, asking.answered_by, asking.asked
        self.versions.note(course.name, course.found["version"], "canary", seconds, failed=heard.status >= 500)
        return True

    async def _timed(self, course: Course, errand: Errand, *, new: bool) -> float:
        """Send it; how long that took in seconds. Raises what Forwarder.send does."""
        began, key = time.perf_counter(), object()
        course.began[key] = (new, began)
        try:
            await self.forwarder.send(errand)
        finally:
            del course.began[key]
        return time.perf_counter() - began

    async def _shadow(self, course: Course, errand: Errand, answer: bytes) -> None:
        """Ask the new version what the old one has answered, and compare. Its answer goes nowhere."""
        assert errand.body.whole is not None
        heard = Heard(_nowhere, keep=True)
        copy = dataclasses.replace(
            errand,
            model=course.model,
            body=Body.of(errand.body.whole, _never),
            send=heard,
            begun=False,
            again=False,
            held=False,
        )
        failed, seconds = True, None
        with contextlib.suppress(Exception):
            async with asyncio.timeout(SHADOW_S):
                seconds = await self._timed(course, copy, new=True)
            failed = heard.status >= 400
        if heard.status == 429 or course.ended.is_set():
            return
        course.new.compared += 1
        if failed or seconds is None:
            course.new.failed()
        else:
            course.new.answered(seconds)
            course.new.agreed += agreement(answer, heard.body) if heard.body is not None else 1.0
        self.versions.note(course.name, course.found["version"], "shadow", seconds, failed=failed)


async def _never() -> Message:
    """A client that does not go away."""
    return await asyncio.get_running_loop().create_future()


async def _nowhere(message: Message) -> None:
    return
