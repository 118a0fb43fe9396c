"""A home's Prometheus, the real one: started, found, ended, and nothing else with it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from test_cluster_cli import shoal

from cluster import embedded, processes
from cluster.errors import InputError, RunFailed
from cluster.monitoring import server
from cluster.settings import Prometheus

real = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not on PATH; apt-get install prometheus brings it"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    yield tmp_path
    server.stop(tmp_path)


def test_without_prometheus_one_message_says_how_to_get_it(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(InputError, match=r"no such program on PATH; install it with `apt-get install prometheus`"):
        server.start(home, Prometheus())
    assert not (home / "prometheus").exists()


def test_what_it_is_told(home: Path):
    (scrape,) = server.configuration(home)["scrape_configs"]
    (found,) = scrape["file_sd_configs"]
    assert found["files"] == [f"{embedded.scratch_folder(home)}/r/prom_metrics_service_discovery.json"]


def test_ray_writes_the_file_that_is_read():
    """Contract: the file's name is Ray's; it stands in Ray's documentation of Prometheus."""
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert server.TARGETS == PROMETHEUS_SERVICE_DISCOVERY_FILE


@real
def test_up_twice_status_down_twice(home: Path):
    first, started = server.start(home, Prometheus())
    assert started
    assert server.start(home, Prometheus()) == (first, False)
    assert server.running(home) == first
    health = server.health(first)
    assert health.targets == {}
    assert health.rules == ["ModelFails", "TrainingStalls"]
    assert health.firing == []
    listening = {
        connection.laddr.ip for connection in psutil.Process(first.pid).net_connections("tcp") if not connection.raddr
    }
    assert listening == {"127.0.0.1"}

    with pytest.raises(
        InputError, match=rf"prometheus.port: 1234 is asked for, .* has {first.port}; run `shoal monitor"
    ):
        server.start(home, Prometheus(port=1234))
    assert server.stop(home)
    assert not psutil.pid_exists(first.pid) or not processes.alive(psutil.Process(first.pid))
    assert server.running(home) is None
    assert not server.stop(home)
    assert (home / "prometheus" / "data").is_dir()


@real
def test_two_at_once_start_one(home: Path):
    found: list[tuple[server.Server, bool]] = []
    threads = [threading.Thread(target=lambda: found.append(server.start(home, Prometheus()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(started for _, started in found) == [False, True]
    assert found[0][0] == found[1][0]


@real
def test_a_port_that_is_taken(home: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"prometheus.port: {port} is taken by another program; stop what uses it"
        ):
            server.start(home, Prometheus(port=port))
    assert server.running(home) is None
    assert server.start(home, Prometheus(port=port))[0].url == f"http://127.0.0.1:{port}"


@real
def test_samples_that_cannot_be_read_are_told_and_nothing_is_left(home: Path):
    (home / "prometheus").mkdir()
    (home / "prometheus" / "data").write_text("no folder")
    with pytest.raises(RunFailed, match=r"Prometheus would not start: .*; all of it: .*prometheus.log"):
        server.start(home, Prometheus())
    assert server.running(home) is None
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])] == []


@real
def test_a_pid_that_is_another_process_now_is_left_alone(home: Path):
    (home / "prometheus").mkdir()
    me = psutil.Process()
    state = {"pid": me.pid, "created": me.create_time() - 100, "port": 1}
    (home / "prometheus" / "server.json").write_text(json.dumps(state))
    assert server.running(home) is None
    assert not server.stop(home)
    for damaged in ("", "[]", '{"pid": 1}', '{"pid": "x", "created": 1, "port": 1}'):
        (home / "prometheus" / "server.json").write_text(damaged)
        assert server.running(home) is None


@real
def test_it_is_no_part_of_the_cluster_and_goes_with_shoal_down(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(processes.MARKER, str(embedded.scratch_folder(home)))
    done = shoal("monitor", "up", "--json")
    assert done.returncode == 0, done.stderr
    url = json.loads(done.stdout.splitlines()[-1])["url"]
    monkeypatch.delenv(processes.MARKER)
    assert processes.members(embedded.scratch_folder(home)) == []
    assert httpx.get(f"{url}/-/ready").status_code == 200
    status = json.loads(shoal("monitor", "status", "--json").stdout.splitlines()[-1])
    assert (status["url"], status["targets"], status["firing"]) == (url, {}, [])
    assert shoal("down").stdout == "down\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/-/ready")
    assert "not running" in shoal("monitor", "status").stdout
    assert shoal("monitor", "down").stdout == "no Prometheus was running\n"


@real
def test_promtool_takes_the_configuration(home: Path):
    server.start(home, Prometheus(retention="1h"))
    file = home / "prometheus" / "prometheus.yml"
    checked = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked
    assert yaml.safe_load(file.read_text())["global"]["scrape_interval"] == "10s"
