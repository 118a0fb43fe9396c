"""What is recorded of requests, passes and runs; that it reaches Prometheus is shown in the live test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.monitoring import names, record
from cluster.monitoring.names import Metric
from serve.asgi import respond
from serve.batch import Batcher


class Book:
    """Stands where Ray's instruments do, and keeps what is written: (metric, labels) to values."""

    def __init__(self) -> None:
        self.written: dict[tuple[str, tuple[str, ...]], list[float]] = {}

    def instrument(self, metric: Metric) -> Any:
        def write(value: float, labels: dict[str, str]) -> None:
            assert tuple(labels) == metric.labels
            self.written.setdefault((metric.name, tuple(labels.values())), []).append(value)

        return type(
            "Instrument", (), {"inc": staticmethod(write), "set": staticmethod(write), "observe": staticmethod(write)}
        )

    def __call__(self, metric: Metric, *labels: str) -> list[float]:
        return self.written.get((metric.name, labels), [])


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    book = Book()
    monkeypatch.setattr(record, "instrument", book.instrument)
    return book


def ask(
    requests: record.Requests, model: str | None, status: int = 200, fault: BaseException | None = None
) -> list[Any]:
    """One request through the measuring coroutine; the messages that reached the client."""
    sent: list[Any] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if model is not None:
            requests.routed(scope, model)
            requests.routed(scope, model)
        if fault is not None:
            raise fault
        await respond(send, status, b"{}")

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        try:
            await requests.measured(answer)({"type": "http"}, None, send)
        finally:
            requests.flush()

    asyncio.run(main())
    return sent


def test_a_request_counts_by_model_and_code(book: Book):
    requests = record.Requests()
    messages = ask(requests, "reviews")
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    ask(requests, "reviews", 429)
    ask(requests, "reviews")
    assert book(names.REQUESTS, "reviews", "200") == [1, 1]
    assert book(names.REQUESTS, "reviews", "429") == [1]
    assert len(book(names.LATENCY, "reviews")) == 3
    assert all(0 < seconds < 1 for seconds in book(names.LATENCY, "reviews"))
    assert set(book(names.IN_FLIGHT, "reviews")) == {0}


def test_what_is_under_way_is_told_within_a_second_and_all_at_once(book: Book, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record, "EVERY_S", 0.05)
    requests = record.Requests()

    async def send(message: Any) -> None: ...

    async def main() -> None:
        done = asyncio.Event()

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            requests.routed(scope, "reviews")
            await done.wait()
            await respond(send, 200, b"{}")

        asked = [asyncio.create_task(requests.measured(answer)({}, None, send)) for _ in range(3)]
        await asyncio.sleep(0.2)
        told = book(names.IN_FLIGHT, "reviews")
        # Again and again, though nothing changed: Ray forgets a gauge that is not set.
        assert set(told) == {3}
        assert len(told) > 1
        assert book(names.REQUESTS, "reviews", "200") == []
        done.set()
        await asyncio.gather(*asked)
        await asyncio.sleep(0.2)

    asyncio.run(main())
    assert book(names.IN_FLIGHT, "reviews")[-1] == 0
    assert book(names.REQUESTS, "reviews", "200") == [3]
    assert len(book(names.LATENCY, "reviews")) == 3


def test_what_names_no_model_that_is_served_makes_no_label(book: Book):
    requests = record.Requests()
    for _ in range(3):
        ask(requests, None, 404)
    assert book(names.REQUESTS, names.OTHER, "404") == [1, 1, 1]
    assert book(names.IN_FLIGHT, names.OTHER) == []
    assert {labels[0] for _, labels in book.written} == {names.OTHER}


def test_a_client_that_left_and_a_fault_of_ours(book: Book):
    requests = record.Requests()
    with pytest.raises(asyncio.CancelledError):
        ask(requests, "reviews", fault=asyncio.CancelledError())
    with pytest.raises(RuntimeError):
        ask(requests, "reviews", fault=RuntimeError("x"))
    assert book(names.REQUESTS, "reviews", "499") == [1]
    assert book(names.REQUESTS, "reviews", "500") == [1]
    assert book(names.IN_FLIGHT, "reviews")[-1] == 0


def test_models_are_told_of_before_their_first_request(book: Book):
    async def main() -> None:
        requests = record.Requests()
        requests.serves(["a", "b"])
        requests.serves(["a", "b", "c"])
        requests.flush()

    asyncio.run(main())
    assert [book(names.IN_FLIGHT, name) for name in "abc"] == [[0], [0], [0]]


def test_what_serve_hosts_is_measured(book: Book):
    from serve.asgi import application
    from serve.gateway.app import Gateway

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        way = Gateway()
        way.learn({"models": {"reviews": {}}, "public_url": "", "max_body_mb": 1})
        app = application(way.requests.measured(way.answer))
        await app({"type": "http", "method": "GET", "path": "/health", "headers": []}, None, send)
        way.requests.flush()

    asyncio.run(main())
    assert sent[0]["status"] == 200
    assert book(names.REQUESTS, names.OTHER, "200") == [1]
    assert set(book(names.IN_FLIGHT, "reviews")) == {0}


def test_a_pass_counts_its_inputs(book: Book):
    async def main() -> None:
        batcher = Batcher(lambda inputs: inputs, record.Passes("reviews").note)
        batcher.configure(max_batch_size=4, wait_s=0.01)
        await asyncio.gather(*(batcher.submit([1, 2]) for _ in range(3)))

    asyncio.run(main())
    assert book(names.BATCH_SIZE, "reviews") == [4, 2]
    assert book(names.INPUTS, "reviews") == [4, 2]
    assert book(names.TOKENS, "reviews") == [4, 2]
    assert book(names.PADDING, "reviews") == []
    assert len(book(names.QUEUE_SECONDS, "reviews")) == 6
    assert len(book(names.PASS_SECONDS, "reviews")) == 2


def test_a_run_as_its_events_tell_of_it(book: Book):
    run = record.Training("reviews", "r1")
    assert book(names.TRAINING_RUNNING, "reviews", "r1") == [1]
    run.note({"step": 3, "total": 9, "resumed": 3})
    run.note({"step": 4, "total": 9, "metrics": {"train/loss": 0.5, "train/rows_per_second": 20, "train/grad_norm": 1}})
    run.note({"step": 4, "total": 9, "metrics": {"validation/loss": 0.7, "validation/accuracy": 0.5}})
    run.refresh()
    run.ended()
    assert book(names.TRAINING_STEP, "reviews", "r1") == [3, 4, 4, 4]
    assert book(names.TRAINING_TOTAL, "reviews", "r1") == [9, 9, 9, 9]
    assert book(names.TRAINING_LOSS, "reviews", "r1") == [0.5, 0.5]
    assert book(names.VALIDATION_LOSS, "reviews", "r1") == [0.7, 0.7]
    assert book(names.TRAINING_ROWS, "reviews", "r1") == [20, 20]
    assert book(names.TRAINING_RUNNING, "reviews", "r1") == [1, 1, 0]
    heard = book(names.TRAINING_HEARD, "reviews", "r1")
    assert len(heard) == 5
    assert heard == sorted(heard)


def test_without_a_ray_it_goes_nowhere_and_fails_nothing():
    for metric in names.METRICS:
        instrument = record.instrument(metric)
        labels = dict.fromkeys(metric.labels, "x")
        (
            instrument.inc
            if metric.kind == "counter"
            else instrument.set
            if metric.kind == "gauge"
            else instrument.observe
        )(1, labels)
        assert record.instrument(metric) is instrument
