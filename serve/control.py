"""HAProxy's control socket: what it is told while it runs, and the listening socket that it gives to a successor."""

from __future__ import annotations

import socket
from pathlib import Path

PATIENCE_S = 5


def say(control: Path, text: str) -> str:
    """One command of its runtime interface; what it answers, or why it does not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(PATIENCE_S)
            line.connect(str(control))
            line.sendall(text.encode() + b"\n")
            said = b""
            while chunk := line.recv(65_536):
                said += chunk
            return said.decode(errors="replace").strip()
    except OSError as error:
        return str(error)


def inherited(control: Path, port: int) -> socket.socket | None:
    """The listening socket of a running HAProxy, given by its control socket as to a successor (`haproxy -x`); None
    where it gives none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(PATIENCE_S)
            line.connect(str(control))
            line.sendall(b"_getsocks\n")
            given: list[int] = []
            data = b"-"
            while data and not given:  # a message says how many there are, the next one has them
                data, given, _, _ = socket.recv_fds(line, 65_536, 64)
    except OSError:
        return None
    found = None
    for number in given:
        one = socket.socket(fileno=number)
        name = one.getsockname() if one.family in (socket.AF_INET, socket.AF_INET6) else ()
        if found is None and len(name) > 1 and name[1] == port:
            found = one
        else:
            one.close()
    return found
