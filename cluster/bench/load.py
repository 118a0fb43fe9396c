"""Load: closed (so many clients, each of which waits for its answer) and open (arrivals that wait for nobody).

An open loop's latencies begin when a request was due, not when it could be sent: a server that stalls is charged with
every request that came meanwhile (no coordinated omission). Its arrivals are a Poisson process with a fixed seed, so
two servers see the same.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from cluster.bench.connection import Address, Connection, Shot, clock, connect

MOST = 1000  # connections of an open loop
_PAUSE_S = 0.05  # after a connection that came to nothing: a server that is away is not asked a million times


class Closed:
    """`concurrent` clients for `seconds`; returns after the last answer. Requests are taken in order from `start`."""

    def __init__(
        self,
        address: Address,
        requests: Sequence[bytes],
        *,
        concurrent: int,
        seconds: float,
        timeout_s: float,
        start: int,
    ) -> None:
        self.address, self.requests, self.start = address, requests, start
        self.concurrent, self.seconds, self.timeout_s = concurrent, seconds, timeout_s
        self.shots: list[Shot] = []
        self.taken = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Open the connections, before the clock runs. Raises OSError, TimeoutError."""
        self.finished = asyncio.get_running_loop().create_future()
        opened = (connect(self.address, self._done, self.timeout_s) for _ in range(self.concurrent))
        self.connections = await asyncio.gather(*opened)

    async def run(self) -> list[Shot]:
        """Every request, in the order of the answers. The clock starts now."""
        self.end = clock() + self.seconds
        self.left = self.concurrent
        for connection in self.connections:
            self._ask(connection)  # each client asks once, however short the time is
        await self.finished
        return self.shots

    def _next(self, connection: Connection) -> None:
        if clock() < self.end:
            self._ask(connection)
        else:
            connection.close()
            self._one_less()

    def _ask(self, connection: Connection) -> None:
        shot = Shot(self.taken, clock())
        request = self.requests[(self.start + self.taken) % len(self.requests)]
        self.taken += 1
        connection.ask(shot, request)

    def _done(self, connection: Connection, shot: Shot) -> None:
        self.shots.append(shot)
        if connection.usable:
            self._next(connection)
        else:
            _keep(self.tasks, self._again(shot))

    async def _again(self, last: Shot) -> None:
        """A client whose connection is gone opens another; what that takes is part of the load."""
        if not last.status:
            await asyncio.sleep(_PAUSE_S)
        while clock() < self.end:
            shot = Shot(self.taken, clock())
            try:
                connection = await connect(self.address, self._done, self.timeout_s)
            except (OSError, TimeoutError) as error:
                self.taken += 1
                self.shots.append(_failed(shot, error))
                await asyncio.sleep(_PAUSE_S)
                continue
            self._next(connection)
            return
        self._one_less()

    def _one_less(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.finished.set_result(None)


class Open:
    """Requests that are due at `rate` a second for `seconds`, over as many connections as it takes, MOST at most."""

    def __init__(
        self,
        address: Address,
        requests: Sequence[bytes],
        *,
        rate: float,
        seconds: float,
        timeout_s: float,
        start: int,
        seed: int,
    ) -> None:
        self.address, self.requests, self.start = address, requests, start
        self.rate, self.timeout_s = rate, timeout_s
        self.due = arrivals(rate, seconds, seed)
        self.shots: list[Shot] = []
        self.free: list[Connection] = []
        self.waiting: list[Shot] = []  # due, and without a connection
        self.count = 0
        self.taken = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Open the connections that a server which answers within 100 ms needs. Raises OSError, TimeoutError."""
        self.finished = asyncio.get_running_loop().create_future()
        self.count = max(1, min(MOST, round(self.rate / 10)))
        opened = (connect(self.address, self._done, self.timeout_s) for _ in range(self.count))
        self.free = list(await asyncio.gather(*opened))

    async def run(self) -> list[Shot]:
        """Every request, in the order of the answers. The clock starts now."""
        if not self.due:
            return []
        loop = asyncio.get_running_loop()
        self.began = clock()
        # The loop's own timers tick in milliseconds, which is longer than some servers take. A thread that sleeps wakes
        # within some 60 microseconds, and tells the loop by a pipe.
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        loop.add_reader(reader, self._tick, reader)
        pacer = threading.Thread(target=_pace, args=(self.began, self.due, writer), daemon=True)
        pacer.start()
        try:
            await self.finished
        finally:
            loop.remove_reader(reader)
            os.close(reader)
            for connection in self.free:
                connection.close()
        return self.shots

    def _tick(self, reader: int) -> None:
        with suppress(BlockingIOError):
            os.read(reader, 65_536)
        now = clock()
        while self.taken < len(self.due) and self.began + self.due[self.taken] <= now:
            shot = Shot(self.taken, self.began + self.due[self.taken])
            self.taken += 1
            while self.free and not self.free[-1].usable:  # closed while it was idle
                self.free.pop()
                self.count -= 1
            if self.free:
                self.free.pop().ask(shot, self._request(shot))
                continue
            self.waiting.append(shot)
            if self.count < MOST:
                self.count += 1
                _keep(self.tasks, self._more())

    def _request(self, shot: Shot) -> bytes:
        return self.requests[(self.start + shot.index) % len(self.requests)]

    def _serve(self, connection: Connection) -> None:
        """Give a connection the request that has waited longest; else it is free."""
        if self.waiting:
            shot = self.waiting.pop(0)
            connection.ask(shot, self._request(shot))
        else:
            self.free.append(connection)

    def _done(self, connection: Connection, shot: Shot) -> None:
        self.shots.append(shot)
        if connection.usable:
            self._serve(connection)
        elif self.waiting:
            _keep(self.tasks, self._more())
        else:
            self.count -= 1
        self._whole()

    async def _more(self) -> None:
        try:
            connection = await connect(self.address, self._done, self.timeout_s)
        except (OSError, TimeoutError) as error:
            self.count -= 1
            if self.waiting:
                self.shots.append(_failed(self.waiting.pop(0), error))
            self._whole()
            return
        self._serve(connection)

    def _whole(self) -> None:
        if len(self.shots) == len(self.due) and not self.finished.done():
            self.finished.set_result(None)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start at which requests are due: exponential gaps of mean 1 / rate."""
    generator = random.Random(seed)
    due, now = [], generator.expovariate(rate)
    while now < seconds:
        due.append(now)
        now += generator.expovariate(rate)
    return due


def _pace(began: float, due: Sequence[float], writer: int) -> None:
    """Write a byte each time something is due."""
    with suppress(OSError):  # the reader is gone: the run was interrupted
        try:
            for offset in due:
                wait = began + offset - clock()
                if wait > 0:
                    time.sleep(wait)
                os.write(writer, b".")
        finally:
            os.close(writer)


def _failed(shot: Shot, error: BaseException) -> Shot:
    shot.sent = shot.done = clock()
    shot.fault = "connection refused" if isinstance(error, ConnectionRefusedError) else "no connection"
    return shot


def _keep(tasks: set[asyncio.Task[None]], coroutine: Coroutine[Any, Any, None]) -> None:
    """Start a task and hold it: the loop alone would let it be collected."""
    task = asyncio.get_running_loop().create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
