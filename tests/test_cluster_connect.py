"""The embedded Ray: started, found, shared, guarded by its token, and stopped without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import connect, embedded, ports, processes, serving
from cluster.errors import InputError
from cluster.settings import Http, RayNode, Settings

SESSION = """
import sys, time
from cluster import connect
with connect.session(keep=sys.argv[1] == "keep") as cluster:
    print(cluster.started, cluster.address, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start_child(home: Path, keep: str, seconds: float) -> subprocess.Popen[str]:
    """A process of its own that opens a session and stays in it that long."""
    environment = {**os.environ, "SHOAL_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", SESSION, keep, str(seconds)], env=environment, stdout=subprocess.PIPE, text=True
    )


def first_line(child: subprocess.Popen[str]) -> list[str]:
    assert child.stdout is not None
    return child.stdout.readline().split()


def state_of(home: Path) -> embedded.State:
    state = embedded.read(home)
    assert state is not None
    return state


def assert_nothing_left(home: Path, root: Path) -> None:
    assert processes.members(root) == []
    assert not root.exists()
    assert not (home / "cluster.json").exists()
    assert not (home / "token").exists()
    assert [file for file in root.parent.glob("shoal-port-*") if file.read_text() == str(root)] == []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home; whatever a failed test leaves running in it is stopped."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SHOAL_HOME", str(folder))
    yield folder
    connect.down()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[list[str]]]]:
    """A home whose Ray was started by two commands at once, both over by now; and what each of them printed."""
    folder = tmp_path_factory.mktemp("kept")
    children = [start_child(folder, "keep", 0) for _ in range(2)]
    lines = [first_line(child) for child in children]
    assert [child.wait(timeout=200) for child in children] == [0, 0]
    yield folder, lines
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_HOME", str(folder))
        connect.down()


def test_a_fresh_home_has_no_cluster(home: Path):
    assert connect.running() is None
    assert connect.down() is False
    assert connect.logs_folder() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"address": "127.0.0.1:1"}', '{"pids": 3}'])
def test_a_damaged_cluster_json_is_no_cluster(home: Path, content: str):
    (home / "cluster.json").write_text(content)
    assert connect.running() is None


def test_looking_for_a_cluster_imports_no_ray(home: Path):
    code = "import sys; from cluster import connect; connect.running(); connect.down(); print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_only_marked_processes_are_ended(tmp_path: Path):
    def sleeper(mark: str) -> psutil.Popen:
        return psutil.Popen(["sleep", "60"], env={**os.environ, processes.MARKER: mark})

    mine, other = sleeper(str(tmp_path / "one")), sleeper(str(tmp_path / "two"))
    try:
        assert [process.pid for process in processes.members(tmp_path / "one")] == [mine.pid]
        assert processes.end(tmp_path / "one") == 1
        assert processes.alive(other)
        assert not processes.alive(mine)
        assert processes.end(tmp_path / "one") == 0
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_a_pid_that_was_given_to_another_process_is_not_the_same():
    me = psutil.Process()
    assert processes.same(me.pid, me.create_time()) == me
    assert processes.same(me.pid, me.create_time() - 100) is None


def test_two_clusters_never_claim_one_port(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first = ports.claim_http("127.0.0.1", 0, one)
    assert first >= 8000
    assert ports.claim_http("127.0.0.1", 0, one) == first
    assert ports.claim_http("127.0.0.1", 0, two) > first
    with pytest.raises(InputError, match=rf"http\.port: {first} is kept by another Shoal cluster"):
        ports.claim_http("127.0.0.1", first, two)
    one.rmdir()  # its cluster died without a word
    assert ports.claim_http("127.0.0.1", first, two) == first
    ports.release(two)
    assert list(tmp_path.glob("shoal-port-*")) == []


def test_a_taken_port_is_passed_over_or_refused(home: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=rf"http\.port: {port} is taken by another program.*cluster\.yaml"):
            embedded.start(home, Settings(http=Http(port=port)), keep=False)
    assert_nothing_left(home, embedded.scratch_folder(home))


def test_a_host_of_another_machine_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"http\.host: 203\.0\.113\.7 is no address of this machine"):
        ports.claim_http("203.0.113.7", 0, tmp_path)


def test_too_little_shared_memory_is_refused_before_anything_starts(home: Path):
    with pytest.raises(InputError, match=r"/dev/shm: .*ray\.object_store_mb is 100000000"):
        embedded.start(home, Settings(ray=RayNode(object_store_mb=100_000_000)), keep=False)
    assert not embedded.scratch_folder(home).exists()


def test_a_full_disk_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "MIN_HOME_MB", 10**12)
    with pytest.raises(InputError, match=r"home: \d+ MiB are free .* set SHOAL_HOME"):
        embedded.start(home, Settings(), keep=False)


def test_a_scratch_folder_that_others_may_write_is_refused(home: Path):
    root = embedded.scratch_folder(home)
    root.mkdir()
    root.chmod(0o777)
    try:
        with pytest.raises(InputError, match="is there already and not this user's own"):
            embedded.start(home, Settings(), keep=False)
        assert root.exists()
    finally:
        root.rmdir()


def test_scratch_folders_are_short_and_one_a_home(tmp_path: Path):
    one, two = embedded.scratch_folder(tmp_path / ("a" * 100)), embedded.scratch_folder(tmp_path / "b")
    assert one != two
    assert max(len(str(one)), len(str(two))) <= embedded.LONGEST_SCRATCH


def test_doctor_names_what_is_broken(home: Path):
    def doctor() -> tuple[int, dict]:
        ran = subprocess.run([sys.executable, "-m", "cluster", "doctor", "--json"], capture_output=True, text=True)
        return ran.returncode, json.loads(ran.stdout.splitlines()[-1])

    code, answer = doctor()
    assert (code, answer["ok"]) == (0, True), answer
    found = {check["name"]: check for check in answer["checks"]}
    assert found["cluster"]["found"] == "not running"
    assert found["ray"]["state"] == "ok"
    assert int(found["cores"]["found"]) == embedded.cores()

    (home / "cluster.yaml").write_text("ray: {object_store_mb: 100000000}\nhttp: {port: 1}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (home / "cluster.yaml").write_text(f"ray: {{object_store_mb: 100000000}}\nhttp: {{port: {port}}}\n")
        code, answer = doctor()
    broken = {check["name"]: check for check in answer["checks"] if check["state"] == "broken"}
    assert code == 1
    assert set(broken) == {"/dev/shm", "http port"}
    assert "--shm-size" in broken["/dev/shm"]["remedy"]


@pytest.mark.slow
def test_two_commands_at_once_start_one_cluster_and_it_outlives_them(kept, monkeypatch):
    home, lines = kept
    monkeypatch.setenv("SHOAL_HOME", str(home))
    assert sorted(line[0] for line in lines) == ["False", "True"]
    found = connect.running()
    assert found is not None
    assert {line[1] for line in lines} == {found.address}
    assert found.http_url == f"http://127.0.0.1:{found.listen['port']}"
    assert stat.S_IMODE((home / "token").stat().st_mode) == 0o600
    assert found.token not in repr(found)
    for process in processes.members(Path(state_of(home).scratch)):
        assert os.getsid(process.pid) != os.getsid(0)  # Ctrl-C in this terminal is not for them


@pytest.mark.slow
def test_workers_have_the_settings_that_were_measured(kept, monkeypatch):
    import ray

    home, _ = kept
    monkeypatch.setenv("SHOAL_HOME", str(home))

    @ray.remote
    def look() -> dict[str, str]:
        return {**os.environ, "nice": str(os.nice(0)), "cpus": str(ray.cluster_resources()["CPU"])}

    with connect.session() as cluster:
        assert cluster.started is False
        assert os.environ["RAY_AUTH_MODE"] == "token"
        with connect.session() as inner:
            assert inner.address == cluster.address
        seen = ray.get(look.remote(), timeout=60)
    assert serving.SERVING.items() <= seen.items()
    assert seen["nice"] == "0"
    assert float(seen["cpus"]) == 4 * embedded.cores()
    assert seen["SHOAL_HOME"] == str(home)
    assert not ray.is_initialized()
    assert "RAY_AUTH_MODE" not in os.environ
    assert connect.running() is not None  # it was kept


@pytest.mark.slow
def test_nothing_is_answered_without_the_token(kept, monkeypatch):
    import httpx

    home, _ = kept
    monkeypatch.setenv("SHOAL_HOME", str(home))
    cluster = connect.running()
    assert cluster is not None

    def status(path: str, **headers: str) -> int:
        return httpx.get(cluster.dashboard_url + path, headers=headers, trust_env=False, timeout=20).status_code

    for path in ("/api/serve/applications/", "/api/jobs/"):
        assert status(path) == 401
        assert status(path, authorization="Bearer " + "0" * 64) == 403
        assert status(path, authorization=f"Bearer {cluster.token}") == 200

    code = f"import ray; ray.init(address='{cluster.address}')"
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    plain["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    plain["RAY_NUM_REDIS_GET_RETRIES"] = "3"  # a client of Ray gives up after 20 otherwise, a second each
    wrong = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    refused = [
        subprocess.Popen([sys.executable, "-c", code], env={**plain, **extra}, stderr=subprocess.PIPE, text=True)
        for extra in wrong
    ]
    for client in refused:
        _, said = client.communicate(timeout=120)
        assert client.returncode != 0
        assert "uthentication" in said


@pytest.mark.slow
def test_it_listens_on_the_loopback_only(kept):
    home, _ = kept
    everywhere = [
        (process.name(), listening.laddr)
        for process in processes.members(Path(state_of(home).scratch))
        for listening in process.net_connections(kind="tcp")
        if listening.status == psutil.CONN_LISTEN and listening.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    ]
    assert everywhere == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_second_home_has_its_own_and_a_signal_ends_all_of_it(kept, tmp_path, number, code):
    home, _ = kept
    first = state_of(home)
    child = start_child(tmp_path, "drop", 300)
    assert first_line(child)[0] == "True"
    second = state_of(tmp_path)
    assert second.scratch != first.scratch
    assert second.http_port != first.http_port
    assert len({first.address, second.address, first.dashboard_url, second.dashboard_url}) == 4
    assert len(processes.members(Path(second.scratch))) >= 5
    child.send_signal(number)
    assert child.wait(timeout=200) == code
    assert_nothing_left(tmp_path, Path(second.scratch))
    assert first.alive


GOES_AWAY = """
import os, signal, time
import ray
from ray.exceptions import GetTimeoutError
from cluster import connect, embedded
from cluster.errors import ClusterGone
from cluster.settings import home

@ray.remote
def forever():
    time.sleep(1000)

try:
    with connect.session() as cluster:
        assert cluster.started
        waiting = forever.remote()
        try:
            ray.get(waiting, timeout=2)
            raise SystemExit("it does not wait")
        except GetTimeoutError:
            pass
        began = time.monotonic()
        os.kill(embedded.read(home()).pids["raylet"][0], signal.SIGKILL)
        ray.get(waiting)
except ClusterGone as error:
    assert time.monotonic() - began < 20
    print(error)
"""


@pytest.mark.slow
def test_what_kill_9_left_is_cleared_and_a_ray_that_goes_away_is_said_so(home: Path):
    with connect.session(keep=True) as cluster:
        assert cluster.started
        old = state_of(home)
    os.kill(old.pids["gcs_server"][0], signal.SIGKILL)
    while old.alive:
        time.sleep(0.05)
    assert connect.running() is None
    leftovers = processes.members(Path(old.scratch))
    assert leftovers

    # In a process of its own: where Ray's client finds out before we do, it ends the process that it is in.
    done = subprocess.run([sys.executable, "-c", GOES_AWAY], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "run the command again" in done.stdout
    assert not any(processes.alive(process) for process in leftovers)
    assert_nothing_left(home, embedded.scratch_folder(home))


@pytest.mark.slow
def test_other_errors_pass_unchanged_and_down_ends_it(kept, monkeypatch):
    home, _ = kept
    monkeypatch.setenv("SHOAL_HOME", str(home))
    with pytest.raises(ZeroDivisionError), connect.session():
        _ = 1 / 0
    with pytest.raises(ConnectionError, match="the database"), connect.session():
        raise ConnectionError("the database, not Ray")
    (home / "cluster.yaml").write_text("http: {port: 8999}\n")
    with pytest.raises(InputError, match=r"http\.port: 8999 is asked for.*shoal down"), connect.session(keep=True):
        pass
    root = Path(state_of(home).scratch)
    assert connect.down() is True
    assert_nothing_left(home, root)
    assert connect.down() is False
