"""CORS: which pages in a browser may ask. Nothing is answered to those that are not named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Headers = tuple[tuple[bytes, bytes], ...]
_METHODS = b"GET, POST, OPTIONS"
_SHOWN = b"x-request-id, retry-after"
_DAY = b"86400"


class Cors:
    """What to add to answers. Credentials of browsers (cookies) are never asked for: keys go in a header."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """For any answer; none where the request has no Origin, or one that may not ask."""
        origin = headers.get(b"origin")
        if origin is None or not self._origins or not (self._all or origin in self._origins):
            return ()
        if self._all:
            return ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _SHOWN))
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _SHOWN),
            (b"vary", b"Origin"),
        )

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """What to add to a 204 without a body, beside `headers`, where a browser asks whether it may ask; None where it
        is no such question, or is not to be answered. It brings no key."""
        if method != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        if not self.headers(headers):
            return None
        # Named, because * does not stand for Authorization.
        wanted = headers.get(b"access-control-request-headers", b"authorization, content-type, x-request-id")
        return (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", _DAY),
        )
