"""What the gateway says no with. Each is one message with an HTTP status; `headers` go out beside it."""

from __future__ import annotations

import math

from cluster.errors import ShoalError


class Refusal(ShoalError):
    """Base. `kind` is OpenAI's word for it, `retry_after` in seconds, where waiting helps."""

    status = 403
    kind = "PermissionDeniedError"
    retry_after: float | None = None

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        if self.retry_after is None:
            return ()
        return ((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))),)


class Unauthorized(Refusal):
    """No key, or none that is in force."""

    status = 401
    kind = "AuthenticationError"

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"www-authenticate", b'Bearer realm="shoal"'),)


class Forbidden(Refusal):
    """A key that is in force, but not for this."""


class Limited(Refusal):
    """A limit or quota is used up, or cannot be counted now."""

    status = 429
    kind = "RateLimitError"

    def __init__(self, message: str, retry_after: float = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Limited], tuple[str, float]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self), (self.message, self.retry_after or 1)


class Unknowable(Limited):
    """The store is away, so nobody can say whether this key is good. 429, not 503: clients of the Hugging Face routes
    retry a 503 at once and without end."""

    kind = "StoreAway"
