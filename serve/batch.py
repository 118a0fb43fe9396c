"""Batching across requests: whatever waits while a forward pass runs goes into the next ones, by length.

Not `serve.batch`: that closes a batch when its time is up even where the pass before it is still running, so that
small batches queue up under load instead of growing; it knows no lengths, and a request that nobody waits for any more
is computed all the same.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import sys
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.errors import Overloaded, RunFailed
from serve.passes import Overhead, Pass, Recent
from serve.window import window

# An input that has waited this long goes before all younger ones, whatever request it belongs to.
PATIENCE_S = 1.0


class Request:
    """A request's inputs on their way: `left` of them have no output yet."""

    __slots__ = ("answer", "arrived", "left", "outputs", "weight")

    def __init__(self, count: int, weight: int) -> None:
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.outputs: list[Any] = [None] * count
        self.left = count
        self.weight = weight
        self.arrived = time.monotonic()


class Input:
    """One input that waits: `length` in tokens, `turn` in the order of the requests, `number` in that of arrival."""

    __slots__ = ("length", "number", "place", "request", "taken", "turn", "value")

    def __init__(self, value: Any, length: int, turn: int, number: int, request: Request, place: int) -> None:
        self.value, self.length, self.turn, self.number = value, length, turn, number
        self.request, self.place = request, place
        self.taken = False

    def gone(self) -> bool:
        """Nobody waits for it any more, or it has had its pass."""
        return self.taken or self.request.answer.done()

    def key(self) -> tuple[int, int, int]:
        return (self.length, self.turn, self.number)


class Batcher:
    """Calls `predict`, in a thread, with inputs of many requests: of about one length, and as many as the limits allow.

    `predict` takes a list of inputs and returns as many outputs; an output that is an exception fails its request.
    `length` is an input's length in tokens, and `pads` says whether inputs of a pass are padded to the longest. Whose
    turn it is decides which length goes next: requests take turns by the input, so that one with a thousand inputs does
    not hold up those with one; and whatever has waited for PATIENCE_S goes by age. All methods belong to one event
    loop.
    """

    def __init__(
        self,
        predict: Callable[[list[Any]], list[Any]],
        note: Callable[[Pass], None] = lambda one: None,
        length: Callable[[Any], int] = lambda value: 1,
        pads: bool = True,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.predict, self.note, self.length, self.pads = predict, note, length, pads
        # One thread: passes queue up instead of fighting over the cores, all of which torch uses already.
        self.thread = thread or ThreadPoolExecutor(1, thread_name_prefix="predict")
        self.recent, self.overhead = Recent(), Overhead()
        self.sorted: list[tuple[int, int, int, Input]] = []  # everything that waits, by length
        self.turns: list[tuple[int, int, Input]] = []  # a heap: the front may have gone
        self.ages: deque[Input] = deque()  # by arrival: the front may have gone
        self.turn = self.number = 0
        self.held = self.ongoing = 0  # requests, in passes' worth and by count
        self.given_up = False
        self.company = True
        self.worker: asyncio.Task[None] | None = None
        self.enough = asyncio.Event()
        self.least = 0  # tokens that a pass ran out of memory with
        self.configure(max_batch_size=32, wait_s=0.005)

    def configure(
        self, *, max_batch_size: int, wait_s: float, max_batch_tokens: int = 16_384, max_held: int = 1024
    ) -> None:
        """Inputs and tokens (with padding) a pass at most, how long an idle model waits for more than one request, and
        how many requests are held, one of many inputs for as many as the passes it fills."""
        self.max_batch_size, self.max_batch_tokens = max_batch_size, max_batch_tokens
        self.wait_s, self.max_held = wait_s, max_held
        self.least = 0

    async def submit(self, inputs: list[Any]) -> list[Any]:
        """The outputs of these inputs. Cancelled, they leave the queue. Raises what `predict` raised or returned for
        one of them; Overloaded where the queue is full."""
        weight = 1 + (len(inputs) - 1) // self.max_batch_size
        if self.held and self.held + weight > self.max_held:
            raise self._too_many()
        request = Request(len(inputs), weight)
        for place, value in enumerate(inputs):
            self.number += 1
            one = Input(value, self.length(value), self.turn + place, self.number, request, place)
            insort(self.sorted, (*one.key(), one))
            heapq.heappush(self.turns, (one.turn, one.number, one))
            self.ages.append(one)
        self.held += weight
        self.ongoing += 1
        if self._full():
            self.enough.set()
        if self.worker is None:
            self.worker = asyncio.create_task(self._work())
        try:
            return await request.answer
        finally:
            self.held -= weight
            self.ongoing -= 1
            self.given_up |= request.left > 0

    def facts(self) -> dict[str, float]:
        """What the last seconds were like, as serve.passes.Recent tells it, and how many requests are in hand
        (`ongoing`) and inputs wait (`queued`) now."""
        self._sweep()
        return {"ongoing": self.ongoing, "queued": len(self.sorted), **self.recent.facts()}

    def ran_out(self, inputs: list[Any]) -> None:
        """Memory did not suffice for these together: no pass has as many tokens again, until the limits are set anew.
        May be called from the thread of `predict`."""
        tokens = len(inputs) * max(map(self.length, inputs))
        self.least = min(tokens, self.least or tokens)

    def _limit(self) -> int:
        return min(self.max_batch_tokens, self.least - 1) if self.least else self.max_batch_tokens

    def _full(self) -> bool:
        return len(self.sorted) >= self.max_batch_size or (
            len(self.sorted) * self.sorted[-1][0] >= self._limit() if self.sorted else False
        )

    def _too_many(self) -> Overloaded:
        facts = self.recent.facts()
        seconds = len(self.sorted) / facts["batch_size"] * facts["pass_s"] if facts["batch_size"] else 1.0
        return Overloaded(
            f"{self.ongoing} requests are in hand and no more may wait; try again after the time in Retry-After, or "
            "raise serve.max_queued_requests or serve.max_replicas",
            retry_after_s=min(max(math.ceil(seconds), 1), 60),
        )

    async def _work(self) -> None:
        """Until nothing waits. Only the first pass waits for company: the next ones had theirs come meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            # A model that is asked by one client at a time has no company to wait for.
            if self.company and self.wait_s > 0 and not self._full():
                self.enough.clear()
                timer = loop.call_later(self.wait_s, self.enough.set)
                await self.enough.wait()
                timer.cancel()
            self.company = False
            while batch := self._take():
                self.company |= self.ongoing > 1
                began = time.monotonic()
                try:
                    outputs = await loop.run_in_executor(self.thread, self.predict, [one.value for one in batch])
                    if len(outputs) != len(batch):
                        raise RunFailed(f"the model gave {len(outputs)} answers for {len(batch)} inputs")
                except Exception as error:
                    outputs = [error] * len(batch)
                self._record(batch, began)
                for one, output in zip(batch, outputs):
                    _give(one, output)
        finally:
            self.worker = None

    def _take(self) -> list[Input]:
        """The inputs of the next pass, none of which was given up; empty where nothing waits."""
        self._sweep()
        while self.turns and self.turns[0][2].gone():
            heapq.heappop(self.turns)
        while self.ages and self.ages[0].gone():
            self.ages.popleft()
        if not self.sorted:
            return []
        leader = self.turns[0][2]
        if time.monotonic() - self.ages[0].request.arrived > PATIENCE_S:
            leader = self.ages[0]
        self.turn = max(self.turn, leader.turn)
        begin, end = window(
            [item[0] for item in self.sorted],
            bisect_left(self.sorted, leader.key(), key=lambda item: item[:3]),
            rows=self.max_batch_size,
            tokens=self._limit(),
            spare=self.overhead.tokens() if self.pads else sys.maxsize,
        )
        batch = [item[3] for item in self.sorted[begin:end]]
        del self.sorted[begin:end]
        for one in batch:
            one.taken = True
        return batch

    def _sweep(self) -> None:
        """Let go of the inputs of requests that were given up."""
        if self.given_up:
            self.given_up = False
            self.sorted = [item for item in self.sorted if not item[3].gone()]

    def _record(self, batch: list[Input], began: float) -> None:
        lengths = [one.length for one in batch]
        waited = tuple(began - one.request.arrived for one in batch)
        seconds = time.monotonic() - began
        padded = len(batch) * max(lengths) if self.pads else sum(lengths)
        done = Pass(len(batch), sum(lengths), padded, seconds, waited)
        self.recent.add(done)
        self.overhead.add(done)
        self.note(done)


def _give(one: Input, output: Any) -> None:
    """Hand an input's output to its request, which is answered when it has all, or fails with the first that fails."""
    request = one.request
    if request.answer.done():
        return
    if isinstance(output, Exception):
        request.answer.set_exception(output)
        return
    request.outputs[one.place] = output
    request.left -= 1
    if request.left == 0:
        request.answer.set_result(request.outputs)
