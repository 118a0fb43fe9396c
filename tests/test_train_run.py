"""Training as a verb on a real Ray: reuse, two workers, and whatever may be killed in the middle."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import train_tiny as tiny

from cluster import connect, embedded, settings
from cluster.accounts import Usage
from cluster.errors import InputError
from cluster.registry import Registry

slow = pytest.mark.slow

# 2 workers, drop-out, 150 steps an epoch: long enough to be killed in the middle.
LONG = {
    "epochs": 4,
    "batch_size": 6,
    "learning_rate": 3e-3,
    "workers": 2,
    "checkpoints_per_epoch": 3,
    "max_failures": 2,
}
DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import train_tiny as tiny
from pathlib import Path
from cluster import connect
from cluster.registry import Registry
from train.data import Prepared
from train.run import train
spec = tiny.spec({model!r}, name="broken-off", **{long!r})
say = lambda stage, done, total, note="": print(int(done), flush=True)
with connect.session():
    train(spec, Prepared.open(Path({data!r})), registry=Registry({uri!r}), progress=say)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A home with its Ray and a registry, a model with drop-out and data."""
    folder = tmp_path_factory.mktemp("w")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(folder / "home"))
    with connect.session():
        yield SimpleNamespace(
            home=folder / "home",
            registry=Registry(f"sqlite:///{folder / 'mlflow.db'}"),
            uri=f"sqlite:///{folder / 'mlflow.db'}",
            model=tiny.bert(folder / "model", dropout=0.1),
            data=tiny.text_data(folder / "data", rows=900, held_out=40),
        )
    patch.undo()


def go(world: Any, name: str, progress: Any = None, **train: Any) -> Any:
    from train.run import train as verb

    spec = tiny.spec(world.model, name=name, **train)
    return verb(spec, world.data, registry=world.registry, **({"progress": progress} if progress else {}))


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def curve(world: Any, run_id: str, metric: str) -> dict[int, float]:
    from cluster.registry.store import open_client

    return {point.step: point.value for point in open_client(world.uri).get_metric_history(run_id, metric)}


def workers() -> list[psutil.Process]:
    """The training workers of this test's Ray, in the order they were started."""
    state = embedded.read(settings.home())
    assert state is not None
    raylet, _ = state.pids["raylet"]
    found = []
    for process in psutil.Process(raylet).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.create_time())


@pytest.fixture(scope="module")
def unbroken(world: Any) -> Any:
    """The run that nothing happened to."""
    seen: list[tuple[float, float]] = []
    trained = go(world, "unbroken", lambda stage, done, total, note="": seen.append((done, total)), **LONG)
    assert seen[-1] == (600, 600)
    return trained


@slow
def test_a_run_is_registered_whole(world: Any, unbroken: Any) -> None:
    run = world.registry.run(unbroken.run_id)
    assert run.status == "FINISHED"
    assert run.params["train.workers"] == "2"
    assert {key: run.tags[key] for key in ("shoal.task", "shoal.step", "shoal.total_steps", "shoal.kind")} == {
        "shoal.task": "text-classification",
        "shoal.step": "600",
        "shoal.total_steps": "600",
        "shoal.kind": "train",
    }
    assert run.tags["shoal.data_digest"] == world.data.digest
    assert len(run.tags["shoal.train_key"]) == 64
    assert len(curve(world, run.id, "validation/loss")) == 12
    assert min(curve(world, run.id, "validation/loss").values()) == unbroken.metrics["validation/loss"]
    assert all(rate > 0 for rate in curve(world, run.id, "train/rows_per_second").values())
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "validation/accuracy"} <= set(run.metrics)
    assert not list((world.home / "runs").glob("unbroken-*")), "what only served to make the model is gone"

    from transformers import AutoModelForSequenceClassification

    config = AutoModelForSequenceClassification.from_pretrained(unbroken.folder).config
    assert config.id2label == {0: "bad", 1: "good"}


@slow
def test_no_process_is_started_to_ask_for_nodes(world: Any, unbroken: Any) -> None:
    import ray

    named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    assert not [row for row in named if "autoscaling" in row["name"].lower()]


@slow
def test_the_same_again_is_found_not_trained(world: Any, unbroken: Any) -> None:
    from train.run import finished, key

    again = go(world, "unbroken", **{**LONG, "max_failures": 7})
    assert (again.run_id, again.reused) == (unbroken.run_id, True)
    assert again.metrics == unbroken.metrics
    spec = tiny.spec(world.model, name="unbroken", **LONG)
    other = tiny.spec(world.model, name="unbroken", **{**LONG, "seed": 1})
    assert key(spec, world.data) != key(other, world.data)
    assert finished(other, world.data, world.registry) is None
    # Its two workers' seconds are counted with what requests use, and nothing for what was found.
    ((slot, counts),) = Usage().rows(model="unbroken")
    assert (slot.tenant, slot.key, slot.verb, counts.requests, counts.failed) == ("local", "", "train", 1, 0)
    assert unbroken.seconds < counts.compute_seconds < 2 * unbroken.seconds


@slow
def test_kill_9_of_a_worker_changes_nothing(world: Any, unbroken: Any) -> None:
    killed: list[int] = []

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        if done > 160 and not killed:  # by then a checkpoint has certainly been noted by the controller
            victim = workers()[-1]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    trained = go(world, "killed", progress, **LONG)
    assert killed
    assert int(world.registry.run(trained.run_id).tags["shoal.resumed_at"]) >= 50
    assert weights(trained.folder) == weights(unbroken.folder)
    assert trained.metrics == unbroken.metrics


@slow
def test_ctrl_c_and_kill_9_of_the_driver_and_then_the_rest(world: Any, unbroken: Any) -> None:
    script = DRIVER.format(
        tests=str(Path(__file__).parent),
        model=str(world.model),
        data=str(world.data.folder),
        uri=world.uri,
        long=LONG,
    )
    run_ids, reached = set(), []
    for send, beyond in ((signal.SIGINT, 60), (signal.SIGKILL, 160)):
        driver = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        step = next((int(line) for line in driver.stdout if int(line) > beyond), None)
        if step is None:
            pytest.fail(driver.stderr.read() if driver.stderr else "the driver ended by itself")
        reached.append(step)
        driver.send_signal(send)
        _, said = driver.communicate(timeout=60)
        (run,) = world.registry.runs("broken-off")
        run_ids.add(run.id)
        if send == signal.SIGINT:
            assert run.status == "KILLED"
            assert said.strip().endswith("KeyboardInterrupt"), said
            assert workers() == []
    trained = go(world, "broken-off", **LONG)
    assert {trained.run_id} == run_ids, "one run in the registry, gone on with"
    run = world.registry.run(trained.run_id)
    assert run.status == "FINISHED"
    assert 50 <= int(run.tags["shoal.resumed_at"]) <= reached[-1] + 200
    assert weights(trained.folder) == weights(unbroken.folder)
    assert trained.metrics == unbroken.metrics


@slow
def test_two_workers_train_as_one_where_nothing_is_dropped(world: Any, tmp_path: Path) -> None:
    from test_train_loop import curve as told
    from test_train_loop import plain_loop, run

    data = tiny.text_data(tmp_path / "data", rows=23, held_out=9)
    spec = tiny.spec(
        tiny.bert(tmp_path / "model"),
        name="shared",
        epochs=2,
        batch_size=5,
        learning_rate=5e-3,
        warmup_ratio=0,
        schedule="constant",
        max_grad_norm=0.5,
        class_weights="balanced",
    )
    alone = run(spec, data, tmp_path / "alone")

    from train.run import train

    two = spec.model_copy(
        update={"train": spec.train.model_copy(update={"workers": 2, "gradient_accumulation_steps": 2})}
    )
    trained = train(two, data, registry=world.registry)
    losses = [value for _, value in sorted(curve(world, trained.run_id, "train/loss").items())]
    assert losses == pytest.approx(list(told(tmp_path / "alone").values()), abs=1e-5)
    assert losses == pytest.approx(plain_loop(spec, data)[0], abs=1e-5)
    assert trained.metrics["validation/loss"] == pytest.approx(alone["validation/loss"], abs=1e-5)


@slow
def test_a_fault_of_the_input_fails_at_once_and_as_itself(world: Any, tmp_path: Path) -> None:
    from train.run import train

    vit = tiny.vit(tmp_path / "vit")
    spec = tiny.spec(vit, name="wrong", workers=2, max_failures=3)
    with pytest.raises(
        InputError, match=r"no weights in it.*; or start from random weights: train\.from_scratch: true"
    ):
        train(spec, world.data, registry=world.registry)
    spec = tiny.spec(vit, name="wrong", workers=2, max_failures=3, from_scratch=True)
    with pytest.raises(InputError, match=r"a vit model cannot do text-classification|no tokenizer"):
        train(spec, world.data, registry=world.registry)
    (run,) = world.registry.runs("wrong")
    assert run.status == "FAILED"
    assert "vit" in run.tags["shoal.error"]
    attempts = sum(
        b'"resumed"' in line for file in (world.home / "runs").glob("wrong-*/events.jsonl") for line in file.open("rb")
    )
    assert attempts == 0, "no worker got as far as a second attempt"


@slow
def test_a_damaged_list_of_checkpoints_means_starting_again(world: Any) -> None:
    from train.run import key

    spec = tiny.spec(world.model, name="damaged", epochs=0.05, batch_size=6)
    folder = world.home / "runs" / f"damaged-{key(spec, world.data)[:12]}"
    (folder / "checkpoint-000000001-aaaaaaaa").mkdir(parents=True)
    (folder / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{')
    trained = go(world, "damaged", epochs=0.05, batch_size=6)
    assert trained.metrics["step"] == 8
    assert not folder.exists()


@slow
def test_an_estimator_goes_the_same_way(world: Any, tmp_path: Path) -> None:
    from train.run import train

    data = tiny.iris_data(tmp_path / "data")
    forest = tiny.spec(
        "sklearn.ensemble.RandomForestClassifier",
        name="iris",
        task="tabular-classification",
        parameters={"n_estimators": 20},
    )
    trained = train(forest, data, registry=world.registry)
    assert trained.metrics["validation/accuracy"] > 0.9
    assert {path.name for path in trained.folder.iterdir()} == {"model.skops", "config.json"}
    run = world.registry.run(trained.run_id)
    assert (run.status, run.metrics) == ("FINISHED", trained.metrics)
    assert train(forest, data, registry=world.registry).reused

    wrong = forest.model_copy(update={"train": forest.train.model_copy(update={"parameters": {"trees": 3}})})
    with pytest.raises(InputError, match=r"RandomForestClassifier does not take trees; it takes n_estimators"):
        train(wrong, data, registry=world.registry)


@pytest.mark.parametrize(
    ("task", "model", "train", "message"),
    [
        ("tabular-classification", "org/name", {}, "takes a scikit-learn estimator"),
        ("text-classification", "sklearn.svm.SVC", {}, "takes a Hugging Face model"),
        ("tabular-classification", "sklearn.svm.SVC", {"workers": 2}, r"train\.workers: 2: an estimator learns in one"),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused_before_anything_starts(
    tmp_path: Path, task: str, model: str, train: dict[str, Any], message: str
) -> None:
    from train.run import train as verb

    with pytest.raises(InputError, match=message):
        verb(
            tiny.spec(model, task=task, **train), tiny.iris_data(tmp_path), registry=Registry("sqlite:////nowhere/x.db")
        )


@slow
def test_float16_is_refused_before_a_worker_starts(world: Any) -> None:
    with pytest.raises(InputError, match=r"train\.precision: float16 needs a GPU"):
        go(world, "half", precision="float16")
