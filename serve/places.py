"""Where the parts of the data plane find each other on a node: sockets in a folder of this user's alone, and the secret
between them."""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cluster.errors import RunFailed
from cluster.processes import MARKER
from serve.asgi import header

SECRET = b"x-shoal-secret"


def sockets() -> Path:
    """The folder of this node's sockets; made, for this user alone. Short: a socket's path has 107 characters at most.

    Below the embedded cluster's scratch folder, else in the temporary folder, by node: hosts may share that.
    Raises RunFailed where somebody else's folder is in its place.
    """
    if scratch := os.environ.get(MARKER):
        return _private(Path(scratch) / "s")
    import ray

    node = hashlib.sha256(ray.get_runtime_context().get_node_id().encode()).hexdigest()[:12]
    return _private(Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}-{node}")


def others(own: Path) -> list[Path]:
    """The folders of this user's other nodes on this machine, and of those that were."""
    shared, _, node = own.name.rpartition("-")
    return [one for one in own.parent.glob(f"{shared}-{'?' * len(node)}") if one != own] if shared else []


def secret() -> bytes:
    """What the parts show each other, the same on every node of a cluster: made from Ray's token, where it has one.

    A cluster without a token lets everybody in that reaches its ports anyhow, by Ray's own.
    """
    return hmac.new(operator().encode(), b"shoal data plane", hashlib.sha256).hexdigest().encode()


def operator() -> str:
    """The cluster's own token; empty where it has none."""
    from cluster.attached import token

    return token()


def is_operator(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request shows the cluster's own token. Everybody does where the cluster has none."""
    given = header(headers, b"authorization").removeprefix(b"Bearer ")
    return hmac.compare_digest(given, operator().encode())


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RunFailed(f"{folder}: is there already and not this user's own; remove it, or set TMPDIR")
    return folder
