"""A real Postgres and a real Redis of a test's own: on free ports, killed and started again as the test likes."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import ports

PASSWORD = "not a secret"


class Program:
    """A server that was started, with what it takes to start it again."""

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        self.command, self.port, self.folder = command, port, folder
        self.uri = ""
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def end(self, how: int = signal.SIGQUIT) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
        self.process.wait(20)


@contextmanager
def redis(*more: str) -> Iterator[Program]:
    """On the loopback, and on `more` addresses of this machine."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    folder = Path(tempfile.mkdtemp())
    port = ports.pick(1)[0]
    options = {"port": port, "bind": " ".join(("127.0.0.1", *more)), "save": "", "appendonly": "no", "dir": folder}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    server = Program([program, *words, "--requirepass", PASSWORD], port, folder)
    server.uri = f"redis://127.0.0.1:{port}/0"
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[Program]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("Postgres is not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp())
    user = _no_root()
    if user:
        folder.chmod(0o755)
    data, file = folder / "data", folder / "password"
    file.write_text(PASSWORD)
    data.mkdir(mode=0o700)
    if user:
        for path in (data, file):
            shutil.chown(path, user.pw_uid, user.pw_gid)
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []
    initdb = [*as_user, str(programs[-1] / "initdb"), "-D", str(data), "-U", "shoal", "-A", "scram-sha-256", "-N"]
    made = subprocess.run([*initdb, f"--pwfile={file}", "--no-locale", "-E", "UTF8"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    port = ports.pick(1)[0]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "unix_socket_directories="]
    server = Program(
        [*as_user, str(programs[-1] / "postgres"), "-D", str(data), "-p", str(port), *options], port, folder
    )
    server.uri = f"postgresql://shoal@127.0.0.1:{port}/postgres"
    try:
        yield server
    finally:
        server.end()
        shutil.rmtree(folder, ignore_errors=True)


def _no_root() -> pwd.struct_passwd | None:
    """Who to run Postgres as, where we are root: it refuses to be that."""
    if os.getuid() != 0:
        return None
    if shutil.which("setpriv") is None:
        pytest.skip("Postgres does not run as root, and setpriv is not installed")
    return pwd.getpwnam("nobody")
