"""The keys that are known here: all of them, by hash, read from the store once and again when one has changed.

A request looks nothing up but this: an unknown key costs what a known one does, and no flood of unknown keys reaches
the database. 100,000 keys take some 60 MB.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections.abc import Callable

from cluster.accounts import Key, Keys, StoreAway
from cluster.accounts.keys import MARK, digest
from cluster.settings.access import Access
from serve.keys.refusals import Unauthorized, Unknowable

EVERY_S = 1.0  # between two looks at the store
SOON_S = 0.2  # for a key that is not known the store is asked again, so often at most
WAIT_S = 2.0
WAITING = 1000  # requests with unknown keys that may wait for that; the others are refused at once
_NOBODY = "0" * 64
UNKNOWN = "_unknown"  # the tenant of keys that are let through unseen: no tenant can have this name


class Known:
    """What is known of the keys of a store. `refresh` belongs to one thread, `find` to one event loop."""

    def __init__(self, config: Access, keys: Keys, *, clock: Callable[[], float] = time.time) -> None:
        self._config, self._keys, self._clock = config, keys, clock
        self._by_hash: dict[str, Key] = {}
        self._revision = -1
        self._heard = float("-inf")  # when the store last answered, on the monotonic clock
        self._began = float("-inf")
        self._away = True  # until it has been read once
        self.fault = "it has not been read yet"
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def refresh(self) -> bool:
        """Read what is new. Whether the store answered; if it did not, `fault` says why."""
        self._wanted.clear()
        with self._lock:
            waiting, self._waiting = self._waiting, []
        self._began = time.monotonic()
        try:
            if self._keys.revision() != self._revision:
                self._revision, found = self._keys.read()
                self._by_hash = {key.hash: key for key in found}
            self._heard, self._away = time.monotonic(), False
        except StoreAway as error:
            self._away, self.fault = True, error.message
        for loop, future in waiting:
            loop.call_soon_threadsafe(lambda f=future: f.done() or f.set_result(None))
        return not self._away

    def wait(self, seconds: float) -> None:
        """For the thread: until it is time to refresh, or a request wants it sooner."""
        if self._wanted.wait(seconds):
            time.sleep(max(0.0, SOON_S - (time.monotonic() - self._began)))

    def wake(self) -> None:
        self._wanted.set()

    async def find(self, authorization: bytes | None) -> Key:
        """The key of an Authorization header. Raises Unauthorized; Unknowable where the store is away and access.away
        does not let it through."""
        if authorization is None:
            raise Unauthorized("no key; send the header Authorization: Bearer KEY (`shoal keys create` makes one)")
        scheme, _, secret = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("Authorization: send Bearer KEY; other schemes are not taken")
        hashed = digest(secret.strip())
        key = self._match(hashed)
        if key is None and secret.startswith(MARK.encode()):
            # One that was made a moment ago, perhaps: the store is asked before it is refused.
            await self._ask_again()
            key = self._match(hashed)
        if self._away:
            return self._while_away(key)
        if key is None:
            raise Unauthorized("this key is not known here; is it whole, and of this cluster?")
        return self._in_force(key)

    def _match(self, hashed: str) -> Key | None:
        key = self._by_hash.get(hashed)
        # A hash is looked up, not the key: what time that takes tells nothing of the key. Compared in constant time
        # all the same.
        return key if hmac.compare_digest(key.hash if key else _NOBODY, hashed) else None

    def _in_force(self, key: Key) -> Key:
        state = key.state(self._clock())
        if state != "active":
            raise Unauthorized(f"key {key.prefix}... {_WORDS[state]}; ask for a new one")
        return key

    def _while_away(self, key: Key | None) -> Key:
        away = self._config.away
        since = time.monotonic() - self._heard
        if key is not None and (away == "open" or (away == "cached" and since <= self._config.cached_s)):
            return self._in_force(key)
        if key is None and away == "open":
            return _ANYONE
        why = {
            "closed": "access.away is closed",
            "cached": f"access.away is cached, for {self._config.cached_s:g} s, and this key "
            + ("was known longer ago" if key is not None else "was not known before"),
            "open": "",
        }[away]
        raise Unknowable(f"keys cannot be checked now: the store of keys is away, and {why}; try again", 5)

    async def _ask_again(self) -> None:
        """Have the store read; all who ask meanwhile wait for the same answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if len(self._waiting) >= WAITING:
                return
            self._waiting.append((loop, future))
        self._wanted.set()
        try:
            await asyncio.wait_for(future, WAIT_S)
        except TimeoutError:
            return


_WORDS = {"revoked": "was revoked", "expired": "has expired", "replaced": "was replaced, and its overlap is over"}
_ANYONE = Key(UNKNOWN, _NOBODY, UNKNOWN, UNKNOWN, "", (), ("predict",), UNKNOWN, 0.0)
