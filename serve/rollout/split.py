"""Which clients get the new version: sticky, the same at every gateway, and monotone in the weight."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

SESSION = b"x-shoal-session"


def client(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What a client is known by: its session, where it says one, else its key; empty where there is neither."""
    key = b""
    for name, value in headers:
        if name == SESSION:
            return b"session " + value
        if name == b"authorization":
            key = b"key " + value
    return key


def place(who: bytes, version: str) -> float:
    """A client's place in [0, 1): it gets the version where that is below its weight. Another version, other places:
    not always the same clients go first. Of no client in particular it is by chance."""
    if not who:
        return random.random()
    digest = hashlib.blake2b(who, digest_size=8, key=hashlib.blake2b(version.encode(), digest_size=16).digest())
    return (
        int.from_bytes(digest.digest()[:6]) / 2**48
    )  # 48 bits: a float holds them exactly, so that 1 is never reached
