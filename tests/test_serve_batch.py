"""The batcher, by itself: what goes into which pass."""

import asyncio
import pickle
import threading
import time
from typing import Any

import pytest

from cluster.errors import Overloaded, RunFailed
from serve.batch import Batcher
from serve.passes import isolated


def batcher(predict, *, max_batch_size=4, wait_s=0.05, length=lambda value: 1, note=lambda one: None, **limits):
    made = Batcher(predict, note, length)
    made.configure(max_batch_size=max_batch_size, wait_s=wait_s, **limits)
    return made


class Gate:
    """A model whose first pass lasts until `go` is set, so that what comes meanwhile waits; it keeps its passes."""

    def __init__(self, held: Any = "first"):
        self.passes, self.running, self.go, self.held = [], threading.Event(), threading.Event(), held

    def __call__(self, inputs):
        self.passes.append(inputs)
        if self.held in inputs:
            self.running.set()
            assert self.go.wait(10)
        return inputs

    async def behind(self, made, *requests):
        """Outputs of these requests, all of which came while the first pass ran."""
        first = asyncio.create_task(made.submit([self.held]))
        await asyncio.to_thread(self.running.wait, 5)
        tasks = [asyncio.create_task(made.submit(list(one))) for one in requests]
        await asyncio.sleep(0)
        self.go.set()
        outputs = await asyncio.gather(*tasks)
        await first
        assert self.passes.pop(0) == [self.held]
        return outputs


def test_requests_that_come_together_share_a_pass_and_keep_their_own_outputs():
    passes = []

    async def main():
        made = batcher(lambda inputs: passes.append(inputs) or [value * 10 for value in inputs])
        return await asyncio.gather(made.submit([1]), made.submit([2, 3]), made.submit([4]))

    assert asyncio.run(main()) == [[10], [20, 30], [40]]
    assert [sorted(one) for one in passes] == [[1, 2, 3, 4]]


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


def test_a_request_larger_than_a_batch_does_not_hold_up_those_behind_it():
    passes = []

    async def main():
        made = batcher(lambda inputs: passes.append(inputs) or inputs, max_batch_size=2)
        return await asyncio.gather(made.submit([1, 2, 3, 4, 5]), made.submit([6]))

    assert asyncio.run(main()) == [[1, 2, 3, 4, 5], [6]]
    assert passes == [[1, 6], [2, 3], [4, 5]]


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
        assert made.facts()["queued"] == made.facts()["ongoing"] == made.held == 0

    asyncio.run(main())
    assert passes == [[1], [3]]


def test_an_idle_model_waits_no_longer_than_it_should():
    async def main():
        made = batcher(list, wait_s=0.1)
        started = time.perf_counter()
        await made.submit([1])
        return time.perf_counter() - started

    assert 0.09 < asyncio.run(main()) < 1


def test_a_model_asked_by_one_client_at_a_time_does_not_wait_for_others():
    async def main():
        made = batcher(list, wait_s=0.5)
        await made.submit([1])
        started = time.perf_counter()
        await made.submit([2])
        alone = time.perf_counter() - started
        await asyncio.gather(made.submit([3]), made.submit([4]))  # company: the next one waits for some again
        started = time.perf_counter()
        await made.submit([5])
        return alone, time.perf_counter() - started

    alone, again = asyncio.run(main())
    assert alone < 0.4
    assert again > 0.45


def test_texts_of_unlike_length_go_apart_and_little_is_padding():
    """Texts are their lengths here. In arrival order, four at a time, 1,200 of 2,400 tokens would be padding."""
    gate, noted = Gate(held=1), []

    async def main():
        made = batcher(gate, length=int, note=noted.append)
        return await gate.behind(made, *[[length] for length in (100, 500, 102, 510, 101, 505, 103, 500)])

    outputs = asyncio.run(main())
    assert outputs == [[100], [500], [102], [510], [101], [505], [103], [500]]
    assert gate.passes == [[100, 101, 102, 103], [500, 500, 505, 510]]
    assert [(one.tokens, one.padded) for one in noted[1:]] == [(406, 412), (2015, 2040)]


def test_few_short_texts_share_a_pass_where_a_pass_of_its_own_would_cost_more():
    gate = Gate(held=1)

    async def main():
        made = batcher(gate, length=int)
        await gate.behind(made, [3], [12], [9])

    asyncio.run(main())
    assert gate.passes == [[3, 9, 12]]


def test_the_oldest_decides_which_length_goes_and_takes_its_like_along():
    gate = Gate(held=1)

    async def main():
        made = batcher(gate, length=int, max_batch_size=2)
        await gate.behind(made, [500], [10], [11], [501], [10], [502])

    asyncio.run(main())
    assert gate.passes == [[500, 501], [10, 10], [11], [502]]


def test_a_pass_holds_no_more_tokens_than_the_limit_padding_included():
    gate, noted = Gate(held=1), []

    async def main():
        made = batcher(gate, length=int, note=noted.append, max_batch_size=64, max_batch_tokens=1000)
        await gate.behind(made, *[[300]] * 7, [2000])

    asyncio.run(main())
    assert gate.passes == [[300] * 3, [300] * 3, [300], [2000]]
    assert [one.padded for one in noted[1:]] == [900, 900, 300, 2000]


def test_a_long_text_is_not_starved_by_short_ones(monkeypatch):
    """The inputs of a large request take turns with small requests that never end; after a while age alone counts."""
    monkeypatch.setattr("serve.batch.PATIENCE_S", 0.2)
    left = []

    def predict(inputs):
        time.sleep(0.01)
        return inputs

    async def main():
        made = batcher(predict, length=int, max_batch_size=2, wait_s=0)
        done = asyncio.Event()

        async def client():
            while not done.is_set():
                await made.submit([10])

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        await made.submit([400, 401, 402])
        left.append(time.perf_counter() - started)
        done.set()
        await asyncio.gather(*clients)

    asyncio.run(main())
    assert left[0] < 2


def test_the_queue_is_finite_and_says_when_to_come_again():
    gate = Gate()

    async def main():
        made = batcher(gate, max_held=3)
        first = asyncio.create_task(made.submit(["first"]))
        await asyncio.to_thread(gate.running.wait, 5)
        waiting = [asyncio.create_task(made.submit([value])) for value in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 requests are in hand") as refused:
            await made.submit([3])
        assert refused.value.status == 429
        assert refused.value.retry_after_s >= 1
        waiting[0].cancel()
        await asyncio.sleep(0)
        late = asyncio.create_task(made.submit([4]))  # there is room again
        await asyncio.sleep(0)
        gate.go.set()
        assert await asyncio.gather(first, waiting[1], late) == [["first"], [2], [4]]
        # One request is taken whatever its size, and counts for as many as the passes that it fills.
        await made.submit(list(range(100)))

    asyncio.run(main())
    assert gate.passes[1] == [2, 4]


def test_too_many_crosses_processes_with_its_time():
    again = pickle.loads(pickle.dumps(Overloaded("full", 7)))  # noqa: S301
    assert (again.message, again.retry_after_s, again.status) == ("full", 7, 429)


def test_an_output_that_is_an_error_fails_its_request_alone():
    def predict(inputs):
        return [ValueError("no") if value < 0 else value for value in inputs]

    async def main():
        made = batcher(predict, max_batch_size=8)
        return await asyncio.gather(made.submit([1, 2]), made.submit([3, -1, 4]), return_exceptions=True)

    good, bad = asyncio.run(main())
    assert good == [1, 2]
    assert isinstance(bad, ValueError)


def test_facts_tell_of_queue_and_passes():
    def predict(inputs):
        time.sleep(0.05)
        return inputs

    async def main():
        made = batcher(predict, length=int, max_batch_size=2, wait_s=0)
        assert set(made.facts().values()) == {0}
        await asyncio.gather(*(made.submit([length]) for length in (10, 10, 8, 8)))
        return made.facts()

    facts = asyncio.run(main())
    assert facts["ongoing"] == facts["queued"] == 0
    assert facts["batch_size"] == 2
    assert 0.05 <= facts["pass_s"] < 0.5
    assert 0.05 <= facts["queue_p99_s"] < 0.5
    assert facts["inputs_per_s"] == 0.4
    assert facts["padding"] == 0


def test_memory_that_does_not_suffice_halves_the_pass_and_limits_the_next():
    sizes = []

    def handler(inputs):  # a model whose memory holds 40 tokens
        sizes.append(len(inputs))
        if len(inputs) * max(inputs) > 40:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
        return inputs

    async def main():
        made = batcher(
            lambda inputs: isolated(handler, inputs, name="m", out_of_memory=made.ran_out),
            max_batch_size=8,
            length=int,
        )
        answers = await asyncio.gather(*(made.submit([10]) for _ in range(8)))
        assert answers == [[10]] * 8
        assert sizes == [8, 4, 4]
        assert await asyncio.gather(*(made.submit([10]) for _ in range(8))) == [[10]] * 8
        with pytest.raises(RunFailed, match="does not hold this one input"):
            await made.submit([50])

    asyncio.run(main())
    assert sizes[3:] == [7, 3, 4, 1, 1]
