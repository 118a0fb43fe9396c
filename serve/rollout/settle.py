"""The end of a roll-out: decided, then carried out step by step. Each step finds out whether it was done already, so
whoever comes next (a command, the Keeper's task, the next Keeper's) goes on where another one ended.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cluster.errors import NotFound, RunFailed
from cluster.progress import Progress, silent
from serve import waiting
from serve.applications import Change, read
from serve.rollout import entry
from serve.state import state

if TYPE_CHECKING:
    from cluster.connect import Cluster

POLL_S = 0.1
WAIT_S = 600.0


def carry_out(name: str, found: dict[str, Any], decided: dict[str, Any]) -> None:
    """What the Keeper runs as a task: write what was decided into the configuration, and do it."""
    os.environ["SHOAL_HOME"] = found["home"]
    from cluster import connect

    with connect.session() as cluster:
        decide(name, cluster, decided["state"], decided["reason"], id=found["id"], summary=decided["summary"])
        settle(name, cluster)


def promote(
    name: str, cluster: Cluster, reason: str, progress: Progress = silent, *, carry: bool = True
) -> dict[str, Any]:
    """Let the new version take over; returns the roll-out as it ended: rolled back where it could not. Without `carry`
    the Keeper does it, and is waited for. Raises NotFound where there is no roll-out, RunFailed."""
    return _by_hand(name, cluster, entry.PROMOTING, reason, progress, carry)


def abort(
    name: str, cluster: Cluster, reason: str, progress: Progress = silent, *, carry: bool = True
) -> dict[str, Any]:
    """Back to the old version alone; as `promote`."""
    return _by_hand(name, cluster, entry.ROLLED_BACK, reason, progress, carry)


def _by_hand(name: str, cluster: Cluster, wanted: str, reason: str, progress: Progress, carry: bool) -> dict[str, Any]:
    decide(name, cluster, wanted, reason, summary=summary(name, cluster))
    if carry:
        return settle(name, cluster, progress)
    end = time.monotonic() + WAIT_S
    while "application" in (found := _found(name, cluster)):
        if time.monotonic() > end:
            raise RunFailed(f"{name}: {found['state']} after {WAIT_S:g} s; `shoal rollout status {name}` says more")
        progress(f"roll-out {name}", 0, 0, found["state"])
        time.sleep(1)
    return found


def decide(
    name: str, cluster: Cluster, wanted: str, reason: str, *, id: str = "", summary: dict[str, Any] | None = None
) -> None:
    """Write what becomes of a roll-out that runs; of one of another id nothing. Raises NotFound where none goes on, and
    RunFailed where something else was decided."""
    with Change(cluster) as change:
        models = change.models()
        found = entry.going_on(models.get(name))
        if found is None:
            if id:
                return
            raise NotFound(f"{name}: no roll-out goes on; `shoal rollout status` lists them")
        if id and found["id"] != id:
            return
        if found["state"] != entry.RUNNING:
            if not id and found["state"] != wanted:
                raise RunFailed(f"{name}: its roll-out is {found['state']} already: {found['reason']}")
            return
        after = {**found, "state": wanted, "reason": reason, "ended": time.time(), "summary": summary or {}}
        change.tell_gateway({**models, name: {**models[name], "rollout": after}})


def settle(name: str, cluster: Cluster, progress: Progress = silent) -> dict[str, Any]:
    """Do what was decided and is not done, one process at a time; returns the roll-out as it ended."""
    folder = cluster.home / "locks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{name}.rollout.lock"):
        found = _found(name, cluster)
        if found.get("application") and found["state"] == entry.PROMOTING:
            progress(f"roll-out {name}", 0, 3, "the new version takes the old one's place")
            if fault := _take_over(name, cluster, found, progress):
                _end(name, cluster, found, entry.ROLLED_BACK, f"it could not take over: {fault}")
            else:
                _crown(name, found)
                _end(name, cluster, found, entry.PROMOTED, found["reason"])
            found = _found(name, cluster)
        if found.get("application") and found["state"] in entry.ENDS:
            progress(f"roll-out {name}", 2, 3, "the new version's own replicas go")
            if found["state"] == entry.ROLLED_BACK:
                _reject(name, found)
            _wait_told(name, cluster, found)
            _clean(name, cluster, found)
            progress(f"roll-out {name}", 3, 3, found["state"])
        return _found(name, cluster)


def _found(name: str, cluster: Cluster) -> dict[str, Any]:
    with Change(cluster) as change:
        return entry.of(change.models().get(name)) or {"state": "", "reason": ""}


def _take_over(name: str, cluster: Cluster, found: dict[str, Any], progress: Progress) -> str:
    """Change the model's own application to the new version, as `shoal serve` does; why that failed, or nothing."""
    with Change(cluster) as change:
        before = change.before.get(name)
        if before is None:
            return f"{name} is not there any more"
        wanted = copy.deepcopy(found["wanted"])
        wanted["args"]["attempt"] = change.attempt(name)
        change.applications[name] = wanted
    try:
        waiting.wait_running(
            cluster, name, found["version"], WAIT_S, lambda note: progress(f"roll-out {name}", 1, 3, note)
        )
    except RunFailed as error:
        with Change(cluster) as change:
            if change.before.get(name) == wanted and wanted != before:
                change.applications[name] = before
        return error.message
    return ""


def _end(name: str, cluster: Cluster, found: dict[str, Any], state: str, reason: str) -> None:
    """Write an end; after a promotion the model is the new version from here on."""
    with Change(cluster) as change:
        models = change.models()
        now = entry.going_on(models.get(name))
        if now is None or now["id"] != found["id"]:
            return
        model = found["told"] if state == entry.PROMOTED else models[name]
        after = {**now, "state": state, "reason": reason, "ended": time.time()}
        change.tell_gateway({**models, name: {**model, "rollout": after}})


def _wait_told(name: str, cluster: Cluster, found: dict[str, Any], wait_s: float = 60) -> None:
    """Until no gateway sends anything to the new version's own application."""
    told = {"id": found["id"], "state": found["state"]}
    wait_all(name, cluster, lambda one: told.items() <= one.items(), f"that its roll-out is {found['state']}", wait_s)


def wait_all(
    name: str, cluster: Cluster, right: Callable[[dict[str, Any]], bool], what: str, wait_s: float = 60
) -> None:
    """Until what each gateway tells of a model's roll-out ({id, state, keys}) is right. Raises RunFailed."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        if told is not None:
            up = {key for key, one in told["gateways"].items() if one["heard_s"] < waiting.FRESH_S}
            known = told["rollouts"].get(name, {}).get("gateways", {})
            if up and all(gateway in known and right(known[gateway]) for gateway in up):
                return
            said = f"they say {[known.get(gateway) for gateway in sorted(up)]}"
        time.sleep(POLL_S)
    raise RunFailed(f"{name}: gateways do not know after {wait_s:g} s {what}: {said}")


def _clean(name: str, cluster: Cluster, found: dict[str, Any]) -> None:
    """The new version's own application goes, and with it what is left of the roll-out to do."""
    with Change(cluster) as change:
        models = change.models()
        now = entry.going_on(models.get(name))
        if now is None or now["id"] != found["id"]:
            return
        change.applications.pop(found["application"], None)
        # What only matters on the way is not kept.
        after = {key: value for key, value in now.items() if key not in ("application", *entry.INNER)}
        change.tell_gateway({**models, name: {**models[name], "rollout": after}})
    while found["application"] in read(cluster):
        time.sleep(POLL_S)


def _crown(name: str, found: dict[str, Any]) -> None:
    """The registry's champion is what serves from now on."""
    from cluster.registry import Registry, number

    if version := number(found["version"], name):
        with contextlib.suppress(NotFound):  # of a version that was deleted meanwhile
            Registry(found["tracking_uri"]).promote(name, version)


def _reject(name: str, found: dict[str, Any]) -> None:
    """The version is no candidate any more, and no champion either, was it made one by hand."""
    from cluster.registry import Registry, number

    if version := number(found["version"], name):
        before = number(found["previous"], name)
        with contextlib.suppress(NotFound):
            Registry(found["tracking_uri"]).reject(name, version, found["reason"], before=before)


def summary(name: str, cluster: Cluster) -> dict[str, Any]:
    """What was counted of a roll-out so far: {old, new}, as Stats.summary; empty where the Keeper does not tell."""
    told, _ = state(cluster)
    one = (told or {}).get("rollouts", {}).get(name, {})
    return {key: one[key] for key in ("old", "new") if key in one}


def forget(name: str, cluster: Cluster) -> dict[str, Any]:
    """Drop how the last roll-out ended; returns it. Raises NotFound where there is none, RunFailed where it goes on."""
    with Change(cluster) as change:
        models = change.models()
        found = entry.of(models.get(name))
        if found is None:
            raise NotFound(f"{name}: nothing to forget; `shoal rollout status` lists what there is")
        if "application" in found:
            raise RunFailed(f"{name}: its roll-out goes on; `shoal rollout abort {name}` ends it")
        model = {key: value for key, value in models[name].items() if key != "rollout"}
        change.tell_gateway({**models, name: model})
    return found
