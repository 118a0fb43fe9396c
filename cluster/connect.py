"""Attach this process to a Ray: one that is there already (cluster.attached), else the embedded one of this home, which
is started and stopped as needed.

One Ray a home ($SHOAL_HOME), found by cluster.json there. Whoever leaves last stops it, unless somebody wanted it kept.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from filelock import FileLock

from cluster import attached, embedded
from cluster.embedded import State
from cluster.errors import InputError
from cluster.guard import terminable, terminate, undisturbed, watched
from cluster.progress import Progress, silent
from cluster.serving import hosted, listening, reachable
from cluster.settings import Settings, home, settings

NAMESPACE = "shoal"


@dataclass(frozen=True)
class Cluster:
    """A running Ray and how to reach it."""

    address: str
    dashboard_url: str
    http_url: str
    """Where this process reaches the gateway, once something is served: http://host:port, no slash."""
    listen: dict[str, Any]
    """Where the gateway's HAProxy is to listen: {host, port}, {certificate, key} with TLS, and
    {name} where clients know it by one."""
    home: Path
    token: str = field(repr=False)
    """Of the dashboard's REST API: header `Authorization: Bearer <token>`. Empty where it wants none."""
    started: bool = False
    """Whether this call started it."""

    @property
    def public_url(self) -> str:
        """Where clients reach the gateway: as `http_url`, by http.name where cluster.yaml has it."""
        known = self.listen.get("name")
        parts = urlsplit(self.http_url)
        return f"{parts.scheme}://{hosted(known)}:{parts.port}" if known else self.http_url


@contextmanager
def session(*, keep: bool = False, progress: Progress = silent) -> Iterator[Cluster]:
    """Attach this process to the embedded Ray of this home, and start that if none runs; detach at the end.

    With `keep` it lives on until `down()`; otherwise the last session that leaves stops it, however it leaves. Where
    this process has a Ray already, or RAY_ADDRESS names one by host:port as in every Ray job, that one is used and left
    alone. Raises InputError, RunFailed (Ray won't start) and ClusterGone, which stands for whatever Ray raised because
    it went away while the session was open.
    """
    if "ray" in sys.modules and (found := _attached()) is not None:
        yield found
        return
    if (where := attached.address()) is not None:
        # Watched once it is attached: nobody at the address is told of in the driver's own words.
        with terminable(), _quiet(), attached.driver(where, NAMESPACE), watched(lambda: attached.alive(where)):
            _leave_by_sigterm()
            found = _attached()
            assert found is not None
            yield found
        return
    folder, wanted = home(), settings()
    with terminable(), _environment(folder):
        # Under the lock: two commands at once start one Ray, and nobody attaches to one that is being stopped.
        with _lock(folder, progress):
            state, started = _ensure(folder, wanted, keep=keep, progress=progress)
            use = _share(folder)
        try:
            with watched(lambda: state.alive), _quiet():
                _attach(state)
                yield _cluster(folder, state, started=started)
        finally:
            with undisturbed():
                _detach(state)
                with _lock(folder, silent):
                    _leave(folder, use)


def running() -> Cluster | None:
    """The embedded Ray of this home, where one runs. Does not import ray."""
    folder = home()
    state = embedded.read(folder)
    return _cluster(folder, state, started=False) if state is not None and state.alive else None


def down() -> bool:
    """Stop the embedded Ray of this home and all that runs on it; returns when no process is left.

    True if there was something to stop, be it half of one that had crashed.
    """
    folder = home()
    with _lock(folder, silent), undisturbed():
        return _clean(folder)


def logs_folder() -> Path | None:
    """The folder of the logs of Ray, Serve and Train since the cluster was started; None where there is none."""
    state = embedded.read(home())
    return Path(state.logs) if state is not None and Path(state.logs).is_dir() else None


def _ensure(folder: Path, wanted: Settings, *, keep: bool, progress: Progress) -> tuple[State, bool]:
    state = embedded.read(folder)
    if state is None or not state.alive:
        _clean(folder)
        threading.Thread(target=importlib.import_module, args=("ray",)).start()  # a second, while Ray starts
        return embedded.start(folder, wanted, keep=keep, progress=progress), True
    if keep and wanted.http.port not in (0, state.http_port):
        raise InputError(
            f"http.port: {wanted.http.port} is asked for, and the running cluster has {state.http_port}; run "
            "`shoal down` first"
        )
    if keep and not state.keep:
        state = State(**{**vars(state), "keep": True})
        embedded.write(folder, state)
    return state, False


def _clean(folder: Path) -> bool:
    state = embedded.read(folder)
    roots = {embedded.scratch_folder(folder), *([Path(state.scratch)] if state is not None else [])}
    return sum(embedded.clean(folder, root) for root in roots) > 0 or state is not None


def _cluster(folder: Path, state: State, *, started: bool) -> Cluster:
    return Cluster(
        address=state.address,
        dashboard_url=state.dashboard_url,
        http_url=f"{state.scheme}://{hosted(reachable(state.http_host))}:{state.http_port}",
        listen=listening(settings().http, state.http_host, state.http_port),
        home=folder,
        token=(folder / embedded.TOKEN).read_text(),
        started=started,
    )


def _attached() -> Cluster | None:
    """The Ray that this process has, if any: of this home (a session within a session), or of a caller's own."""
    import ray
    from ray._private.worker import get_dashboard_url

    if not ray.is_initialized():
        return None
    address = ray.get_runtime_context().gcs_address
    mine = running()
    if mine is not None and mine.address == address:
        return mine
    url = f"http://{get_dashboard_url()}" if get_dashboard_url() else ""
    token = attached.token()
    entrance = attached.entrance(url, token)
    return Cluster(address, url, entrance.url, entrance.listen, home(), token=token)


def _attach(state: State) -> None:
    import logging

    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue] - Cython

    # Where ray was imported before this session, it has read the environment already.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray.init(
        address=state.address,
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
    )
    _leave_by_sigterm()


def _leave_by_sigterm() -> None:
    # ray.init takes SIGTERM for itself, and leaves with 15 instead of 143.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's remarks about its daemons off our standard output, which may be JSON; its log files have them."""
    from ray._private import worker

    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *arguments, **options: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _detach(state: State) -> None:
    import ray

    if state.alive:
        ray.shutdown()
    else:
        # Saying good-bye to a Ray that is gone takes a minute; this process forgets it all the same.
        thread = threading.Thread(target=ray.shutdown, daemon=True)
        thread.start()
        thread.join(timeout=3)


def _leave(folder: Path, use: IO[str]) -> None:
    """Stop the cluster if nobody else uses it and nobody wanted it kept."""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        state = embedded.read(folder)
        if state is None or not state.keep or not state.alive:
            _clean(folder)
    finally:
        use.close()


def _share(folder: Path) -> IO[str]:
    """Tell other sessions that the cluster is in use: a shared lock, which the kernel takes back if we are killed."""
    use = open(folder / "cluster.use", "a")  # noqa: SIM115 - open for as long as the session
    fcntl.flock(use, fcntl.LOCK_SH)
    return use


@contextmanager
def _lock(folder: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(folder / "cluster.lock")
    if not _acquired(lock):
        progress("start Ray", 0, 0, "another command is starting or stopping it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock) -> bool:
    with suppress(TimeoutError):
        lock.acquire(timeout=0)
    return lock.is_locked


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What Ray's client reads from the environment, while a session is open."""
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / embedded.TOKEN),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see embedded.environment
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    hidden = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    before = {key: os.environ.get(key) for key in (*ours, *hidden)}
    for key in hidden:
        os.environ.pop(key, None)
    os.environ.update(ours)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
