"""Which panels of a dashboard have data, by asking a Prometheus what they would ask it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import httpx

from cluster.errors import RunFailed
from cluster.monitoring.dashboards import PAGES
from cluster.monitoring.panels import MODEL, WINDOW
from cluster.progress import Progress, silent

# Ray tells every 10 s, Prometheus looks every 10 s, and a rate takes two samples.
WAIT_S = 60.0


def plain(expr: str, model: str = "", window: str = "1m") -> str:
    """An expression as Grafana sends it: its variables replaced."""
    return expr.replace(WINDOW, window).replace(MODEL, model)


def seen(url: str, expr: str, *, since: float) -> bool:
    """Whether an expression had a value that is a number, at any time since then (seconds since 1970).

    Raises RunFailed where Prometheus does not answer, or refuses the expression.
    """
    asked: Mapping[str, Any] = {"query": expr, "start": since, "end": time.time(), "step": 2}
    try:
        answer = httpx.get(f"{url}/api/v1/query_range", params=asked, timeout=10).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise RunFailed(f"Prometheus at {url} does not answer {expr!r}: {error}") from None
    return any(math.isfinite(float(v)) for series in answer["data"]["result"] for _, v in series["values"])


def wait(
    url: str, page: str, *, model: str = "", since: float, seconds: float = WAIT_S, progress: Progress = silent
) -> dict[str, bool]:
    """Panels of a page, without those that need a GPU or a roll-out, and whether each has had data `since` then; waits
    for it `seconds` at most."""
    began = time.time()
    panels = {
        panel.title: panel for panel in PAGES[page].panels if panel.needs not in ("gpu", "rollout", "shared", "keys")
    }
    lives = dict.fromkeys(panels, False)
    while not all(lives.values()) and (spent := time.time() - began) < seconds:
        progress("watch", spent, seconds, f"{sum(lives.values())} of {len(lives)} panels")
        time.sleep(2)
        for title, panel in panels.items():
            asked = (plain(query.expr, model) for query in panel.queries)
            lives[title] = lives[title] or all(seen(url, expr, since=since) for expr in asked)
    progress("watch", seconds, seconds, f"{sum(lives.values())} of {len(lives)} panels")
    return lives
