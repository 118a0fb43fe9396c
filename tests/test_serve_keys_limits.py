"""Limits: counted in a file that gateways share, and in a real Redis that goes away."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import databases
import pytest
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from cluster.settings.access import Limit, Limits
from serve.keys import counts
from serve.keys.counts import SharedCounts
from serve.keys.limits import Meter
from serve.keys.refusals import Limited


class Clock:
    def __init__(self, now: float = 1.8e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def meter(folder: Path, clock=time.time, **config) -> Meter:
    return Meter(Limits.model_validate(config), file=folder / "counts", clock=clock)


async def admitted(one: Meter, times: int, key="k1", tenant="acme") -> int:
    """How many of so many requests are let in."""
    let_in = 0
    for _ in range(times):
        try:
            await one.admit(key, tenant)
            let_in += 1
        except Limited:
            continue
    return let_in


def test_a_limit_holds_over_gateways_and_says_when_it_opens(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        one, two = (meter(tmp_path, clock, key={"requests": "5/minute"}) for _ in range(2))
        assert await admitted(one, 3) == 3
        assert await admitted(two, 4) == 2
        assert await admitted(two, 4, key="k2") == 4, "another key has its own"
        clock.now += 20
        with pytest.raises(Limited) as caught:
            await one.admit("k1", "acme")
        error = caught.value
        assert error.message.startswith("access.limits.key.requests: 5/minute is used up; it opens again in 40 s, at ")
        assert (error.status, error.headers) == (429, ((b"retry-after", b"41"),))
        assert copy.copy(error).retry_after == error.retry_after, "it crosses processes by the same way"
        clock.now += error.retry_after or 0
        assert await admitted(two, 5) == 1, "what it said is when it opens, for as many as slide out of the window"
        clock.now += 120
        assert await admitted(one, 9) == 5

    asyncio.run(main())


@pytest.mark.parametrize("hits", [3, 7, 20])
def test_the_wait_that_is_told_is_neither_too_short_nor_too_long(tmp_path: Path, hits: int) -> None:
    async def main() -> None:
        clock = Clock()
        one = meter(tmp_path, clock, key={"requests": f"{hits}/hour"})
        for step in range(200):
            clock.now += 97.3 * (step % 7)
            try:
                await one.admit("k1", "acme")
            except Limited as error:
                wait, now = error.retry_after or 0, clock.now
                clock.now = now + wait - 2
                assert await admitted(one, 1) == 0
                clock.now = now + wait + 0.01
                assert await admitted(one, 1) == 1

    asyncio.run(main())


def test_several_limits_and_those_of_a_tenant(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        config = {"key": {"requests": "2/second;3/minute"}, "tenant": {"requests": "4/hour"}}
        one = meter(tmp_path, clock, **config, tenants={"big": {"requests": "1000/hour"}})
        assert await admitted(one, 3) == 2
        clock.now += 2
        assert await admitted(one, 3) == 1
        with pytest.raises(Limited, match=r"access\.limits\.key\.requests: 3/minute is used up"):
            await one.admit("k1", "acme")
        assert await admitted(one, 3, key="k2") == 1, "three of four of the tenant's were k1's"
        with pytest.raises(Limited, match=r"access\.limits\.tenant\.requests: 4/hour"):
            await one.admit("k3", "acme")
        assert await admitted(one, 3, key="k4", tenant="big") == 2

    asyncio.run(main())


def test_quotas_close_after_what_was_used_and_open_with_the_next_window(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        config = {"key": {"tokens": "100/day", "compute_seconds": "2/hour", "images": "3/day"}}
        one, two = (meter(tmp_path, clock, **config) for _ in range(2))
        assert await admitted(one, 50) == 50, "nothing is used yet"
        one.charge("k1", "acme", {"tokens": 60, "compute_seconds": 0.4, "images": 0})
        one.charge("k1", "acme", {"tokens": 40.0, "compute_seconds": 0.4})
        await asyncio.sleep(0.05)
        with pytest.raises(
            Limited, match=r"access\.limits\.key\.tokens: 100/day is used up; it opens again in 86400 s"
        ):
            await one.admit("k1", "acme")
        clock.now += 1.5
        with pytest.raises(Limited, match="tokens"):
            await two.admit("k1", "acme")  # it learns within a second
        assert await admitted(two, 1, key="k2") == 1
        clock.now += 86_400
        assert await admitted(two, 1) == 1
        two.charge("k1", "acme", {"tokens": 1, "compute_seconds": 1.999})
        await asyncio.sleep(0.05)
        assert await admitted(two, 1) == 1
        two.charge("k1", "acme", {"compute_seconds": 0.002})
        await asyncio.sleep(0.05)
        with pytest.raises(Limited, match="compute_seconds: 2/hour"):
            await two.admit("k1", "acme")
        await one.close()
        await two.close()

    asyncio.run(main())


def test_counts_outlive_a_gateway_and_a_clock_that_is_set_back(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        one = meter(tmp_path, clock, key={"requests": "5/minute", "tokens": "10/day"})
        assert await admitted(one, 5) == 5
        one.charge("k1", "acme", {"tokens": 11})
        await one.close()
        clock.now -= 86_400 * 30
        again = meter(tmp_path, clock, key={"requests": "5/minute", "tokens": "10/day"})
        assert await admitted(again, 5) == 0
        clock.now += 86_400 * 2
        assert await admitted(again, 9) == 0, "the minute begins where the clock was found to be set back"
        clock.now += 121
        assert await admitted(again, 9) == 5, "set back by a month, it is not closed for a month"

    asyncio.run(main())


def test_the_file_takes_more_keys_than_it_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "SLOTS", 256)

    async def main() -> None:
        clock = Clock()
        storage = SharedCounts(tmp_path / "counts", clock=clock)
        fixed = FixedWindowRateLimiter(storage)
        item = parse("10/minute")
        for number in range(1000):
            clock.now += 0.001
            assert await fixed.hit(item, "many", str(number))
            assert await storage.get(item.key_for("many", str(number))) == 1
        assert await storage.get(item.key_for("many", "999")) == 1
        assert (tmp_path / "counts").stat().st_mode & 0o077 == 0
        await storage.reset()
        assert await storage.get(item.key_for("many", "999")) == 0

    asyncio.run(main())


_HITS = """
import asyncio, sys
from pathlib import Path
from limits import parse
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from serve.keys.counts import SharedCounts
async def main():
    limiter = SlidingWindowCounterRateLimiter(SharedCounts(Path(sys.argv[1])))
    print(sum([await limiter.hit(parse("5000/hour"), "k") for _ in range(4000)]))
asyncio.run(main())
"""


def test_processes_that_count_together_count_exactly(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HITS, str(tmp_path / "counts")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(process.communicate()[0]) for process in running) == 5000


def test_a_gateway_that_was_stopped_in_the_middle_stops_no_other(tmp_path: Path) -> None:
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), 2); print(flush=True); sys.stdin.read()"

    async def main() -> None:
        one = meter(tmp_path, key={"requests": "5/minute"})
        await admitted(one, 1)
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "counts")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            began = time.monotonic()
            assert await admitted(one, 2) == 2
            assert time.monotonic() - began < 6
        finally:
            holder.kill()
            holder.communicate()

    asyncio.run(main())


def test_nothing_is_asked_where_nothing_is_limited(tmp_path: Path) -> None:
    async def main() -> None:
        one = meter(tmp_path)
        assert await admitted(one, 10) == 10
        one.charge("k1", "acme", {"tokens": 10**9})
        assert not (tmp_path / "counts").exists()

    asyncio.run(main())


@pytest.fixture(scope="module")
def server():
    with databases.redis() as found:
        yield found


@pytest.fixture
def redis(server: databases.Program, tmp_path: Path):
    """A Redis that is up, and its limits' settings."""
    if server.process.poll() is not None:
        server.start()
    (tmp_path / "password").write_text(databases.PASSWORD + "\n")
    return {"store": server.uri, "password_file": str(tmp_path / "password")}


def test_redis_counts_for_all(redis, tmp_path: Path) -> None:
    async def main() -> None:
        key = os.urandom(4).hex()
        config = {**redis, "key": {"requests": "5/minute", "tokens": "100/day"}}
        one, two = meter(tmp_path / "a", **config), meter(tmp_path / "b", **config)
        assert await admitted(one, 3, key) + await admitted(two, 9, key) == 5
        with pytest.raises(Limited) as caught:
            await one.admit(key, "acme")
        assert 50 < (caught.value.retry_after or 0) < 60.1
        one.charge(key, "acme", {"tokens": 150})
        await one.close()  # nothing that was to be counted is lost
        await asyncio.sleep(1.1)
        with pytest.raises(Limited, match="tokens: 100/day"):
            await two.admit(key, "acme")
        await two.close()

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("away", ["cached", "open", "closed"])
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_redis_goes_away_in_the_middle(server, redis, tmp_path: Path, away: str, how: str) -> None:
    async def main() -> None:
        key = os.urandom(4).hex()
        one = meter(tmp_path, **redis, away=away, key={"requests": "5/hour", "tokens": "100/day"})
        assert await admitted(one, 3, key) == 3
        if how == "killed":
            server.end(signal.SIGKILL)
        else:
            server.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            let_in = await admitted(one, 20, key)
            took = time.monotonic() - began
            assert let_in == {"cached": 5, "open": 20, "closed": 0}[away]
            assert took < 6, "a request does not wait for what is away"
            if away == "closed":
                with pytest.raises(Limited, match=r"cannot be counted: redis://.* access\.limits\.away is closed"):
                    await one.admit(key, "acme")
        finally:
            if how == "killed":
                server.start()
            else:
                server.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.1)
        # One that was killed has forgotten, one that hung has not.
        assert await admitted(one, 20, key) in ((5,) if how == "killed" else (2, 1))
        await one.close()

    asyncio.run(main())


def test_a_slot_is_what_the_file_says(tmp_path: Path) -> None:
    """Another version of ours on the same machine has to read it alike."""

    async def main() -> None:
        clock = Clock(5000.0)
        storage = SharedCounts(tmp_path / "counts", clock=clock)
        await SlidingWindowCounterRateLimiter(storage).hit(parse("10/minute"), "x", cost=4)
        data = (tmp_path / "counts").read_bytes()
        found = [slot for slot in struct.iter_unpack("<16sdddd", data) if slot[1]]
        assert [slot[1:] for slot in found] == [(5000.0, 60.0, 4.0, 0.0)]

    asyncio.run(main())


def test_what_is_written_of_limits_is_checked() -> None:
    for text in ("5", "0/day", "5/fortnight", "1/day;", "-1/day"):
        with pytest.raises(ValueError, match="is no limit; write N/second"):
            Limit(requests=text)
    for store in ("redis://:secret@host/0", "memcached://x", "redis://"):
        with pytest.raises(ValueError, match="store") as caught:
            Limits(store=store)
        assert "take it out" in str(caught.value) or "write memory" in str(caught.value)
