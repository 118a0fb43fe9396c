"""Which clients get the new version: sticky, the same at every gateway, and monotone in the weight."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

SESSION = b"x-shoal-session"


def client(headers: Iterable[tuple[bytes, bytes]], key_id: str = "") -> bytes:
    """What a client is known by: its session, where it says one, else its key; empty where there is neither. `key_id`
    is what a key is known by however often it was rotated, where keys are asked for."""
    key = b"key id " + key_id.encode() if key_id else b""
    for name, value in headers:
        if name == SESSION:
            return b"session " + value
        if name == b"authorization" and not key:
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
