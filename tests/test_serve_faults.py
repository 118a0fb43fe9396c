"""Each fault under load, on a real cluster: what failed of how many, and for how long nobody was answered."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from faults_house import House
from faults_load import executions, load, uploads

from cluster import connect
from cluster.cli import main
from serve.applications import read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    home = tmp_path_factory.mktemp("faults")
    (home / "cluster.yaml").write_text("http: {max_body_mb: 100}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with connect.session() as cluster:
        log = home / "ran.log"
        log.touch()
        house = House(cluster, log)
        house.deploy()
        yield house
        print("\n" + "\n".join(house.rows))
    patch.undo()


def twice(house, seen):
    """Requests of this load that were executed more than once."""
    counts = executions(house.log)
    return [key for key in seen.ids if counts[key] > 1]


def test_a_replica_that_is_killed_loses_no_request(house):
    first, _ = house.settle()
    with load(house.url(), sleep=0.3) as seen:  # so long that it has some of them in hand
        time.sleep(1)
        os.kill(first, signal.SIGKILL)
        house.settle(other_than=[first])
    house.tell("kill -9 of a replica of two", seen)
    assert seen.bad == 0
    assert seen.gap() < 8
    assert 0 < len(twice(house, seen)) <= 8  # those that it had in hand
    assert max(executions(house.log)[key] for key in seen.ids) == 2


def test_a_replica_that_is_killed_under_large_uploads_has_had_none_of_them(house):
    """Up to 8 MiB are kept at the gateway and go to another replica; of more the client is told to come again."""
    house.deploy("large")
    first, _ = house.settle("large")
    mib = 2**20
    with (
        load(house.url("large"), sleep=0.02, concurrent=4) as small,
        uploads(house.url("large"), size=7 * mib, first=6 * mib, headers={"x-shoal-retry": "never"}) as kept,
        uploads(house.url("large"), size=20 * mib, first=12 * mib) as larger,
    ):
        end = time.monotonic() + 20
        while house.ongoing("large") < 12:
            assert time.monotonic() < end, "not all of them have come to a replica"
            time.sleep(0.1)
        os.kill(first, signal.SIGKILL)
        house.settle("large", 1, other_than=[first])
    house.remove("large")
    house.tell("kill -9 under small requests and uploads", small)
    house.tell("the same, 7 MiB on their way, never twice", kept)
    house.tell("the same, 20 MiB on their way", larger)
    assert small.bad == 0
    assert kept.statuses == {200: 6}
    assert set(larger.statuses) == {200, 429}
    counts = executions(house.log)
    assert [counts[key] for key in kept.ids] == [1] * 6
    assert sum(counts[key] for key in larger.ids) == larger.statuses[200]


def test_the_only_replica_that_is_killed_has_its_requests_held(house):
    house.deploy("alone", replicas=1)
    (only,) = house.settle("alone", 1)
    with load(house.url("alone"), sleep=0.02) as seen:
        time.sleep(1)
        os.kill(only, signal.SIGKILL)
        house.settle("alone", 1, other_than=[only])
        time.sleep(0.5)
    house.remove("alone")
    house.tell("kill -9 of the only replica", seen)
    assert set(seen.statuses) <= {200, 429}
    assert seen.gap() < 50


def test_what_may_not_run_twice_never_does(house):
    house.deploy("once", idempotent=False)
    first, _ = house.settle("once")
    with (
        load(house.url("once"), sleep=0.05) as seen,
        load(house.url(), sleep=0.05, headers={"X-Shoal-Retry": "Never"}, concurrent=4) as never,
    ):
        time.sleep(1)
        victim, *_ = house.settle()
        os.kill(first, signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        time.sleep(2)
        os.kill(house.both_gateways()[0], signal.SIGKILL)
        house.settle("once", other_than=[first])
        house.settle(other_than=[victim])
    house.tell("the same, serve.idempotent: false", seen)
    house.tell("the same, x-shoal-retry: never", never)
    assert twice(house, seen) == twice(house, never) == []
    # HAProxy cuts the client off where a gateway dies on a connection that it had used before.
    assert set(seen.statuses) | set(never.statuses) <= {200, 502, "reset"}
    assert 0 < seen.bad <= 16
    assert 0 < never.bad <= 8
    house.remove("once")


def test_a_gateway_that_is_killed_loses_no_request_that_fits_haproxys_buffer(house):
    victim = house.both_gateways()[0]
    with load(house.url(), sleep=0.02) as seen, load(house.url(), size=300_000, concurrent=2, sleep=0.02) as large:
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        time.sleep(4)
    house.tell("kill -9 of a gateway of two", seen)
    house.tell("the same, bodies of 300 kB", large)
    assert set(seen.statuses) <= {200, "cut"}  # its head was out as the gateway died
    assert seen.statuses["cut"] <= 2
    assert large.bad <= 2
    assert set(large.statuses) <= {200, 502, "reset", "cut"}
    end = time.monotonic() + 30
    while time.monotonic() < end and len(set(house.gateways()) - {victim}) < 2:
        time.sleep(0.2)
    assert len(set(house.gateways()) - {victim}) == 2


def test_haproxy_that_is_killed_loses_what_it_had_and_refuses_nobody(house):
    house.both_gateways()
    victim = house.haproxy()
    with load(house.url(), sleep=0.02) as seen:
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        time.sleep(3)
    house.tell("kill -9 of HAProxy", seen)
    assert house.haproxy() != victim
    assert seen.bad <= 8
    assert set(seen.statuses) <= {200, "reset"}
    assert seen.gap() < 8


def test_the_fronts_actor_the_keeper_and_serves_controller_may_die(house):
    for title in ("ray::Front", "ray::Keeper", "ray::ServeController"):
        (victim,) = house.pids(title)
        with load(house.url(), sleep=0.02, concurrent=4) as seen:
            time.sleep(0.5)
            os.kill(victim, signal.SIGKILL)
            time.sleep(4)
        house.tell(f"kill -9 of {title.removeprefix('ray::')}", seen)
        assert seen.bad == 0, title
        assert seen.gap() < 5, title
    # And the new front has the socket of the HAProxy that went on, which may then die as well.
    end = time.monotonic() + 20
    while not house.pids("ray::Front") and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(1)
    house.both_gateways()
    victim = house.haproxy()
    with load(house.url(), sleep=0.02, concurrent=4) as seen:
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        time.sleep(2)
    house.tell("kill -9 of HAProxy under a new Front", seen)
    assert house.haproxy() != victim
    assert seen.gap() < 5  # the socket was HAProxy's alone: for a tenth of a second there is none
    house.settle()


def test_a_replica_that_hangs_is_left_alone_and_replaced(house):
    first, second = house.settle()
    with load(house.url(), sleep=0.02, concurrent=6) as seen:
        time.sleep(1)
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        while first in [one["pid"] for one in house.up("echo")]:
            time.sleep(0.05)
        left_alone = time.monotonic() - began
        house.settle(other_than=[first], seconds=40)
        replaced = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.kill(first, signal.SIGKILL)
    house.tell(f"a replica hangs: left after {left_alone:.1f} s, replaced {replaced:.1f} s", seen)
    assert seen.bad == 0
    assert left_alone < 16
    assert replaced < 60
    assert second in house.settle()


def test_a_replica_whose_loop_is_blocked_holds_up_nobody_else(house):
    house.settle()
    answers = []

    def blocking():
        body = {"id": "blocking", "block": 9}  # seconds for which the model's code gives no other its turn
        answers.append(httpx.post(house.url(), json=body, headers={"x-shoal-retry": "never"}, timeout=60))

    thread = threading.Thread(target=blocking)
    with load(house.url(), sleep=0.02) as seen:
        time.sleep(0.5)
        thread.start()
        began = time.monotonic()
        while len(house.up("echo")) > 1:
            assert time.monotonic() - began < 30, "it is still asked"
            time.sleep(0.05)
        left_alone = time.monotonic() - began
        thread.join()
        house.settle()  # it comes back, or another is there in its place
    house.tell(f"a replica is blocked for 9 s: left after {left_alone:.1f} s", seen)
    assert seen.bad == 0
    assert seen.gap() < 8
    assert answers[0].status_code in (200, 502)
    assert executions(house.log)["blocking"] == 1


def test_what_is_taken_down_under_load_answers_what_it_has(house):
    house.deploy("leaving")
    received = []

    def stream():
        with httpx.stream("POST", house.url("leaving"), json={"id": "stream", "stream": 300}, timeout=60) as answer:
            received.append(b"".join(answer.iter_raw()))

    threads = [threading.Thread(target=stream) for _ in range(4)]
    with load(house.url("leaving"), sleep=0.5, concurrent=16) as seen, load(house.url(), sleep=0.02) as others:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 30
        while house.ongoing("leaving") < 4 or seen.statuses[200] < 16:
            assert time.monotonic() < end, "it is not asked"
            time.sleep(0.05)
        with pytest.raises(SystemExit) as ended:
            main(["down", "leaving"])
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    house.tell("shoal down of a model", seen)
    house.tell("its neighbour meanwhile", others)
    assert ended.value.code in (0, None)
    assert set(seen.statuses) == {200, 404}
    assert received == [b"".join(b"data: %d\n\n" % number for number in range(300))] * 4
    assert others.bad == 0


def test_a_poison_request_takes_two_and_is_refused(house):
    before = set(house.settle())
    house.deploy(replicas=3)
    before = set(house.settle(replicas=3))
    answers = []

    def poison():
        answers.append(httpx.post(house.url(), content=b'{"id": "poison", "die": true, "sleep": 0.1}', timeout=60))

    with load(house.url(), sleep=0.05, concurrent=6) as seen:
        time.sleep(0.5)
        poison()
        time.sleep(1)
        for _ in range(6):
            poison()
    house.tell("a poison request beside others", seen)
    assert [answer.status_code for answer in answers] == [422] * 7
    assert "fingerprint" in answers[-1].json()["error"]
    assert executions(house.log)["poison"] == 2
    assert seen.bad == 0
    after = set(house.settle(replicas=3))
    assert len(before - after) == 2
    house.deploy(replicas=2)


def test_a_replica_that_leaks_or_says_it_is_sick_is_replaced_without_a_failed_request(house):
    house.deploy("leaky", max_memory_gb=0.6)
    before = set(house.settle("leaky"))
    with load(house.url("leaky"), sleep=0.02, concurrent=4) as seen:
        big = httpx.post(house.url("leaky"), json={"id": "leak", "leak_mb": 800}, timeout=30).json()["pid"]
        sick = next(iter(before - {big}))
        house.settle("leaky", other_than=[big], seconds=40)
        while httpx.post(house.url("leaky"), json={"id": "sick", "sick": True}, timeout=30).json()["pid"] != sick:
            pass
        time.sleep(1)
        end = time.monotonic() + 40
        while sick in [one["pid"] for one in house.up("leaky")] and time.monotonic() < end:
            time.sleep(0.2)
    house.remove("leaky")
    house.tell("one leaks, one says that it is sick", seen)
    assert seen.bad == 0
    assert sick not in [one["pid"] for one in house.up("leaky")]


def test_a_new_version_a_broken_one_and_scale_down_lose_nothing(house):
    with load(house.url(), sleep=0.02, concurrent=6) as calm:
        time.sleep(3)
    house.tell("calm", calm)
    with load(house.url(), sleep=0.02, concurrent=6) as seen:
        time.sleep(0.5)
        house.deploy(version="2")
    house.tell("rolling update", seen)
    assert seen.bad == 0
    with load(house.url(), sleep=0.02, concurrent=6) as broken:
        house.deploy(version="3", broken=True, wait=False)
        end = time.monotonic() + 40
        while read(house.cluster)["echo"]["status"] != "DEPLOY_FAILED" and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(1)
    house.tell("a version that does not load", broken)
    assert broken.bad == 0
    assert {one["version"] for one in house.up("echo")} == {"2"}
    house.deploy(version="4", replicas=3)
    with load(house.url(), sleep=1.0, concurrent=6) as long_calm:
        time.sleep(4)
    with load(house.url(), sleep=1.0, concurrent=6) as long:
        time.sleep(1)
        house.deploy(version="4", replicas=1)
        time.sleep(1)
    house.tell("requests of 1 s, calm", long_calm)
    house.tell("the same, scale-down 3 to 1", long)
    assert long.bad == 0
    assert long.quantile(0.99) < 2 * max(long_calm.quantile(0.99), 1.5)  # a busy machine is not always calm
    assert twice(house, long) == []
    house.deploy(version="4", replicas=2)


def test_a_stream_outlives_every_change(house):
    received = []

    def stream():
        with httpx.stream(
            "POST", house.url(), json={"id": "stream", "stream": 200, "sleep": 0.1}, timeout=60
        ) as answer:
            received.append(b"".join(answer.iter_raw()))

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    with load(house.url(), sleep=0.01, concurrent=4) as seen:
        house.deploy("added", replicas=1)
        house.deploy(version="4", gateways=3)
        time.sleep(2)
        house.remove("added")
        house.deploy(version="4", gateways=1)
        time.sleep(2)
        house.deploy(version="4", gateways=2)
    for thread in threads:
        thread.join()
    house.tell("applications and gateways come and go", seen)
    assert received == [b"".join(b"data: %d\n\n" % number for number in range(200))] * 4
    assert seen.bad == 0


def test_a_client_that_leaves_stops_the_work(house):
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(house.url(), json={"id": "left", "sleep": 20}, timeout=1)
    end = time.monotonic() + 3
    while executions(house.log)["gone:left"] == 0 and time.monotonic() < end:
        time.sleep(0.05)
    assert executions(house.log)["gone:left"] == 1
