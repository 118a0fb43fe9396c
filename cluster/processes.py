"""The processes of one embedded Ray: found without its help, and ended, whatever state it is in.

Never by name: other people's Ray may run beside ours. Ours all inherit MARKER, with the scratch folder as its value.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

MARKER = "SHOAL_CLUSTER"
GRACE_S = 1.5  # from SIGTERM to SIGKILL
_TITLES = ("ray::", "ray-dashboard")


def members(scratch: Path) -> list[psutil.Process]:
    """Every live process of the Ray whose scratch folder this is, this process excepted."""
    found: dict[int, psutil.Process] = {}
    for process in _of_this_user():
        if _belongs(process, str(scratch)):
            found[process.pid] = process
            # What a worker starts may have wiped its environment as well.
            for child in _children(process):
                found[child.pid] = child
    found.pop(os.getpid(), None)
    return [process for process in found.values() if alive(process)]


def end(scratch: Path, *, grace: float = GRACE_S) -> int:
    """End them all and return when none is left, how many there were. Raises TimeoutError after 15 seconds."""
    first = members(scratch)
    deadline = time.monotonic() + 15
    # All but Ray's own daemons get SIGTERM and time to finish. The daemons have nothing to save, and take
    # seconds to wait for each other.
    for process in first:
        _signal(process, kill=_is_daemon(process))
    soft = time.monotonic() + grace
    while time.monotonic() < soft and any(alive(process) for process in first):
        time.sleep(0.05)
    # Again from the start: something may have been forked while we were at it.
    while left := members(scratch):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes that would not end: {', '.join(str(p.pid) for p in left)}")
        for process in left:
            _signal(process, kill=True)
        time.sleep(0.05)
    # Dead, but listed until somebody reaps them: init, or nobody in a container without one.
    reaped = time.monotonic() + 2
    while time.monotonic() < reaped and any(process.is_running() for process in first):
        time.sleep(0.05)
    return len(first)


def alive(process: psutil.Process) -> bool:
    """Running, and not a zombie that nobody reaps (as in a container without an init)."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def same(pid: int, created: float) -> psutil.Process | None:
    """The process, where the pid still means the one that was recorded with its creation time; else None."""
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - created) < 1 and alive(process) else None
    except psutil.Error:
        return None


def _of_this_user() -> Iterator[psutil.Process]:
    me = os.getuid()
    for process in psutil.process_iter():
        try:
            if process.uids().real == me:
                yield process
        except psutil.Error:
            continue


def _belongs(process: psutil.Process, scratch: str) -> bool:
    try:
        environment = process.environ()
    except (psutil.Error, OSError, ValueError):
        environment = {}
    if environment.get(MARKER) == scratch:
        return True
    # Ray's workers, agents and dashboard modules write their title over their environment; but they keep log files
    # open under the scratch folder. So does a driver in somebody's terminal, which is not ours to end and has
    # another title.
    try:
        if not " ".join(process.cmdline()).startswith(_TITLES):
            return False
        folder = f"/proc/{process.pid}/fd"
        return any(_target(f"{folder}/{number}").startswith(f"{scratch}/") for number in os.listdir(folder))
    except (psutil.Error, OSError):
        return False


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed since it was listed
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _is_daemon(process: psutil.Process) -> bool:
    try:
        return process.name() in ("gcs_server", "raylet")
    except psutil.Error:
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    with suppress(psutil.Error):  # it may be gone already
        process.kill() if kill else process.terminate()
