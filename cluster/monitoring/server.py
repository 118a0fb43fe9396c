"""The Prometheus of one home: started, found again, and ended by its own pid.

It reads where to look from the file that Ray's dashboard writes for it, so it follows the cluster of this home through
every restart, with all its nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock

from cluster import embedded, ports, processes
from cluster.errors import InputError, RunFailed
from cluster.guard import undisturbed
from cluster.monitoring import alerts
from cluster.progress import Progress, silent
from cluster.settings import Prometheus

HOST = "127.0.0.1"
FIRST_PORT = 9090
TRIES = 100
START_S = 60.0  # the longest a start may take; one is usual, more with weeks of samples to read
EVERY = "10s"  # as often as Ray's processes tell their node's agent
GRACE_S = 15.0  # to write its samples down
# Ray's own: the targets of a running cluster, with the label job="ray".
TARGETS = "prom_metrics_service_discovery.json"


@dataclass(frozen=True)
class Server:
    """A Prometheus that runs, by its pid and creation time."""

    pid: int
    created: float
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def process(self) -> psutil.Process | None:
        return processes.same(self.pid, self.created)


@dataclass(frozen=True)
class Health:
    """What a Prometheus says of itself: targets by URL and whether the last scrape of each went well, the names of its
    rules, and the alerts that fire."""

    targets: dict[str, bool]
    rules: list[str]
    firing: list[str]


def running(home: Path) -> Server | None:
    """The Prometheus of this home, where one runs."""
    try:
        server = Server(**json.loads(_state(home).read_text()))
        return server if server.process is not None else None
    except (OSError, ValueError, TypeError):
        return None


def start(home: Path, wanted: Prometheus, progress: Progress = silent) -> tuple[Server, bool]:
    """Start it, or find it running (False), and return once it answers.

    Raises InputError where there is no Prometheus on this machine or its port is taken, RunFailed with its own words
    where it does not start.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise InputError(
            "prometheus: no such program on PATH; install it with `apt-get install prometheus` (Debian, Ubuntu) or "
            "`brew install prometheus`, and run this again"
        )
    with _lock(home):
        if (found := running(home)) is not None:
            if wanted.port not in (0, found.port):
                raise InputError(
                    f"prometheus.port: {wanted.port} is asked for, and the running Prometheus has {found.port}; run "
                    "`shoal monitor down` first"
                )
            return found, False
        folder = home / "prometheus"
        port = _free(wanted.port)
        (folder / "rules.yml").write_text(alerts.text())
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(home), sort_keys=False))
        words = [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--storage.tsdb.retention.time={wanted.retention}",
            f"--web.listen-address={HOST}:{port}",
        ]
        with open(folder / "prometheus.log", "wb") as log:
            process = subprocess.Popen(
                words,
                cwd=folder,
                # Not one of the cluster's: it outlives the cluster that it watches.
                env={key: value for key, value in os.environ.items() if key != processes.MARKER},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        server = Server(process.pid, psutil.Process(process.pid).create_time(), port)
        try:
            # At once: should this command be killed while it waits, the next one finds what it started.
            part = _state(home).with_suffix(".new")
            part.write_text(json.dumps(asdict(server)))
            part.replace(_state(home))
            _wait(process, server.url, folder / "prometheus.log", progress)
        except BaseException:
            with undisturbed():
                _end(server)
                _state(home).unlink(missing_ok=True)
            raise
    return server, True


def stop(home: Path) -> bool:
    """End it, and return when it is gone; whether there was one. Its samples stay."""
    if not _state(home).exists():
        return False
    with _lock(home):
        server = running(home)
        if server is not None:
            _end(server)
        _state(home).unlink(missing_ok=True)
    return server is not None


def health(server: Server) -> Health:
    """What it says of itself. Raises RunFailed where it does not answer."""
    import httpx

    def ask(path: str) -> Any:
        try:
            answer = httpx.get(f"{server.url}/api/v1/{path}", timeout=5).raise_for_status()
            return answer.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise RunFailed(
                f"Prometheus at {server.url} does not answer: {error}; `shoal monitor down`, then `shoal monitor up`"
            ) from None

    targets = {one["scrapeUrl"]: one["health"] == "up" for one in ask("targets?state=active")["activeTargets"]}
    rules = [rule["name"] for group in ask("rules?type=alert")["groups"] for rule in group["rules"]]
    firing = [alert["labels"] for alert in ask("alerts")["alerts"] if alert["state"] == "firing"]
    return Health(targets, rules, [" ".join(filter(None, (one["alertname"], one.get("model")))) for one in firing])


def configuration(home: Path) -> dict[str, Any]:
    """prometheus.yml for the cluster of this home, whether it runs or not."""
    return {
        "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
        "rule_files": [str(home / "prometheus" / "rules.yml")],
        "scrape_configs": [
            {
                "job_name": "ray",
                "file_sd_configs": [
                    {"files": [str(embedded.scratch_folder(home) / "r" / TARGETS)], "refresh_interval": "5s"}
                ],
            }
        ],
    }


def _state(home: Path) -> Path:
    return home / "prometheus" / "server.json"


def _free(port: int) -> int:
    """The port that is asked for, or with 0 the first free one from 9090 on. Raises InputError."""
    if port:
        if why := ports.trouble(HOST, port):
            raise InputError(
                f"prometheus.port: {port} {why}; stop what uses it, or write another port in cluster.yaml (0 takes "
                "the next free one)"
            )
        return port
    for candidate in range(FIRST_PORT, FIRST_PORT + TRIES):
        if not ports.trouble(HOST, candidate):
            return candidate
    raise InputError(f"prometheus.port: no port from {FIRST_PORT} to {FIRST_PORT + TRIES - 1} is free")


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, progress: Progress) -> None:
    import httpx

    began = time.monotonic()
    while (spent := time.monotonic() - began) < START_S:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            raise RunFailed(f"Prometheus would not start: {lines[-1][-300:]}; all of it: {log}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/-/ready", timeout=2).status_code == 200:
                progress("prometheus", 1, 1)
                return
        progress("prometheus", min(spent, 0.9), 1)
        time.sleep(0.1)
    raise RunFailed(f"Prometheus did not answer within {START_S:.0f} s; {log} may say why")


def _end(server: Server) -> None:
    for end in (psutil.Process.terminate, psutil.Process.kill):
        if (process := server.process) is None:
            return
        with suppress(psutil.Error):  # gone in the meantime, or TimeoutExpired
            end(process)
            process.wait(GRACE_S)


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Two commands at once start one Prometheus."""
    (home / "prometheus").mkdir(exist_ok=True)
    with FileLock(home / "prometheus" / "lock"):
        yield
