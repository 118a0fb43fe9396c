"""What may cut a session short: Ray going away, SIGTERM, Ctrl-C while it is being stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cluster.errors import ClusterGone, InputError, RunFailed

WATCH_S = 0.1  # sooner than Ray's own client, which looks every second and then ends the process
_NETWORK = ("ray", "httpx", "httpcore", "aiohttp", "grpc")


@contextmanager
def watched(alive: Callable[[], bool]) -> Iterator[None]:
    """Turn what goes wrong because Ray went away into ClusterGone, and don't wait for Ray to find out by itself.

    `alive` says whether its daemons run.

    Ray's client gives a vanished control service a minute, and then ends the process. So a thread looks after the
    daemons, and interrupts the main thread when one is gone.
    """
    gone, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_S):
            if not alive():
                gone.set()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    if threading.current_thread() is threading.main_thread():
        threading.Thread(target=watch, name="shoal-watch", daemon=True).start()
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        interrupted = gone.is_set() and isinstance(error, KeyboardInterrupt)
        if interrupted or (_of_network(error) and _is_gone(alive)) or (isinstance(error, RunFailed) and gone.is_set()):
            raise ClusterGone("Ray went away in the middle of this; run the command again to start it anew") from error
        raise
    finally:
        done.set()


def _of_network(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in _NETWORK


def _is_gone(alive: Callable[[], bool]) -> bool:
    # Its own processes see it go a moment before it is gone.
    deadline = time.monotonic() + 1
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive()


@contextmanager
def terminable() -> Iterator[None]:
    """Leave by SIGTERM as by any exception, so that nothing stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminate(number: int, frame: FrameType | None) -> None:
    """A signal handler: leave with the shell's exit code for the signal."""
    raise SystemExit(128 + number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back: half a stop would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
