"""Recording of our metrics, by ray.util.metrics: from the process that knows to Ray's agent on its node.

A value costs 1.5 µs of CPU; Ray sends them along every few seconds. Without a Ray they go nowhere, and nothing fails.
Ray forgets a gauge 20 s after it was last set, changed or not: whoever has one sets it again and again.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping, Sequence
from typing import Any, Protocol

from cluster.monitoring import names
from cluster.monitoring.names import Metric

Scope = MutableMapping[str, Any]
Answer = Callable[[Scope, Any, Any], Coroutine[Any, Any, None]]
_MODEL = "shoal.model"  # in the scope of a request that was passed on to a model
LEFT = 499  # nginx's code for a client that closed the connection
BROKEN = 500  # an answer that failed, be it after its status had gone out
EVERY_S = 1.0

# What a training run tells, in train.events, and the metric that shows it.
_TOLD = {
    "train/loss": names.TRAINING_LOSS,
    "validation/loss": names.VALIDATION_LOSS,
    "train/rows_per_second": names.TRAINING_ROWS,
}


class Requests:
    """The gateway's requests: how many, how they ended, how long they took, how many are under way.

    A request only adds to what lies here; once a second it is handed to Ray, all together, requests or none. All
    methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._count = instrument(names.REQUESTS)
        self._seconds = instrument(names.LATENCY)
        self._in_flight = instrument(names.IN_FLIGHT)
        self._under_way: dict[str, int] = {}
        self._ended: dict[str, list[tuple[int, float]]] = {}  # since the last flush: status and seconds, by model
        self._timer: asyncio.TimerHandle | None = None

    def serves(self, models: Iterable[str]) -> None:
        """Tell of these models before the first request."""
        for name in models:
            if name not in self._under_way:
                self._under_way[name] = 0

    def routed(self, scope: Scope, name: str) -> None:
        """This request goes to that model, which is one that is served: the label must not be a client's choice. Said
        twice it counts once."""
        if _MODEL not in scope:
            scope[_MODEL] = name
            self._under_way[name] = self._under_way.get(name, 0) + 1

    def measured(self, answer: Answer) -> Answer:
        """The ASGI coroutine, with its requests recorded. Called in the loop that runs it."""

        async def measure(scope: Scope, receive: Any, send: Any) -> None:
            began, code = time.perf_counter(), LEFT

            def noting(message: Any) -> Awaitable[None]:
                nonlocal code
                if message["type"] == "http.response.start":
                    code = message["status"]
                return send(message)

            try:
                await answer(scope, receive, noting)
            except Exception:
                code = BROKEN
                raise
            finally:
                name = scope.get(_MODEL, names.OTHER)
                if name is not names.OTHER:
                    self._under_way[name] -= 1
                self._ended.setdefault(name, []).append((code, time.perf_counter() - began))

        self.flush()
        return measure

    def flush(self) -> None:
        """Hand over what there is, and again in a second."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.flush)
        ended, self._ended = self._ended, {}
        for name, requests in ended.items():
            for code, count in Counter(code for code, _ in requests).items():
                self._count.inc(count, {"model": name, "code": str(code)})
            labels = {"model": name}
            for _, seconds in requests:
                self._seconds.observe(seconds, labels)
        for name, count in self._under_way.items():
            self._in_flight.set(count, {"model": name})


class Pass(Protocol):
    """What is told of a forward pass: serve.passes.Pass."""

    @property
    def inputs(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def padded(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def queued(self) -> Sequence[float]: ...


class Passes:
    """The forward passes of one model in one replica."""

    def __init__(self, model: str) -> None:
        self._labels = {"model": model}
        self._sizes, self._inputs = instrument(names.BATCH_SIZE), instrument(names.INPUTS)
        self._queued, self._seconds = instrument(names.QUEUE_SECONDS), instrument(names.PASS_SECONDS)
        self._tokens, self._padding = instrument(names.TOKENS), instrument(names.PADDING)

    def note(self, one: Pass) -> None:
        """One pass has ended."""
        self._sizes.observe(one.inputs, self._labels)
        self._inputs.inc(one.inputs, self._labels)
        self._seconds.observe(one.seconds, self._labels)
        self._tokens.inc(one.tokens, self._labels)
        if one.padded > one.tokens:
            self._padding.inc(one.padded - one.tokens, self._labels)
        for seconds in one.queued:
            self._queued.observe(seconds, self._labels)


class Loads:
    """The models that come and go in shared copies."""

    def loaded(self, model: str, seconds: float) -> None:
        instrument(names.LOAD_SECONDS).observe(seconds, {"model": model})

    def let_go(self, model: str) -> None:
        instrument(names.LET_GO).inc(1, {"model": model})


class Training:
    """One run, as its driver hears of it."""

    def __init__(self, model: str, run: str) -> None:
        self._labels = {"model": model, "run": run}
        self._values: dict[Metric, float] = {}
        self._set(names.TRAINING_RUNNING, 1)
        self._set(names.TRAINING_HEARD, time.time())

    def note(self, event: dict[str, Any]) -> None:
        """An event of train.events."""
        if "step" in event:
            self._set(names.TRAINING_STEP, event["step"])
            self._set(names.TRAINING_TOTAL, event["total"])
            self._set(names.TRAINING_HEARD, time.time())
        for key, value in event.get("metrics", {}).items():
            if (metric := _TOLD.get(key)) is not None:
                self._set(metric, value)

    def refresh(self) -> None:
        """Say it all again: called every second or so while the run is under way, be there news or not."""
        for metric, value in self._values.items():
            self._set(metric, value)

    def ended(self) -> None:
        """The run is over, however it ended; this process may live on."""
        self._set(names.TRAINING_RUNNING, 0)

    def _set(self, metric: Metric, value: float) -> None:
        self._values[metric] = float(value)
        instrument(metric).set(float(value), self._labels)


@functools.cache
def instrument(metric: Metric) -> Any:
    """Ray's object for a metric, one a process."""
    from ray.util import metrics

    if metric.kind == "histogram":
        boundaries = list(metric.boundaries)
        return metrics.Histogram(metric.name, description=metric.help, boundaries=boundaries, tag_keys=metric.labels)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(metric.name, description=metric.help, tag_keys=metric.labels)
