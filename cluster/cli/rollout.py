"""`shoal rollout`: the new versions that are tried beside the old ones, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json, on
from cluster.cli.output import Output

if TYPE_CHECKING:
    from cluster.connect import Cluster


@click.group()
def command() -> None:
    """A new version that is tried beside the one that serves, before it takes its place.

    With `rollout` in the file, `shoal up` and `shoal serve` give a new version a share of the clients, or a shadow of
    the requests, and compare. It goes back by itself where it fails, is slow or disagrees, and takes over by itself
    when nothing spoke against it, or by hand.

    \b
      serve:
        rollout: {canary: 0.1, for_s: 600, min_requests: 100}
        rollout: {canary: 0, shadow: 0.5, min_agreement: 0.98, promote: hand}

    \b
      shoal rollout status                 what is tried, and how it does
      shoal up reviews.yaml serve.rollout.canary=0.5     more of the clients
      shoal rollout promote reviews        it takes over now
      shoal rollout abort reviews          back to the old version now
      shoal rollout forget reviews         a version that was rolled back may be tried again
      shoal serve reviews.yaml serve.rollout=null        at once, without trying

    Ask with the header x-shoal-session: NAME to stay with one version; x-shoal-version of an answer says which it was.
    All but --help take --json.
    """


@command.command()
@click.argument("name", required=False)
@on
@as_json
def status(name: str | None, on: str | None, as_json: bool) -> None:
    """What is tried of every model, or of NAME: shares, requests, errors, latency, agreement; and how the last ended.

    \b
      shoal rollout status
      shoal rollout status reviews --json | tail -n 1
    """
    from cluster.errors import NotFound
    from serve.run import endpoints, find

    with Output(as_json=as_json) as out:
        cluster, _ = _where(on)
        if cluster is None and name is not None:
            raise NotFound(f"{name}: not served; no cluster runs here")
        served = [] if cluster is None else [find(name, cluster)] if name is not None else endpoints(cluster)
        rows = [] if cluster is None else joined([vars(one) for one in served], cluster)
        found = {row["name"]: row["rollout"] for row in rows if row["rollout"]}
        lines = [f"{key}: {words(one)}" for key, one in found.items()]
        out.result({"rollouts": found}, "\n".join(lines) or f"{name or 'no model'}: no roll-out")


@command.command()
@click.argument("name")
@on
@as_json
def promote(name: str, on: str | None, as_json: bool) -> None:
    """Let the new version of NAME take over now, whatever was counted, and return when it has.

    \b
      shoal rollout promote reviews
    """
    _end(name, on, "promote", as_json=as_json)


@command.command()
@click.argument("name")
@on
@as_json
def abort(name: str, on: str | None, as_json: bool) -> None:
    """Back to the old version of NAME alone, and return when the new one is gone.

    \b
      shoal rollout abort reviews
    """
    _end(name, on, "abort", as_json=as_json)


@command.command()
@click.argument("name")
@on
@as_json
def forget(name: str, on: str | None, as_json: bool) -> None:
    """Forget how the last roll-out of NAME ended, so that the same version may be tried again.

    \b
      shoal rollout forget reviews
      shoal serve reviews.yaml
    """
    from serve.rollout.settle import forget

    with Output(as_json=as_json) as out:
        forgotten = forget(name, _needed(name, on)[0])
        out.result({"name": name, "forgotten": forgotten["version"]}, f"{forgotten['version']} may be tried again")


def _end(name: str, on: str | None, how: str, *, as_json: bool) -> None:
    from cluster.errors import RunFailed
    from serve.rollout import settle

    with Output(as_json=as_json) as out:
        cluster, ours = _needed(name, on)
        ended = getattr(settle, how)(name, cluster, "by hand", out.progress, carry=ours)
        if how == "promote" and ended["state"] != "promoted":
            raise RunFailed(f"{name}: {ended['version']} is {ended['state']}: {ended['reason']}")
        shown = {key: ended[key] for key in ("version", "previous", "state", "reason", "summary")}
        out.result({"name": name, **shown}, f"{name}: {words(ended)}")


def joined(served: list[dict[str, Any]], cluster: Cluster) -> list[dict[str, Any]]:
    """Endpoints, each roll-out that goes on with what is counted of it now."""
    from serve.state import state

    if not any("application" in (row["rollout"] or {}) for row in served):
        return served
    told, trouble = state(cluster)
    live = (told or {}).get("rollouts", {})
    joined = []
    for row in served:
        found, now = row["rollout"], live.get(row["name"], {})
        if found and "application" in found and now.get("id") == found["id"]:
            summary = {key: now[key] for key in ("old", "new")}
            kept = {key: now[key] for key in ("state", "reason", "elapsed_s", "trouble")}
            found = {**found, **kept, "summary": summary}
        elif found and "application" in found:
            found = {**found, "trouble": trouble or "the Keeper has not heard of it yet"}
        joined.append({**row, "rollout": found})
    return joined


def words(found: dict[str, Any]) -> str:
    """A roll-out in a line, for a person."""
    keys, counted = found["keys"], found.get("summary") or {}
    if found["state"] == "running":
        shares = ((keys["canary"], "canary"), (keys["shadow"], "shadow"))
        how = ", ".join(f"{kind} {100 * share:g} %" for share, kind in shares if share)
    else:
        how = found["state"]
    said = [f"{found['version']} {how}"]
    if counted:
        old, new = counted["old"], counted["new"]
        said += [f"{new['requests']} requests", f"{new['errors']} errors"]
        if new["p95_ms"] is not None:
            beside = f" vs {old['p95_ms']:.3g} ms" if old["p95_ms"] is not None else ""
            said.append(f"p95 {new['p95_ms']:.3g} ms{beside}")
        if new["agreement"] is not None:
            said.append(f"agreement {new['agreement']:.2f} of {new['compared']}")
    text = ", ".join(said) + (f": {found['reason']}" if found["reason"] else "")
    return text + (f" ({found['trouble']})" if found.get("trouble") else "")


def _where(on: str | None) -> tuple[Cluster | None, bool]:
    """The cluster that is meant, and whether its home is this one: another's own Keeper carries out what is decided."""
    from cluster import attached, connect
    from cluster.submit.target import find

    if (target := find(on)) is not None:
        from cluster.cli.jobs import reached

        return reached(target), False
    if attached.address() is not None:
        with connect.session() as found:
            return found, True
    return connect.running(), True


def _needed(name: str, on: str | None) -> tuple[Cluster, bool]:
    from cluster.errors import NotFound

    cluster, ours = _where(on)
    if cluster is None:
        raise NotFound(f"{name}: not served; no cluster runs here")
    return cluster, ours
