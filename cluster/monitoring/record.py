"""Recording of our metrics, by ray.util.metrics: from the process that knows to Ray's agent on its node.

A value costs 1.5 µs; Ray sends them along every few seconds. Without a Ray they go nowhere, and nothing fails.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from cluster.monitoring import names
from cluster.monitoring.names import Metric

Scope = MutableMapping[str, Any]
Answer = Callable[[Scope, Any, Any], Awaitable[None]]
_MODEL = "shoal.model"  # in the scope of a request that was passed on to a model
LEFT = "499"  # nginx's code for a client that closed the connection

# What a training run tells, in train.events, and the metric that shows it.
_TOLD = {
    "train/loss": names.TRAINING_LOSS,
    "validation/loss": names.VALIDATION_LOSS,
    "train/rows_per_second": names.TRAINING_ROWS,
    "train/tokens_per_second": names.TRAINING_TOKENS,
}


class Requests:
    """The gateway's requests: how many, how they ended, how long they took, how many are under way."""

    def __init__(self) -> None:
        self._count = instrument(names.REQUESTS)
        self._seconds = instrument(names.LATENCY)
        self._in_flight = instrument(names.IN_FLIGHT)
        self._under_way: dict[str, int] = {}
        self._by_code: dict[tuple[str, str], dict[str, str]] = {}  # the labels, so that none are built by request
        self._by_model: dict[str, dict[str, str]] = {names.OTHER: {"model": names.OTHER}}

    def serves(self, models: Iterable[str]) -> None:
        """Tell of these models before the first request."""
        for name in models:
            if name not in self._by_model:
                self._by_model[name] = {"model": name}
                self._in_flight.set(0, self._by_model[name])

    def routed(self, scope: Scope, name: str) -> None:
        """This request goes to that model, which is one that is served: the label must not be a client's choice."""
        scope[_MODEL] = name
        self._change(name, 1)

    def measured(self, answer: Answer) -> Answer:
        """The ASGI coroutine, with its requests recorded."""

        async def measure(scope: Scope, receive: Any, send: Any) -> None:
            began, code = time.perf_counter(), LEFT

            def noting(message: Any) -> Awaitable[None]:
                nonlocal code
                if message["type"] == "http.response.start":
                    code = str(message["status"])
                return send(message)

            try:
                await answer(scope, receive, noting)
            except Exception:
                code = "500"
                raise
            finally:
                name = scope.get(_MODEL, names.OTHER)
                if name is not names.OTHER:
                    self._change(name, -1)
                labels = self._by_code.get((name, code))
                if labels is None:
                    labels = self._by_code[name, code] = {"model": name, "code": code}
                self._count.inc(1, labels)
                self._seconds.observe(time.perf_counter() - began, self._by_model[name])

        return measure

    def _change(self, name: str, by: int) -> None:
        count = self._under_way[name] = self._under_way.get(name, 0) + by
        self._in_flight.set(count, self._by_model.setdefault(name, {"model": name}))


class Passes:
    """The forward passes of one replica."""

    def __init__(self, model: str) -> None:
        self._labels = {"model": model}
        self._sizes, self._inputs = instrument(names.BATCH_SIZE), instrument(names.INPUTS)

    def note(self, size: int) -> None:
        """One pass, of that many inputs."""
        self._sizes.observe(size, self._labels)
        self._inputs.inc(size, self._labels)


class Training:
    """One run, as its driver hears of it."""

    def __init__(self, model: str, run: str) -> None:
        self._labels = {"model": model, "run": run}
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

    def ended(self) -> None:
        """The run is over, however it ended; this process may live on."""
        self._set(names.TRAINING_RUNNING, 0)

    def _set(self, metric: Metric, value: float) -> None:
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
