"""Batching across requests: whatever waits while a forward pass runs goes into the next one, all together.

Not `serve.batch`: that closes a batch when its time is up even where the pass before it is still running, so that
small batches queue up under load instead of growing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Batcher:
    """Calls `predict`, in a thread of its own, with the inputs of as many requests as `max_batch_size` holds.

    `predict` takes a list of inputs and returns as many outputs. All methods belong to one event loop.
    """

    def __init__(
        self, predict: Callable[[list[Any]], list[Any]], note: Callable[[int], None] = lambda size: None
    ) -> None:
        self.predict = predict
        self.note = note  # told of the size of every pass
        # One thread: passes queue up instead of fighting over the cores, all of which torch uses already.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self.waiting: deque[tuple[list[Any], asyncio.Future[list[Any]]]] = deque()
        self.size = 0
        self.worker: asyncio.Task[None] | None = None
        self.enough = asyncio.Event()
        self.configure(max_batch_size=32, wait_s=0.005)

    def configure(self, *, max_batch_size: int, wait_s: float) -> None:
        """Inputs a pass at most, and how long an idle model waits for more than one request."""
        self.max_batch_size = max_batch_size
        self.wait_s = wait_s

    async def submit(self, inputs: list[Any]) -> list[Any]:
        """The outputs of these inputs, which stay together. Raises what `predict` raises."""
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.waiting.append((inputs, answer))
        self.size += len(inputs)
        if self.size >= self.max_batch_size:
            self.enough.set()
        if self.worker is None:
            self.worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        """Until nothing waits. Only the first pass waits for company: the next ones had theirs come meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            if self.size < self.max_batch_size and self.wait_s > 0:
                self.enough.clear()
                timer = loop.call_later(self.wait_s, self.enough.set)
                await self.enough.wait()
                timer.cancel()
            while batch := self._take():
                flat = [one for inputs, _ in batch for one in inputs]
                self.note(len(flat))
                try:
                    outputs = await loop.run_in_executor(self.thread, self.predict, flat)
                except Exception as error:
                    for _, answer in batch:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                start = 0
                for inputs, answer in batch:
                    if not answer.done():
                        answer.set_result(outputs[start : start + len(inputs)])
                    start += len(inputs)
        finally:
            self.worker = None

    def _take(self) -> list[tuple[list[Any], asyncio.Future[list[Any]]]]:
        """The oldest requests, whole, as many as fit; one at least. Those that were given up are let go."""
        batch: list[tuple[list[Any], asyncio.Future[list[Any]]]] = []
        size = 0
        while self.waiting:
            inputs, answer = self.waiting[0]
            if batch and size + len(inputs) > self.max_batch_size:
                break
            self.waiting.popleft()
            self.size -= len(inputs)
            if not answer.done():
                batch.append((inputs, answer))
                size += len(inputs)
        return batch
