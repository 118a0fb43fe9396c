"""The batcher, by itself: what goes into which pass."""

import asyncio
import threading
import time

import pytest

from serve.batch import Batcher


def batcher(predict, *, max_batch_size=4, wait_s=0.05):
    made = Batcher(predict)
    made.configure(max_batch_size=max_batch_size, wait_s=wait_s)
    return made


def test_requests_that_come_together_share_a_pass_and_keep_their_own_outputs():
    passes = []

    async def main():
        made = batcher(lambda inputs: passes.append(inputs) or [value * 10 for value in inputs])
        return await asyncio.gather(made.submit([1]), made.submit([2, 3]), made.submit([4]))

    assert asyncio.run(main()) == [[10], [20, 30], [40]]
    assert passes == [[1, 2, 3, 4]]


def test_a_full_batch_does_not_wait():
    async def main():
        made = batcher(list, max_batch_size=2, wait_s=30)
        return await asyncio.wait_for(asyncio.gather(made.submit([1]), made.submit([2])), timeout=5)

    assert asyncio.run(main()) == [[1], [2]]


def test_what_comes_during_a_pass_goes_into_the_next_together():
    passes, running, go = [], threading.Event(), threading.Event()

    def predict(inputs):
        passes.append(inputs)
        running.set()
        go.wait(5)
        return inputs

    async def main():
        made = batcher(predict, max_batch_size=4, wait_s=0)
        first = asyncio.create_task(made.submit([0]))
        await asyncio.to_thread(running.wait, 5)
        later = [asyncio.create_task(made.submit([value])) for value in range(1, 7)]
        for _ in range(20):
            await asyncio.sleep(0.002)  # long past any waiting time: they still go together
        go.set()
        await asyncio.gather(first, *later)

    asyncio.run(main())
    assert passes == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_request_larger_than_a_batch_goes_alone_and_whole():
    passes = []

    async def main():
        made = batcher(lambda inputs: passes.append(inputs) or inputs, max_batch_size=2)
        return await asyncio.gather(made.submit([1, 2, 3, 4, 5]), made.submit([6]))

    assert asyncio.run(main()) == [[1, 2, 3, 4, 5], [6]]
    assert passes == [[1, 2, 3, 4, 5], [6]]


def test_what_a_pass_raises_reaches_its_requests_and_no_others():
    def predict(inputs):
        if "bad" in inputs:
            raise ValueError("no")
        return inputs

    async def main():
        made = batcher(predict, max_batch_size=1)
        bad, good = await asyncio.gather(made.submit(["bad"]), made.submit(["good"]), return_exceptions=True)
        assert isinstance(bad, ValueError)
        assert good == ["good"]
        assert await made.submit(["again"]) == ["again"]

    asyncio.run(main())


def test_a_request_that_was_given_up_is_not_computed():
    passes, running, go = [], threading.Event(), threading.Event()

    def predict(inputs):
        passes.append(inputs)
        running.set()
        go.wait(5)
        return inputs

    async def main():
        made = batcher(predict, max_batch_size=1, wait_s=0)
        first = asyncio.create_task(made.submit([1]))
        await asyncio.to_thread(running.wait, 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.submit([2]), 0.05)
        third = asyncio.create_task(made.submit([3]))
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(first, third) == [[1], [3]]
        assert made.size == 0

    asyncio.run(main())
    assert passes == [[1], [3]]


def test_an_idle_model_waits_no_longer_than_it_should():
    async def main():
        made = batcher(list, wait_s=0.1)
        started = time.perf_counter()
        await made.submit([1])
        return time.perf_counter() - started

    assert 0.09 < asyncio.run(main()) < 1
