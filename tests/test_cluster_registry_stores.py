"""The registry where stores are shared, full, broken or far away."""

from __future__ import annotations

import http.server
import os
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

from cluster import ports
from cluster.cli.ui import _end
from cluster.errors import InputError, NotFound, RunFailed
from cluster.registry import Registry
from cluster.registry.store import shown

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def finished(registry: Registry, folder: Path) -> str:
    run_id = registry.start_run("reviews", kind="train", params={}, tags={})
    registry.log_artifacts(run_id, folder, "model")
    registry.end_run(run_id, "FINISHED")
    return run_id


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
    assert {version.version: version.aliases for version in versions if version.aliases} == {
        "6": ("champion",),
        "5": ("previous",),
    }


def test_a_full_disk_leaves_nothing_half_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system needs root")
    try:
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
    [port] = ports.pick(1)
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
