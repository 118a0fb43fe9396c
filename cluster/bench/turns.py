"""One server or two, asked in turn, round after round: whatever else the machine does hits both alike."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace

import uvloop

from cluster import tls
from cluster.bench import machine
from cluster.bench.connection import Address, Shot, clock, connect
from cluster.bench.load import MOST, Closed, Open
from cluster.errors import InputError
from cluster.progress import Progress, silent


@dataclass(frozen=True)
class Side:
    """A server: where it is, its requests as they go out, whether it streams, and its processes. The requests of two
    sides ask for the same in the same order."""

    name: str
    url: str
    address: Address
    requests: Sequence[bytes]
    streams: bool
    processes: machine.Processes


@dataclass(frozen=True)
class Load:
    """How it is asked. With `rate` (requests a second) the loop is open, else `concurrent` clients wait for answers.
    `warm_s` seconds of it come before the first round."""

    concurrent: int = 32
    rate: float | None = None
    seconds: float = 5.0
    rounds: int = 5
    timeout_s: float = 60.0
    seed: int = 0
    warm_s: float = 2.0


@dataclass
class Turn:
    """One side's part of a round. `began` is `clock`'s; `wall_s` to the last answer; `cpu_s` by part, None where not
    seen; `generator_s` is CPU time of this process."""

    side: str
    round: int
    began: float
    wall_s: float
    shots: list[Shot]
    cpu_s: dict[str, float] | None
    generator_s: float
    load: float


def run(sides: Sequence[Side], load: Load, progress: Progress = silent) -> list[Turn]:
    """Warm up, then `rounds` rounds; who goes first changes from round to round.

    Raises InputError where a server takes no connection at all, or this user may not have as many.
    """
    _allow(load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for side in sides:
            progress("warm up", 0, 0, side.name)
            warm = replace(load, seconds=min(load.warm_s, load.seconds), rounds=1)
            runner.run(_turn(side, warm, 0))
        turns: list[Turn] = []
        whole = load.rounds * len(sides)
        for number in range(load.rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                progress("load", len(turns), whole, f"round {number + 1} of {load.rounds}, {side.name}")
                turns.append(runner.run(_turn(side, load, number)))
        progress("load", whole, whole)
    return turns


async def _turn(side: Side, load: Load, number: int) -> Turn:
    # Each round has requests of its own, as far as they go: a server that remembers is not asked the same again.
    start = number * len(side.requests) // load.rounds
    if load.rate is None:
        loop: Closed | Open = Closed(
            side.address,
            side.requests,
            concurrent=load.concurrent,
            seconds=load.seconds,
            timeout_s=load.timeout_s,
            start=start,
        )
    else:
        loop = Open(
            side.address,
            side.requests,
            rate=load.rate,
            seconds=load.seconds,
            timeout_s=load.timeout_s,
            start=start,
            seed=load.seed + number,
        )
    try:
        await loop.prepare()
    except (OSError, TimeoutError) as error:
        raise _unconnected(side, error) from None
    # What has been made so far stays: the collector looks at what this turn makes, and stops it for no long while.
    gc.freeze()
    before = side.processes.seconds()
    own, began = machine.generator_seconds(), clock()
    shots = await loop.run()
    wall, own = clock() - began, machine.generator_seconds() - own
    after = side.processes.seconds()
    gc.unfreeze()
    cpu = machine.used(before, after) if after else None
    return Turn(side.name, number, began, wall, shots, cpu, own, machine.load())


def _unconnected(side: Side, error: BaseException) -> InputError:
    refused = f"{side.url}: no connection: {error or 'timed out'}; is it running?"
    return InputError(f"{side.name}: {tls.fault(error, side.url, side.address.name) or refused}")


def _allow(load: Load) -> None:
    """Raise this process's limit of open files, each connection being one. Raises InputError where it may not be."""
    wanted = 256 + (MOST if load.rate is not None else load.concurrent)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise InputError(f"--concurrent: {load.concurrent}: this user may open {hard} files; see `ulimit -Hn`")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def ask_once(side: Side, timeout_s: float = 60.0) -> Shot:
    """The first request, its answer kept. Raises InputError where the server takes no connection."""

    async def once() -> Shot:
        answer: asyncio.Future[Shot] = asyncio.get_running_loop().create_future()
        try:
            connection = await connect(side.address, lambda _, shot: answer.set_result(shot), timeout_s)
        except (OSError, TimeoutError) as error:
            raise _unconnected(side, error) from None
        connection.ask(Shot(0, clock(), keep=True), side.requests[0])
        shot = await answer
        connection.close()
        return shot

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(once())
