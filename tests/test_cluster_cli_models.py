"""`shoal models` and `shoal ui` over a real store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner

from cluster import ports
from cluster.cli import models, ui
from cluster.errors import InputError, NotFound
from cluster.registry import Registry

pytestmark = pytest.mark.slow
ROOT = str(Path(__file__).parent.parent)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two versions of one model, the newer one the champion."""
    home = tmp_path_factory.mktemp("home")
    folder = tmp_path_factory.mktemp("saved")
    (folder / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_HOME", str(home))
        registry = Registry()
        for epochs, f1 in ((1, 0.8), (3, 0.91234)):
            tags = {"shoal.data_digest": "d" * 64, "shoal.base_model": "org/base", "shoal.task": "text-classification"}
            params = {"train": {"epochs": epochs}}
            run_id = registry.start_run("reviews", kind="train", params=params, tags={**tags, "shoal.gate": "passed"})
            registry.log_data(run_id, {"train": {"name": "a.csv", "sha256": "a" * 64}}, {"train": 90, "validation": 10})
            registry.log_artifacts(run_id, folder, "model")
            registry.end_run(run_id, "FINISHED")
            registry.register("reviews", run_id, metrics={"f1": f1}, tags={"shoal.task": "text-classification"})
    return home


@pytest.fixture(autouse=True)
def _in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(home))


def run(*words: str) -> str:
    done = CliRunner().invoke(models.command, words)
    if done.exception is not None:
        raise done.exception
    return done.output


def result(*words: str) -> Any:
    return json.loads(run(*words, "--json").splitlines()[-1])


def test_the_list_names_versions_and_champion() -> None:
    [row] = result()
    assert row["name"] == "reviews"
    assert row["versions"] == ["2", "1"]
    assert (row["champion"], row["previous"]) == ("2", "1")
    assert row["metrics"] == {"f1": 0.91234}
    assert row["task"] == "text-classification"
    lines = run().splitlines()
    assert lines[0].split() == ["model", "versions", "champion", "metrics", "task", "newest"]
    assert lines[1].split()[:6] == ["reviews", "2", "2", "f1", "0.9123", "text-classification"]


def test_an_empty_home_says_how_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    assert "no models yet; `shoal up FILE` makes one" in run()
    assert result() == []


def test_show_goes_from_data_to_endpoint() -> None:
    value = result("show", "reviews")
    assert value["version"] == "models:/reviews/2"
    assert value["aliases"] == ["champion"]
    assert value["data"] == {
        "digest": "d" * 64,
        "files": [
            {"split": "train", "name": "a.csv", "sha256": "a" * 64, "rows": 90},
            {"split": "validation", "name": "a.csv", "sha256": "a" * 64, "rows": 10},
        ],
    }
    assert value["base_model"] == "org/base"
    assert value["parameters"] == {"train.epochs": "3"}
    assert value["metrics"] == {"f1": 0.91234}
    assert value["gate"]["state"] == "passed"
    assert value["run"]["status"] == "FINISHED"
    assert value["environment"]["python"] == sys.version.split()[0]
    assert value["code"]["version"]
    assert value["endpoint"] is None

    assert result("show", "models:/reviews/1")["parameters"] == {"train.epochs": "1"}
    assert result("show", "reviews@previous")["version"] == "models:/reviews/1"
    text = run("show", "reviews")
    for words in ("models:/reviews/2  champion", "train  a.csv  90 rows  sha256 aaaaaaaaaaaa", "train.epochs = 3"):
        assert words in text
    assert "not served; `shoal serve`" in text
    with pytest.raises(NotFound, match=r"did you mean reviews\?"):
        run("show", "revews")
    with pytest.raises(InputError, match="write NAME, NAME@ALIAS or NAME/VERSION"):
        run("show", "reviews/one/two")


def test_show_finds_the_endpoint_of_exactly_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import http.server
    import threading

    from cluster import connect

    served = json.dumps(
        [{"name": "reviews", "version": "models:/reviews/2", "url": "http://x/models/reviews"}]
    ).encode()

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(served if self.path == "/models" else b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    listen = {"host": "127.0.0.1", "port": server.server_port}
    running = connect.Cluster("127.0.0.1:1", "", url, listen=listen, home=Path(), token="")
    monkeypatch.setattr(connect, "running", lambda: running)
    try:
        assert result("show", "reviews/2")["endpoint"] == "http://x/models/reviews"
        assert result("show", "reviews/1")["endpoint"] is None
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert result("show", "reviews/2")["endpoint"] is None  # the gateway is gone


def test_promote_and_rollback() -> None:
    assert result("promote", "reviews", "1")["version"] == "models:/reviews/1"
    assert result()[0]["champion"] == "1"
    assert "models:/reviews/2 is the champion of reviews" in run("rollback", "reviews")
    assert result()[0]["previous"] == "1"
    with pytest.raises(NotFound, match="its versions: 1, 2"):
        run("promote", "reviews", "9")


def test_help_shows_examples() -> None:
    assert "shoal models promote reviews 3" in run("--help")
    for verb in ("show", "promote", "rollback"):
        assert f"shoal models {verb} reviews" in run(verb, "--help")
    assert "shoal ui --port 5050" in CliRunner().invoke(ui.command, ["--help"]).output


def test_ui_answers_until_interrupted(home: Path, tmp_path: Path) -> None:
    [port] = ports.pick(1)
    words = [sys.executable, "-m", "cluster", "ui", "--port", str(port), "--json"]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        value: dict[str, Any] = {}
        while "url" not in value:
            value = json.loads(process.stdout.readline())
        assert value == {"url": f"http://127.0.0.1:{port}"}
        assert httpx.get(f"{value['url']}/").status_code == 200
        found = httpx.get(f"{value['url']}/api/2.0/mlflow/registered-models/get", params={"name": "reviews"}).json()
        assert found["registered_model"]["name"] == "reviews"
        # The same store, through the server.
        assert [version.uri for version in Registry(value["url"]).versions()] == [
            "models:/reviews/2",
            "models:/reviews/1",
        ]
        started = psutil.Process(process.pid).children(recursive=True)
        assert started
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
    assert code == 0
    assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert list(tmp_path.iterdir()) == []  # nothing in the working directory


def test_ui_refuses_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = CliRunner().invoke(ui.command, ["--port", str(taken.getsockname()[1])])
    assert isinstance(done.exception, InputError)
    assert "--port" in str(done.exception)
    assert "Address already in use" in str(done.exception)
