"""The gateway's certificate and key, as cluster.yaml names them, in the one file that HAProxy wants."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import InputError


def write(folder: Path, listen: Mapping[str, Any]) -> str | None:
    """The file, made anew in one step and for this user alone; None without TLS. Raises InputError."""
    if not listen.get("certificate"):
        return None
    try:
        text = Path(listen["certificate"]).read_text() + "\n" + Path(listen["key"]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"http.certificate: {listen['certificate']} or http.key cannot be read: {error}") from None
    file = folder / "front.pem"
    fresh = folder / "front.pem.new"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    fresh.replace(file)
    return str(file)


def changed(listen: Mapping[str, Any]) -> float:
    """A number that is another one once either file was written; 0 without TLS, or where one is not there."""
    if not listen.get("certificate"):
        return 0.0
    try:
        return sum(Path(listen[name]).stat().st_mtime for name in ("certificate", "key"))
    except OSError:
        return 0.0
