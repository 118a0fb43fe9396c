"""How a token is shown over HTTP."""

from __future__ import annotations


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token; none where there is no token."""
    return {"Authorization": f"Bearer {token}"} if token else {}
