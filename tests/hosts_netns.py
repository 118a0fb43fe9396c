"""Three hosts on this machine: network namespaces on a bridge, a Ray cluster over them, and what breaks hosts.

A host is a namespace with an address, a Ray node and a folder of its own; files and processors they share. The root
namespace reaches them over the bridge, as a laptop in the same network would. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from submit_ray import BIN, outside, wait_for_nodes

from cluster.serving import SERVING

MARK = "shoal-hosts-"  # of folders; what the kernel names ends with the same six characters
GCS, DASHBOARD, HTTP = 6379, 8265, 8000  # a namespace has all ports to itself
# A host is dead after so many unanswered questions: (period + timeout) x threshold is the longest it takes, 6 s here.
# Ray's defaults (3 s, 10 s, 5 times) take up to 65; a question that finds no way at all takes less than its timeout.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # And a node that cannot reach the head ends itself after so many seconds; 60 by default.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}


def missing() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "network namespaces need Debian's iproute2"
    try:
        _ip("netns", "add", name := f"sh-{secrets.token_hex(3)}-0")
        _ip("netns", "del", name)
    except RuntimeError as error:
        return f"no network namespaces here: {error}"
    return ""


class Hosts:
    """A Ray cluster of `count` hosts, of which the first is the head; numbers of hosts begin with 1.

    `home` is the $SHOAL_HOME that all of them share, `env` the environment of a user at a machine outside, who has the
    token in `token_file` and the dashboard at `url`; `inside` that of a program on one of the hosts, with `more`.
    `outer` is where all of them reach what this machine itself listens on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int = 3,
        cpus: int = 2,
        head_cpus: int | None = None,
        more: Callable[[str], dict[str, str]] = lambda outer: {},
    ) -> None:
        sweep()
        self.count = count
        self._cpus = dict.fromkeys(range(1, count + 1), cpus) | ({} if head_cpus is None else {1: head_cpus})
        self.folder, self.home, self.token_file = folder, folder / "shared-home", folder / "its-token"
        self.home.mkdir(parents=True)
        self.token_file.write_text(secrets.token_hex(32))
        # Short: Ray's sockets are below it. Locked for as long as this process lives, however it ends.
        self.scratch = Path(tempfile.mkdtemp(prefix=MARK, dir="/tmp"))
        self._lock = (self.scratch / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._mark = f"sh-{self.scratch.name.removeprefix(MARK)[:6]}"
        self._net = _free_net()
        self.outer = f"{self._net}.254"
        self.env = outside(self.token_file)
        self.inside = {
            **self.env,
            **SERVING,
            **HEALTH,
            "SHOAL_HOME": str(self.home),
            "RAY_ADDRESS": f"{self.address(1)}:{GCS}",
        }
        self.url = f"http://{self.address(1)}:{DASHBOARD}"
        self._rays: dict[int, subprocess.Popen[bytes]] = {}
        self._starting: set[int] = set()
        try:
            self._build()
            self.inside |= more(self.outer)
            self.start(1)
            self.wait(1)
            for number in range(2, count + 1):
                self.start(number)
            self.wait(count)
        except BaseException:
            self.stop()
            raise

    def address(self, number: int) -> str:
        return f"{self._net}.{number}"

    def command(self, number: int, *words: str) -> list[str]:
        """A command that runs on a host."""
        return ["ip", "netns", "exec", self._name(number), *words]

    def start(self, number: int) -> None:
        """Start Ray on a host, as the one who looks after its services would; a head has an empty disk, as in a pod."""
        self._starting.add(number)
        if number == 1:
            shutil.rmtree(self.scratch / "1", ignore_errors=True)
        here = self.address(number)
        words = [f"--node-ip-address={here}", f"--num-cpus={self._cpus[number]}", "--object-store-memory=100000000"]
        words += [f"--temp-dir={self.scratch}/{number}", "--disable-usage-stats", "--block"]
        if number == 1:
            words += ["--head", f"--port={GCS}", f"--dashboard-host={here}", f"--dashboard-port={DASHBOARD}"]
            words += [f"--redis-password={self.inside.get('RAY_REDIS_PASSWORD', '')}"]  # `ray start` reads no variable
        else:
            words += [f"--address={self.address(1)}:{GCS}"]
        env = {key: value for key, value in self.inside.items() if key != "RAY_ADDRESS"}
        with (self.folder / f"ray-{number}.log").open("ab") as log:
            self._rays[number] = subprocess.Popen(
                self.command(number, str(BIN / "ray"), "start", *words),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, nodes: int, patience_s: float = 180) -> float:
        """Until Ray counts so many nodes alive, no more and no less; the seconds it took."""
        began = time.monotonic()
        while (spent := time.monotonic() - began) < patience_s:
            with contextlib.suppress(TimeoutError):
                wait_for_nodes(self.url, self.token_file, nodes, self.folder, min(10, patience_s - spent))
                self._starting.clear()
                return time.monotonic() - began
            # `ray start` gives its own processes half a minute: not enough on a machine that is busy.
            for number in [one for one in self._starting if self._rays[one].poll() is not None]:
                self.kill(number)
                self.start(number)
        raise TimeoutError(f"not {nodes} nodes: {[log.read_text() for log in self.folder.glob('ray-*.log')]}")

    def cut(self, number: int) -> None:
        """Take a host's cable out."""
        _ip("link", "set", self._name(number), "down")

    def mend(self, number: int) -> None:
        """Put the cable back. A Ray node that was given up meanwhile ends itself when it hears of it."""
        _ip("link", "set", self._name(number), "up")

    def slow(self, number: int, kbit: int) -> None:
        """Let through so much a second, either way, and hold the rest up: a token bucket, for not every kernel has
        netem's delays."""
        bucket = ("root", "tbf", "rate", f"{kbit}kbit", "burst", "2kb", "latency", "2s")
        _run("tc", "qdisc", "replace", "dev", self._name(number), *bucket)
        _run(*self.command(number, "tc", "qdisc", "replace", "dev", "eth0", *bucket))

    def quicken(self, number: int) -> None:
        """Take that back."""
        _run("tc", "qdisc", "del", "dev", self._name(number), "root")
        _run(*self.command(number, "tc", "qdisc", "del", "dev", "eth0", "root"))

    def kill(self, number: int, *, but: str | None = None) -> int:
        """End all that runs on a host at once, `but` what is called so; how many processes it was."""
        self._starting.discard(number)
        killed = 0
        while found := processes(self._name(number), but=but):
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    killed += 1
            if (ray := self._rays.get(number)) is not None:
                ray.wait()
            time.sleep(0.02)
        return killed

    def ended(self, number: int, patience_s: float = 90) -> float:
        """Until nothing of Ray runs on a host any more; the seconds it took."""
        began = time.monotonic()
        self._rays[number].wait(patience_s)
        while processes(self._name(number)) and time.monotonic() - began < patience_s:
            time.sleep(0.1)
        return time.monotonic() - began

    def tails(self) -> str:
        """The ends of what Ray has logged of training and serving, for a test that fails."""
        logs = [
            *self.scratch.glob("*/session_2*/logs/train/*controller*.log"),
            *self.scratch.glob("*/session_2*/logs/serve/*.log"),
        ]
        return "\n".join(f"--- {log.relative_to(self.scratch)}\n{log.read_text()[-800:]}" for log in logs)

    def processes(self, number: int) -> list[psutil.Process]:
        return processes(self._name(number))

    def stop(self) -> None:
        """End all of it and remove it."""
        for number in range(1, self.count + 1):
            with contextlib.suppress(RuntimeError):
                self.kill(number)
        _remove(self._mark)
        self._lock.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _name(self, number: int) -> str:
        """Of a host's namespace, and of the end of its cable at the bridge: 15 characters at most."""
        return f"{self._mark}-{number}"

    def _build(self) -> None:
        _ip("link", "add", self._mark, "type", "bridge")
        _ip("address", "add", f"{self.outer}/24", "dev", self._mark)
        _ip("link", "set", self._mark, "up")
        for number in range(1, self.count + 1):
            name = self._name(number)
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", self._mark, "up")
            _ip("-n", name, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")


@contextlib.contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Hosts]:
    """Three hosts, or what the options of Hosts say, removed at the end; nothing of them is left."""
    hosts = Hosts(folder, **options)
    try:
        yield hosts
    finally:
        hosts.stop()
    assert hosts._mark not in _ip("link") + _ip("netns", "list")


def sweep() -> None:
    """Remove what runs that crashed have left: their folders are there, and nobody holds the lock."""
    for folder in Path("/tmp").glob(f"{MARK}*"):
        try:
            with (folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(f"sh-{folder.name.removeprefix(MARK)[:6]}")
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # in use


def processes(namespace: str, *, but: str | None = None) -> list[psutil.Process]:
    """What runs in a namespace, `but` what is called so: the kernel knows, whatever they call themselves."""
    found = []
    for word in _ip("netns", "pids", namespace).split():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(word))
            if process.status() != psutil.STATUS_ZOMBIE and process.name() != but:
                found.append(process)
    return found


def _remove(mark: str) -> None:
    names = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(f"{mark}-")]
    for name in names:
        for process in processes(name):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        _ip("netns", "del", name)
        with contextlib.suppress(RuntimeError):
            _ip("link", "del", name)  # gone with its other end, as a rule
    with contextlib.suppress(RuntimeError):
        _ip("link", "del", mark)


def _free_net() -> str:
    """The first three numbers of a network that nobody here is in."""
    taken = _ip("-4", "address") + _ip("-4", "route")
    while True:
        net = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
        if f" {net}." not in taken:
            return net


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
