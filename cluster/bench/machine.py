"""CPU time of a server's processes, by part; which processes those are; and what else the machine is doing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import urlsplit

import psutil

from cluster.errors import InputError


@dataclass(frozen=True)
class Processes:
    """Those of one server: `listed` finds them anew each time; None where they cannot be seen. `about` says which they
    are, or why they are not seen."""

    listed: Callable[[], list[psutil.Process]] | None
    about: str

    def seconds(self) -> dict[int, tuple[str, float]]:
        """Part and CPU seconds so far, by pid."""
        found: dict[int, tuple[str, float]] = {}
        for process in self.listed() if self.listed is not None else ():
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = (part(process), times.user + times.system)
        return found


def used(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]]) -> dict[str, float]:
    """CPU seconds between two counts, by part, most first. One who ended in between is not in it."""
    parts: dict[str, float] = {}
    for pid, (name, seconds) in after.items():
        parts[name] = parts.get(name, 0.0) + seconds - before.get(pid, (name, 0.0))[1]
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def part(process: psutil.Process) -> str:
    """A short name for a process: a Ray worker's own title, which it wrote over its command; a script or module of
    Python; else the program's name."""
    words = [word for word in process.cmdline() if word.strip()]
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::").removeprefix("ServeReplica:").split(" ")[0].split(".")[0]
    if words[0].startswith("ray-dashboard"):  # one process a page of it
        return "ray-dashboard"
    program = PurePath(words[0]).name
    if not program.startswith("python"):
        return program
    rest = words[1:]
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c"):
        rest = rest[1:]
    if len(rest) >= 2 and rest[0] == "-m":
        return rest[1]
    return PurePath(rest[0]).name if rest and rest[0] != "-c" else "python"


def behind(url: str, pid: int | None, *, name: str) -> Processes:
    """The processes of the server at a URL: the tree of `pid`, or of whoever listens on its port on this machine.

    Raises InputError where there is no process `pid`; where nothing can be found, `about` says why.
    """
    if pid is not None:
        try:
            root = psutil.Process(pid)
        except psutil.Error:
            raise InputError(f"--pid: {pid} is no process; give that of the server at {url}") from None
        return _tree([root])
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if not _is_here(host):
        return Processes(None, f"{host} is another machine, so {name}'s CPU time is not seen")
    listeners = _listeners(port)
    if not listeners:
        return Processes(None, f"no process that this user sees listens on port {port}; name it with --pid")
    return _tree([_program(process) for process in listeners])


def _tree(roots: Iterable[psutil.Process]) -> Processes:
    first = {process.pid: process for process in roots}

    def listed() -> list[psutil.Process]:
        found = dict(first)
        for process in first.values():
            with suppress(psutil.Error):
                found |= {child.pid: child for child in process.children(recursive=True)}
        found.pop(os.getpid(), None)
        return list(found.values())

    names = ", ".join(f"{part(process)} (pid {process.pid})" for process in first.values())
    return Processes(listed, f"{names} and its children")


def _is_here(host: str) -> bool:
    own = {"127.0.0.1", "::1"}
    own |= {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
    try:
        return any(str(info[4][0]) in own for info in socket.getaddrinfo(host, None))
    except OSError:
        return False


def _listeners(port: int) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    with suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and getattr(connection.laddr, "port", 0) == port
                and connection.pid
            ):
                with suppress(psutil.Error):
                    found[connection.pid] = psutil.Process(connection.pid)
    return list(found.values())


def _program(process: psutil.Process) -> psutil.Process:
    """The first process of the program that one belongs to: a listener is often the child of a supervisor, and the
    model is in another child. Up as long as the parent runs the same executable, and is none of ours."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    with suppress(psutil.Error):
        while (above := process.parent()) is not None and above.pid not in ours and above.exe() == process.exe():
            process = above
    return process


def generator_seconds() -> float:
    """CPU seconds of this process so far."""
    return sum(os.times()[:2])


def load() -> float:
    """Processes that ran or wanted to, the last minute's mean."""
    return round(os.getloadavg()[0], 2)
