"""What the Keeper knows, asked over HTTP at the gateway with the cluster's token: for who has no Ray in the process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from cluster.asked import ask

if TYPE_CHECKING:
    from cluster.connect import Cluster


def state(cluster: Cluster) -> tuple[dict[str, Any] | None, str]:
    """Replicas, gateways and loads (see Keeper.state); None and why where the gateway does not tell. Raises InputError
    where its certificate is not good, which waiting does not mend."""
    url = f"{cluster.http_url}/-/state"
    try:
        answer = ask(cluster, "GET", "/-/state", timeout_s=5)
        if answer.status_code == 200:
            return answer.json(), ""
        return None, f"{url}: {answer.status_code} {answer.text[:200]}"
    except (httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        return None, f"{url}: {error or type(error).__name__}"
