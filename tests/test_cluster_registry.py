"""The registry over a real SQLite store: runs, lineage, versions, aliases, references."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.errors import InputError, NotFound
from cluster.registry import Registry, resolve
from cluster.weights import inspect

pytestmark = pytest.mark.slow  # MLflow alone takes seconds to import


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables made, which takes seconds; tests copy it."""
    home = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_HOME", str(home))
        assert Registry().versions() == []
    return home / "mlflow.db"


@pytest.fixture
def registry(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    home = tmp_path / "home 100% #1"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    monkeypatch.setenv("SHOAL_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return Registry()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return folder


def finished(registry: Registry, folder: Path, name: str = "reviews", **tags: str) -> str:
    run_id = registry.start_run(name, kind="train", params={}, tags=tags)
    registry.log_artifacts(run_id, folder, "model")
    registry.end_run(run_id, "FINISHED")
    return run_id


def test_a_run_keeps_what_was_done_and_where_it_comes_from(registry: Registry, folder: Path) -> None:
    params = {
        "task": "text-classification",
        "train": {"epochs": 3, "learning_rate": 5e-5, "empty": {}},
        "long": "x" * 7000,
    }
    run_id = registry.start_run("reviews", kind="train", params=params, tags={"shoal.data_digest": "d1"})
    registry.log(run_id, {"loss": 0.9, "f1/spam & ham": 0.5}, step=1)
    # A worker opens the same store for itself.
    copy.deepcopy(registry).log(run_id, {"loss": 0.4}, step=2)
    registry.log(run_id, {f"m{number}": number for number in range(1200)})
    registry.set_tags(run_id, {"shoal.step": "2"})
    assert registry.run(run_id).status == "RUNNING"
    assert registry.run(run_id).ended is None
    source = {"name": "a.csv", "sha256": "a" * 64}
    registry.log_data(run_id, {"train": source}, {"train": 90, "validation": 10})
    registry.log_artifacts(run_id, folder, "model")
    registry.end_run(run_id, "FAILED")

    run = registry.run(run_id)
    assert (run.id, run.name, run.status) == (run_id, "reviews", "FAILED")
    assert run.params["train.epochs"] == "3"
    assert run.params["train.learning_rate"] == "5e-05"
    assert run.params["train.empty"] == "{}"
    assert run.params["task"] == "text-classification"
    assert len(run.params["long"]) == 6000
    whole = json.loads((registry.run_folder(run_id, "model").parent / "parameters.json").read_text())
    assert whole["long"] == "x" * 7000
    assert run.metrics["loss"] == 0.4
    assert run.metrics["f1/spam _ ham"] == 0.5
    assert run.metrics["m1199"] == 1199
    assert run.started.tzinfo is not None
    assert run.ended is not None
    assert run.ended >= run.started
    assert run.data == (
        {"split": "train", "name": "a.csv", "sha256": "a" * 64, "rows": 90},
        {"split": "validation", "name": "a.csv", "sha256": "a" * 64, "rows": 10},
    )
    # Lineage: code, environment, user; and nothing that names the machine.
    import platform

    import mlflow

    root = Path(__file__).parent.parent
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    if head:
        assert run.tags["shoal.code"] == run.tags["mlflow.source.git.commit"] == head.strip()
        assert run.tags["shoal.code_dirty"] in ("true", "false")
    else:
        assert run.tags["shoal.code"].startswith("shoal ")
    assert run.tags["shoal.python"] == platform.python_version()
    assert run.tags["shoal.mlflow"] == mlflow.__version__
    assert run.tags["shoal.data_digest"] == "d1"
    assert run.tags["shoal.step"] == "2"
    assert run.tags["mlflow.user"]
    environment = json.loads((registry.run_folder(run_id, "model").parent / "environment.json").read_text())
    assert environment["packages"]["mlflow"] == mlflow.__version__
    assert platform.node() not in [*run.tags.values(), *environment.values()]
    # The history of a metric, as MLflow has it.
    from mlflow.tracking import MlflowClient

    history = MlflowClient(registry.uri).get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.9), (2, 0.4)]


def test_find_run_takes_the_newest_finished_with_all_tags(registry: Registry, folder: Path) -> None:
    assert registry.find_run("reviews", {"shoal.train_key": "k"}) is None
    first = finished(registry, folder, **{"shoal.train_key": "it's k"})
    second = finished(registry, folder, **{"shoal.train_key": "it's k", "shoal.task": "t"})
    failed = registry.start_run("reviews", kind="train", params={}, tags={"shoal.train_key": "it's k"})
    registry.end_run(failed, "FAILED")
    finished(registry, folder, name="other", **{"shoal.train_key": "it's k"})

    def found(**tags: str) -> str | None:
        run = registry.find_run("reviews", {f"shoal.{key}": value for key, value in tags.items()})
        return run.id if run else None

    assert found(train_key="it's k") == second
    assert found(train_key="it's k", task="t") == second
    assert found(train_key="it's k", task="u") is None
    assert found(train_key="k") is None
    assert [run.id for run in registry.runs("reviews")] == [failed, second, first]
    assert [run.name for run in registry.runs(limit=2)] == ["other", "reviews"]


def test_champion_and_previous_follow_each_version(registry: Registry, folder: Path) -> None:
    run_id = finished(registry, folder)
    first = registry.register("reviews", run_id, metrics={"f1": 0.8, "loss": float("nan")}, tags={"shoal.task": "t"})
    assert (first.name, first.version, first.uri, first.aliases) == ("reviews", "1", "models:/reviews/1", ("champion",))
    assert first.metrics["f1"] == 0.8
    assert first.tags == {"shoal.task": "t"}
    assert first.run_id == run_id
    with pytest.raises(NotFound, match=r"nothing to roll back to, version 1 is its only champion"):
        registry.rollback("reviews")

    second = registry.register("reviews", run_id, metrics={"f1": 0.9}, tags={})
    assert aliases(registry) == {"1": ("previous",), "2": ("champion",)}
    third = registry.register("reviews", run_id, metrics={}, tags={})
    assert aliases(registry) == {"1": (), "2": ("previous",), "3": ("champion",)}
    assert [version.version for version in registry.versions("reviews")] == ["3", "2", "1"]

    assert registry.rollback("reviews").uri == second.uri
    assert aliases(registry) == {"1": (), "2": ("champion",), "3": ("previous",)}
    assert registry.rollback("reviews").uri == third.uri
    assert registry.promote("reviews", "1").aliases == ("champion",)
    assert aliases(registry) == {"1": ("champion",), "2": (), "3": ("previous",)}
    assert registry.promote("reviews", "1").aliases == ("champion",)  # again: nothing moves
    assert aliases(registry) == {"1": ("champion",), "2": (), "3": ("previous",)}
    assert registry.version("reviews").version == "1"
    assert registry.version("reviews", alias="previous").version == "3"
    assert {path.name for path in first.folder.iterdir()} == {"config.json", "model.safetensors"}


def aliases(registry: Registry) -> dict[str, tuple[str, ...]]:
    return {version.version: version.aliases for version in registry.versions("reviews")}


def test_what_is_not_there_is_answered_with_what_is(registry: Registry, folder: Path) -> None:
    with pytest.raises(NotFound, match="there is none yet"):
        registry.version("reviews")
    assert registry.versions("reviews") == []
    run_id = finished(registry, folder)
    with pytest.raises(NotFound, match="no folder 'weights' in it to register"):
        registry.register("reviews", run_id, path="weights", metrics={}, tags={})
    assert registry.versions() == []
    registry.register("reviews", run_id, metrics={}, tags={})
    with pytest.raises(NotFound, match=r"did you mean reviews\?"):
        registry.version("review", alias="champion")
    with pytest.raises(NotFound, match="no such model; there are: reviews"):
        registry.version("it's / other")
    with pytest.raises(NotFound, match=r"its aliases: champion \(version 1\)"):
        registry.version("reviews", alias="best")
    for version in ("2", "one"):
        with pytest.raises(NotFound, match="its versions: 1"):
            registry.promote("reviews", version)
    with pytest.raises(NotFound, match="nope"):
        registry.run("nope")
    with pytest.raises(NotFound, match="nope"):
        registry.register("reviews", "nope", metrics={}, tags={})
    with pytest.raises(NotFound, match=r"it holds environment.json, model"):
        registry.run_folder(run_id, "evaluation")
    shutil.rmtree(registry.run_folder(run_id))
    with pytest.raises(NotFound, match="moved or deleted"):
        _ = registry.version("reviews").folder


def test_plain_mlflow_sees_the_same(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.register("reviews", finished(registry, folder), metrics={}, tags={"shoal.task": "t"})

    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    seen = MlflowClient().get_model_version_by_alias("reviews", "champion")
    assert (str(seen.version), seen.run_id, seen.tags["shoal.task"]) == (version.version, version.run_id, "t")
    fetched = Path(download_artifacts("models:/reviews@champion", dst_path=str(tmp_path / "x")))
    assert (fetched / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    # All of it lies in the home, nothing in the working directory.
    assert version.folder.is_relative_to(Path(os.environ["SHOAL_HOME"]) / "mlruns" / "reviews")
    assert not (tmp_path / "mlruns").exists()


def test_a_registered_model_loads_without_shoal(registry: Registry, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, BertConfig, BertModel

    model = BertModel(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    saved = tmp_path / "bert"
    model.save_pretrained(saved)
    registry.register("bert", finished(registry, saved, name="bert"), metrics={}, tags={})

    folder = resolve("models:/bert@champion", registry)
    assert {path.name for path in folder.iterdir()} == {path.name for path in saved.iterdir()}
    again = AutoModel.from_pretrained(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert inspect(folder).parameters == sum(weight.numel() for weight in model.parameters())


def test_local_references(registry: Registry, folder: Path, tmp_path: Path) -> None:
    assert resolve("./saved") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights in it"):
        resolve("./saved")
    assert resolve("./saved", weights=False) == folder
    with pytest.raises(InputError, match="no such folder"):
        resolve("./nothing")
    with pytest.raises(InputError, match="scikit-learn estimator"):
        resolve("sklearn.ensemble.RandomForestClassifier")
    with pytest.raises(NotFound, match="no such model"):
        resolve("models:/reviews/3", registry)
