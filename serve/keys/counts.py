"""Counts of the library `limits` in a file that the gateways of one machine map into memory: exact over all of them,
and still there when one is started again. The library's own memory store knows one process only, and walks through
all its keys at every hit.

The file is a table of slots with open addressing: a key's digest, when its window began, the window's length, and the
counts of this window and the one before. Counts are read and changed under one lock of the file.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from math import floor
from pathlib import Path
from typing import Any

from limits.aio.storage import SlidingWindowCounterSupport, Storage

SLOTS = 65_536
PROBES = 64  # how far from its place a key may lie; beyond that the one that was not used for longest goes
_SLOT = struct.Struct("<16sdddd")
_TRIES, _WITHOUT_S = 120, 1.0  # some 30 ms for the lock


class SharedCounts(Storage, SlidingWindowCounterSupport):
    """A storage of `limits.aio` for fixed windows and sliding window counters. Nothing in it waits."""

    STORAGE_SCHEME = ["async+shoal"]

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[str, tuple[bytes, int]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._lock, SLOTS * _SLOT.size)  # zeros where it was shorter
        self._map = mmap.mmap(self._lock, SLOTS * _SLOT.size)
        self._held = _Held(self._lock)

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count in a fixed window, which begins with its first hit. Returns the count."""
        with self._held:
            place, start, current, _ = self._window(key, expiry, slides=False)
            self._write(place, key, start, expiry, current + amount, 0)
        return int(current) + amount

    async def get(self, key: str) -> int:
        with self._held:
            found = self._read(key)
        return int(found[2]) if found and self._clock() < found[0] + found[1] else 0

    async def get_expiry(self, key: str) -> float:
        """When the fixed window ends, in seconds since 1970."""
        with self._held:
            found = self._read(key)
        return max(self._clock(), found[0] + found[1] if found else 0)

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        with self._held:
            place, start, current, previous = self._window(key, expiry, slides=True)
            weighted = previous * (start + expiry - self._clock()) / expiry + current
            if floor(weighted) + amount > limit:
                return False
            self._write(place, key, start, expiry, current + amount, previous)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Count and seconds left of the window before, and of this one, which counts on for another length."""
        with self._held:
            _, start, current, previous = self._window(key, expiry, slides=True)
        left = start + expiry - self._clock()
        return int(previous), left if previous else 0.0, int(current), left + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        await self.clear(key)

    async def clear(self, key: str) -> None:
        with self._held:
            if self._read(key):
                _SLOT.pack_into(self._map, self._places[key][1], b"", 0, 0, 0, 0)

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        with self._held:
            self._map[:] = bytes(len(self._map))
        return None

    def close(self) -> None:
        self._map.close()
        os.close(self._lock)

    def _window(self, key: str, expiry: float, *, slides: bool) -> tuple[int, float, float, float]:
        """A key's slot, when its window of now began, its count, and the count of the window before."""
        now, found = self._clock(), self._read(key)
        if found is None:
            return self._free(key, now), now, 0.0, 0.0
        start, _, current, previous = found
        place = self._places[key][1]
        if now < start + expiry:
            return place, start, current, previous
        if slides and now < start + 2 * expiry:
            return place, start + expiry, 0.0, current
        return place, now, 0.0, 0.0

    def _read(self, key: str) -> tuple[float, float, float, float] | None:
        """Start, length, count and count before of a key's slot; None where it has none."""
        digest, place = self._places.get(key) or self._search(key)
        found, *values = _SLOT.unpack_from(self._map, place)
        if found != digest:
            digest, place = self._search(key)
            found, *values = _SLOT.unpack_from(self._map, place)
        self._places[key] = digest, place
        if found != digest:
            return None
        start, length, current, previous = values
        if start > (now := self._clock()):  # the clock was set back: the counts stay, not for longer than a window
            start = now
            _SLOT.pack_into(self._map, place, found, start, length, current, previous)
        return start, length, current, previous

    def _search(self, key: str) -> tuple[bytes, int]:
        """A key's digest and its slot; the first of its places where it has none."""
        digest = blake2b(key.encode(), digest_size=16).digest()
        places = self._around(digest)
        return digest, next((at for at in places if self._map[at : at + 16] == digest), places[0])

    def _free(self, key: str, now: float) -> int:
        """A slot for a new key: one that is over, else the oldest."""
        digest = self._places[key][0]
        ages: list[tuple[float, int]] = []
        for at in self._around(digest):
            _, start, length, _, _ = _SLOT.unpack_from(self._map, at)
            if now >= start + 2 * length:
                ages = [(0, at)]
                break
            ages.append((start, at))
        self._places[key] = digest, min(ages)[1]
        return min(ages)[1]

    def _around(self, digest: bytes) -> list[int]:
        first = int.from_bytes(digest[:4], "little")
        return [(first + step) % SLOTS * _SLOT.size for step in range(PROBES)]

    def _write(self, place: int, key: str, start: float, expiry: float, current: float, previous: float) -> None:
        _SLOT.pack_into(self._map, place, self._places[key][0], start, expiry, current, previous)


class _Held:
    """The file's lock. Where another process has it for too long, the counts go on without, for a second: a process
    that was stopped in the middle must not stop the others, and a hit or two may be lost."""

    __slots__ = ("_file", "_without")

    def __init__(self, file: int) -> None:
        self._file, self._without = file, 0.0

    def __enter__(self) -> None:
        for turn in range(_TRIES):
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._without and time.monotonic() < self._without:
                    return None
                # One that lost its core while it held the lock gets ours.
                time.sleep(0.0002 if turn > 20 else 0)
        self._without = time.monotonic() + _WITHOUT_S
        return None

    def __exit__(self, *_: Any) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
