"""Several hosts: training and serving on three of them, one cut off and brought back, one slowed, one killed.

`pytest -s` prints what each of it cost. Kills come last, for all tests share one cluster.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts_netns
import pytest
import train_tiny
from hosts_netns import Hosts
from test_cluster_submit_jobs import Desk

from cluster.registry import Registry
from train import events

pytestmark = pytest.mark.slow

STEADY = """
name: steady
task: text-classification
model: ./bert
data: {train: steady.csv}
train: {epochs: 12, batch_size: 6, learning_rate: 2e-4, workers: 3, max_failures: 4}
"""
SHORT = {"epochs": 2, "batch_size": 6, "learning_rate": 2e-4}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if why := hosts_netns.missing():
        pytest.skip(why)
    with hosts_netns.cluster(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def desk(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A machine outside the cluster, which knows it by its dashboard's address alone."""
    desk = Desk(tmp_path_factory.mktemp("desk"), hosts)
    sentences, labels = train_tiny.texts(300, seed=1, noise=0)
    with (desk.folder / "steady.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(sentences, labels)])
    (desk.folder / "steady.yaml").write_text(STEADY)
    return desk


class Run:
    """A training run that somebody watches by its file of events: `told` is when (seconds) what was written."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        self.hosts, self._name = hosts, name
        self.told: list[tuple[float, dict[str, Any]]] = []
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        self._over.set()
        self._reader.join()

    def _read(self) -> None:
        offset = 0
        while not self._over.wait(0.02):
            for folder in (self.hosts.home / "runs").glob(f"{self._name}-*"):
                found, offset = events.read(folder, offset)
                self.told += [(time.monotonic(), event) for event in found]

    def until(self, right: Any, *, since: float, patience_s: float = 150) -> tuple[float, dict[str, Any]]:
        """The first event since then that is right, and when it was."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            for when, event in list(self.told):
                if when >= since and right(event):
                    return when, event
            time.sleep(0.05)
        raise TimeoutError(f"{self.told[-3:]}\n{self.hosts.tails()}")

    def reach(self, step: int) -> None:
        self.until(lambda event: "metrics" in event and event["step"] >= step, since=0)

    @property
    def step(self) -> int:
        return next(event["step"] for _, event in reversed(self.told) if "step" in event)

    def rate(self, last: int) -> float:
        """Steps a second over the last so many points of the curve."""
        points = [(when, event["step"]) for when, event in self.told if "metrics" in event][-last:]
        return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])

    def somewhere(self) -> int:
        """A host other than the head that has a worker."""
        workers = {n: [p.name() for p in self.hosts.processes(n)] for n in range(2, self.hosts.count + 1)}
        return next(n for n, names in workers.items() if any("RayTrainWorker" in name for name in names))


@dataclass
class Fault:
    """What a lost host cost a run, seconds by part and steps that were done again."""

    seen: float  # until Ray gave the host up
    restarted: float  # from then until the workers were there again, with the last checkpoint
    step: float  # from then until a step was done
    again: int

    @property
    def whole(self) -> float:
        return self.seen + self.restarted + self.step


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
        # One is cut off.
        run.reach(60)
        fast = run.rate(30)
        gone = run.somewhere()
        cut = lost(run, lambda: hosts.cut(gone))

        # Another is slowed: every step has to wait for its gradients. Meanwhile the first one comes back.
        slowed, seen = run.somewhere(), len(run.told)
        hosts.slow(slowed, kbit=2000)
        hosts.mend(gone)
        back = hosts.ended(gone)
        hosts.start(gone)
        run.reach(run.step + 20)
        slow = run.rate(15)
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


def lost(run: Run, happens: Callable[[], object]) -> Fault:
    began = time.monotonic()
    happens()
    dead = began + run.hosts.wait(run.hosts.count - 1)
    restarted, event = run.until(lambda event: "resumed" in event, since=began)
    first, _ = run.until(lambda event: "metrics" in event, since=restarted)
    before = max(each["step"] for when, each in run.told if when < restarted and "metrics" in each)
    return Fault(dead - began, restarted - dead, first - restarted, before - event["resumed"])


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
    alone = one_host(desk, Path(result["model"]), tmp_path, epochs=12, batch_size=6, learning_rate=2e-4)
    assert result["metrics"]["step"] == alone["step"]
    assert result["metrics"]["validation/loss"] == pytest.approx(alone["validation/loss"], abs=1e-4)


def test_a_slow_host_slows_a_run_and_does_not_fail_it(story: Story):
    assert story.failures_while_slow == 0
    assert story.slow < story.fast / 2


def test_zero_2_from_a_driver_on_the_head_ends_as_on_one_host(hosts: Hosts, desk: Desk, tmp_path: Path):
    changes = ["name=shared", "train.parallel=deepspeed", "train.deepspeed.zero_stage=2", "train.epochs=2"]
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
