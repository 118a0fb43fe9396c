"""Sweeps on a real Ray: interrupted, killed, ended early, failing, and by the command line."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import train_tiny as tiny
from click.testing import CliRunner
from test_cluster_up import FLOWERS, write_iris
from test_train_run import workers

from cluster import connect
from cluster.accounts import Usage
from cluster.errors import RunFailed
from cluster.registry import Registry
from cluster.spec import Spec

pytestmark = pytest.mark.slow

# Four trials of 600 steps, two at a time: long enough to be killed in the middle.
LONG = {
    "train": {"epochs": 4, "batch_size": 6, "learning_rate": 3e-3, "checkpoints_per_epoch": 3},
    "tune": {
        "trials": 4,
        "space": {"train.learning_rate": {"loguniform": [1e-3, 1e-2]}},
        "scheduler": "none",
        "max_concurrent": 2,
    },
}
DRIVER = """
import sys
from pathlib import Path
from cluster import connect
from cluster.registry import Registry
from cluster.spec import Spec
from train.data import Prepared
from tune.run import sweep
def tell(stage, done, total, note=""):
    print("at", done, int(note.split(" finished")[0]) if " finished" in note else 0, flush=True)
with connect.session():
    sweep(Spec.model_validate({spec!r}), Prepared.open(Path({data!r})), registry=Registry({uri!r}), progress=tell,
          say=lambda text: print("said", text, flush=True))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A home with its Ray, its registry, a model with drop-out, and data."""
    folder = tmp_path_factory.mktemp("t")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(folder / "home"))
    with connect.session():
        yield SimpleNamespace(
            folder=folder,
            home=folder / "home",
            registry=Registry(),
            uri=Registry().uri,
            model=tiny.bert(folder / "model", dropout=0.1),
            data=tiny.text_data(folder / "data", rows=900, held_out=40),
        )
    patch.undo()


def content(world: Any, name: str, sections: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "task": "text-classification", "model": str(world.model), **sections}


def go(world: Any, name: str, sections: dict[str, Any]) -> Any:
    from tune.run import sweep

    said: list[str] = []
    spec = Spec.model_validate(content(world, name, sections))
    done = sweep(spec, world.data, registry=world.registry, say=said.append)
    return SimpleNamespace(done=done, said=said, spec=spec)


def trials(world: Any, name: str) -> dict[str, Any]:
    """Trial to its run; every run of the model is one trial's, and no trial has two."""
    runs = [run for run in world.registry.runs(name) if run.tags["shoal.kind"] == "train"]
    found = {run.tags["shoal.trial"]: run for run in runs}
    assert len(found) == len(runs), "one run a trial"
    return found


def broken_off(world: Any, name: str, send: int, *, finished: int) -> str:
    """Start the sweep in a process, and end that once so many trials are finished, two at a time, and two others are in
    the middle."""
    script = DRIVER.format(spec=content(world, name, LONG), data=str(world.data.folder), uri=world.uri)
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    said = ""
    for line in driver.stdout:
        said += line
        word, *numbers = line.split()
        if word == "at":
            done, ended = float(numbers[0]), int(numbers[1])
            # Of those under way, two at most, none is close to its end: it must not come before the signal does.
            if ended == finished and 0.4 < done - ended < 1.2:
                break
    else:
        pytest.fail(driver.stderr.read() if driver.stderr else "the driver ended by itself")
    driver.send_signal(send)
    rest, _ = driver.communicate(timeout=90)
    return said + rest


def test_ctrl_c_and_kill_9_of_the_driver_and_then_the_rest(world: Any) -> None:
    said = broken_off(world, "broken-off", signal.SIGINT, finished=0)
    assert "4 of 4 trials are left; the same command goes on with them" in said
    assert workers() == []
    runs = {run.tags["shoal.kind"]: run for run in world.registry.runs("broken-off")}
    assert {run.status for run in world.registry.runs("broken-off")} == {"KILLED"}
    interrupted = trials(world, "broken-off")
    assert set(interrupted) == {"0", "1"}

    broken_off(world, "broken-off", signal.SIGKILL, finished=2)
    before = trials(world, "broken-off")
    finished = {trial: run for trial, run in before.items() if run.status == "FINISHED"}
    assert finished
    assert len(before) > len(finished), "and some were in the middle"

    went = go(world, "broken-off", LONG)
    after = trials(world, "broken-off")
    assert sorted(after) == ["0", "1", "2", "3"]
    assert {run.status for run in after.values()} == {"FINISHED"}
    for trial, run in finished.items():
        assert (after[trial].id, after[trial].ended) == (run.id, run.ended), "a finished trial is not run again"
    middle = {trial: run for trial, run in before.items() if trial not in finished}
    assert all(after[trial].id == run.id for trial, run in middle.items())
    resumed = [int(after[trial].tags.get("shoal.resumed_at", 0)) for trial in middle]
    assert max(resumed) >= 50, "from its own last checkpoint; the first is at step 50"
    assert all(run.tags["shoal.step"] == "600" for run in after.values())
    assert {run.tags["mlflow.parentRunId"] for run in after.values()} == {runs["tune"].id} == {went.done.run_id}
    losses = {trial: run.metrics["validation/loss"] for trial, run in after.items()}
    assert {str(row.number) for row in went.done.rows} == set(losses)
    assert went.done.best.value == min(row.value for row in went.done.rows)
    assert world.registry.run(went.done.trained.run_id).tags["shoal.trial"] == str(went.done.best.number)

    again = go(world, "broken-off", LONG)
    assert (again.done.reused, again.done.run_id) == (True, went.done.run_id)
    assert trials(world, "broken-off").keys() == after.keys()


def test_asha_ends_what_falls_behind_and_its_workers(world: Any) -> None:
    sections = {
        # Long enough for the end to come in the middle: training does not wait for the scheduler.
        "train": {**LONG["train"], "epochs": 6},
        "tune": {
            "trials": 3,
            "space": {"train.learning_rate": {"choice": [3e-3, 1e-9, 2e-9]}},
            "max_concurrent": 1,
        },
    }
    went = go(world, "early", sections)
    assert [row.status for row in went.done.rows] == ["finished", "pruned", "pruned"]
    assert went.done.best.values == {"train.learning_rate": 3e-3}
    runs = trials(world, "early")
    assert [runs[trial].status for trial in "012"] == ["FINISHED", "KILLED", "KILLED"]
    for trial in "12":
        assert runs[trial].tags["shoal.pruned"] in ("at validation 3", "at validation 9"), "where there are rungs"
        assert int(runs[trial].tags["shoal.step"]) < 900
    assert workers() == []
    assert not list((world.home / "runs").glob("early-*")), "checkpoints that nobody goes on with are gone"


def test_a_failed_trial_is_counted_and_a_sweep_of_failures_fails(world: Any) -> None:
    train = {"epochs": 0.1, "batch_size": 6, "learning_rate": 3e-3}
    space = {"train.precision": {"choice": ["float32", "float16"]}}
    went = go(world, "failing", {"train": train, "tune": {"trials": 5, "space": space, "max_concurrent": 1}})
    by = {row.values["train.precision"]: row for row in went.done.rows}
    assert {name: row.status for name, row in by.items()} == {"float32": "finished", "float16": "failed"}
    assert by["float16"].error.startswith("train.precision: float16 needs a GPU")
    ((slot, counts),) = Usage().rows(model="failing")
    assert (slot.verb, counts.requests, counts.failed) == ("tune", 2, 1), "trials are counted as what they are"
    assert counts.compute_seconds > 0
    assert any("float16 needs a GPU" in line for line in went.said)
    assert any("the space holds 2 different trials, fewer than tune.trials: 5" in line for line in went.said)

    tune = {"trials": 1, "space": {"train.precision": {"choice": ["float16"]}}}
    with pytest.raises(RunFailed, match=r"all 1 trials failed; the first: train\.precision: float16 needs a GPU"):
        go(world, "all-failing", {"train": train, "tune": tune})
    (run,) = [run for run in world.registry.runs("all-failing") if run.tags["shoal.kind"] == "tune"]
    assert (run.status, "float16 needs a GPU" in run.tags["shoal.error"]) == ("FAILED", True)


def test_the_command_line_registers_the_best_with_its_lineage(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.cli.tune import command
    from cluster.spec import load
    from train.data import prepare
    from train.run import finished

    write_iris(world.folder)
    file = world.folder / "flowers.yaml"
    space = "{train.parameters.C: {choice: [0.0001, 1.0]}}"
    file.write_text(f"{FLOWERS}tune: {{trials: 2, space: {space}}}\n")
    result = CliRunner().invoke(command, [str(file), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["trials"]["finished"], told["version"]) == (2, "models:/flowers/1")
    assert told["best"]["values"] == {"train.parameters.C": 1.0}
    assert told["metrics"]["accuracy"] > 0.8
    version = world.registry.version("flowers")
    wanted = {"shoal.sweep": told["run"], "shoal.trial": str(told["best"]["trial"])}
    assert {key: version.tags[key] for key in wanted} == wanted
    assert json.loads(version.tags["shoal.tuned"]) == told["best"]["values"]
    assert version.run_id == told["best"]["run"]

    parent = world.registry.run(told["run"])
    assert (parent.status, parent.tags["shoal.best_run"]) == ("FINISHED", told["best"]["run"])
    assert parent.metrics["trials/finished"] == 2
    page = Path(told["report"].removeprefix("file://"))
    assert page.read_text() == (world.registry.run_folder(told["run"], "report") / "index.html").read_text()

    # The line to keep it finds the very same run.
    *_, overrides = shlex.split(told["keep"])[2:][0], shlex.split(told["keep"])[3:]
    kept = load(file, overrides)
    found = finished(kept, prepare(kept, into=world.home / "data"), world.registry)
    assert found
    assert found.run_id == told["best"]["run"]

    # Nothing is left to do, and it is done without a Ray.
    monkeypatch.setattr(connect, "session", lambda **_: pytest.fail("a cluster was asked for"))
    again = CliRunner().invoke(command, [str(file), "--json"], catch_exceptions=False)
    repeated = json.loads(again.stdout.splitlines()[-1])
    assert (repeated["reused"], repeated["version"], repeated["run"]) == (True, told["version"], told["run"])
    assert len([run for run in world.registry.runs("flowers") if run.tags["shoal.kind"] == "train"]) == 2
    assert time.time() - parent.started.timestamp() < 600
