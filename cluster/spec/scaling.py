"""How many copies of a model run: the keys of `serve.autoscale`."""

from __future__ import annotations

import zoneinfo
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.spec.section import Section

Metric = Literal["ongoing", "queue_time", "cpu", "gpu", "prometheus"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_TIME = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
# What a metric aims at where the file says nothing: seconds, and shares of what a copy was given.
_TARGETS = {"queue_time": 0.1, "cpu": 0.7, "gpu": 0.7}


class Window(Section):
    """A part of the week in which more copies are kept, by the clock on the wall."""

    days: Annotated[list[Day], Field(min_length=1)] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    """On which days it starts."""
    start: Annotated[str, Field(pattern=_TIME)]
    """From when, e.g. "08:00". Copies are started earlier by as long as a start takes."""
    end: Annotated[str, Field(pattern=_TIME)]
    """Until when; at or before `start` it is that time of the next day."""
    timezone: str = "UTC"
    """Whose clock, by its name in the tz database, e.g. Europe/Berlin; summer time comes and goes with it."""
    min_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Copies that run then at least."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _written_without_quotes(cls, value: Any) -> Any:
        """YAML 1.1 reads 18:00 as a number of base 60, which is the minutes since midnight."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
            return f"{value // 60:02d}:{value % 60:02d}"
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone; write one like Europe/Berlin or UTC") from None
        return value


class Autoscale(Section):
    """When copies are added and taken away, between serve.min_replicas and serve.max_replicas."""

    metric: Metric = "ongoing"
    """What is looked at. ongoing: requests in hand and waiting, against serve.target_ongoing_requests a copy;
    queue_time: how long requests wait for a forward pass; cpu: how busy copies keep their cores; gpu: the share of time
    in which their GPUs compute at all, whoever has them do it, as NVIDIA's driver tells (not of a GPU in MIG mode; a
    language model is at it for a single stream); prometheus: the value of `query`."""
    target: Annotated[float, Field(gt=0)] | None = None
    """queue_time: seconds (median; left out: 0.1). cpu: a share of serve.num_cpus (left out: 0.7). gpu: a share of the
    time (left out: 0.7). prometheus: as much of the query's value as is one copy's. Not for ongoing."""
    query: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """A PromQL query with one value, for metric: prometheus, asked at cluster.yaml's prometheus.url."""
    upscale_delay_s: Annotated[float, Field(ge=0, le=3600)] = 0.5
    """For how long more copies have to be wanted before they are started. From none there is no delay."""
    downscale_delay_s: Annotated[float, Field(ge=0, le=86_400)] = 60
    """For how long fewer have to be enough before some are ended: half of them at most, then the delay begins again."""
    idle_s: Annotated[float, Field(gt=0, le=604_800)] = 300
    """With min_replicas: 0, the last copies end after so long without a request."""
    max_held_requests: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Requests that wait at the gateways while no copy is up; the next is answered 429 with Retry-After."""
    hold_s: Annotated[float, Field(gt=0, le=86_400)] = 120
    """How long they wait at most, on top of serve.request_timeout_s; then they are answered 429 with Retry-After."""
    schedule: list[Window] = []
    """Windows of the week with more copies."""

    @model_validator(mode="after")
    def _fitting(self) -> Autoscale:
        if self.metric == "ongoing" and self.target is not None:
            raise ValueError(
                f"target: {self.target:g}: metric ongoing aims at serve.target_ongoing_requests; write the number there"
            )
        if self.metric in ("cpu", "gpu") and self.target is not None and self.target > 1:
            raise ValueError(f"target: {self.target:g}: metric {self.metric} wants a share of 1, e.g. 0.7")
        if self.metric == "prometheus" and (self.query is None or self.target is None):
            gone = "query" if self.query is None else "target"
            raise ValueError(
                f"{gone}: metric prometheus needs a query, and a target, the part of it that is one copy's"
            )
        if self.metric != "prometheus" and self.query is not None:
            raise ValueError(f"query: metric {self.metric} asks none; write metric: prometheus, or leave query out")
        return self

    def aim(self, target_ongoing_requests: float) -> float:
        """What a copy should have of `metric`."""
        if self.metric == "ongoing":
            return target_ongoing_requests
        return _TARGETS[self.metric] if self.target is None else self.target


# What holds for any number of copies; the rest of the section is for a number that changes.
ALWAYS = ("max_held_requests", "hold_s")


def check(autoscale: Autoscale, *, min_replicas: int, max_replicas: int) -> None:
    """Raise ValueError where keys contradict the bounds, or would do nothing between them."""
    for index, window in enumerate(autoscale.schedule):
        if window.min_replicas > max_replicas:
            raise ValueError(
                f"autoscale.schedule.{index}.min_replicas: {window.min_replicas} is more than max_replicas: "
                f"{max_replicas}; raise max_replicas"
            )
    if min_replicas == max_replicas:
        plain = Autoscale()
        for key in Autoscale.model_fields:
            if key not in ALWAYS and getattr(autoscale, key) != getattr(plain, key):
                raise ValueError(
                    f"autoscale.{key}: does nothing while min_replicas and max_replicas are both {max_replicas}; raise "
                    "max_replicas, or leave it out"
                )


def check_task(autoscale: Autoscale, *, task: str, num_cpus: float, num_gpus: float) -> None:
    """Raise ValueError where a task's copies cannot tell of the metric."""
    metric = autoscale.metric
    if task == "text-generation" and metric in ("queue_time", "cpu"):
        raise ValueError(
            f"serve.autoscale.metric: {metric}: an engine of text-generation has its own queue and processes; write "
            "ongoing, gpu or prometheus"
        )
    if metric == "cpu" and num_cpus == 0:
        raise ValueError("serve.autoscale.metric: cpu: copies have no core of their own; raise serve.num_cpus")
    if metric == "gpu" and num_gpus == 0:
        raise ValueError("serve.autoscale.metric: gpu: copies have no GPU; write serve.num_gpus, or another metric")
