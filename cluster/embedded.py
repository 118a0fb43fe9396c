"""Start the embedded Ray of one home, and take it down again with all that it left."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster import ports, processes, tls
from cluster.errors import InputError, RunFailed
from cluster.guard import undisturbed
from cluster.progress import Progress, silent
from cluster.serving import SERVING, listening, reachable
from cluster.settings import Settings
from cluster.settings.access import checked

TOKEN = "token"  # file in the home
START_S = 150.0  # the longest a start may take, on a machine that is busy
USUAL_S = 12.0  # what it takes on two quiet cores
LONGEST_SCRATCH = 36  # Ray's longest socket name below it has 71 characters; the kernel's limit is 107
MIN_TEMP_MB = 300  # sockets, logs, and objects that leave the shared memory
MIN_HOME_MB = 100


@dataclass(frozen=True)
class State:
    """cluster.json: how later commands find what one of them started."""

    address: str  # Ray's control service, host:port
    dashboard_url: str
    metrics_port: int  # Prometheus, all of Ray's processes
    logs: str
    pids: dict[str, tuple[int, float]]  # daemon: pid and creation time
    http_host: str
    http_port: int
    scheme: str  # http or https
    scratch: str  # sockets, logs and spilled objects; the marker of every process
    keep: bool  # lives on when the last session ends
    started_at: float  # seconds since 1970

    @property
    def alive(self) -> bool:
        """Whether each of the recorded daemons runs."""
        return all(processes.same(pid, created) for pid, created in self.pids.values())


def read(home: Path) -> State | None:
    """What cluster.json of this home says, None where there is none or it is damaged."""
    try:
        fields = json.loads((home / "cluster.json").read_text())
        return State(**{**fields, "pids": {kind: (pid, at) for kind, (pid, at) in fields["pids"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write(home: Path, state: State) -> None:
    """Replace cluster.json, in one step: nobody reads half of it."""
    fresh = home / "cluster.json.new"
    fresh.write_text(json.dumps(asdict(state), indent=1))
    fresh.replace(home / "cluster.json")


def start(home: Path, settings: Settings, *, keep: bool, progress: Progress = silent) -> State:
    """Start Ray, wait until it answers, and record it. The caller holds the home's lock and has cleaned up before.

    Raises InputError where the machine or cluster.yaml does not allow it, RunFailed with the reason if Ray won't start.
    """
    progress("start Ray", 0, USUAL_S)
    root = scratch_folder(home)
    # Early and clearly: Ray would fail at it later, with a riddle.
    checked(settings.access, http_host=settings.http.host)
    tls.check(listening(settings.http, settings.http.host, 0), reachable(settings.http.host))
    for shortage in shortages(home, settings):
        raise InputError(shortage)
    _make_private(root)
    try:
        http_port = ports.claim_http(settings.http.host, settings.http.port, root)
        (home / TOKEN).unlink(missing_ok=True)
        with open(os.open(home / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))

        answer, log = root / "head.json", root / "head.log"
        dashboard, dashboard_metrics = ports.pick(2)
        parameters = {
            "node_ip_address": "127.0.0.1",
            "node_name": "127.0.0.1",
            "temp_dir": str(root / "r"),
            "dashboard_host": "127.0.0.1",
            "num_cpus": settings.ray.num_cpus or 4 * cores(),
            "object_store_memory": settings.ray.object_store_mb * 2**20,
        }
        script = str(Path(__file__).with_name("head.py"))
        with open(log, "wb") as output:
            head = subprocess.Popen(
                # -P: this folder must not come before the packages whose names its modules have.
                [sys.executable, "-P", script, json.dumps(parameters), str(dashboard), str(answer)],
                env=environment(home, root, dashboard_metrics),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is not for Ray
            )
        _wait(head, log, progress)
        fields: dict[str, Any] = json.loads(answer.read_text())
        state = State(
            **fields,
            http_host=settings.http.host,
            http_port=http_port,
            scheme="https" if settings.http.certificate else "http",
            scratch=str(root),
            keep=keep,
            started_at=time.time(),
        )
        write(home, state)
    except BaseException:
        with undisturbed():
            clean(home, root)
        raise
    progress("start Ray", USUAL_S, USUAL_S)
    return state


def clean(home: Path, root: Path) -> int:
    """End what is left of the cluster with this scratch folder, and remove its files; how many processes there were."""
    count = processes.end(root)
    shutil.rmtree(root, ignore_errors=True)
    ports.release(root)
    for name in ("cluster.json", "cluster.json.new", TOKEN):
        (home / name).unlink(missing_ok=True)
    return count


def scratch_folder(home: Path) -> Path:
    """Where the Ray of this home keeps sockets and logs. Short, as sockets must be; not made here."""
    name = f"shoal-{os.getuid()}-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
    root = Path(tempfile.gettempdir()).resolve() / name
    return root if len(str(root)) <= LONGEST_SCRATCH else Path("/tmp") / name


def environment(home: Path, root: Path, dashboard_metrics: int) -> dict[str, str]:
    """The environment of all of Ray's processes; the dashboard's own numbers are at that port."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return {
        **inherited,
        **SERVING,
        processes.MARKER: str(root),
        "SHOAL_HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / TOKEN),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Keeps Ray from turning 127.0.0.1 into the address of a network card: all of it listens on the loopback only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A port that is the same for every cluster.
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
    }


def shortages(home: Path, settings: Settings) -> list[str]:
    """What is too full on this machine for Ray to start, each with its remedy."""
    found = []
    for folder, least, remedy in (
        (scratch_folder(home).parent, MIN_TEMP_MB, "free some, or set TMPDIR to a short path on another disk"),
        (home, MIN_HOME_MB, "free some, or set SHOAL_HOME to a folder on another disk"),
    ):
        free = shutil.disk_usage(folder).free // 2**20
        if free < least:
            found.append(f"{folder}: {free} MiB are free on its disk and {least} are needed; {remedy}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free, store = shutil.disk_usage(shared).free // 2**20, settings.ray.object_store_mb
        if free < store * 1.1:
            found.append(
                f"/dev/shm: {free} MiB are free and ray.object_store_mb is {store}, which needs {store * 11 // 10}; "
                "write a smaller ray.object_store_mb in cluster.yaml, or give the container more (--shm-size=1g)"
            )
    return found


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1


def _make_private(root: Path) -> None:
    """Make the scratch folder for this user alone: who reaches its sockets may ask replicas past the gateway."""
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        found = root.lstat()
        if not root.is_dir() or root.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise InputError(f"{root}: is there already and not this user's own; remove it, or set TMPDIR") from None


def _wait(head: subprocess.Popen[bytes], log: Path, progress: Progress) -> None:
    began = time.monotonic()
    while head.poll() is None:
        spent = time.monotonic() - began
        if spent > START_S:
            raise RunFailed(f"Ray did not start within {START_S:.0f} s; `shoal doctor` checks the machine")
        progress("start Ray", min(spent, USUAL_S - 0.5), USUAL_S)
        time.sleep(0.1)
    if head.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() or [f"exit code {head.returncode}"]
        raise RunFailed(f"Ray would not start: {lines[-1]}; `shoal doctor` checks the machine")
