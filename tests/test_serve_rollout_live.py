"""Roll-outs as a client meets them: one cluster, and a model whose new versions agree, differ, fail or crawl."""

import collections
import contextlib
import json
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import here
import httpx
import pytest
import serve_tiny as tiny

from cluster import connect
from cluster.errors import RunFailed
from cluster.monitoring import server
from cluster.monitoring.live import plain, seen
from cluster.monitoring.model import ROLLOUT
from cluster.registry import Registry
from cluster.settings import Prometheus
from cluster.spec import parse
from serve import run
from serve.applications import read
from serve.rollout import settle
from serve.rollout.begin import deploy
from serve.state import state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus brings it"),
]
NAME = "reviews"
TEXTS = [f"fuzzy number {number}" for number in range(12)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("rollout")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    server.start(home, Prometheus())
    try:
        with connect.session() as found:
            yield found
    finally:
        connect.down()  # `shoal up` keeps it
        server.stop(home)
        patch.undo()


@pytest.fixture(scope="module")
def prometheus(cluster):
    running = server.running(cluster.home)
    assert running is not None
    return running.url


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Versions: `old`; `same` agrees with it, `other` says something else, `broken` fails on TEXTS, `slow` takes long,
    `cut` can't be loaded."""
    import torch
    from transformers import AutoModelForSequenceClassification

    root = tmp_path_factory.mktemp("folders")
    made = {"old": tiny.bert(root / "old")}
    for name in ("same", "other", "broken", "cut"):
        made[name] = Path(shutil.copytree(made["old"], root / name))
    model = AutoModelForSequenceClassification.from_pretrained(made["old"])
    with torch.no_grad():
        model.classifier.weight.neg_()
        model.classifier.bias.neg_()
    model.save_pretrained(made["other"])
    # Its vocabulary ends before "##z", so that it loads and warms up, and fails on what is fuzzy.
    model = AutoModelForSequenceClassification.from_pretrained(made["old"])
    model.resize_token_embeddings(4 + 94 + ord("z") - 33)
    model.save_pretrained(made["broken"])
    (made["cut"] / "model.safetensors").write_bytes((made["cut"] / "model.safetensors").read_bytes()[:3000])
    made["slow"] = tiny.bert(root / "slow", hidden=768, layers=8)
    return made


def up(cluster, folder, version, **rollout):
    # A busy machine makes a version that has just started slow: only where latency is the matter does it count.
    told = {"canary": 0.5, "for_s": 3600, "max_latency_ratio": 50, **rollout}
    section = {"num_cpus": 0.5, **({"rollout": told} if rollout else {})}
    spec = parse(f"name: {NAME}\ntask: text-classification\nmodel: {folder}\nserve: {json.dumps(section)}")
    return deploy(spec, model_uri=f"models:/{NAME}/{version}", folder=folder, cluster=cluster)


@pytest.fixture
def served(cluster, folders):
    """Version 1, and nothing of another test's roll-out."""
    return up(cluster, folders["old"], 1)


class Asking:
    """Clients that ask again and again: what each was answered, by version, and what failed."""

    def __init__(self, url, clients):
        self.seen = {client: collections.Counter() for client in range(clients)}
        self.failed, self.last = [], 0.0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(url, client)) for client in self.seen]

    def ask(self, url, client):
        with httpx.Client(timeout=30) as session:
            while not self.stop.is_set():
                answer = session.post(
                    url, json={"inputs": TEXTS[client % len(TEXTS)]}, headers={"x-shoal-session": f"client {client}"}
                )
                if answer.status_code == 200:
                    self.seen[client][answer.headers["x-shoal-version"]] += 1
                else:
                    self.failed.append(answer.text)
                time.sleep(0.2)  # new versions need a processor to start on


@contextlib.contextmanager
def asking(url, clients=12):
    one = Asking(url, clients)
    for thread in one.threads:
        thread.start()
    try:
        yield one
    finally:
        one.stop.set()
        for thread in one.threads:
            thread.join()


def rollout(cluster) -> Any:
    return run.find(NAME, cluster).rollout


def until(what, seconds=30.0):
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    assert found
    return found


def ended(cluster, seconds=60.0) -> Any:
    """The roll-out, once nothing of it is left to do."""
    until(lambda: "application" not in rollout(cluster), seconds)
    until(lambda: f"{NAME}_next" not in read(cluster))
    return rollout(cluster)


def test_clients_are_split_stay_and_see_each_versions_own_answer(cluster, folders, served):
    up(cluster, folders["other"], 2, canary=0.5)
    with asking(served.url, 24) as clients:
        time.sleep(2)
        by_version = {client: set(seen) for client, seen in clients.seen.items()}
        # One version each, both about as often.
        assert {len(versions) for versions in by_version.values()} == {1}
        second = {client for client, versions in by_version.items() if versions == {f"models:/{NAME}/2"}}
        assert 5 <= len(second) <= 19
        # More of them: nobody goes back.
        up(cluster, folders["other"], 2, canary=0.8)
        for seen in clients.seen.values():
            seen.clear()
        time.sleep(1)
        now = {client for client, seen in clients.seen.items() if set(seen) == {f"models:/{NAME}/2"}}
        assert second < now
    assert clients.failed == []
    for folder, version in (("old", 1), ("other", 2)):
        client = min(now) if version == 2 else min(set(clients.seen) - now)
        answer = httpx.post(served.url, json={"inputs": "x"}, headers={"x-shoal-session": f"client {client}"})
        assert answer.headers["x-shoal-version"] == f"models:/{NAME}/{version}"
        expected = tiny.bert_scores(folders[folder], "x")
        assert {one["label"]: one["score"] for one in answer.json()[0]} == pytest.approx(expected, abs=1e-5)
    assert [endpoint.name for endpoint in run.endpoints(cluster)] == [NAME]
    assert settle.abort(NAME, cluster, "by hand")["state"] == "rolled back"
    assert f"{NAME}_next" not in read(cluster)
    assert httpx.get(served.url).json()["version"] == f"models:/{NAME}/1"


@pytest.mark.parametrize(
    ("version", "keys", "reason"),
    [
        ("broken", {"canary": 0.5}, "requests failed"),
        ("slow", {"canary": 0.5, "max_latency_ratio": 1.5}, "requests took longer"),
        ("other", {"canary": 0.0, "shadow": 1.0}, "agree on 0.000"),
    ],
)
def test_a_bad_version_goes_back_by_itself_and_no_client_sees_a_failure(
    cluster, folders, served, version, keys, reason
):
    with asking(served.url) as clients:
        time.sleep(2)
        up(cluster, folders[version], f"{len(version)}", **keys)
        began = time.monotonic()
        number = f"models:/{NAME}/{len(version)}"
        until(lambda: (state(cluster)[0] or {})["rollouts"].get(NAME, {}).get("state") == "rolled back")
        told = time.monotonic() - began
        assert told < 40
        time.sleep(1.5)
        for seen in clients.seen.values():
            seen.clear()
        time.sleep(0.5)
        assert not any(seen[number] for seen in clients.seen.values()), "some still get the version that went back"
        found = ended(cluster)
    print(f"{version}: rolled back after {told:.1f} s, {found['summary']}")
    assert clients.failed == []
    assert (found["state"], found["version"]) == ("rolled back", number)
    assert reason in found["reason"]
    with pytest.raises(RunFailed, match=rf"{number} was rolled back: .*shoal rollout forget {NAME}"):
        up(cluster, folders[version], f"{len(version)}", **keys)
    settle.forget(NAME, cluster)
    assert rollout(cluster) is None


def test_a_sound_version_takes_over_by_itself(cluster, folders, served):
    with asking(served.url) as clients:
        up(cluster, folders["same"], 7, canary=0.3, shadow=0.5, for_s=2, min_requests=30)
        found = ended(cluster)
    assert clients.failed == []
    assert (found["state"], found["version"]) == ("promoted", f"models:/{NAME}/7")
    assert found["summary"]["new"]["agreement"] == 1.0
    assert httpx.get(served.url).json()["version"] == f"models:/{NAME}/7"
    assert run.find(NAME, cluster).version == f"models:/{NAME}/7"
    # And from here it is the one that others are tried beside, or that goes on being served.
    assert up(cluster, folders["same"], 7, canary=0.3).version == f"models:/{NAME}/7"


def test_by_hand_a_second_version_and_one_that_cannot_be_loaded(cluster, folders, served):
    with asking(served.url) as clients:
        up(cluster, folders["same"], 2, promote="hand", for_s=1, min_requests=1)
        first = rollout(cluster)["id"]
        # The same again, with another key: it goes on.
        up(cluster, folders["same"], 2, promote="hand", for_s=2, min_requests=1)
        assert rollout(cluster)["id"] == first
        with pytest.raises(RunFailed, match=r"model\.safetensors: not a whole safetensors file"):
            up(cluster, folders["cut"], 3, canary=0.5)
        until(lambda: f"{NAME}_next" not in read(cluster))
        assert rollout(cluster)["reason"] == f"models:/{NAME}/3 is to be tried instead"
        up(cluster, folders["other"], 4, promote="hand")
        assert rollout(cluster)["id"] != first
        found = settle.promote(NAME, cluster, "by hand")
    assert clients.failed == []
    assert (found["state"], found["reason"], found["version"]) == ("promoted", "by hand", f"models:/{NAME}/4")
    answer = httpx.post(served.url, json={"inputs": "x"}).json()
    expected = tiny.bert_scores(folders["other"], "x")
    assert {one["label"]: one["score"] for one in answer[0]} == pytest.approx(expected, abs=1e-5)


def test_the_keepers_death_changes_nothing(cluster, folders, served):
    import ray

    from serve.asking import keeper

    with asking(served.url) as clients:
        up(cluster, folders["same"], 2, canary=0.4, for_s=6, min_requests=20)
        time.sleep(1)
        ray.kill(keeper(), no_restart=False)
        found = ended(cluster)
    assert clients.failed == []
    assert found["state"] == "promoted"
    # It knew of what was counted before it was there.
    both = found["summary"]["old"]["requests"] + found["summary"]["new"]["requests"]
    assert both <= sum(sum(seen.values()) for seen in clients.seen.values())
    assert found["summary"]["new"]["requests"] >= 20


def test_every_panel_of_a_roll_out_has_data(cluster, folders, served, prometheus):
    since = time.time()
    with asking(served.url) as clients:
        up(cluster, folders["other"], 2, canary=0.0, shadow=0.5)
        ended(cluster)
        up(cluster, folders["same"], 3, canary=0.5, shadow=0.5)
        wanted = {plain(query.expr, NAME) for panel in ROLLOUT.panels for query in panel.queries}
        until(lambda: all(seen(prometheus, expr, since=since) for expr in wanted), 60)
        asked = f'sum by (kind) (ray_shoal_rollout_requests_total{{version="models:/{NAME}/3"}})'
        until(lambda: seen(prometheus, asked, since=since))
        settle.abort(NAME, cluster, "enough")
    assert clients.failed == []


FLOWERS = """
name: flowers
task: tabular-classification
model: sklearn.linear_model.LogisticRegression
data: {train: iris.csv, columns: {label: flower}, validation_split: 0.2}
train: {parameters: {max_iter: 300}}
evaluate: {gate: {accuracy: 0.8}}
serve: {num_cpus: 0.5, rollout: {canary: 0.5, for_s: 3600, promote: hand, max_latency_ratio: 50}}
"""


def test_the_command_line_and_the_registry(cluster, served):
    home, registry = cluster.home, Registry()
    shoal = partial(here.told, folder=home, home=home)

    def aliases():
        return {alias: one.version for one in registry.versions("flowers") for alias in one.aliases}

    frame, target = tiny.iris()
    frame.drop(columns="garden").assign(flower=target).to_csv(home / "iris.csv", index=False)
    (home / "flowers.yaml").write_text(FLOWERS)
    assert shoal("up", "flowers.yaml")["version"] == "models:/flowers/1"
    assert aliases() == {"champion": "1"}

    begun = shoal("up", "flowers.yaml", "train.parameters.C=0.5")
    assert (begun["version"], begun["rollout"]["version"]) == ("models:/flowers/1", "models:/flowers/2")
    assert aliases() == {"champion": "1", "candidate": "2"}
    for number in range(8):
        body = {"table": {"sepal": [5.1], "petal": [1.4]}}
        answer = httpx.post(begun["url"], json=body, headers={"x-shoal-session": str(number)})
        assert answer.status_code == 200
    [shown] = [one for one in shoal("status")["endpoints"] if one["name"] == "flowers"]
    assert shown["version"] == "models:/flowers/1"
    told = until(lambda: _counted(shoal("rollout", "status", "flowers")["rollouts"]["flowers"]))
    assert told["new"]["requests"] + told["old"]["requests"] == 8
    status = here.shoal("status", folder=home, home=home)
    assert status.returncode == 0
    assert "roll-out  flowers: models:/flowers/2 canary 50 %, " in status.stdout

    ended = shoal("rollout", "promote", "flowers")
    assert (ended["state"], ended["version"]) == ("promoted", "models:/flowers/2")
    assert aliases() == {"champion": "2", "previous": "1"}
    assert httpx.get(begun["url"]).json()["version"] == "models:/flowers/2"
    for name in ("flowers", "flower"):
        assert "no roll-out goes on" in shoal("rollout", "promote", name, code=2)["error"]

    third = shoal("up", "flowers.yaml", "train.parameters.C=0.25")
    assert third["rollout"]["version"] == "models:/flowers/3"
    assert shoal("rollout", "abort", "flowers")["state"] == "rolled back"
    assert aliases() == {"champion": "2", "previous": "1"}
    assert registry.version("flowers", version="3").tags["shoal.rolled_back"] == "by hand"
    # A roll-back holds: the same file again serves the champion.
    again = shoal("up", "flowers.yaml", "train.parameters.C=0.25")
    assert (again["version"], aliases()) == ("models:/flowers/2", {"champion": "2", "previous": "1"})
    # Who is in a hurry leaves the section out.
    shoal("models", "rollback", "flowers")
    assert shoal("serve", "flowers.yaml", "serve.rollout=null")["endpoints"][0]["version"] == "models:/flowers/1"


def _counted(found):
    counted = found.get("summary") or {}
    return counted if counted and counted["new"]["requests"] + counted["old"]["requests"] >= 8 else None


def test_taking_the_model_off_takes_its_new_version_off(cluster, folders, served):
    up(cluster, folders["same"], 2, canary=0.4)
    run.remove(NAME, cluster)
    assert not {NAME, f"{NAME}_next"} & set(read(cluster))
    assert httpx.post(served.url, json={"inputs": "x"}).status_code == 404
