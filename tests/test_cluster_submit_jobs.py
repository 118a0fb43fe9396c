"""Verbs on a Ray that Shoal did not start, two nodes and a token: sent, followed, left, come back to, stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import train_tiny
from hosts_netns import Hosts
from submit_ray import BIN, OtherRay
from test_cluster_up import FLOWERS, write_iris

from cluster.submit.client import Jobs
from cluster.submit.target import Target
from cluster.submit.versions import check

pytestmark = pytest.mark.slow

WORDS = """
name: words
task: text-classification
model: ./bert
data: {train: train.csv}
train: {epochs: 1, batch_size: 8}
"""


class Desk:
    """A working directory on a machine that knows the cluster as `other`, and one elsewhere that has but its URL."""

    def __init__(self, folder: Path, ray: OtherRay | Hosts) -> None:
        self.folder, self.ray = folder, ray
        self.env = {**ray.env, "SHOAL_HOME": str(folder / "home"), "HOME": str(folder)}
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            self.env.pop(name)
        self.elsewhere = {**self.env, "SHOAL_HOME": str(folder / "elsewhere"), "RAY_ADDRESS": ray.url}
        self.elsewhere["RAY_AUTH_TOKEN"] = ray.token_file.read_text()
        (folder / "home").mkdir()
        clusters = {
            "other": {"address": ray.url, "token_file": str(ray.token_file)},
            "wrong": {"address": ray.url, "token_file": str(folder / "wrong-token")},
            "away": {"address": "http://127.0.0.1:9"},
        }
        (folder / "home/cluster.yaml").write_text(json.dumps({"clusters": clusters}))
        (folder / "wrong-token").write_text("0" * 64)
        write_iris(folder)
        (folder / "flowers.yaml").write_text(FLOWERS)
        train_tiny.bert(folder / "bert")
        sentences, labels = train_tiny.texts(60, seed=1)
        with (folder / "train.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(sentences, labels)])
        (folder / "words.yaml").write_text(WORDS)

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cluster", *words]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=env or self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def shoal(self, *words: str, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
        process = self.start(*words, env=env)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
        return out, err

    def json(self, *words: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
        return json.loads(self.shoal(*words, "--json", code=code, env=env)[0].splitlines()[-1])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    ray = OtherRay(tmp_path_factory.mktemp("other"))
    try:
        yield Desk(tmp_path_factory.mktemp("desk"), ray)
    finally:
        ray.stop()
    assert ray.processes() == []


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_routes_are_there(desk: Desk):
    jobs = Jobs(Target("other", desk.ray.url, "address", token=desk.ray.token_file.read_text()))
    check(jobs)
    assert jobs.has("_ray_pkg_0123456789abcdef.zip") is False
    assert isinstance(jobs.jobs(), list)


@pytest.fixture(scope="module")
def trained(desk: Desk) -> list[dict[str, Any]]:
    """What `shoal train --on` prints, the data being deleted as soon as the job is there."""
    (desk.folder / "once.csv").write_text((desk.folder / "iris.csv").read_text())
    with ended(desk.start("train", "flowers.yaml", "data.train=once.csv", "--on", "other", "--json")) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(json.loads(line))
            if "Ctrl-C leaves it running" in lines[-1].get("text", ""):
                (desk.folder / "once.csv").unlink()
        assert process.wait(timeout=240) == 0, lines
    return lines


def test_a_model_is_trained_there(desk: Desk, trained: list[dict[str, Any]]):
    assert {line.get("stage") for line in trained} >= {"send", "write data", "train"}
    result = trained[-1]
    assert result["name"] == "flowers"
    assert result["metrics"]["validation/accuracy"] > 0.8
    assert Path(result["model"]).is_relative_to(desk.ray.home)
    assert (desk.ray.home / "mlflow.db").is_file()
    assert not (desk.folder / "home/mlflow.db").exists()
    assert not (desk.folder / "once.csv").exists()


def test_status_and_logs_from_elsewhere(desk: Desk, trained: list[dict[str, Any]]):
    found = desk.json("status", env=desk.elsewhere)
    run = found["runs"][-1]["run"]
    assert run.startswith("train-flowers-2")
    assert (found["runs"][-1]["status"], found["runs"][-1]["verb"]) == ("SUCCEEDED", "train")
    assert found["runs"][-1]["command"] == "train flowers.yaml data.train=once.csv"
    assert desk.json("status", run, env=desk.elsewhere)["exit_code"] == 0
    assert '"stage": "train"' in desk.shoal("logs", run, env=desk.elsewhere)[0]
    out, _ = desk.shoal("logs", run, "-n", "1", "--follow", "--on", "other")
    assert json.loads(out.splitlines()[-1])["run"] == trained[-1]["run"]
    assert "which cluster? Add --on NAME" in desk.shoal("status", run, code=2)[1]
    assert "nothing: no run on other" in desk.shoal("status", "nothing", "--on", "other", code=2)[1]


def test_a_verbs_exit_code_is_the_jobs(desk: Desk):
    out, err = desk.shoal("evaluate", "words.yaml", "--on", "other", code=2)
    assert "shoal: words.yaml: no finished run of this data" in out
    assert "Traceback" not in out + err


def test_ctrl_c_leaves_it_and_stop_ends_it(desk: Desk):
    long = ("train", "words.yaml", "train.epochs=5000", "--on", "other")
    with ended(desk.start(*long)) as process:
        assert process.stdout is not None
        assert any(line.startswith("train 0%") or "starting the workers" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
    run = err.split(" goes on without you")[0].split()[-1]
    assert f"`shoal logs {run} --follow --on other` comes back to it, `shoal stop {run} --on other` ends it" in err
    assert desk.json("status", run, "--on", "other")["status"] == "RUNNING"

    # The same again follows it; another one of the same model is refused.
    with ended(desk.start(*long)) as process:
        assert process.stderr is not None
        assert any(f"{run} does just this on other: following it" in line for line in process.stderr)
    assert f"{run} is at work on this model" in desk.shoal("train", "words.yaml", "--on", "other", code=1)[1]

    assert desk.json("stop", run, env=desk.elsewhere) == {"run": run, "status": "STOPPED", "stopped": True}
    assert [process.pid for process in desk.ray.processes() if "words.yaml" in process.cmdline()] == []
    assert "was over already" in desk.shoal("stop", run, "--on", "other")[0]


def test_a_wrong_token_and_a_wrong_address_are_one_message(desk: Desk):
    for name, message in (
        ("wrong", f"refuses the token (403) that comes from clusters.wrong.token_file: {desk.folder}/wrong-token"),
        ("away", "clusters.away.address: http://127.0.0.1:9 cannot be reached"),
    ):
        out, err = desk.shoal("train", "words.yaml", "--on", name, code=2 if name == "wrong" else 1)
        assert message in err
        assert "Traceback" not in out + err


def test_ray_job_submit_of_a_plain_verb(desk: Desk):
    verb = ["shoal", "train", "flowers.yaml", "train.parameters.C=0.5"]
    words = ["job", "submit", f"--address={desk.ray.url}", "--working-dir=.", "--", *verb]
    done = subprocess.run(
        [str(BIN / "ray"), *words], cwd=desk.folder, env=desk.ray.env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "next: shoal evaluate flowers.yaml" in done.stdout
    run = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("run "))
    assert (desk.ray.home / "mlruns/flowers" / run / "artifacts/model/model.skops").is_file()


def test_served_there_until_down(desk: Desk, trained: list[dict[str, Any]]):
    up = desk.json("up", "flowers.yaml", "--on", "other")
    assert up["url"] == f"http://127.0.0.1:{desk.ray.http}/models/flowers"
    row = {"sepal length": [5.1], "sepal width": [3.5], "petal length": [1.4], "petal width": [0.2]}
    assert httpx.post(up["url"], json={"table": row}, trust_env=False).json() == ["setosa"]
    [endpoint] = desk.json("status", "--on", "other")["endpoints"]
    assert (endpoint["name"], endpoint["state"], endpoint["url"]) == ("flowers", "RUNNING", up["url"])
    assert desk.shoal("predict", "flowers", json.dumps({"table": row}), "--on", "other")[0].split('"')[1] == "setosa"
    assert "is not stopped; name a model" in desk.shoal("down", "--on", "other", code=2)[1]
    desk.shoal("down", "flowers", "--on", "other")
    assert desk.json("status", "--on", "other")["endpoints"] == []


def test_a_driver_on_one_of_its_machines_attaches(desk: Desk):
    code = "from cluster import connect\nwith connect.session() as c: print(c.started, c.dashboard_url, len(c.token))"
    address = _address(desk)
    env = {**desk.ray.env, "SHOAL_HOME": str(desk.folder / "home"), "RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", desk.ray.url, "64"], done.stderr
    nobody = {**env, "RAY_ADDRESS": "127.0.0.1:9"}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=nobody, capture_output=True, text=True, timeout=120)
    assert "ClusterGone: RAY_ADDRESS: 127.0.0.1:9 does not answer" in done.stderr
    assert time.monotonic() - began < 60
    assert os.environ.get("RAY_ADDRESS") is None


def _address(desk: Desk) -> str:
    """host:port of the control service, as its own nodes call it."""
    headers = {"Authorization": f"Bearer {desk.ray.token_file.read_text()}"}
    nodes = httpx.get(f"{desk.ray.url}/nodes?view=summary", headers=headers, trust_env=False).json()["data"]["summary"]
    return f"{nodes[0]['raylet']['nodeManagerAddress']}:{desk.ray.gcs}"
