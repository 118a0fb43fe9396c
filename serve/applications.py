"""Serve's declarative configuration: how the applications of a cluster are read, changed in one place and written back.
What each of them looks like stands in cluster.serving.

Everything goes over the dashboard's REST interface, so no Ray is imported and nothing attaches to the cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from filelock import FileLock

from cluster.bearer import bearer
from cluster.errors import ClusterGone, RunFailed
from cluster.serving import GATEWAY, QUIET, gateway_application
from cluster.settings import settings

if TYPE_CHECKING:
    from cluster.connect import Cluster


class Change:
    """Read the applications, let the caller change them, write all back: one process at a time.

    What is unchanged in the list is left alone by Serve, replicas and all.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.lock = FileLock(cluster.home / "serve.lock")

    def __enter__(self) -> Change:
        self.lock.acquire()
        try:
            details = _ask(self.cluster, "GET")
            self.found = details["applications"]
            others = any(
                each["deployed_app_config"] and not is_ours(each["deployed_app_config"]) for each in self.found.values()
            )
            self.proxies = details["proxy_location"] if others else None
        except BaseException:
            self.lock.release()
            raise
        self.before = {
            name: written(details["deployed_app_config"])
            for name, details in self.found.items()
            if details["deployed_app_config"] and details["status"] != "DELETING"
        }
        self.applications = dict(self.before)
        return self

    def failed(self, name: str) -> bool:
        """Whether Serve has given up on an application as it is configured."""
        return name in self.found and self.found[name]["status"] == "DEPLOY_FAILED"

    def attempt(self, name: str) -> int:
        """The number of the attempt to write: another one after a failure, else the same again."""
        written = self.before.get(name)
        return (written["args"].get("attempt", 0) if written else 0) + self.failed(name)

    def tell_gateway(self, models: dict[str, Any]) -> None:
        """Let the gateway know of exactly these models, starting one if there is none."""
        self.applications[GATEWAY] = gateway_application(
            models,
            listen=self.cluster.listen,
            public_url=self.cluster.public_url,
            attempt=self.attempt(GATEWAY),
            home=self.cluster.home,
            apart=self._apart(),
        )

    def _apart(self) -> bool:
        """Whether gateways run on a node each: where there are as many nodes as gateways when these are deployed.

        Stays as it was while they do, for another answer starts all of them anew; one whose node is lost waits for the
        next node then. A new attempt is made beside those that run, on the same nodes.
        """
        wanted, before = settings().http.gateways, self.before.get(GATEWAY)
        if self.failed(GATEWAY):
            return False
        if before is not None and before["deployments"][0]["num_replicas"] == wanted:
            return before["deployments"][0].get("max_replicas_per_node") == 1
        if wanted == 1 or self.cluster.listen["host"] in ("127.0.0.1", "::1", "localhost"):
            return False  # nodes of the loopback have one port between them
        return nodes(self.cluster) >= wanted

    def models(self) -> dict[str, Any]:
        """What the gateway knows."""
        gateway = self.before.get(GATEWAY)
        return dict(gateway["deployments"][0]["user_config"]["models"]) if gateway else {}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.applications != self.before:
                config = {
                    # Requests come past Serve. Where it runs for others as well, theirs go on.
                    "proxy_location": self.proxies or "Disabled",
                    "logging_config": QUIET,
                    "applications": list(self.applications.values()),
                }
                _ask(self.cluster, "PUT", config)
        finally:
            self.lock.release()


def is_ours(config: dict[str, Any]) -> bool:
    """Whether an application is Shoal's."""
    return config["import_path"].startswith("serve.")


def written(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it was written: Serve gives it back with the keys that were left out as null. On a cluster
    that Shoal did not start there are those of others as well, with keys of their own."""
    if not is_ours(config):
        return {key: value for key, value in config.items() if value is not None}
    keys = ("name", "route_prefix", "import_path", "args", "logging_config", "deployments")
    return {key: config[key] for key in keys}


def read(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """What Serve says of each application, by name: status, message, deployments, replicas, configuration."""
    return _ask(cluster, "GET")["applications"]


def nodes(cluster: Cluster) -> int:
    """How many nodes are alive, as Ray's dashboard says."""
    found = _ask(cluster, "GET", path="nodes?view=summary")["data"]["summary"]
    return sum(one["raylet"]["state"] == "ALIVE" for one in found)


def _ask(
    cluster: Cluster, method: str, config: dict[str, Any] | None = None, *, path: str = "api/serve/applications/"
) -> Any:
    """Ask Serve's REST interface, or the dashboard beside it. Raises ClusterGone where nobody answers, RunFailed where
    it refuses."""
    headers = bearer(cluster.token)
    url = f"{cluster.dashboard_url.rstrip('/')}/{path}"
    try:
        response = httpx.request(method, url, json=config, headers=headers, timeout=60, trust_env=False)
    except httpx.HTTPError as error:
        raise ClusterGone(f"{url}: {error or type(error).__name__}; `shoal doctor` looks into it") from None
    if response.status_code != 200:
        raise RunFailed(f"Serve refused ({response.status_code}): {response.text[:2000]}")
    return response.json() if method == "GET" else None
