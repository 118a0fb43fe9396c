"""A model that is served on several hosts, clients outside the cluster that ask for it, and what a fault costs them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from hosts_netns import HTTP, Hosts
from test_cluster_submit_jobs import Desk

from cluster.serving import GATEWAY

ROW = {"sepal length": [5.1], "sepal width": [3.5], "petal length": [1.4], "petal width": [0.2]}
HELD_UP_S = 1.0  # a request that takes longer felt what happened


class Load:
    """Clients outside the cluster that ask one after the other, and what each request came to: (begun, ended, "" or
    what was wrong with the answer)."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self._url = url
        self.rows: list[tuple[float, float, str]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._over.wait(0.06):
                begun = time.monotonic()
                try:
                    answer = client.post(self._url, json={"table": ROW})
                    wrong = "" if answer.text == '["setosa"]' else f"{answer.status_code} {answer.text[:200]}"
                except httpx.HTTPError as error:
                    wrong = repr(error)
                self.rows.append((begun, time.monotonic(), wrong))


@dataclass
class Felt:
    """What the clients felt of one event: of `requests` so many failed; seconds."""

    event: str
    requests: int
    failed: list[str]
    p99: float
    longest: float
    over: float  # until nobody's request was held up or failed any more
    again: int  # had been with a replica that was lost, and went to another one

    def line(self) -> str:
        times = f"{self.p99 * 1000:8.0f} {self.longest:10.2f} {self.over:8.1f}"
        figures = f"{self.requests:9} {len(self.failed):7} {self.again:6} {times}"
        return f"{self.event:26} {figures}"


def felt(event: str, load: Load, since: float, again: int) -> Felt:
    rows = [row for row in list(load.rows) if row[1] >= since]
    took = sorted(ended - begun for begun, ended, _ in rows)
    late = [begun - since for begun, ended, wrong in rows if wrong or ended - begun > HELD_UP_S]
    failed = [wrong for _, _, wrong in rows if wrong]
    return Felt(event, len(rows), failed, took[int(len(took) * 0.99)], took[-1], max([0.0, *late]), again)


class Served:
    """The flowers, served from outside on all three hosts, and what the Keeper says of them."""

    def __init__(self, hosts: Hosts, desk: Desk) -> None:
        self.hosts = hosts
        # One fills a host, so each has one; a lost one has no room until its host is back.
        copies = ["serve.min_replicas=3", "serve.max_replicas=3", "serve.num_cpus=2"]
        self.up = desk.json("up", "flowers.yaml", *copies, "--on", "other")
        self.url: str = self.up["url"]
        self.entrance = urlsplit(self.url).hostname

    def state(self) -> dict[str, Any]:
        token = {"Authorization": f"Bearer {self.hosts.token_file.read_text()}"}
        return httpx.get(f"http://{self.entrance}:{HTTP}/-/state", headers=token, trust_env=False, timeout=10).json()

    def replicas(self) -> list[dict[str, Any]]:
        return [one for one in self.state()["replicas"] if one["application"] == "flowers"]

    def gateways(self) -> list[str]:
        """The addresses of the hosts that have one that runs."""
        token = {"Authorization": f"Bearer {self.hosts.token_file.read_text()}"}
        url = f"{self.hosts.url}/api/serve/applications/"
        told = httpx.get(url, headers=token, trust_env=False, timeout=30).json()["applications"][GATEWAY]
        replicas = told["deployments"]["Gateway"]["replicas"]
        return sorted(one["node_ip"] for one in replicas if one["state"] == "RUNNING")

    def again(self) -> int:
        """How many requests have been sent to a second replica so far."""
        return sum(one["load"].get("flowers", {}).get("again", 0) for one in self.state()["gateways"].values())

    def wait(self, *, without: str = "", patience_s: float = 120) -> float:
        """Until three replicas are up, that one not among them; the seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < patience_s:
            up = [one["id"] for one in self.replicas() if one["state"] == "up"]
            if len(up) == 3 and without not in up:
                return time.monotonic() - began
            time.sleep(0.2)
        raise TimeoutError(f"{self.replicas()}\n{self.hosts.tails()}")

    def victim(self) -> tuple[int, str]:
        """A host with a replica that is neither the head nor where clients come in, and the replica's id."""
        for one in self.replicas():
            number = int(one["host"].rpartition(".")[2])
            if number != 1 and one["host"] != self.entrance and one["state"] == "up":
                return number, one["id"]
        raise AssertionError(self.replicas())
