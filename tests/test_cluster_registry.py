"""The registry over real stores: SQLite files, MLflow's own server, a full disk, two processes at once."""

from __future__ import annotations

import copy
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.cli.ui import _end
from cluster.errors import InputError, NotFound, RunFailed
from cluster.registry import Registry, resolve
from cluster.registry.store import shown
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


TWO = """
import sys
from pathlib import Path
from cluster.registry import Registry
registry = Registry()
for number in range(3):
    run_id = registry.start_run("reviews", kind="train", params={"who": sys.argv[1]}, tags={})
    registry.log_artifacts(run_id, Path(sys.argv[2]), "model")
    registry.end_run(run_id, "FINISHED")
    registry.register("reviews", run_id, metrics={"number": number}, tags={"who": sys.argv[1]})
"""


def test_two_processes_may_register_at_once_in_a_new_store(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "new"))
    root = str(Path(__file__).parent.parent)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, who, str(folder)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for who in ("one", "two")
    ]
    for process in both:
        # Nothing is said either: no table of alembic's, no hint of MLflow's.
        assert process.communicate(timeout=180)[0] == ""
        assert process.returncode == 0
    versions = Registry().versions("reviews")
    assert sorted(int(version.version) for version in versions) == [1, 2, 3, 4, 5, 6]
    assert sorted(version.tags["who"] for version in versions) == ["one"] * 3 + ["two"] * 3
    assert len({version.run_id for version in versions}) == 6
    assert aliases(Registry())["6"] == ("champion",)
    assert aliases(Registry())["5"] == ("previous",)


def test_a_full_disk_leaves_nothing_half_done(
    registry: Registry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system needs root")
    try:
        shutil.copy(Path(os.environ["SHOAL_HOME"]) / "mlflow.db", small / "mlflow.db")
        monkeypatch.setenv("SHOAL_HOME", str(small))
        registry = Registry()
        good = registry.register("reviews", finished(registry, folder), metrics={}, tags={})
        large = tmp_path / "large"
        large.mkdir()
        (large / "a.json").write_text("{}")
        (large / "model.safetensors").write_bytes(bytes(12_000_000))
        run_id = registry.start_run("reviews", kind="train", params={}, tags={})
        with pytest.raises(RunFailed, match="no space left on the disk"):
            registry.log_artifacts(run_id, large, "model")
        with pytest.raises(NotFound, match="no folder 'model'"):
            registry.run_folder(run_id)
        # Full to the last byte.
        registry.log_artifacts(run_id, folder, "model")
        with pytest.raises(OSError, match="No space"):
            (small / "fill").write_bytes(bytes(20_000_000))
        with pytest.raises(RunFailed, match="no space left on the disk"):
            registry.register("reviews", run_id, metrics={}, tags={})
        with pytest.raises(RunFailed, match="no space left on the disk"):
            log_much(registry, run_id)
        (small / "fill").unlink()
        assert [version.uri for version in registry.versions()] == [good.uri]
        assert registry.version("reviews").aliases == ("champion",)
        assert registry.register("reviews", run_id, metrics={}, tags={}).version == "2"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def log_much(registry: Registry, run_id: str) -> None:
    for step in range(1000):
        registry.log(run_id, {f"m{number}": 1.0 for number in range(900)}, step)


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunFailed, match=r"tracking_uri: http://127\.0\.0\.1:9 cannot be used.*is the server up"):
        Registry("http://127.0.0.1:9").versions()
    with (
        answering(401, b"You are not authenticated") as url,
        pytest.raises(RunFailed, match=f"{url} refuses .*MLFLOW_TRACKING_TOKEN"),
    ):
        Registry(url).start_run("reviews", kind="train", params={}, tags={})
    with answering(200, b"<html>some other page</html>") as url, pytest.raises(RunFailed, match="tracking_uri"):
        Registry(url).versions()
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(RunFailed, match=r"x\.db cannot be used .*file is not a database"):
        Registry(f"sqlite:///{tmp_path / 'x.db'}").versions()
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(RunFailed, match=r"config\.yaml"):
        Registry(f"sqlite:///{tmp_path / 'config.yaml' / 'x.db'}").versions()
    for uri in ("ftp://somewhere", str(tmp_path / "files")):
        with pytest.raises(InputError, match="no store that MLflow knows"):
            Registry(uri).versions()
    with pytest.raises(InputError, match="needs the Python module") as caught:
        Registry("postgresql+pg8000://me:secret@somewhere/db").versions()
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="is no database's address"):
        Registry("mysql+nothing://somewhere/db").versions()
    assert shown("http://me:secret@host:1/x") == "http://me:***@host:1/x"


def test_a_server_that_keeps_the_files_hands_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts through MLflow's server: uploaded, registered, and downloaded once."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--backend-store-uri", f"sqlite:///{tmp_path}/s.db", "--artifacts-destination", str(tmp_path / "kept")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words, "--port", str(port), "--workers", "1"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        registry = Registry(f"http://127.0.0.1:{port}")
        for _ in range(200):
            try:
                if httpx.get(f"{registry.uri}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                assert server.poll() is None
                time.sleep(0.3)
        folder = tmp_path / "saved"
        folder.mkdir()
        (folder / "config.json").write_text('{"a": 1}')
        run_id = registry.start_run("remote", kind="train", params={"a": 1}, tags={})
        registry.log_artifacts(run_id, folder, "model")
        registry.end_run(run_id, "FINISHED")
        version = registry.register("remote", run_id, metrics={"f1": 0.5}, tags={})
        assert version.aliases == ("champion",)
        local = version.folder
        assert (local / "config.json").read_text() == '{"a": 1}'
        assert local.is_relative_to(os.environ["SHOAL_HOME"])
        assert [path.name for path in local.iterdir()] == ["config.json"]
        assert registry.run_folder(run_id) == local
        found = registry.find_run("remote", {"shoal.kind": "train"})
        assert found is not None
        assert (found.id, found.params) == (run_id, {"a": "1"})
    finally:
        _end(server)


@contextmanager
def answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
