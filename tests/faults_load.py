"""Load without a pause from N connections, each request with an id of its own, and what became of every one."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import threading
import time
import uuid

import aiohttp


class Seen:
    """What the load met: `statuses` counts answers, "reset" where the connection broke, "cut" where that was in the
    midst of an answer; `wrong` holds answers that were not this request's; `took` and `ended` are seconds by request,
    in the order of their ends."""

    def __init__(self):
        self.statuses = collections.Counter()
        self.wrong = []
        self.failed = []
        self.took = []
        self.ended = []
        self.ids = []
        self.pids = collections.Counter()

    @property
    def count(self):
        return sum(self.statuses.values())

    @property
    def bad(self):
        return self.count - self.statuses[200]

    def gap(self):
        """The longest time without a good answer, in seconds."""
        return max((after - before for before, after in zip(self.ended, self.ended[1:])), default=0.0)

    def quantile(self, part):
        return sorted(self.took)[min(int(len(self.took) * part), len(self.took) - 1)] if self.took else 0.0

    def row(self, what):
        """One line of the table."""
        others = {key: value for key, value in sorted(self.statuses.items(), key=str) if key != 200}
        return (
            f"{what:44} {self.bad:4d} of {self.count:6d} failed {others or ''}; {self.gap():5.2f} s without an answer; "
            f"p50 {1000 * self.quantile(0.5):.0f} ms, p99 {1000 * self.quantile(0.99):.0f} ms; by {dict(self.pids)}"
        )


@contextlib.contextmanager
def load(url, *, concurrent=8, pause=0.02, size=0, headers=None, timeout=90, tell=None, context=None, **asked):
    """Requests while the block runs. `size` pads each body to so many bytes, `tell` is told the rows at the end."""
    seen, stop = Seen(), threading.Event()

    async def one(session):
        while not stop.is_set():
            key = uuid.uuid4().hex
            body = json.dumps({"id": key, **asked}).encode().ljust(size)
            began = time.monotonic()
            try:
                async with session.post(url, data=body, headers=headers, ssl=context) as answer:
                    if await _answered(seen, answer, key, len(body)):
                        seen.ended.append(time.monotonic())
                        seen.took.append(time.monotonic() - began)
                    else:
                        await asyncio.sleep(0.05)
            except aiohttp.ClientPayloadError as error:  # it had begun
                seen.statuses["cut"] += 1
                seen.failed.append(("", repr(error)))
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                _unanswered(seen, error)
            seen.ids.append(key)
            await asyncio.sleep(random.uniform(0, 2 * pause))  # so that they do not keep step

    thread = _clients(one, concurrent, timeout)
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def uploads(url, *, size, first, concurrent=6, headers=None, timeout=60):
    """Large requests, one each of so many connections. `first` bytes of each are out when the block begins; what is
    left goes out at its end, and after it all are answered."""
    seen, rest, out = Seen(), threading.Event(), threading.Semaphore(0)

    async def one(session):
        key = uuid.uuid4().hex
        seen.ids.append(key)
        body = json.dumps({"id": key}).encode().ljust(size)

        async def parts():
            for at in range(0, first, 65_536):
                yield body[at : min(at + 65_536, first)]
            out.release()
            while not rest.is_set():
                await asyncio.sleep(0.02)
            for at in range(first, size, 65_536):
                yield body[at : at + 65_536]

        given = {**(headers or {}), "content-length": str(size)}
        began = time.monotonic()
        try:
            async with session.post(url, data=parts(), headers=given) as answer:
                await _answered(seen, answer, key, size)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            _unanswered(seen, error)
        seen.ended.append(time.monotonic())
        seen.took.append(time.monotonic() - began)

    thread = _clients(one, concurrent, timeout)
    try:
        for _ in range(concurrent):
            assert out.acquire(timeout=20)
        yield seen
    finally:
        rest.set()
        thread.join()


async def _answered(seen, answer, key, size):
    """Note an answer, and whether it is a good one."""
    text = await answer.read()
    seen.statuses[answer.status] += 1
    if answer.status == 200:
        told = json.loads(text)
        seen.pids[told["pid"]] += 1
        if told["id"] != key or told["size"] != size:
            seen.wrong.append(told)
        return True
    seen.failed.append((answer.status, text[:200]))
    assert answer.status != 429 or "retry-after" in answer.headers
    return False


def _unanswered(seen, error):
    seen.statuses["reset" if not isinstance(error, TimeoutError) else "timeout"] += 1
    seen.failed.append(("", repr(error)))


def _clients(one, concurrent, timeout):
    """A thread in which so many of `one(session)` run, started."""

    async def main():
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(timeout)) as session:
            await asyncio.gather(*(one(session) for _ in range(concurrent)))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    return thread


def executions(log):
    """How often each id was executed."""
    return collections.Counter(line.split()[0] for line in log.read_text().splitlines())
