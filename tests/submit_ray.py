"""A Ray that Shoal did not start, for the tests of jobs: two nodes on this machine, its own ports, folder and token.

Started by `ray start` in processes of its own: a second kind of Ray in the process of the tests loses its token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from cluster import ports

BIN = Path(sys.executable).parent


class OtherRay:
    """`folder` holds its home (`home`) and token; `env` is what its own users have, with the token in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.token_file = folder, folder / "shared-home", folder / "its-token"
        self.home.mkdir(parents=True)
        self.token_file.write_text(secrets.token_hex(32))
        # Ray's sockets need a short path. Each node has a folder of its own, as on two machines: in a common one the
        # second node unpacks a job's working directory anew, under the feet of the job on the first.
        self.scratch = Path(tempfile.mkdtemp(prefix="other-ray-", dir="/tmp"))
        self.gcs, self.dashboard, self.http, *rest = ports.pick(9)
        self.url = f"http://127.0.0.1:{self.dashboard}"
        # One gateway: two may come to two nodes, and both of these are on one machine, whose port one HAProxy can have.
        http = f"{{host: 127.0.0.1, port: {self.http}, gateways: 1}}"
        (self.home / "cluster.yaml").write_text(f"http: {http}\n")
        self.env = outside(self.token_file)
        inside = {
            **self.env,
            "SHOAL_HOME": str(self.home),
            "DASHBOARD_METRIC_PORT": str(rest[0]),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(rest[1]),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(rest[2]),
        }
        common = ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--object-store-memory=100000000", "--block"]
        common += ["--disable-usage-stats"]
        head = [f"--port={self.gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        head += [f"--ray-client-server-port={rest[3]}", f"--temp-dir={self.scratch}/1", "--head"]
        self.nodes = [self._start([*head, *common, f"--dashboard-agent-listen-port={rest[4]}"], inside)]
        try:
            wait_for_nodes(self.url, self.token_file, 1, self.folder)
            worker = [f"--address=127.0.0.1:{self.gcs}", *common, f"--dashboard-agent-listen-port={rest[5]}"]
            worker += [f"--temp-dir={self.scratch}/2"]
            self.nodes.append(self._start(worker, inside))
            wait_for_nodes(self.url, self.token_file, 2, self.folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End its processes, found as the children of ours and by its folder in their command lines."""
        for node in self.nodes:
            node.send_signal(signal.SIGTERM)
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=3)
            node.kill()
            node.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """What runs on it."""
        marks = (str(self.scratch), str(self.home))
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            try:
                words = " ".join(process.info["cmdline"] or [])
                if any(mark in words for mark in marks) or process.environ().get("SHOAL_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.pid != os.getpid()]

    def _start(self, options: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"ray-{len(options)}.log").open("wb") as log:
            return subprocess.Popen(
                [str(BIN / "ray"), "start", *options], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


def outside(token_file: Path) -> dict[str, str]:
    """The environment of a program that uses a cluster with this token, with nothing of another Ray or home in it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SHOAL_"))}
    return {
        **kept,
        "PATH": f"{BIN}:{kept['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def wait_for_nodes(url: str, token_file: Path, nodes: int, logs: Path, patience_s: float = 120) -> None:
    """Until the dashboard at `url` counts so many nodes alive. Raises TimeoutError with what ray-*.log say."""
    headers = {"Authorization": f"Bearer {token_file.read_text()}"}
    end, said = time.monotonic() + patience_s, ""
    while time.monotonic() < end:
        try:
            answer = httpx.get(f"{url}/nodes?view=summary", headers=headers, timeout=5, trust_env=False)
            said = answer.text
            alive = [each["raylet"]["state"] == "ALIVE" for each in answer.json()["data"]["summary"]]
            if alive.count(True) == nodes:
                return
        except (httpx.HTTPError, ValueError, KeyError) as error:
            said = said or str(error)
        time.sleep(0.3)
    texts = "\n".join(log.read_text() for log in logs.glob("ray-*.log"))
    raise TimeoutError(f"{nodes} nodes: {said[:500]}\n{texts}")
