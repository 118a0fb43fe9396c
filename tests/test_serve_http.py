"""Serving as a stranger meets it: one cluster, three models behind HAProxy and the gateway, unmodified clients."""

import asyncio
import collections
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import aiohttp
import httpx
import pytest
import serve_tiny as tiny
from test_serve_tasks import png_bomb

from cluster import connect
from cluster.errors import NotFound, RunFailed
from cluster.serving import GATEWAY
from cluster.spec import parse
from serve import run
from serve.applications import read

pytestmark = pytest.mark.slow
TASKS = {"reviews": "text-classification", "digits": "image-classification", "flowers": "tabular-classification"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    (home / "cluster.yaml").write_text("http: {max_body_mb: 2}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    with connect.session() as found:
        yield found
    patch.undo()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    made = {"reviews": tiny.bert(root / "a"), "digits": tiny.vit(root / "b"), "flowers": tiny.table(root / "c")}
    cut = Path(shutil.copytree(made["reviews"], root / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:3000])
    return {**made, "cut": cut, "other": tiny.bert(root / "d", labels=("x", "y", "z"), seed=2)}


def deploy(cluster, folder, name, version=1, serve=None, progress=None):
    task = TASKS.get(name, "text-classification")
    text = f"name: {name}\ntask: {task}\nmodel: {folder}\nserve: {json.dumps({'num_cpus': 0.5, **(serve or {})})}"
    told = {} if progress is None else {"progress": progress}
    return run.deploy(parse(text), model_uri=f"models:/{name}/{version}", folder=folder, cluster=cluster, **told)


@pytest.fixture(scope="module")
def served(cluster, folders):
    """The three models, started at once: as three commands would, each changing the one configuration."""
    threads, found = [], {}
    for name in TASKS:

        def start(name=name):
            found[name] = deploy(cluster, folders[name], name)

        threads.append(threading.Thread(target=start))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == set(TASKS)
    return {name: endpoint.url for name, endpoint in found.items()}


def replicas(cluster, *names):
    """The processes that answer, by application."""
    return {
        name: sorted(
            (replica["actor_id"], replica["pid"])
            for deployment in details["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        )
        for name, details in read(cluster).items()
        if name in names
    }


@contextlib.contextmanager
def load(url, value, concurrent=8):
    """Requests without a pause while the block runs; a counter of their statuses, and of what was raised."""
    seen, stop = collections.Counter(), threading.Event()

    async def main():
        async with aiohttp.ClientSession() as session:

            async def one():
                while not stop.is_set():
                    try:
                        async with session.post(url, json=value) as answer:
                            text = await answer.text()
                            seen[answer.status if answer.status == 200 else f"{answer.status} {text}"] += 1
                    except aiohttp.ClientError as error:
                        seen[repr(error)] += 1

            await asyncio.gather(*(one() for _ in range(concurrent)))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_the_unmodified_text_client_gets_the_models_own_scores(served, folders):
    from huggingface_hub import InferenceClient

    answer = InferenceClient(model=served["reviews"]).text_classification("win a prize now")
    expected = tiny.bert_scores(folders["reviews"], "win a prize now")
    assert {one.label: one.score for one in answer} == pytest.approx(expected, abs=1e-5)
    assert answer[0].score > answer[1].score
    (best,) = InferenceClient(model=served["reviews"]).text_classification("win a prize now", top_k=1)
    assert best.label == max(expected, key=lambda label: expected[label])


def test_the_unmodified_image_client_gets_the_models_own_scores(served, folders, tmp_path):
    from huggingface_hub import InferenceClient

    tiny.picture(7).save(tmp_path / "a.png")
    client = InferenceClient(model=served["digits"])
    expected = sorted(tiny.vit_scores(folders["digits"], tiny.picture(7)).items(), key=lambda item: -item[1])
    answer = client.image_classification(tmp_path / "a.png")
    assert [one.label for one in answer] == [label for label, _ in expected[:5]]
    assert [one.score for one in answer] == pytest.approx([score for _, score in expected[:5]], abs=1e-5)
    # With parameters the client sends base64 in JSON.
    answer = client.image_classification((tmp_path / "a.png").read_bytes(), top_k=3, function_to_apply="sigmoid")
    assert [one.label for one in answer] == [label for label, _ in expected[:3]]


def test_the_unmodified_table_client_gets_the_models_own_labels(served):
    from huggingface_hub import InferenceClient

    frame, target = tiny.iris()
    rows = frame.iloc[::7]
    table = {name: [str(value) for value in rows[name]] for name in rows}
    answer = InferenceClient(model=served["flowers"]).tabular_classification(table)
    assert answer == [["setosa", "versicolor", "virginica"][index] for index in target[::7]]


def test_the_gateway_lists_what_is_served(served, cluster):
    models = httpx.get(f"{cluster.http_url}/models").json()
    assert {model["name"]: model["task"] for model in models} == TASKS
    assert {model["name"]: model["url"] for model in models} == served
    assert httpx.get(f"{cluster.http_url}/health").json() == {"status": "ok", "models": 3}
    paths = httpx.get(f"{cluster.http_url}/openapi.json").json()["paths"]
    assert {f"/models/{name}" for name in TASKS} < set(paths)
    answer = httpx.post(served["reviews"], json={"inputs": "a"}, headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    listed = {endpoint.name: (endpoint.state, endpoint.replicas) for endpoint in run.endpoints(cluster)}
    assert listed == dict.fromkeys(TASKS, ("RUNNING", 1))


def test_bad_requests_are_refused_and_the_replicas_live(served, cluster):
    before = replicas(cluster, *TASKS)
    picture = io.BytesIO()
    tiny.picture().save(picture, "PNG")
    cases = [
        ("reviews", b"not json", 400, "not JSON"),
        ("reviews", b"", 400, "empty"),
        ("reviews", os.urandom(3000), 400, "not JSON"),
        ("reviews", picture.getvalue(), 400, "{inputs: text"),
        ("reviews", b'{"table": {"a": [1]}}', 400, "no `inputs`"),
        ("reviews", b"[" * 500_000, 400, "not JSON"),
        ("reviews", b"a" * (2 * 2**20 + 1), 413, "http.max_body_mb"),
        ("digits", b'{"inputs": "a text"}', 400, "base64"),
        ("digits", b"\x00" * 100_000, 400, "no picture"),
        ("digits", png_bomb(20_000), 413, "pixels at most"),
        ("flowers", b'{"inputs": "a text"}', 400, "no table"),
        ("flowers", b'{"table": {"sepal": [1]}}', 400, "missing columns: petal, garden"),
        ("flowers", picture.getvalue(), 400, "not JSON"),
        ("review", b"{}", 404, "did you mean reviews?"),
        ("org/reviews", b"{}", 404, "not served"),
    ]
    for name, body, status, said in cases:
        answer = httpx.post(f"{cluster.http_url}/models/{name}", content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), name
        assert said in answer.json()["error"], (name, answer.text)
        assert answer.json()["error_type"]
    assert httpx.post(served["reviews"], json={"inputs": "still here"}).status_code == 200
    assert replicas(cluster, *TASKS) == before


def test_a_stream_without_end_is_cut_off(served):
    sent = 0

    def pieces():
        nonlocal sent
        for _ in range(200):
            sent += 100_000
            yield b"a" * 100_000

    with contextlib.suppress(httpx.WriteError):  # the answer may come while we still write
        answer = httpx.post(served["reviews"], content=pieces())
        assert (answer.status_code, answer.json()["error_type"]) == (413, "TooLarge")


def test_half_a_request_and_a_gone_client_hurt_nobody(served, cluster):
    before = replicas(cluster, "reviews", GATEWAY)
    for _ in range(20):
        with socket.create_connection((cluster.listen["host"], cluster.listen["port"])) as connection:
            head = b"POST /models/reviews HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{"
            connection.sendall(head)
    assert httpx.post(served["reviews"], json={"inputs": "a"}).status_code == 200
    assert replicas(cluster, "reviews", GATEWAY) == before


def test_a_full_queue_is_429_with_retry_after_and_never_503(served, cluster, folders):
    deploy(cluster, folders["reviews"], "reviews", serve={"max_ongoing_requests": 1, "max_queued_requests": 1})
    statuses = collections.Counter()

    async def main():
        async with aiohttp.ClientSession() as session:

            async def one():
                async with session.post(served["reviews"], json={"inputs": ["word " * 500] * 64}) as answer:
                    statuses[answer.status] += 1
                    if answer.status == 429:
                        assert 1 <= int(answer.headers["retry-after"]) <= 60
                        assert (await answer.json())["error_type"] == "Overloaded"

            await asyncio.gather(*(one() for _ in range(24)))

    try:
        asyncio.run(main())
    finally:
        deploy(cluster, folders["reviews"], "reviews")
    assert set(statuses) == {200, 429}
    assert statuses[429] >= 10


def test_adding_changing_and_removing_one_leaves_the_others_answering(served, cluster, folders):
    before = replicas(cluster, *TASKS, GATEWAY)
    with load(served["reviews"], {"inputs": "hello"}) as seen:
        time.sleep(1)
        # Nothing to do: nothing done.
        deploy(cluster, folders["flowers"], "flowers")
        assert replicas(cluster, *TASKS, GATEWAY) == before

        added = deploy(cluster, folders["other"], "extra")
        answer = httpx.post(added.url, json={"inputs": "a"}).json()
        assert {one["label"] for one in answer[0]} == {"x", "y", "z"}
        assert replicas(cluster, *TASKS, GATEWAY) == before

        run.remove("extra", cluster)
        assert httpx.post(added.url, json={"inputs": "a"}).status_code == 404
        assert "extra" not in read(cluster)
        assert replicas(cluster, *TASKS, GATEWAY) == before
    assert set(seen) == {200}, seen
    assert seen[200] > 100
    with pytest.raises(NotFound, match="extra: not served"):
        run.remove("extra", cluster)


def test_a_bad_version_fails_with_its_message_and_the_old_one_goes_on(served, cluster, folders):
    with load(served["reviews"], {"inputs": "hello"}, concurrent=4) as seen:
        with pytest.raises(RunFailed, match=r"model\.safetensors: not a whole safetensors file"):
            deploy(cluster, folders["cut"], "reviews", version=2)
        # And again, as somebody would who did not believe it.
        with pytest.raises(RunFailed, match=r"model\.safetensors"):
            deploy(cluster, folders["cut"], "reviews", version=2)
        assert httpx.get(served["reviews"]).json()["version"] == "models:/reviews/1"

        notes = []
        changed = deploy(
            cluster,
            folders["other"],
            "reviews",
            version=3,
            progress=lambda stage, done, total, note="": notes.append(note),
        )
        assert changed.version == "models:/reviews/3"
        answer = httpx.post(served["reviews"], json={"inputs": "a"}).json()
        assert {one["label"] for one in answer[0]} == {"x", "y", "z"}
        assert any(note.startswith("loading the model, ") for note in notes)
    assert set(seen) == {200}, seen


def test_a_bad_model_leaves_nothing_behind(served, cluster, folders):
    with pytest.raises(RunFailed, match=r"broken: .*model\.safetensors"):
        deploy(cluster, folders["cut"], "broken")
    deadline = time.monotonic() + 30
    while "broken" in read(cluster) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "broken" not in read(cluster)
    assert httpx.get(f"{cluster.http_url}/models/broken").status_code == 404


def test_a_killed_replica_comes_back_and_no_503_is_seen(served, cluster):
    ((_, pid),) = replicas(cluster, "flowers")["flowers"]
    frame, _ = tiny.iris()
    table = {"table": {name: frame[name].iloc[:2].tolist() for name in frame}}
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    statuses = []
    answer = httpx.Response(0)
    while time.monotonic() < deadline:
        answer = httpx.post(served["flowers"], json=table, timeout=70)
        statuses.append(answer.status_code)
        assert answer.headers["content-type"] == "application/json"
        if answer.status_code == 200 and replicas(cluster, "flowers")["flowers"]:
            break
        time.sleep(0.2)
    assert answer.json() == ["setosa", "setosa"]
    assert set(statuses) <= {200, 429, 502}
    assert replicas(cluster, "flowers")["flowers"][0][1] != pid
