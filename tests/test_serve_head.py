"""The head is lost under load, and Ray's control service with it; what that knows is in Redis meanwhile.

As KubeRay has it: a head that computes nothing and a worker that has the replicas. Requests come in at the worker.
`pytest -s` prints what each fault cost.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import databases
import hosts_netns
import psutil
import pytest
from faults_app import configured
from faults_load import Seen, executions, load
from hosts_netns import GCS, HTTP, Hosts

from cluster.connect import Cluster
from cluster.serving import GATEWAY
from serve.applications import Change, read
from serve.state import state
from serve.waiting import entered, running_replicas, wait_gateway

pytestmark = pytest.mark.slow
ENTRY = {"task": "text-classification", "request": "{}", "response": "{}", "timeout_s": 60, "idempotent": True}
HEAD, WORKER = 1, 2
AWAY_S = 10  # longer than the Keeper and the gateways take one who says nothing for alive


class House:
    """The two hosts and what is served on them."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.log = hosts, hosts.folder / "ran.log"
        self.log.touch()
        self.url = f"{self.cluster(WORKER).http_url}/models/echo"

    def cluster(self, number: int) -> Cluster:
        """As one knows it who comes in at that host."""
        return Cluster(
            address=f"{self.hosts.address(HEAD)}:{GCS}",
            dashboard_url=self.hosts.url,
            http_url=f"http://{self.hosts.address(number)}:{HTTP}",
            listen={"host": "0.0.0.0", "port": HTTP},
            home=self.hosts.home,
            token=self.hosts.token_file.read_text(),
        )

    def deploy(self, version: str = "1") -> None:
        with Change(self.cluster(HEAD)) as change:
            change.applications["echo"] = configured("echo", self.log)
            change.tell_gateway({"echo": {**ENTRY, "version": version}})

    def replicas(self, number: int = WORKER) -> set[int]:
        """The pids of the replicas that are up, as a host's gateway tells; none where it does not."""
        told, _ = state(self.cluster(number))
        return {one["pid"] for one in told["replicas"] if one["state"] == "up"} if told else set()

    def running(self) -> int:
        """How many gateways run, as Serve tells it."""
        return running_replicas(read(self.cluster(HEAD))[GATEWAY])

    def pids(self, number: int, name: str) -> set[int]:
        """Of the processes on a host that are called so; Ray's workers have a title, which begins so."""
        found = set()
        for one in self.hosts.processes(number):
            with contextlib.suppress(psutil.Error):
                if one.cmdline()[0].startswith(name) if "::" in name else one.name() == name:
                    found.add(one.pid)
        return found

    def until(self, right: Callable[[], object], *, patience_s: float = 240) -> float:
        """Until something is right; the seconds it took."""
        began = time.monotonic()
        while not right():
            assert time.monotonic() - began < patience_s, f"{self.hosts.tails()}\n{self.hosts.processes(HEAD)}"
            time.sleep(0.1)
        return time.monotonic() - began

    def replaced(self) -> float:
        """Kill a replica, and wait for another one; the seconds it took."""
        victim = min(self.replicas())
        os.kill(victim, signal.SIGKILL)
        return self.until(lambda: len(self.replicas() - {victim}) == 2)

    def tell(self, what: str, seen: Seen, **took: float) -> None:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())
        print(f"\n{seen.row(what)}; longest {max(seen.took):.2f} s\n    {parts}")
        assert not seen.wrong, seen.wrong[:3]
        assert seen.bad == 0, collections.Counter(seen.failed).most_common(3)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    if why := hosts_netns.missing():
        pytest.skip(why)
    with contextlib.ExitStack() as stack:

        def stored(outer: str) -> dict[str, str]:
            redis = stack.enter_context(databases.redis(outer))
            return {
                "RAY_REDIS_ADDRESS": f"{outer}:{redis.port}",
                "RAY_REDIS_PASSWORD": databases.PASSWORD,
                "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # as KubeRay sets it
                "PYTHONPATH": str(Path(__file__).parent),
            }

        folder = tmp_path_factory.mktemp("head")
        house = House(stack.enter_context(hosts_netns.cluster(folder, count=2, head_cpus=0, more=stored)))
        house.deploy()
        for number in (HEAD, WORKER):  # a gateway on each
            house.until(lambda number=number: len(house.replicas(number)) == 2)
        yield house


def once(house: House, seen: Seen) -> bool:
    """Whether every request of this load so far was executed once."""
    counts = executions(house.log)
    return all(counts[key] == 1 for key in list(seen.ids))


def answered_in(seconds: float, seen: Seen) -> int:
    """How many requests are answered in the next so many seconds."""
    before = seen.statuses[200]
    time.sleep(seconds)
    return seen.statuses[200] - before


def test_requests_go_on_without_the_control_service(house: House):
    # `ray start --block` would end all of the head with its control service.
    (starter,), (pid,) = house.pids(HEAD, "ray"), house.pids(HEAD, "gcs_server")
    os.kill(starter, signal.SIGSTOP)
    served = psutil.Process(pid)
    command, env, folder = served.cmdline(), served.environ(), served.cwd()
    replicas = house.replicas()
    with load(house.url, sleep=0.05, concurrent=4) as seen:
        time.sleep(1)
        os.kill(pid, signal.SIGKILL)
        during = answered_in(AWAY_S, seen)
        with (house.hosts.folder / "gcs.log").open("ab") as log:
            again = subprocess.Popen(
                house.hosts.command(HEAD, *command), env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        back = house.until(lambda: house.replicas() == house.replicas(HEAD) == replicas)
        assert once(house, seen)
        took = max(seen.took)
    house.tell("kill -9 of the control service", seen, state_back=back)
    assert during > 20
    assert took < AWAY_S  # nobody waited for it
    assert again.poll() is None


def test_requests_go_on_without_the_head(house: House):
    replicas = house.replicas()
    front = house.pids(WORKER, "haproxy")
    with load(house.url, sleep=0.05, concurrent=4) as seen:
        time.sleep(1)
        # All of Ray's: as a machine has it, and not a pod, HAProxy is left and holds the port.
        killed = house.hosts.kill(HEAD, but="haproxy")
        (left,) = house.pids(HEAD, "haproxy")
        during = answered_in(AWAY_S, seen)
        house.hosts.start(HEAD)
        back = house.hosts.wait(2) + house.until(lambda: house.replicas() == replicas)
        entrance = house.until(lambda: house.replicas(HEAD) == replicas)
        assert once(house, seen)
        took = max(seen.took)
        for name in ("ray::ServeController", "ray::Keeper", "ray::Front", "ray::ServeReplica:_gateway", "haproxy"):
            assert len(house.pids(HEAD, name)) == 1, name
        assert house.pids(HEAD, "haproxy") != {left}
        replaced = house.replaced()
    # Since the new head was started, and each since the one before.
    times = {"state_back": back, "its_gateway_back": entrance, "replica_replaced": replaced}
    house.tell(f"kill -9 of the head's {killed} processes", seen, **times)
    assert during > 20
    assert took < AWAY_S
    assert house.pids(WORKER, "haproxy") == front


def test_nobody_waits_for_the_gateway_of_a_host_that_is_gone(house: House):
    """There is one for each host, and no two share one."""
    house.hosts.kill(WORKER)
    house.hosts.wait(1)
    house.until(lambda: house.running() == 1)
    house.deploy("2")
    began = time.monotonic()
    cluster = entered(house.cluster(WORKER), wait_s=100)
    wait_gateway(cluster, "echo", "2", "echo", wait_s=100)
    took, status = time.monotonic() - began, read(cluster)[GATEWAY]["status"]
    print(f"\na host is gone, the gateways are {status}: the other one knows of a new version after {took:.1f} s")
    assert took < 100
    assert cluster.http_url == house.cluster(HEAD).http_url
    # Serve tells of it as UPDATING for as long as it takes the new version up.
    house.until(lambda: house.running() == 1)
    assert len(house.pids(HEAD, "ray::ServeReplica:_gateway")) == 1
