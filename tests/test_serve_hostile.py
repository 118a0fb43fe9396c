"""Hostile clients, a prober of the OpenAPI document, and a look at every open port: one cluster with a model of each
small task, as it comes, behind its own HAProxy."""

import json
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest
import serve_tiny as tiny
from hostile_clients import Wire, ask, garbage, request, smuggled

from cluster import connect, embedded, processes
from cluster.spec import parse
from serve import run
from serve.applications import read
from serve.state import state

pytestmark = pytest.mark.slow
TASKS = {"reviews": "text-classification", "digits": "image-classification", "flowers": "tabular-classification"}
SEND_S = 2.0  # http.send_timeout_s here; 15 by default
MIB = 2**20
NAMES = ["..", "../health", "%2e%2e/health", "%2e%2e%2fhealth", "..%2f..%2fetc%2fpasswd", "/reviews", "reviews/"]
NAMES += ["reviews%00", "%00", "%ff%fe", "r%C3%A9views", "reviews;a=b", "reviews%3Fa", "REVIEWS", "reviews%20", "%"]
NAMES += ["%zz", "_gateway", "reviews%2f..%2fflowers", "{reviews}"]
NAMES += ["%F0%9F%90%9F" * 200, "../" * 300, "a" * 8000]
REVIEW = json.dumps({"inputs": "win a prize now"}).encode()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("hostile")
    (home / "cluster.yaml").write_text(f"http: {{max_body_mb: 2, send_timeout_s: {SEND_S}}}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    with connect.session() as found:
        threads = []
        for name, make in {"reviews": tiny.bert, "digits": tiny.vit, "flowers": tiny.table}.items():
            folder = make(home / name)
            spec = parse(f"name: {name}\ntask: {TASKS[name]}\nmodel: {folder}\nserve: {{num_cpus: 0.5}}")
            told = {"model_uri": f"models:/{name}/1", "folder": folder, "cluster": found}
            threads.append(threading.Thread(target=run.deploy, args=(spec,), kwargs=told))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {endpoint.name for endpoint in run.endpoints(found)} == set(TASKS)
        yield found
    patch.undo()


@pytest.fixture(scope="module")
def address(cluster):
    return (cluster.listen["host"], cluster.listen["port"])


@pytest.fixture(autouse=True)
def _others_are_served(cluster):
    """After each test the next one is answered at once, nothing is left under way, and nobody has died."""
    before = _pids(cluster)
    yield
    began = time.monotonic()
    answer = httpx.post(f"{cluster.http_url}/models/reviews", content=REVIEW)
    assert (answer.status_code, time.monotonic() - began < 8) == (200, True)
    end = time.monotonic() + 5
    while (left := _under_way(cluster)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left
    assert _pids(cluster) == before


def _pids(cluster) -> dict[str, list[int]]:
    found = {
        f"{name}.{part}": sorted(replica["pid"] for replica in deployment["replicas"])
        for name, details in read(cluster).items()
        for part, deployment in details["deployments"].items()
    }
    return {**found, "haproxy": sorted(one.pid for one in _processes(cluster) if one.name() == "haproxy")}


def _processes(cluster) -> list[psutil.Process]:
    return processes.members(embedded.scratch_folder(cluster.home))


def _memory(cluster, *, replicas: bool = True) -> int:
    """Bytes that HAProxy, the gateways and, unless told otherwise, the models' replicas hold."""
    pids = [pid for name, pids in _pids(cluster).items() for pid in pids if replicas or not name.endswith(".Model")]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def _under_way(cluster) -> int:
    told, why = state(cluster)
    assert told is not None, why
    loads = [load for gateway in told["gateways"].values() for load in gateway["load"].values()]
    return sum(load["ongoing"] + load["held"] for load in loads)


def test_schemathesis_finds_no_5xx_and_no_answer_that_the_document_does_not_tell_of(cluster, tmp_path):
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        "[checks.negative_data_rejection]\nexpected-statuses = [400, 404, 405, 413]\n"
        # Bytes that are no picture and tables with other columns are well-formed all the same.
        "[checks.positive_data_acceptance]\nexpected-statuses = [200, 400]\n"
    )
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run"]
    command += [f"{cluster.http_url}/openapi.json", "--phases", "examples,coverage,fuzzing", "--max-examples", "12"]
    command += ["--seed", "1", "--checks", "all", "--continue-on-failure", "--warnings", "off", "--no-color"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    line = next(line for line in found.stdout.splitlines() if "generated" in line)
    print(line.strip())
    assert int(line.split()[0]) > 200


def test_schemathesis_would_find_a_document_that_is_wrong(cluster, tmp_path):
    document = httpx.get(f"{cluster.http_url}/openapi.json").json()
    document["components"]["schemas"]["Health"]["properties"]["models"] = {"type": "string"}
    del document["paths"]["/models/reviews"]["post"]["responses"]["400"]
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(tmp_path / "wrong.json")]
    command += ["--url", cluster.http_url, "--phases", "coverage", "--no-color", "--include-path-regex"]
    command += ["health|reviews", "--continue-on-failure"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert found.returncode == 1, found.stdout[-2000:]
    assert "Response violates schema" in found.stdout
    assert "Undocumented" in found.stdout


def test_slow_clients_are_cut_and_hold_nobody_up(cluster, address):
    """Ten of each at once, a byte every quarter of a second: headers, a small body, the rest of a large one."""
    head = request("/models/reviews", b"x" * 100)[:-100]
    large = request("/models/digits", b"x" * MIB)[: -MIB + 200_000]
    kinds = {"headers": (b"", head * 9), "body": (head, b"x" * 100), "large body": (large, b"x" * 500)}
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    statuses: Counter = Counter()

    def slow(kind):
        first, rest = kinds[kind]
        with Wire(address, timeout_s=20) as wire:
            wire.send(first)
            took[kind].append(wire.drip(rest, every_s=0.25))
            statuses[kind, wire.reply().status] += 1

    threads = [threading.Thread(target=slow, args=(kind,)) for kind in kinds for _ in range(10)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    waits = []
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert httpx.post(f"{cluster.http_url}/models/reviews", content=REVIEW).status_code == 200
        waits.append(time.monotonic() - began)
        assert _under_way(cluster) <= 1  # ours: no replica is kept waiting by them
    for thread in threads:
        thread.join()
    assert statuses == {(kind, 408): 10 for kind in kinds}
    for kind, seconds in took.items():
        most = SEND_S * (1 + 200_000 / 262_144) if kind == "large body" else SEND_S
        assert most - 0.5 < min(seconds), kind
        assert max(seconds) < most + 10, kind
    assert sorted(waits)[len(waits) // 2] < 2


def test_a_thousand_idle_connections_cost_little_and_end(cluster, address):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    before = _memory(cluster)
    idle = [Wire(address) for _ in range(1000)]
    began = time.monotonic()
    assert httpx.post(f"{cluster.http_url}/models/reviews", content=REVIEW).status_code == 200
    assert time.monotonic() - began < SEND_S
    assert _memory(cluster) - before < 64 * MIB
    time.sleep(SEND_S + 1)
    assert all(wire.readable(0) for wire in idle)
    assert Counter(wire.reply().status for wire in idle) in ({408: 1000}, {0: 1000})
    for wire in idle:
        wire.close()


def test_floods_of_headers_are_refused(address):
    short = "".join(f"X-{row}: a\r\n" for row in range(200))
    for path, headers, status in (
        ("/health", short, 431),
        ("/health", "X: " + "a" * 40_000 + "\r\n", 431),
        ("/" + "a" * 20_000, "", 414),
        ("/health", "X: " + "a" * 100_000 + "\r\n", 400),  # beyond a buffer HAProxy answers before it asks us
        ("/health", short * 200, 400),
        ("/" + "a" * 100_000, "", 400),
    ):
        reply = ask(address, request(path, method="GET", headers=headers))
        assert reply.status == status
        if status != 400:
            assert reply.json()["error_type"] == "TooLong"
    reply = ask(address, request("/v1/models", method="GET", headers=short))
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}  # as OpenAI's clients read it


def test_bodies_without_end_and_of_a_gigabyte_are_refused_at_once(cluster, address):
    before = _memory(cluster)
    for path in ("/models/digits", "/v1/chat/completions"):
        declared = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {2**30}\r\n\r\n".encode()
        began = time.monotonic()
        with Wire(address) as wire:
            wire.send(declared + b"x" * 100_000)
            assert wire.reply().status == 413
            assert time.monotonic() - began < 8
            # Who goes on sending all the same is cut off.
            sent = 0
            while sent < 256 * MIB and wire.send(b"x" * MIB):
                sent += MIB
            assert sent < 64 * MIB
        with Wire(address) as wire:
            wire.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            sent = 0
            while sent < 256 * MIB and wire.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n") and not wire.readable(0):
                sent += 65_536
            assert wire.reply().status in (413, 0)
            assert sent < 64 * MIB
    assert _memory(cluster) - before < 64 * MIB


def test_a_request_within_a_request_reaches_nobody_else(cluster, address):
    """After each attempt others ask on fresh connections, which HAProxy sends over those that it keeps to a gateway: if
    the two ends saw different requests, somebody would get the answer to the hidden one."""
    hidden = b"GET /models/nowhere-to-be-found HTTP/1.1\r\nHost: a\r\n\r\n"
    for name, data in smuggled("/models/reviews", hidden).items():
        with Wire(address, timeout_s=1) as wire:
            wire.send(data)
            replies = wire.replies()
        assert all(200 <= reply.status < 500 for reply in replies), (name, replies)
        for _ in range(4):
            assert ask(address, request("/models/flowers", method="GET")).json()["name"] == "flowers", name
            assert ask(address, request("/models/reviews", REVIEW)).json()[0][0]["score"] > 0.5, name


def test_requests_in_one_breath_are_answered_in_their_order(address):
    with Wire(address) as wire:
        names = [*TASKS, "nobody", *TASKS]
        wire.send(
            b"".join(request(f"/models/{name}", method="GET") for name in names) + request("/models/reviews", REVIEW)
        )
        replies = [wire.reply() for _ in range(len(names) + 1)]
    assert [reply.json().get("name") for reply in replies[:-1]] == [*TASKS, None, *TASKS]
    assert replies[-1].json()[0][0]["score"] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_found_by_its_name_and_nothing_else(address, name):
    for method in ("GET", "POST"):
        reply = ask(address, request(f"/models/{name}", b"{}" if method == "POST" else b"", method=method))
        assert (reply.status, reply.json()["error_type"]) == (404, "NotFound")
        assert len(reply.body) < 2000
    assert ask(address, request("/models/%72eviews", REVIEW)).status == 200  # the same name, written otherwise


def test_other_paths_lead_nowhere(cluster, address):
    for path in (
        "//models/reviews",
        "/m/reviews",
        "/-/routes",
        "/api/serve/applications/",
        "/-/state",
        "/metrics",
        "*",
    ):
        reply = ask(address, request(path, method="GET"))
        assert reply.status in (400, 401, 404), path
        assert reply.json()["error"], path
    good = {"Authorization": f"Bearer {cluster.token}"}
    assert httpx.get(f"{cluster.http_url}/-/state", headers=good).status_code == 200
    for wrong in ("Bearer", "Bearer x", f"Bearer {cluster.token}x", f"Basic {cluster.token}", ""):
        assert httpx.get(f"{cluster.http_url}/-/state", headers={"Authorization": wrong}).status_code == 401


def test_what_is_no_http_is_answered_with_400_or_cut(address):
    for name, data in garbage().items():
        with Wire(address, timeout_s=1) as wire:
            wire.send(data)
            replies = wire.replies()
        known = ("HTTP/1.0 without a host", "a version of the future", "no host")
        expected = [200] if name in known else [400, 405]
        assert replies, name
        assert all(reply.status in expected for reply in replies), (name, replies)


def test_methods_forms_of_address_and_upgrades(address):
    def status(line, headers="Host: a\r\n", body=b""):
        return ask(address, f"{line} HTTP/1.1\r\n{headers}\r\n".encode() + body, to=line.split()[0])

    head = status("HEAD /models/reviews")
    assert (head.status, head.body, head.headers["content-type"]) == (200, b"", "application/json")
    for method in ("PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"):
        reply = status(f"{method} /models/reviews")
        assert (reply.status, reply.json()["error_type"]) == (405, "MethodNotAllowed")
        assert reply.headers["allow"] == "GET, POST"
    assert status("CONNECT example.com:443", "Host: example.com:443\r\n").status == 405
    assert status("OPTIONS /models/reviews").status in (204, 405)
    assert status("GET http://a/models/reviews").status == 200
    assert status("GET http://169.254.169.254/models/reviews").status == 400
    assert status("GET /models/reviews", "Host: evil@10.0.0.1:80#a\r\n").status == 400
    # Who it says it was meant for changes nothing: addresses in answers are http.public_url's.
    assert (
        status("GET /models/reviews", "Host: evil.example\r\nX-Forwarded-Host: evil.example\r\n")
        .json()["url"]
        .startswith(f"http://{address[0]}:{address[1]}/")
    )
    upgrade = "Host: a\r\nConnection: Upgrade\r\nUpgrade: {}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n"
    for protocol in ("websocket", "h2c"):
        assert status("GET /models/reviews", upgrade.format(protocol, "dGhlIHNhbXBsZSBub25jZQ==")).status == 200
    length = f"Content-Length: {len(REVIEW)}\r\n"
    with Wire(address) as wire:
        wire.send(f"POST /models/reviews HTTP/1.1\r\nHost: a\r\n{length}Expect: 100-continue\r\n\r\n".encode())
        assert wire.reply().status == 100
        wire.send(REVIEW)
        assert wire.reply().status == 200


def test_who_leaves_in_the_middle_leaves_nothing_behind(address):
    for cut in (40, 90, 100_000, 900_000):
        for _ in range(5):
            with Wire(address) as wire:
                wire.send(request("/models/digits", b"x" * MIB)[:cut])
    many = json.dumps({"inputs": ["word " * 50] * 64}).encode()
    for wait_s in (0, 0.05, 0.3):
        with Wire(address) as wire:
            wire.send(request("/models/reviews", many))
            time.sleep(wait_s)


def test_who_reads_slowly_is_not_read_for(cluster, address):
    """Twenty answers of half a megabyte, read a byte at a time: they wait in buffers of a bounded size."""
    rows = 60_000
    frame = {"sepal": [5.0] * rows, "petal": [1.4] * rows, "garden": ["south"] * rows}
    body = json.dumps({"table": frame}).encode()
    assert len(body) < 2 * MIB
    before = _memory(cluster, replicas=False)
    slow = []
    for _ in range(20):
        wire = Wire(address, receive_buffer=4096, timeout_s=30)
        wire.send(request("/models/flowers", body))
        slow.append(wire)
    for wire in slow:
        assert wire.readable(20)
    for _ in range(5):
        for wire in slow:
            wire.socket.recv(1)
        assert httpx.post(f"{cluster.http_url}/models/reviews", content=REVIEW).status_code == 200
    assert _memory(cluster, replicas=False) - before < 96 * MIB
    for wire in slow:
        wire.close()
