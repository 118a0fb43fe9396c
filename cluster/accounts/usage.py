"""What was used, by hour, tenant, key, model and verb: requests at the gateway, and what trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

from cluster.accounts.store import Store
from cluster.errors import InputError, ShoalError
from cluster.settings.access import Price, Prices

HOUR = 3600


class Slot(NamedTuple):
    """What counts are summed by. `hour` is its first second since 1970; `key` is an id, or empty without one; `verb` is
    predict, or train and tune."""

    hour: int
    tenant: str
    key: str
    model: str
    verb: str


@dataclass(slots=True)
class Counts:
    """Sums of a slot. Of a request `compute_seconds` are those it spent at the model, of training those of all workers
    together."""

    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    compute_seconds: float = 0.0

    def add(self, other: Counts) -> None:
        self.requests += other.requests
        self.failed += other.failed
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.images += other.images
        self.compute_seconds += other.compute_seconds


COUNTED = tuple(field.name for field in fields(Counts))
BY = ("tenant", "key", "model", "verb", "hour", "day")


class Usage(Store):
    """The usage of a database."""

    def add(self, rows: Mapping[Slot, Counts], *, writer: str = "", batch: int = 0) -> None:
        """Add counts, all or none. A batch that `writer` has sent before is taken as done: send it again as often as
        it takes."""
        from sqlalchemy import delete, select

        from cluster.accounts.tables import usage, writers

        if not rows:
            return
        now = time.time()
        with self.transaction("writing usage") as connection:
            if writer:
                last = connection.execute(select(writers.c.batch).where(writers.c.writer == writer)).scalar()
                if last is not None and last >= batch:
                    return
                values = {"batch": batch, "at": now}
                statement = self.insert(writers).values(writer=writer, **values)
                connection.execute(statement.on_conflict_do_update(index_elements=["writer"], set_=values))
                connection.execute(delete(writers).where(writers.c.at < now - 7 * 24 * HOUR))
            statement = self.insert(usage)
            sums = {name: usage.c[name] + statement.excluded[name] for name in COUNTED}
            statement = statement.on_conflict_do_update(index_elements=list(Slot._fields), set_=sums)
            # In one order everywhere: two writers that each hold what the other wants would wait for ever.
            told = [{**slot._asdict(), **dict(zip(COUNTED, astuple(rows[slot])))} for slot in sorted(rows)]
            connection.execute(statement, told)

    def rows(
        self,
        *,
        since: float = 0,
        until: float | None = None,
        tenant: str | None = None,
        model: str | None = None,
    ) -> list[tuple[Slot, Counts]]:
        """What was used in the hours that begin in [since, until), in seconds since 1970, oldest first."""
        from sqlalchemy import select

        from cluster.accounts.tables import usage

        wanted = select(usage).where(usage.c.hour >= since)
        wanted = wanted if until is None else wanted.where(usage.c.hour < until)
        wanted = wanted if tenant is None else wanted.where(usage.c.tenant == tenant)
        wanted = wanted if model is None else wanted.where(usage.c.model == model)
        with self.transaction("reading usage") as connection:
            found = connection.execute(wanted.order_by(*(usage.c[name] for name in Slot._fields))).mappings().all()
        return [
            (Slot(*(row[name] for name in Slot._fields)), Counts(**{name: row[name] for name in COUNTED}))
            for row in found
        ]


def report(rows: Iterable[tuple[Slot, Counts]], prices: Prices, *, by: Iterable[str]) -> list[dict[str, Any]]:
    """Sums and cost by some of BY, as rows {each of by, each of COUNTED, cost}, in their order. Raises InputError."""
    by = tuple(by)
    if unknown := [name for name in by if name not in BY]:
        raise InputError(f"by: {unknown[0]!r} is nothing to sum by; write some of {', '.join(BY)}")
    sums: dict[tuple[str, ...], Counts] = {}
    costs: dict[tuple[str, ...], float] = {}
    for slot, counts in rows:
        at = time.gmtime(slot.hour)
        facts = {**slot._asdict(), "hour": time.strftime("%Y-%m-%dT%H:00Z", at), "day": time.strftime("%Y-%m-%d", at)}
        group = tuple(str(facts[name]) for name in by)
        sums.setdefault(group, Counts()).add(counts)
        costs[group] = costs.get(group, 0.0) + cost(
            counts, prices.models.get(slot.model, prices.default), verb=slot.verb
        )
    return [
        {**dict(zip(by, group)), **dict(zip(COUNTED, astuple(counts))), "cost": costs[group]}
        for group, counts in sorted(sums.items(), key=lambda item: item[0])
    ]


def cost(counts: Counts, price: Price, *, verb: str = "predict") -> float:
    """What counts come to, in the currency of the prices. Requests that failed cost what they used, and no more; a run
    is no request."""
    answered = 0 if verb in ("train", "tune") else counts.requests - counts.failed
    return (
        answered * price.requests_1k / 1000
        + counts.input_tokens * price.input_tokens_1m / 1e6
        + counts.output_tokens * price.output_tokens_1m / 1e6
        + counts.images * price.images_1k / 1000
        + counts.compute_seconds * price.compute_hour / HOUR
    )


def trained(model: str, verb: str, *, seconds: float, failed: bool, tenant: str) -> None:
    """Note the compute seconds of a run that has ended, well or not. Never fails the run: what cannot be written is
    told of as a warning."""
    slot = Slot(int(time.time()) // HOUR * HOUR, tenant, "", model, verb)
    counts = Counts(requests=1, failed=int(failed), compute_seconds=seconds)
    try:
        Usage().add({slot: counts})
    except ShoalError as error:
        logging.getLogger("shoal").warning("usage: %.0f s of %s are not counted: %s", seconds, verb, error)
