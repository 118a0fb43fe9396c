"""What a dashboard is made of, as plain data: rows of panels, each with what it asks Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.monitoring.names import Metric

WINDOW = "$__rate_interval"  # Grafana's: four scrapes, or what the page's width makes of it
MODEL = "$model"  # the variable of the page for one model


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and how each of its series is called ({{label}} stands for a label's value)."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. `needs` names what a cluster must have so that there is anything to show."""

    title: str
    about: str
    unit: str
    """Grafana's name of the unit: short, reqps, percentunit, s, bytes, ..."""
    queries: tuple[Query, ...]
    kind: Literal["graph", "number"] = "graph"
    width: int = 8
    """Of 24."""
    needs: Literal["", "gpu", "llm", "rollout", "shared", "keys"] = ""
    most: float | None = None
    """Top of the scale, where there is one."""
    words: tuple[tuple[int, str, str], ...] = ()
    """Value, word, colour: where a number stands for a state."""


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Page:
    """A dashboard. `uid` is how Grafana knows it: it never changes, so that links hold and a push finds it again."""

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    models: bool = False
    """Whether it has the variable `model`."""

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def rate(metric: Metric, by: str, where: str = "") -> str:
    """Per second, summed over replicas and nodes."""
    return f"sum by ({by}) (rate({metric.series}{where}[{WINDOW}]))"


def quantile(q: float, metric: Metric | str, by: str = "", where: str = "") -> str:
    """A quantile out of a histogram's buckets, over all replicas and nodes."""
    series = metric.series if isinstance(metric, Metric) else metric
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({series}{where}[{WINDOW}])))"


def quantiles(metric: Metric | str, where: str) -> tuple[Query, ...]:
    """The three that are looked at."""
    return tuple(Query(quantile(q, metric, where=where), f"p{100 * q:.0f}") for q in (0.5, 0.95, 0.99))
