"""What the Keeper knows, asked over HTTP at the gateway with the cluster's token: for who has no Ray in the process."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from cluster.bearer import bearer

if TYPE_CHECKING:
    from cluster.connect import Cluster


def state(cluster: Cluster) -> tuple[dict[str, Any] | None, str]:
    """Replicas, gateways and loads (see Keeper.state); None and why where the gateway does not tell."""
    headers = bearer(cluster.token)
    url = f"{cluster.http_url}/-/state"
    try:
        answer = httpx.get(url, headers=headers, timeout=5, trust_env=False, verify=trusted(cluster))
        if answer.status_code == 200:
            return answer.json(), ""
        return None, f"{url}: {answer.status_code} {answer.text[:200]}"
    except (httpx.HTTPError, ValueError, OSError) as error:
        return None, f"{url}: {error or type(error).__name__}"


def trusted(cluster: Cluster) -> ssl.SSLContext | bool:
    """How to check the gateway's certificate: its own file is proof enough on the machine that has it, whatever name
    stands in it."""
    file = cluster.listen.get("certificate")
    if not file or not Path(file).is_file():
        return True
    context = ssl.create_default_context(cafile=file)
    context.check_hostname = False
    return context
