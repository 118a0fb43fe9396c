"""Several hosts: training and serving on three of them, one cut off and brought back, one slowed, one killed.

`pytest -s` prints what each of it cost. Kills come last, for all tests share one cluster.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hosts_netns
import httpx
import pytest
import train_tiny
from hosts_load import ROW, Felt, Load, Served, felt
from hosts_netns import HTTP, Hosts
from hosts_run import Fault, Run, lost
from test_cluster_submit_jobs import Desk

from cluster.registry import Registry

pytestmark = pytest.mark.slow

STEADY = """
name: steady
task: text-classification
model: ./bert
data: {train: steady.csv}
train: {epochs: 5, batch_size: 6, learning_rate: 2e-4, workers: 3, max_failures: 4}
"""
SHORT = {"epochs": 1, "batch_size": 6, "learning_rate": 2e-4}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if why := hosts_netns.missing():
        pytest.skip(why)
    with hosts_netns.cluster(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def desk(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A machine outside the cluster, which knows it by its dashboard's address alone."""
    desk = Desk(tmp_path_factory.mktemp("desk"), cast(Any, hosts))
    sentences, labels = train_tiny.texts(300, seed=1, noise=0)
    with (desk.folder / "steady.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(sentences, labels)])
    (desk.folder / "steady.yaml").write_text(STEADY)
    return desk


@dataclass
class Story:
    """One run of training, sent from outside, and what befell it."""

    result: dict[str, Any]
    cut: Fault
    back: float
    killed: Fault
    fast: float  # steps a second, and
    slow: float  # with one host's cable slowed
    failures_while_slow: int


@pytest.fixture(scope="module")
def story(hosts: Hosts, desk: Desk) -> Story:
    run = Run(hosts, "steady")
    said = (desk.folder / "steady.out").open("w+")
    words = [sys.executable, "-m", "cluster", "train", "steady.yaml", "--on", "other", "--json"]
    process = subprocess.Popen(words, cwd=desk.folder, env=desk.env, stdout=said, stderr=subprocess.STDOUT, text=True)
    try:
        # One is cut off, well after the first checkpoints (every 45 steps), which are written meanwhile.
        run.reach(100)
        fast = run.rate(30)
        gone = run.somewhere()
        cut = lost(run, lambda: hosts.cut(gone), then=lambda: hosts.mend(gone))

        # Another is slowed: every step has to wait for its gradients. Meanwhile the first one comes back.
        slowed, seen, since = run.somewhere(), len(run.told), time.monotonic()
        hosts.slow(slowed, kbit=2000)
        back = hosts.ended(gone)
        hosts.start(gone)
        at, event = run.until(lambda event: "metrics" in event, since=since)
        run.reach(event["step"] + 10, since=at)
        slow = run.rate(8, since=at)
        back += hosts.wait(3)
        hosts.quicken(slowed)
        failures = sum("resumed" in event for _, event in run.told[seen:])

        # It is killed.
        killed = lost(run, lambda: hosts.kill(slowed))
        hosts.start(slowed)
        process.wait(timeout=240)
        text = Path(said.name).read_text()
        assert process.returncode == 0, f"{text}\n{hosts.tails()}"
        hosts.wait(3)
    finally:
        process.kill()
        process.wait()
        said.close()
        run.close()
    story = Story(json.loads(text.splitlines()[-1]), cut, back, killed, fast, slow, failures)
    show(story)
    return story


def show(story: Story) -> None:
    print(
        f"\n{'a host is':10} {'seen, s':>8} {'workers, s':>11} {'a step, s':>10} {'in all, s':>10} {'rows again':>11}"
    )
    for name, fault in (("cut off", story.cut), ("killed", story.killed)):
        parts = f"{fault.seen:8.1f} {fault.restarted:11.1f} {fault.step:10.1f} {fault.whole:10.1f}"
        print(f"{name:10} {parts} {fault.again * 6:11}")
    print(f"slowed to 2 Mbit/s: {story.fast:.0f} steps a second become {story.slow:.1f}")
    print(f"brought back: the old node's end and a new one's start {story.back:.1f} s")


def test_a_run_outlives_the_loss_of_two_hosts_and_ends_as_on_one(desk: Desk, story: Story, tmp_path: Path):
    for fault in (story.cut, story.killed):
        assert 0 <= fault.again <= 2 * 45  # since the last checkpoint, or the one before while that was being written
        assert fault.whole < 90
    result = story.result
    run = Registry(f"sqlite:///{desk.ray.home}/mlflow.db").run(result["run"])
    assert run.status == "FINISHED"
    assert int(run.tags["shoal.resumed_at"]) > 0
    alone = one_host(desk, Path(result["model"]), tmp_path, epochs=5, batch_size=6, learning_rate=2e-4)
    assert result["metrics"]["step"] == alone["step"]
    assert result["metrics"]["validation/loss"] == pytest.approx(alone["validation/loss"], abs=1e-4)


def test_a_slow_host_slows_a_run_and_does_not_fail_it(story: Story):
    assert story.failures_while_slow == 0
    assert story.slow < story.fast / 2


def test_zero_2_from_a_driver_on_the_head_ends_as_on_one_host(hosts: Hosts, desk: Desk, tmp_path: Path):
    changes = ["name=shared", "train.parallel=deepspeed", "train.deepspeed.zero_stage=2", "train.epochs=1"]
    words = [sys.executable, "-m", "cluster", "train", "steady.yaml", *changes, "--json"]
    done = subprocess.run(
        hosts.command(1, *words), cwd=desk.folder, env=hosts.inside, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{hosts.tails()}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["parallel"]["strategy"] == "zero2"
    assert len(result["parallel"]["optimizer"]) == 3
    one_host(desk, Path(result["model"]), tmp_path, **SHORT)


def one_host(desk: Desk, model: Path, folder: Path, **train: Any) -> dict[str, float]:
    """Train the same in this process alone, and hold the weights against those of `model`; the metrics."""
    from safetensors.torch import load_file
    from train_pair import Session
    from train_pair import train as alone

    from train.data import Prepared

    digest = json.loads((desk.ray.home / "data").glob("*/data.json").__next__().read_text())["digest"]
    data = Prepared.open(desk.ray.home / "data" / digest)
    assert data is not None
    spec = train_tiny.spec(desk.folder / "bert", **train)
    metrics = alone(Session(0), spec, data.folder, data.labels, folder / "run")
    ours, theirs = load_file(folder / "run/model/model.safetensors"), load_file(model / "model.safetensors")
    begun = load_file(desk.folder / "bert/model.safetensors")
    assert ours.keys() == theirs.keys()
    # A key's bias has no gradient but for rounding, which AdamW makes steps of.
    names = [name for name in ours if not name.endswith("key.bias")]
    off = max((ours[name] - theirs[name]).abs().max().item() for name in names)
    learned = max((ours[name] - begun[name]).abs().max().item() for name in names)
    assert off < learned / 50, (off, learned)
    return metrics


@pytest.fixture(scope="module")
def served(hosts: Hosts, desk: Desk) -> Served:
    served = Served(hosts, desk)
    served.wait()
    return served


def test_what_is_served_from_outside_is_asked_and_looked_at_from_outside(desk: Desk, served: Served):
    assert httpx.post(served.url, json={"table": ROW}, trust_env=False).json() == ["setosa"]
    told = desk.json("status", "--on", "other")
    assert [(one["name"], one["url"], one["replicas"]) for one in told["endpoints"]] == [("flowers", served.url, 3)]
    run = next(one["run"] for one in told["runs"] if one["verb"] == "up")
    assert '"stage": "serve flowers"' in desk.shoal("logs", run, "--on", "other")[0]
    assert len({one["host"] for one in served.replicas()}) == 3
    assert len(served.gateways()) == len(set(served.gateways())) == 2


def test_a_replica_on_the_network_answers_nobody_without_the_secret(hosts: Hosts, served: Served):
    secret = hmac.new(hosts.token_file.read_bytes(), b"shoal data plane", hashlib.sha256).hexdigest()
    for one in served.replicas():
        url = f"http://{one['address']}/"
        for headers in ({}, {"x-shoal-secret": ""}, {"x-shoal-secret": secret[:-1]}):
            answer = httpx.post(url, json={"table": ROW}, headers=headers, trust_env=False)
            assert (answer.status_code, answer.headers["x-shoal"]) == (401, "secret")
        right = httpx.post(url, json={"table": ROW}, headers={"x-shoal-secret": secret}, trust_env=False)
        assert right.json() == ["setosa"]


@pytest.fixture(scope="module")
def faults(hosts: Hosts, served: Served) -> dict[str, Felt]:
    """What befell the hosts of the served model, under load all the while."""
    found: dict[str, Felt] = {}
    notes: list[str] = []

    def during(event: str, seconds: float, *happen: Callable[[], object]) -> None:
        began, again = time.monotonic(), served.again()
        for each in happen:
            each()
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        found[event] = felt(event, load, began, served.again() - again)

    def given_up() -> None:
        notes.append(f"Ray gives the host up after {hosts.wait(2):.1f} s")

    def back() -> None:
        hosts.mend(number)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert old not in [one["id"] for one in served.replicas() if one["state"] == "up"]
        hosts.ended(number)
        hosts.start(number)
        hosts.wait(3)

    with Load(served.url) as load:
        during("nothing", 3)
        number, old = served.victim()
        during(
            "a cable out for a second", 5, lambda: hosts.cut(number), lambda: time.sleep(1), lambda: hosts.mend(number)
        )
        assert old in [one["id"] for one in served.replicas() if one["state"] == "up"]
        during("a host cut off", 12, lambda: hosts.cut(number), given_up)
        during("it is back", 8, back)
        notes.append(f"a replica is up on it {served.wait(without=old):.1f} s after that")
        number, old = served.victim()
        during("a host at 64 kbit/s", 8, lambda: hosts.slow(number, kbit=64))
        hosts.quicken(number)
        time.sleep(2)
        during("a host killed", 12, lambda: hosts.kill(number), given_up)
    hosts.start(number)
    print(f"\n{'event':26} {'requests':>9} {'failed':>7} {'again':>6} {'p99, ms':>8} {'longest, s':>10} {'over, s':>8}")
    print("\n".join([*(one.line() for one in found.values()), *notes]))
    return found


def test_no_request_is_lost_with_a_host(faults: dict[str, Felt]):
    for event in faults.values():
        assert event.failed == [], (event.event, event.failed[:5])


def test_requests_on_a_host_that_is_cut_off_go_elsewhere_in_seconds(faults: dict[str, Felt]):
    # 4 s of silence end a connection, 2 s the try of a new one; the model's own limit is 60.
    for event in ("a cable out for a second", "a host cut off", "it is back", "a host killed"):
        assert faults[event].longest < 15
        assert faults[event].over < 15


def test_gateways_still_have_a_host_each(faults: dict[str, Felt], served: Served):
    end = time.monotonic() + 120
    while len(served.gateways()) != 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(set(served.gateways())) == 2
    for address in served.gateways():
        assert httpx.get(f"http://{address}:{HTTP}/-/healthz", trust_env=False).status_code == 200
