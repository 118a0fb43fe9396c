"""`shoal ui`: MLflow's own pages over the runs and models of this home."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import click
import psutil

from cluster.cli.options import as_json
from cluster.cli.output import Output
from cluster.errors import InputError, RunFailed
from cluster.processes import alive

HOST = "127.0.0.1"
FIRST_PORT = 5000
START_S = 180.0  # the longest a start may take; 10 to 20 s are usual


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65_535), help="Port to listen on. Left out: the first free from 5000 on."
)
@as_json
def command(port: int | None, as_json: bool) -> None:
    """Open MLflow's pages over all runs, metrics and models of this home, until Ctrl-C.

    \b
      shoal ui
      shoal ui --port 5050

    They listen on this machine's loopback only. With `tracking_uri` of a server in cluster.yaml, that server has them.
    """
    from cluster.registry import Registry
    from cluster.registry.store import shown, sqlite_file
    from cluster.settings import home

    registry = Registry()
    with Output(as_json=as_json) as out:
        if urlsplit(registry.uri).scheme in ("http", "https"):
            return out.result({"url": registry.uri}, f"MLflow  {shown(registry.uri)}  (a server of its own)")
        out.progress("mlflow", 0, 0)
        if (database := sqlite_file(registry.uri)) is not None and not database.exists():
            registry.versions()  # makes the tables, under the lock that every other verb waits for
        port = _free(port)
        url = f"http://{HOST}:{port}"
        with _server(registry.uri, port, home()) as server:
            _wait(server, url, out, home() / "mlflow-ui.log")
            out.result({"url": url}, f"MLflow  {url}  (Ctrl-C ends it)")
            try:
                code = server.wait()
            except KeyboardInterrupt:  # how it is meant to end
                return None
        raise RunFailed(f"MLflow's server ended by itself ({code}); {home() / 'mlflow-ui.log'} says why")


def _free(port: int | None) -> int:
    """The port asked for, or the first free one. Raises InputError."""
    for candidate in [port] if port else range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
            except OSError as error:
                if port:
                    raise InputError(
                        f"--port: {port} cannot be opened: {error.strerror}; leave it out, or take another"
                    ) from None
                continue
            return candidate
    raise InputError(f"--port: none of {FIRST_PORT} to {FIRST_PORT + 99} is free; name one that is")


@contextmanager
def _server(uri: str, port: int, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server as a process group of its own, ended with all it started when the block is left."""
    arguments = ["--default-artifact-root", (home / "mlruns").as_uri()]
    arguments += ["--host", HOST, "--port", str(port), "--workers", "1"]
    # -P and cwd: nothing is imported from, or written to, the folder the user stands in.
    words = [sys.executable, "-P", "-m", "mlflow", "server", *arguments]
    # By the environment, as a database's address may hold a password and arguments are seen by everyone.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    store = {"MLFLOW_BACKEND_STORE_URI": uri}
    with open(home / "mlflow-ui.log", "wb") as log:
        server = subprocess.Popen(
            words,
            cwd=home,
            env={**os.environ, **quiet, **store},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield server
    finally:
        _end(server)
        signal.signal(signal.SIGTERM, before)


def _end(server: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace
        while _group(server.pid) and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            server.poll()  # reaps it
            time.sleep(0.1)


def _group(leader: int) -> list[psutil.Process]:
    """The live processes of a group: the server, and workers that may outlive it."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError):
            if os.getpgid(process.pid) == leader and alive(process):
                found.append(process)
    return found


def _wait(server: subprocess.Popen[bytes], url: str, out: Output, log: Path) -> None:
    """Return when the page answers. Raises RunFailed where the server ends first, or takes too long."""
    import httpx

    began = time.monotonic()
    while (now := time.monotonic() - began) < START_S:
        if server.poll() is not None:
            last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise RunFailed(f"MLflow's server did not start; the last line of {log}: {last[:300]}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/", timeout=2).status_code == 200:
                out.progress("mlflow", 1, 1)
                return
        out.progress("mlflow", min(now / 20, 0.95), 1)
        time.sleep(0.3)
    raise RunFailed(f"MLflow's server does not answer after {START_S:g} s; {log} may say why")
