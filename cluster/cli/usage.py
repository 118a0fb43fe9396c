"""`shoal usage`: what was used, by whom, and what it cost."""

from __future__ import annotations

import csv
import io
import re
import time
from datetime import UTC, datetime
from typing import Any

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table
from cluster.errors import InputError

_UNITS = {"h": 3600, "d": 86_400, "w": 604_800}


@click.command()
@click.option(
    "--by",
    default="tenant,model,verb",
    show_default=True,
    metavar="COLUMNS",
    help="Sum by some of tenant, key, model, verb, hour, day.",
)
@click.option(
    "--since",
    default="30d",
    show_default=True,
    metavar="TIME",
    help="A date (2026-11-24), or so long ago (36h, 30d, 4w).",
)
@click.option("--until", metavar="TIME", help="The same; left out: now.")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--model", help="Only this model's.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, numbers in full.")
@as_json
def command(
    by: str, since: str, until: str | None, tenant: str | None, model: str | None, as_csv: bool, as_json: bool
) -> None:
    """Requests, tokens, pictures, compute seconds and cost, by tenant, model and time. Training and sweeps are in it.

    Hours are kept, so times are rounded down to the hour. Gateways write every few seconds. Costs follow `prices` of
    cluster.yaml as they stand now.

    \b
      shoal usage                                  the last 30 days
      shoal usage --by day,tenant --since 2026-11-01
      shoal usage --by key --tenant acme --since 24h
      shoal usage --by hour,tenant,model --csv > usage.csv
    """
    from cluster.accounts.usage import COUNTED, Usage, report
    from cluster.settings import settings

    if as_csv and as_json:
        raise InputError("--csv and --json: one of them")
    columns = [name.strip() for name in by.split(",") if name.strip()]
    found = settings().prices
    begin = _moment("--since", since)
    end = None if until is None else _moment("--until", until)
    rows = report(Usage().rows(since=begin, until=end, tenant=tenant, model=model), found, by=columns)
    heads = [*columns, *COUNTED, "cost"]
    if as_csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, heads, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with Output() as out:
            return out.result(rows, text.getvalue().rstrip("\n"))
    cells = [[_cell(name, row[name], found.currency) for name in heads] for row in rows]
    with Output(as_json=as_json) as out:
        value = [row | {"currency": found.currency} for row in rows]
        return out.result(value, table(heads, cells) if rows else f"nothing was used since {_told(begin)}")


def _cell(name: str, value: Any, currency: str) -> str:
    if name == "cost":
        return f"{value:.4f} {currency}"
    return f"{value:.1f}" if isinstance(value, float) else str(value) or "-"


def _moment(option: str, text: str) -> float:
    """The beginning of an hour, in seconds since 1970. Raises InputError."""
    if match := re.match(r"^(\d{1,5})([hdw])$", text):
        at = time.time() - int(match[1]) * _UNITS[match[2]]
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise InputError(
                f"{option}: {text!r} is no time; write e.g. 2026-11-24, 2026-11-24T13:00Z, 36h or 30d"
            ) from None
        at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return max(0, at // 3600 * 3600)


def _told(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")
