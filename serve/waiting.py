"""Waiting for what was asked of Serve to be so: each tells what was the matter where it is not so in time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster import attached
from cluster.errors import InputError, RunFailed
from cluster.serving import GATEWAY
from serve.applications import nodes, read
from serve.state import state

if TYPE_CHECKING:
    from cluster.connect import Cluster

POLL_S = 0.2
FRESH_S = 3.0  # a gateway that told nothing for longer has ended


def wait_running(cluster: Cluster, name: str, version: str | None, wait_s: float, note: Callable[[str], None]) -> None:
    """Until replicas run; or none need to, for the version has been up and is idle. Raises RunFailed."""
    began = time.monotonic()
    message = ""
    while (spent := time.monotonic() - began) < wait_s:
        details = read(cluster).get(name)
        if details is None:
            raise RunFailed(f"{name}: was removed by someone else while it started")
        message = message_of(details)
        if details["status"] == "RUNNING" and (running_replicas(details) or _idle(cluster, name, version)):
            return
        if details["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RunFailed(f"{name}: {message}")
        note(message[:200] or f"loading the model, {spent:.0f} s")
        time.sleep(POLL_S)
    raise RunFailed(f"{name}: no replica answered within {wait_s:g} s: {message or 'it was still loading'}")


def _idle(cluster: Cluster, name: str, version: str | None) -> bool:
    """Whether an application has no replica because nobody asks it, and not because it never had one."""
    told, _ = state(cluster)
    known = told["scaling"].get(name) if told is not None else None
    return known is not None and known["version"] == version and known["tried"] and known["wanted"] == 0


def wait_adapters(cluster: Cluster, application: str, name: str, tag: str | None, wait_s: float = 120) -> int:
    """Until the engine's replicas say that they have an adapter of this tag ("": that `name` is the model itself;
    None: that it is gone). Returns how many tokens the engine takes. Raises InputError with what a replica says."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        facts = [one["facts"] for one in up(told, application)]
        for one in facts:
            if tag and name in one["faults"]:
                raise InputError(one["faults"][name])
        if facts and all(one["adapters"].get(name, "") == (tag or "") for one in facts):
            running = running_replicas(read(cluster)[application])
            if len(facts) >= running:
                return facts[0]["max_model_len"]
        said = said or f"replicas say {[one['adapters'] for one in facts]}"
        time.sleep(POLL_S / 4)
    raise RunFailed(f"{application}: the adapter {name} is not loaded as it should be after {wait_s:g} s: {said}")


def wait_tried(cluster: Cluster, application: str, name: str, key: str | None, wait_s: float) -> None:
    """Until every shared copy knows a model of this key and has tried to load it (None: has let go of it). Raises
    RunFailed with what a copy says."""
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        facts = [one["facts"] for one in up(told, application)]
        tried = [one for one in facts if one["tried"].get(name) == key]
        for one in tried:
            if key is not None and name in one["faults"]:
                raise RunFailed(f"{name}: {one['faults'][name]}")
        if tried and len(tried) >= running_replicas(read(cluster)[application]):
            return
        said = said or f"{len(tried)} of {len(facts)} copies know of it"
        time.sleep(POLL_S / 4)
    raise RunFailed(f"{name}: its shared copies did not take it up, or let it go, within {wait_s:g} s: {said}")


def up(told: dict[str, Any] | None, application: str) -> list[dict[str, Any]]:
    """The replicas of an application that take requests, of what `state` told."""
    replicas = told["replicas"] if told is not None else []
    return [one for one in replicas if one["application"] == application and one["state"] == "up"]


def entered(cluster: Cluster, wait_s: float = 120) -> Cluster:
    """The cluster with the URL of a gateway that runs: which of several hosts have one is Serve's choice."""
    if urlsplit(cluster.http_url).hostname in ("127.0.0.1", "::1"):
        return cluster
    end = time.monotonic() + wait_s
    while (gateway := read(cluster).get(GATEWAY)) and not _placed(cluster, gateway) and time.monotonic() < end:
        if gateway["status"] == "DEPLOY_FAILED":
            raise RunFailed(f"the gateway did not start: {message_of(gateway)}")
        time.sleep(POLL_S)
    return replace(cluster, http_url=attached.entrance(cluster.dashboard_url, cluster.token).url)


def _placed(cluster: Cluster, gateway: dict[str, Any]) -> bool:
    """Whether the gateways run, but for those that have to wait for a node in place of one that was lost."""
    config = gateway["deployed_app_config"] or {"deployments": [{}]}
    wanted = config["deployments"][0].get("num_replicas", 1)
    return (running := running_replicas(gateway)) > 0 and running >= min(wanted, nodes(cluster))


def wait_gateway(cluster: Cluster, name: str, version: str | None, application: str = "", wait_s: float = 120) -> None:
    """Until every gateway knows a model by this version, and asks this application for it; or, None, knows none of that
    name. The same version may move to another application."""
    wanted = (version, application if version is not None else None)
    end = time.monotonic() + wait_s
    said = ""
    while time.monotonic() < end:
        told, said = state(cluster)
        if told is not None:
            fresh = [one for one in told["gateways"].values() if one["heard_s"] < FRESH_S]
            known = [(one["models"].get(name), one["places"].get(name)) for one in fresh]
            if known and all(one == wanted for one in known):
                return
            said = f"gateways know {known}"
        gateway = read(cluster).get(GATEWAY)
        if gateway and gateway["status"] == "DEPLOY_FAILED":
            raise RunFailed(f"the gateway did not start: {message_of(gateway)}")
        time.sleep(POLL_S / 4)
    raise RunFailed(f"the gateway does not answer for {name} as it should after {wait_s:g} s: {said}")


def running_replicas(details: dict[str, Any]) -> int:
    return sum(
        replica["state"] == "RUNNING"
        for deployment in details["deployments"].values()
        for replica in deployment["replicas"]
    )


def message_of(details: dict[str, Any]) -> str:
    """Why an application is not running: what its replica raised, if it said anything."""
    texts = [details["message"], *(deployment["message"] for deployment in details["deployments"].values())]
    for text in texts:
        if found := list(_OURS.finditer(text)):
            return found[-1]["message"].strip()
    # Serve's own text is a traceback where something of others was raised: its last line says what.
    return next((text.strip().splitlines()[-1] for text in reversed(texts) if text.strip()), "")


_OURS = re.compile(r"cluster\.errors\.\w+: (?P<message>.*?)(?=\n\n|\nThe above|\nDuring handling|\Z)", re.DOTALL)
