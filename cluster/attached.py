"""A Ray that Shoal did not start: the one a job runs on, or that RAY_ADDRESS names. It is used and left as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cluster.bearer import bearer
from cluster.errors import ClusterGone, InputError
from cluster.ports import FIRST_HTTP, answers
from cluster.serving import GATEWAY, hosted, listening
from cluster.settings import settings

ANYWHERE = ("0.0.0.0", "::", "")
_PATIENCE_S = 8.0  # a control service that does not answer for so long is gone


@dataclass(frozen=True)
class Entrance:
    """Where the gateway listens ({host, port}, {certificate, key} with TLS, {name} where there is one), and the URL at
    which it is reached from here, no slash at its end."""

    listen: dict[str, Any]
    url: str


def address() -> str | None:
    """The Ray that RAY_ADDRESS names for a driver: host:port or "auto"; None without one. Ray sets it for every job.

    A dashboard's URL names a cluster to send jobs to (cluster.submit), and is None here. Raises InputError.
    """
    text = os.environ.get("RAY_ADDRESS", "").strip()
    if text.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS: {text}: Ray Client is not supported; write the dashboard's URL (http://HOST:8265) to send "
            "the work there as a job, or host:port on one of the cluster's own machines"
        )
    return None if text in ("", "local") or text.startswith(("http://", "https://")) else text


@contextmanager
def driver(where: str, namespace: str) -> Iterator[None]:
    """Attach this process to a running Ray, and detach at the end. The token is the one Ray itself finds.

    Raises InputError where versions differ or the token is refused, ClusterGone where nobody answers.
    """
    import logging

    import ray
    from ray.exceptions import AuthenticationError

    if not alive(where):
        raise ClusterGone(f"RAY_ADDRESS: {where} does not answer; is that the host:port of a Ray that runs?")
    try:
        ray.init(
            address=where,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
        )
    except AuthenticationError as error:
        raise InputError(f"RAY_ADDRESS: {where} refuses the token: {_first(error)}; set RAY_AUTH_TOKEN_PATH") from None
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise InputError(f"RAY_ADDRESS: {where}: {_first(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def alive(where: str) -> bool:
    """Whether the Ray at an address answers, within some seconds; of "auto" Ray itself knows the address."""
    return where == "auto" or answers(where, _PATIENCE_S)


def token() -> str:
    """The token that Ray's clients in this process use; empty where the cluster wants none."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = {key.lower(): value for key, value in get_auth_headers_if_auth_enabled({}).items()}
    return headers.get("authorization", "").removeprefix("Bearer ")


def entrance(dashboard_url: str, token: str) -> Entrance:
    """Where the gateway is, as its configuration in Serve says; where none runs yet, where we will start it.

    On every interface, unless the cluster's own cluster.yaml says http.host: what is served on a cluster is asked for
    from elsewhere. Raises ClusterGone where nobody answers.
    """
    applications = _details(dashboard_url, token).get("applications") or {}
    found = applications.get(GATEWAY) or {}
    deployments = (found.get("deployed_app_config") or {}).get("deployments") or [{}]
    listen = (deployments[0].get("user_config") or {}).get("listen") or {}
    wanted = settings().http
    host = listen.get("host") or (wanted.host if "host" in wanted.model_fields_set else "0.0.0.0")
    port = int(listen.get("port") or wanted.port or FIRST_HTTP)
    reachable = host
    if host in ANYWHERE:
        # A node that has a gateway, the head where it has one; the head's address where there is none yet.
        replicas = ((found.get("deployments") or {}).get("Gateway") or {}).get("replicas") or []
        nodes = sorted(filter(None, (each.get("node_ip") for each in replicas if each.get("state") == "RUNNING")))
        head = urlsplit(dashboard_url).hostname or "127.0.0.1"
        reachable = head if head in nodes or not nodes else nodes[0]
    listen = listen or listening(wanted, host, port)
    scheme = "https" if listen.get("certificate") else "http"
    return Entrance(listen, f"{scheme}://{hosted(reachable)}:{port}")


def _details(dashboard_url: str, token: str) -> dict[str, Any]:
    import httpx

    if not dashboard_url:
        return {}
    headers = bearer(token)
    url = f"{dashboard_url.rstrip('/')}/api/serve/applications/"
    try:
        answer = httpx.get(url, headers=headers, timeout=60, trust_env=False)
        return answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError) as error:
        raise ClusterGone(f"{url}: {error or type(error).__name__}; is the cluster's dashboard up?") from None


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:4])[:500] if lines else type(error).__name__
