"""Ports that no other cluster of this machine, of any user, takes as well."""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from pathlib import Path

from cluster.errors import InputError

FIRST_HTTP = 8000
_TRIES = 1000


def claim_http(host: str, port: int, scratch: Path) -> int:
    """The HTTP port: `port` itself, or with 0 the first free one from 8000 on.

    Serve binds it minutes later, so it is claimed by a file beside the scratch folders, which every cluster looks at.
    Raises InputError where a port that was asked for is taken, or the host is none of this machine's.
    """
    if port:
        why = trouble(host, port) or ("" if _claim(port, scratch) else "is kept by another Shoal cluster")
        if why:
            raise InputError(
                f"http.port: {port} {why}; stop what uses it, or write another port in cluster.yaml "
                "(0 takes the next free one)"
            )
        return port
    for candidate in range(FIRST_HTTP, FIRST_HTTP + _TRIES):
        if not trouble(host, candidate) and _claim(candidate, scratch):
            return candidate
    raise InputError(f"http.port: no port from {FIRST_HTTP} to {FIRST_HTTP + _TRIES - 1} is free on {host}")


def release(scratch: Path) -> None:
    """Give up the claim of a cluster that has ended."""
    for file in scratch.parent.glob("shoal-port-*"):
        if _owner(file) == scratch:
            file.unlink(missing_ok=True)


def pick(count: int) -> list[int]:
    """Free ports of the loopback, below those the kernel hands out: they are bound much later than picked."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.randrange(20_000, 30_000)
        if port not in chosen and not trouble("127.0.0.1", port):
            chosen.append(port)
    return chosen


def trouble(host: str, port: int) -> str:
    """Why nothing could listen there; empty where it could. Raises InputError for a host that is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is taken by another program"
            if error.errno in (errno.EACCES, errno.EPERM):
                return "may not be opened by this user"
            raise InputError(
                f"http.host: {host} is no address of this machine ({error.strerror}); write 127.0.0.1, or 0.0.0.0 for "
                "every interface, in cluster.yaml"
            ) from None
    return ""


def _claim(port: int, scratch: Path) -> bool:
    file = scratch.parent / f"shoal-port-{port}"
    for _ in range(2):
        try:
            with open(file, "x") as claim:
                claim.write(str(scratch))
            return True
        except FileExistsError:
            owner = _owner(file)
            if owner == scratch:
                return True
            # Whoever made it died without a word; only its own user may remove it.
            if owner is None or owner.exists() or file.stat().st_uid != os.getuid():
                return False
            file.unlink(missing_ok=True)
    return False


def _owner(file: Path) -> Path | None:
    try:
        return Path(file.read_text())
    except OSError:
        return None


def answers(address: str, patience_s: float) -> bool:
    """Whether anything listens at host:port, asked again for so many seconds where it does not."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            return True
        except ValueError:
            return False
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
