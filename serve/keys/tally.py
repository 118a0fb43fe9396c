"""Metrics by tenant: summed here, handed to Ray once a second, for so many tenants at most."""

from __future__ import annotations

from collections import Counter

from cluster.monitoring import names

TENANTS = 100


class Tally:
    """One gateway's. `settled` and `refused` belong to the event loop, `tell` to one thread."""

    def __init__(self) -> None:
        self._tenants: set[str] = set()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()

    def settled(self, tenant: str, status: int, tokens: int, seconds: float) -> None:
        label = self._label(tenant)
        self._requests[label, f"{status // 100}xx"] += 1
        self._tokens[label] += tokens
        self._seconds[label] += seconds  # pyright: ignore[reportArgumentType]

    def refused(self, tenant: str, why: str) -> None:
        """`tenant` is empty where it is not known."""
        self._refused[self._label(tenant) if tenant else names.OTHER, why] += 1

    def tell(self) -> None:
        """Hand over what there is since the last time."""
        from cluster.monitoring.record import instrument

        requests, self._requests = self._requests, Counter()
        tokens, self._tokens = self._tokens, Counter()
        seconds, self._seconds = self._seconds, Counter()
        refused, self._refused = self._refused, Counter()
        for (tenant, code), count in requests.items():
            instrument(names.TENANT_REQUESTS).inc(count, {"tenant": tenant, "code": code})
        for (tenant, why), count in refused.items():
            instrument(names.REFUSED).inc(count, {"tenant": tenant, "why": why})
        for metric, sums in ((names.TENANT_TOKENS, tokens), (names.TENANT_SECONDS, seconds)):
            for tenant, total in sums.items():
                if total > 0:
                    instrument(metric).inc(total, {"tenant": tenant})

    def _label(self, tenant: str) -> str:
        """The tenant, or `_other` for those that came after the first TENANTS."""
        if tenant not in self._tenants:
            if len(self._tenants) >= TENANTS:
                return names.OTHER
            self._tenants.add(tenant)
        return tenant
