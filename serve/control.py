"""HAProxy's control socket: what it is told while it runs."""

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
