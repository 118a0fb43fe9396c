"""`shoal keys`: who may ask the gateway."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table
from cluster.errors import InputError
from cluster.spec.section import NAME

if TYPE_CHECKING:
    from cluster.accounts import Key

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TENANT = re.compile(NAME)


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Keys for the gateway, which asks for them where cluster.yaml says access: {keys: required}.

    \b
      shoal keys                                     all of them, without their secrets
      shoal keys create acme                         a key of tenant acme; printed once
      shoal keys create acme --model reviews --expires 90d
      shoal keys rotate shoal_Ab3xYz --overlap 24h   a new one; the old is good for a day more
      shoal keys revoke shoal_Ab3xYz                 refused within seconds

    A client sends it as `Authorization: Bearer KEY`: OpenAI's as api_key, huggingface_hub's as token.
    """
    context.obj = as_json
    if context.invoked_subcommand is not None:
        return
    from cluster.accounts import Keys

    now = time.time()
    value = [_shown(key, now) for key in Keys().list()]
    rows = [
        [
            row["id"],
            row["prefix"],
            row["tenant"],
            row["name"] or "-",
            ",".join(row["models"]) or "all",
            ",".join(row["verbs"]),
            row["state"],
            (row["until"] or "-")[:16],
        ]
        for row in value
    ]
    columns = ["id", "begins", "tenant", "name", "models", "verbs", "state", "until"]
    with Output(as_json=as_json) as out:
        out.result(value, table(columns, rows) if rows else "no keys yet; `shoal keys create TENANT` makes one")


@command.command()
@click.argument("tenant")
@click.option("--name", default="", help="What it is for, for people.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="Only this model; again for more. A private one has to be named.",
)
@click.option("--verb", "verbs", multiple=True, type=click.Choice(["predict", "admin"]), help="Left out: predict.")
@click.option("--expires", metavar="TIME", help="Good for so long, e.g. 12h or 90d. Left out: until it is revoked.")
@as_json
@click.pass_context
def create(
    context: click.Context,
    tenant: str,
    name: str,
    models: Sequence[str],
    verbs: Sequence[str],
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a key of TENANT and print it, this once: only a hash of it is kept.

    \b
      shoal keys create acme --name website --model reviews --model assistant
      KEY=$(shoal keys create acme --json | jq -r .key)
    """
    from cluster.accounts import Keys

    if not _TENANT.match(tenant):
        raise InputError(f"tenant: {tenant!r}: write small letters, digits and hyphens, 63 at most")
    if wrong := [model for model in models if not _TENANT.match(model)]:
        raise InputError(f"--model: {wrong[0]!r} can be no model's name; `shoal models` lists those that there are")
    until = None if expires is None else _seconds("--expires", expires)
    made = Keys().create(tenant, name=name[:200], models=models, verbs=verbs or ("predict",), expires_in=until)
    _made(*made, as_json or context.obj)


@command.command()
@click.argument("key", metavar="ID")
@click.option("--overlap", default="24h", show_default=True, metavar="TIME", help="How long the old one is good for.")
@as_json
@click.pass_context
def rotate(context: click.Context, key: str, overlap: str, as_json: bool) -> None:
    """Make a new key in the place of ID, which stays good for the overlap. Limits count the two as one.

    \b
      shoal keys rotate shoal_Ab3xYz
      shoal keys rotate 1f9c02ab --overlap 0s        the old one ends now
    """
    from cluster.accounts import Keys

    _made(*Keys().rotate(key, overlap_s=_seconds("--overlap", overlap)), as_json or context.obj)


@command.command()
@click.argument("key", metavar="ID")
@as_json
@click.pass_context
def revoke(context: click.Context, key: str, as_json: bool) -> None:
    """End a key: every gateway that reaches the store refuses it within 2 seconds.

    \b
      shoal keys revoke shoal_Ab3xYz
    """
    from cluster.accounts import Keys

    gone = Keys().revoke(key)
    with Output(as_json=as_json or context.obj) as out:
        out.result(_shown(gone, time.time()), f"{gone.prefix}... ({gone.id}, {gone.tenant}) is revoked")


def _made(key: Key, secret: str, as_json: bool) -> None:
    value = _shown(key, time.time())
    text = f"{secret}\n"
    with Output(as_json=as_json) as out:
        if not as_json:
            until = f", until {value['until'][:16]}" if value["until"] else ""
            out.say(f"key {key.id} of {key.tenant}{until}; it is shown this once:")
        out.result(value | {"key": secret}, text.rstrip())


def _shown(key: Key, now: float) -> dict[str, Any]:
    """A key without secret or hash; `until` is when it ends, as far as that is known."""
    ends = [time for time in (key.expires, key.overlap_until, key.revoked) if time is not None]
    return {
        "id": key.id,
        "prefix": key.prefix,
        "tenant": key.tenant,
        "name": key.name,
        "models": list(key.models),
        "verbs": list(key.verbs),
        "state": "overlap" if key.replaced_by and key.state(now) == "active" else key.state(now),
        "created": _time(key.created),
        "until": _time(min(ends)) if ends else None,
        "replaced_by": key.replaced_by,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _seconds(option: str, text: str) -> float:
    match = re.match(r"^(\d{1,6})([smhdw])$", text)
    if match is None:
        raise InputError(f"{option}: {text!r} is no time; write e.g. 30m, 12h, 90d")
    return int(match[1]) * _UNITS[match[2]]
