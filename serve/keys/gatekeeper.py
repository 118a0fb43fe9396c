"""What the gateway asks of every request, once before it goes on and once when it has ended: who sends it, whether they
may, how much they may still, and what it came to.

The way in costs about 10 microseconds of CPU: a hash, a look into a dict, and a count where a limit is set.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.accounts import Counts, Key, Keys, Usage
from cluster.accounts.store import address
from cluster.errors import NotFound, ShoalError
from cluster.settings.access import Access, RequestLog, secret
from serve.keys.books import Books
from serve.keys.cors import Cors
from serve.keys.known import Known
from serve.keys.limits import Meter
from serve.keys.refusals import Forbidden
from serve.keys.requestlog import RequestLines, shown
from serve.keys.tally import Tally

_ID = re.compile(rb"^[A-Za-z0-9._:/+=@-]{1,128}$")
Headers = Mapping[bytes, bytes]


class Ticket:
    """A request that was let in."""

    __slots__ = ("id", "key", "model", "origin", "prefix", "tenant", "verb")

    def __init__(self, request_id: str, key: Key | None, tenant: str, model: str, verb: str) -> None:
        self.id, self.tenant, self.model, self.verb = request_id, tenant, model, verb
        self.key = key.id if key else ""
        self.prefix = key.prefix if key else ""
        self.origin = key.origin if key else ""


class Caller:
    """Who asks, and what there is for them."""

    __slots__ = ("key", "operator")

    def __init__(self, key: Key | None, *, operator: bool = False) -> None:
        self.key, self.operator = key, operator

    def sees(self, model: str, *, private: bool) -> bool:
        """Whether there is such a model for them. Where no keys are asked for, a private one is there for nobody."""
        if self.key is None:
            return self.operator or not private
        return self.key.sees(model, private=private)

    def may(self, verb: str) -> bool:
        return self.key is None or verb in self.key.verbs or "admin" in self.key.verbs


_NOBODY = Caller(None)
# Who has the cluster's own token, as `shoal predict` has: may change what is served, and so may ask it.
_OPERATOR = Caller(None, operator=True)


class Gatekeeper:
    """One gateway's. `start` before the first request and `stop` after the last; all else belongs to its event loop."""

    def __init__(
        self,
        config: Access,
        log: RequestLog,
        *,
        home: Path,
        gateway: str,
        operator: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`home` is $SHOAL_HOME; `gateway` a name that no other gateway has had; `operator` the cluster's own token,
        which is as good as a key, or nothing."""
        self._operator = f"Bearer {operator}".encode() if operator else b""
        self.required = config.keys == "required"
        self.cors = Cors(config.cors)
        self._config, self._clock = config, clock
        self._meter = Meter(config.limits, file=home / "limits.counts", clock=clock)
        uri = config.store or address(config)
        password = secret(config.password_file, "PGPASSWORD", key="access.password_file")
        self._known = Known(config, Keys(uri, password), clock=clock) if self.required else None
        folder = Path(log.folder).expanduser() if log.folder else home / "logs"
        self._lines = RequestLines(log, folder, gateway)
        self._tally = Tally()
        self._books = Books(
            Usage(uri, password),
            self._known,
            self._lines,
            tally=self._tally,
            folder=home / "usage",
            writer=gateway,
            clock=clock,
        )

    @property
    def wants_inputs(self) -> bool:
        """Whether `settle` is to be given the body, for the request log."""
        return self._lines.wants_inputs

    async def start(self) -> None:
        """Read the keys and begin to write. A store that is away does not keep the gateway from starting."""
        if self._known is not None:
            await asyncio.to_thread(self._known.refresh)
        self._books.start()

    async def stop(self) -> None:
        """Write everything that is to be written."""
        await self._meter.close()
        await asyncio.to_thread(self._books.stop)

    async def identify(self, headers: Headers, *, request_id: str) -> Caller:
        """Who asks. Raises Unauthorized where a key is required and there is none in force, Unknowable where that
        cannot be said now."""
        if self._known is None:
            return _NOBODY
        given = headers.get(b"authorization")
        if self._operator and given is not None and hmac.compare_digest(given, self._operator):
            return _OPERATOR
        try:
            return Caller(await self._known.find(given))
        except ShoalError as error:
            self._refused(Ticket(request_id, None, "", "", ""), error)
            raise

    async def admit(
        self, caller: Caller, model: str, verb: str = "predict", *, private: bool = False, request_id: str
    ) -> Ticket:
        """Let a request to a model that is served in, or not. Raises, with an HTTP status: Forbidden (403), NotFound
        (404, of a private model), Limited (429, with retry-after), also where limits cannot be counted now.

        What is let in is to be settled, however it ends.
        """
        key = caller.key
        ticket = Ticket(request_id, key, key.tenant if key is not None else self._config.tenant, model, verb)
        try:
            if not caller.sees(model, private=private):
                if private:
                    raise NotFound(f"model {model!r} is not served")
                raise Forbidden(f"key {ticket.prefix}... is not for model {model!r}; ask for one that is")
            if not caller.may(verb):
                raise Forbidden(f"key {ticket.prefix}... may not {verb}; ask for one that may")
            await self._meter.admit(ticket.origin, ticket.tenant)
        except ShoalError as error:
            self._refused(ticket, error)
            raise
        return ticket

    def settle(
        self,
        ticket: Ticket,
        *,
        status: int,
        seconds: float,
        compute_seconds: float | None = None,
        tokens: tuple[int, int] = (0, 0),
        counted: bool = True,
        images: int = 0,
        bytes_in: int = 0,
        bytes_out: int = 0,
        version: str = "",
        replica: str = "",
        body: bytes | None = None,
    ) -> None:
        """Note how a request ended. `seconds` are from its arrival to the last byte, `compute_seconds` those at the
        model (left out: the same); `counted` says whether the engine told the tokens (input, output)."""
        compute = seconds if compute_seconds is None else compute_seconds
        counts = Counts(1, int(status >= 400), tokens[0], tokens[1], images, compute)
        self._books.add(ticket.tenant, ticket.key, ticket.model, ticket.verb, counts)
        self._tally.settled(ticket.tenant, status, tokens[0] + tokens[1], compute)
        if self._meter.counts:
            used = {"tokens": tokens[0] + tokens[1], "images": images, "compute_seconds": compute}
            self._meter.charge(ticket.origin, ticket.tenant, used)
        facts: dict[str, Any] = {"version": version, "replica": replica, "in": bytes_in, "out": bytes_out}
        if tokens != (0, 0):
            facts |= {"tokens": list(tokens)} | ({} if counted else {"tokens_are": "estimated"})
        if images:
            facts["images"] = images
        if self.wants_inputs and body is not None:
            facts["input"] = shown(body)
        self._note(ticket, status, seconds, facts)

    def _refused(self, ticket: Ticket, error: ShoalError) -> None:
        why = type(error).__name__
        self._tally.refused(ticket.tenant, why)
        self._note(ticket, error.status, 0.0, {"why": why})

    def _note(self, ticket: Ticket, status: int, seconds: float, facts: dict[str, Any]) -> None:
        line = {
            "time": round(self._clock(), 3),
            "id": ticket.id,
            "tenant": ticket.tenant,
            "key": ticket.prefix,
            "model": ticket.model,
            "verb": ticket.verb,
            "status": status,
            "ms": round(seconds * 1000, 2),
            **facts,
        }
        self._lines.note(line)


def request_id(headers: Headers) -> str:
    """The client's x-request-id, where it is one that can stand in a log; else a new one."""
    given = headers.get(b"x-request-id")
    return given.decode() if given is not None and _ID.match(given) else os.urandom(12).hex()
