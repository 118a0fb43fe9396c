"""The house of the tests of faults: a cluster with applications of faults_app, and what the tests do to it."""

import collections
import contextlib
import time

import httpx
import psutil
from faults_app import configured

from cluster import embedded, processes
from cluster.serving import GATEWAY
from serve.applications import Change, read
from serve.state import state

ENTRY = {"task": "text-classification", "request": "{}", "response": "{}", "timeout_s": 60}


class House:
    """The cluster, and what the tests do to it."""

    def __init__(self, cluster, log):
        self.cluster, self.log = cluster, log
        self.rows = []

    def url(self, name="echo"):
        return f"{self.cluster.http_url}/models/{name}"

    def deploy(self, name="echo", *, idempotent=True, wait=True, gateways=None, **changed):
        version = changed.get("version", "1")
        with Change(self.cluster) as change:
            change.applications[name] = configured(name, self.log, **changed)
            entry = {**ENTRY, "version": version, "idempotent": idempotent}
            change.tell_gateway({**change.models(), name: entry})
            if gateways:
                change.applications[GATEWAY]["deployments"][0]["num_replicas"] = gateways
        if wait:
            self.settle(name, changed.get("replicas", 2), version=version)

    def remove(self, name):
        with Change(self.cluster) as change:
            change.tell_gateway({key: model for key, model in change.models().items() if key != name})
            change.applications.pop(name, None)

    def up(self, name):
        told, _ = state(self.cluster)
        replicas = told["replicas"] if told else []
        return [one for one in replicas if one["application"] == name and one["state"] == "up"]

    def settle(self, name="echo", replicas=2, *, version=None, other_than=(), seconds=60):
        """Until so many replicas are up and running; their pids."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # The Keeper takes five seconds to miss one that was killed.
            found = [one for one in self.up(name) if one["pid"] not in other_than and psutil.pid_exists(one["pid"])]
            right = [one for one in found if version is None or one["version"] == version]
            if len(right) == len(found) == replicas and self.answers(name):
                return [one["pid"] for one in found]
            time.sleep(0.1)
        raise AssertionError(f"{name}: not {replicas} of {version} but {self.up(name)}; {read(self.cluster)[name]}")

    def answers(self, name):
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(self.url(name), json={"id": "settle"}, timeout=20).status_code == 200
        return False

    def ongoing(self, name):
        """Requests that the gateways have with an application's replicas."""
        told, _ = state(self.cluster)
        loads = [gateway["load"].get(name) for gateway in told["gateways"].values()] if told else []
        return sum(load["ongoing"] for load in loads if load)

    def pids(self, title):
        scratch = embedded.scratch_folder(self.cluster.home)
        found = []
        for one in processes.members(scratch):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(one.cmdline())[:60] or one.name() == title:
                    found.append(one.pid)
        return found

    def gateways(self):
        return [
            replica["pid"]
            for replica in read(self.cluster)[GATEWAY]["deployments"]["Gateway"]["replicas"]
            if replica["state"] == "RUNNING" and psutil.pid_exists(replica["pid"])
        ]

    def both_gateways(self):
        """Wait until two are up, and HAProxy knows of both: an earlier test may have killed one."""
        end = time.monotonic() + 60
        while len(self.gateways()) < 2:
            assert time.monotonic() < end, "one gateway only"
            time.sleep(0.2)
        time.sleep(3)
        return self.gateways()

    def haproxy(self):
        folder = embedded.scratch_folder(self.cluster.home) / "s"
        return int((folder / "front.pid").read_text().split()[0])

    def tell(self, what, seen):
        row = seen.row(what)
        self.rows.append(row)
        print("\n" + row)
        if seen.failed:
            print("   ", collections.Counter(seen.failed).most_common(3))
        assert not seen.wrong, seen.wrong[:3]
        return seen
