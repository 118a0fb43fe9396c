"""One request of ours to the gateway, over the same way as a client's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster import tls
from cluster.bearer import bearer
from cluster.errors import InputError

if TYPE_CHECKING:
    import httpx

    from cluster.connect import Cluster


def ask(
    cluster: Cluster, method: str, path: str, *, timeout_s: float, content: bytes = b"", content_type: str = ""
) -> httpx.Response:
    """Ask with the cluster's token, which the gateway takes for a key. With TLS the certificate is checked for
    http.name, or the address. Raises httpx.HTTPError where nobody answers, InputError where the certificate is not
    good."""
    import httpx

    url = f"{cluster.http_url}{path}"
    headers = bearer(cluster.token) | ({"content-type": content_type} if content_type else {})
    options: dict[str, Any] = {}
    wanted = tls.name(cluster.listen, url)
    if url.startswith("https://"):
        options = {"verify": tls.trusting(cluster.listen)}
    with httpx.Client(trust_env=False, timeout=timeout_s, **options) as client:
        try:
            # The name goes into the handshake alone: what it leads to elsewhere need not lead here.
            return client.request(
                method, url, content=content or None, headers=headers, extensions={"sni_hostname": wanted}
            )
        except httpx.HTTPError as error:
            if said := tls.fault(error, url, wanted):
                raise InputError(said) from None
            raise
