"""Which cluster is meant: `--on NAME`, or the variable RAY_ADDRESS with a dashboard's URL."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import InputError
from cluster.settings import settings

_URL = ("http://", "https://")


@dataclass(frozen=True)
class Target:
    """A cluster as its jobs' client needs it. `option` is what a person writes to mean it again, empty where the
    variable says it; `key` names the place of its address, for messages."""

    name: str
    address: str
    key: str
    option: str = ""
    token: str = field(default="", repr=False)
    token_from: str = ""
    tracking_uri: str | None = None
    shared: tuple[Path, ...] = ()


def find(on: str | None) -> Target | None:
    """The cluster that `--on` names, else that of RAY_ADDRESS, None where neither names one by its dashboard's URL.

    A RAY_ADDRESS of another form (host:port) is a Ray to attach to, not one to send jobs to. Raises InputError.
    """
    if on is None:
        address = os.environ.get("RAY_ADDRESS", "")
        if not address.startswith(_URL):
            return None
        token, source = _token()
        return Target(address, address.rstrip("/"), "RAY_ADDRESS", token=token, token_from=source)
    known = settings().clusters
    if on not in known:
        near = difflib.get_close_matches(on, known, n=1)
        names = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
        raise InputError(
            f"--on: {on!r} is no cluster of cluster.yaml; {names} (clusters: {{{on}: {{address: http://HOST:8265}}}})"
        )
    found = known[on]
    token, source = _token(found.token_file, f"clusters.{on}.token_file")
    return Target(
        on,
        found.address.rstrip("/"),
        f"clusters.{on}.address",
        option=f" --on {on}",
        token=token,
        token_from=source,
        tracking_uri=found.tracking_uri,
        shared=tuple(_folder(text, f"clusters.{on}.shared") for text in found.shared),
    )


def _token(file: str | None = None, key: str = "") -> tuple[str, str]:
    """The token, and where it comes from: the file, else what Ray's own clients look at, in their order."""
    if file is not None:
        return _read(Path(file).expanduser(), key), f"{key}: {file}"
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "the variable RAY_AUTH_TOKEN"
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return _read(Path(path).expanduser(), "RAY_AUTH_TOKEN_PATH"), f"RAY_AUTH_TOKEN_PATH: {path}"
    default = Path("~/.ray/auth_token").expanduser()
    return (_read(default, "Ray's default"), str(default)) if default.is_file() else ("", "")


def _read(path: Path, key: str) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it holds no text"
        raise InputError(f"{key}: {path} cannot be read: {why}; write the cluster's token into it") from None
    if not token or any(character.isspace() for character in token):
        raise InputError(f"{key}: {path} holds no token; write the cluster's token into it, on one line")
    return token


def _folder(text: str, key: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise InputError(f"{key}: {text!r} is no absolute path; write one that every node knows, e.g. /mnt/team")
    return path.resolve()
