"""The value of a PromQL query (serve.autoscale.query), asked again and again beside everything else."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

from cluster.errors import InputError

log = logging.getLogger(__name__)
EVERY_S = 5.0
FRESH_S = 60.0  # an older value says nothing of now
_TIMEOUT_S = 4.0
_MOST_BYTES = 1 << 20


@dataclass
class _Query:
    value: float = 0.0
    when: float = -math.inf
    asked: float = -math.inf
    trouble: str = ""
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Queries:
    """Answers from what is known, and asks in threads. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._queries: dict[tuple[str, str], _Query] = {}

    def value(self, url: str, query: str) -> float | None:
        """The last value; None where there was none for a minute. Asks anew where it is time to."""
        one = self._queries.setdefault((url, query), _Query())
        now = time.monotonic()
        if now - one.asked >= EVERY_S and (one.task is None or one.task.done()):
            one.asked = now
            one.task = asyncio.get_running_loop().create_task(self._ask(url, query, one))
        return one.value if now - one.when <= FRESH_S else None

    def trouble(self, url: str, query: str) -> str:
        """Why the last answer was none; empty where it was one."""
        one = self._queries.get((url, query))
        return f"{url}: {one.trouble}" if one is not None and one.trouble else ""

    async def _ask(self, url: str, query: str, one: _Query) -> None:
        try:
            one.value = await asyncio.to_thread(ask, url, query)
            one.when, one.trouble = time.monotonic(), ""
        except (OSError, InputError, ValueError) as error:
            if str(error) != one.trouble:
                one.trouble = str(error)
                log.warning("%s: %s", url, error)


def ask(url: str, query: str) -> float:
    """The query's one value now. Raises InputError where it has none, or several; OSError where nobody answers."""
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    if not address.startswith(("http://", "https://")):
        raise InputError(f"prometheus.url: {url}: no http address")
    # Not by a proxy of the environment, which knows nothing of this network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=_TIMEOUT_S) as answer:
        tree = json.loads(answer.read(_MOST_BYTES))
    data = tree["data"] if isinstance(tree, dict) and tree.get("status") == "success" else None
    if data is None:
        raise InputError(f"{query}: Prometheus refuses it: {tree!r:.200}")
    if data["resultType"] == "scalar":
        values = [data["result"][1]]
    else:
        values = [series["value"][1] for series in data["result"] if "value" in series]
    if len(values) != 1:
        raise InputError(f"{query}: has {len(values)} values; write one that has one, e.g. sum(...)")
    value = float(values[0])
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{query}: is {value:g}, which no number of copies fits")
    return value
