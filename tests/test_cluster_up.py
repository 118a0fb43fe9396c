"""The whole way, by the command line as a stranger would: data to URL, again, broken, interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import here
import psutil
import pytest
from sklearn.datasets import load_iris

pytestmark = pytest.mark.slow

FLOWERS = """
name: flowers
task: tabular-classification
model: sklearn.linear_model.LogisticRegression
data: {train: iris.csv, columns: {label: species}, validation_split: 0.2}
train: {parameters: {max_iter: 300}}
evaluate: {gate: {accuracy: 0.8}}
"""


def write_iris(folder: Path, rows: int = 150) -> None:
    data: Any = load_iris()
    with (folder / "iris.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(name.replace(" (cm)", "") for name in data.feature_names), "species"])
        for row, label in list(zip(data.data, data.target, strict=True))[:rows]:
            writer.writerow([*row, data.target_names[label]])


class Place:
    """A working directory with a home of its own, and `shoal` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SHOAL_HOME": str(folder / "home")}
        write_iris(folder)
        (folder / "flowers.yaml").write_text(FLOWERS)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cluster", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def shoal(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = here.shoal(*words, folder=self.folder, home=self.env["SHOAL_HOME"])
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.shoal(*words, "--json", code=code).stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("up"))
    yield place
    place.shoal("down")
    left = [
        p.info["pid"] for p in psutil.process_iter(["pid", "cmdline"]) if str(place.folder) in str(p.info["cmdline"])
    ]
    assert left == []


@pytest.fixture(scope="module")
def first(place: Place) -> dict[str, Any]:
    process = place.start("up", "flowers.yaml", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_up_ends_with_name_url_version_metrics_seconds(first: dict[str, Any]):
    assert first["name"] == "flowers"
    assert first["version"] == "models:/flowers/1"
    assert first["metrics"]["accuracy"] >= 0.8
    assert {"data", "train", "evaluate", "serve"} <= set(first["seconds"])
    assert first["reused"] == []


def test_the_printed_lines_work_when_pasted(first: dict[str, Any]):
    for line in (first["curl"], first["python"].replace("python -c", f"{sys.executable} -c", 1)):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=True)
        assert any(name in done.stdout for name in ("setosa", "versicolor", "virginica")), (line, done.stdout)


def test_again_does_nothing(place: Place, first: dict[str, Any]):
    again = place.json("up", "flowers.yaml")
    assert again["reused"] == ["train", "evaluate", "register"]
    assert (again["version"], again["url"]) == (first["version"], first["url"])
    assert again["metrics"] == first["metrics"]


def test_a_changed_key_makes_a_version_and_rollback_holds(place: Place, first: dict[str, Any]):
    changed = place.json("up", "flowers.yaml", "train.parameters.C=0.5")
    assert changed["version"] == "models:/flowers/2"
    assert changed["reused"] == []
    place.shoal("models", "rollback", "flowers")
    back = place.json("up", "flowers.yaml", "train.parameters.C=0.5")
    assert back["version"] == "models:/flowers/1", "an old version that was rolled back to stays the champion"


def test_a_gate_not_met_is_exit_1_and_leaves_what_serves(place: Place, first: dict[str, Any]):
    before = place.json("status")["endpoints"]
    failed = place.shoal(
        "up", "flowers.yaml", "train.parameters={C: 0.000001}", "evaluate.gate={accuracy: 0.99}", code=1
    )
    assert "evaluate.gate: accuracy" in failed.stderr
    assert "0.99" in failed.stderr
    assert "not promoted" in failed.stderr
    assert place.json("status")["endpoints"] == before
    assert place.shoal("predict", "flowers", "iris.csv").stdout.count("setosa") > 40


def test_evaluate_and_serve_alone(place: Place, first: dict[str, Any]):
    trained = place.json("train", "flowers.yaml")
    assert trained["reused"] is True
    assert place.json("evaluate", "flowers.yaml")["version"] == "models:/flowers/1"
    assert place.json("serve", "flowers.yaml")["endpoints"][0]["url"] == first["url"]
    assert "training worker group" in place.shoal("logs", "flowers").stdout


def test_a_second_model_started_twice_leaves_the_first_and_goes_alone(place: Place, first: dict[str, Any]):
    (place.folder / "more.yaml").write_text(FLOWERS.replace("flowers", "more"))
    one = place.start("up", "more.yaml", "--json")
    time.sleep(0.2)
    two = place.start("up", "more.yaml", "--json")
    done = {process.returncode: (out, err) for process in (one, two) for out, err in [process.communicate(timeout=300)]}
    assert sorted(done) == [0, 1]
    assert "is at work on this model" in "".join(done[1])
    assert json.loads(done[0][0].splitlines()[-1])["url"] != first["url"]
    assert {row["name"] for row in place.json("status")["endpoints"]} == {"flowers", "more"}
    place.shoal("down", "more")
    assert {row["name"] for row in place.json("status")["endpoints"]} == {"flowers"}
    assert "setosa" in place.shoal("predict", "flowers", "iris.csv").stdout


def test_bad_data_is_exit_2_with_the_key(place: Place):
    done = place.shoal("up", "flowers.yaml", "data.columns={label: specie}", code=2)
    assert "data.columns" in done.stderr
    assert "species" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("broken-off"))


@pytest.mark.parametrize("until", ["start Ray", "train", "evaluate", "serve flowers"])
def test_ctrl_c_in_a_stage_leaves_no_process(broken_off: Place, until: str):
    """Each goes on where the last one was broken off, and that is as far as the next stage."""
    place = broken_off
    process = place.start("up", "flowers.yaml", "--json")
    assert process.stdout is not None
    try:
        assert any(json.loads(line).get("stage") == until for line in process.stdout), f"{until} is told of"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        assert process.returncode == 130
        assert place.json("status")["cluster"] is None
        assert [process.pid for process in psutil.process_iter() if marked(process, place.env["SHOAL_HOME"])] == []
    finally:
        place.shoal("down")


def marked(process: psutil.Process, home: str) -> bool:
    try:
        return process.environ().get("SHOAL_HOME") == home
    except psutil.Error:
        return False
