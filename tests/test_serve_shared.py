"""Many models in shared copies: one copy in this process, then a cluster with real clients."""

import asyncio
import json
import shutil
from pathlib import Path

import httpx
import pytest
import serve_tiny as tiny

from cluster import connect
from cluster.errors import InputError, RunFailed
from cluster.serving import batching, check, shared_model
from cluster.spec import Serve, parse
from serve import run
from serve.asgi import application
from serve.shared import Shared
from serve.state import state

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    made = {name: tiny.bert(root / name, seed=seed) for seed, name in enumerate(NAMES)}
    made["cut"] = Path(shutil.copytree(made["one"], root / "cut"))
    weights = made["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    # Sound by its headers, but no model that can be built of them.
    made["odd"] = Path(shutil.copytree(made["one"], root / "odd"))
    config = json.loads((made["odd"] / "config.json").read_text())
    (made["odd"] / "config.json").write_text(json.dumps({**config, "hidden_size": 33}))
    return made


@pytest.fixture(scope="module")
def scores(folders):
    return {name: tiny.bert_scores(folders[name], "win a prize") for name in NAMES}


def spec(name, folder, **serve):
    return parse(f"name: {name}\ntask: text-classification\nmodel: {folder}\nserve: {json.dumps(serve)}")


def entry(name, folder):
    return shared_model(spec(name, folder), model_uri=f"models:/{name}/1", folder=str(folder))


def mib(folders, count):
    """A budget that holds so many of the models, and half of another."""
    return (count + 0.5) * (folders["one"] / "model.safetensors").stat().st_size / 2**20


def copy_of(folders, names, memory_mb):
    copy = Shared({"name": "small", "device": "cpu"})
    copy.configure({"memory_mb": memory_mb, "models": {name: entry(name, folders[name]) for name in names}})
    return copy, httpx.AsyncClient(transport=httpx.ASGITransport(application(copy.answer)), base_url="http://copy")


async def tried(copy):
    async with asyncio.timeout(60):
        while set(copy.facts()["tried"]) != set(copy.models):
            await asyncio.sleep(0.01)


def by_label(answer):
    assert answer.status_code == 200, answer.text
    return {one["label"]: one["score"] for one in answer.json()[0]}


def test_each_model_answers_for_itself_whatever_is_loaded(folders, scores):
    async def main():
        copy, client = copy_of(folders, NAMES, mib(folders, 2))
        await tried(copy)
        # Tried as far as there was room: nobody was pushed out for a model that nobody asked for.
        assert copy.facts()["loaded"] == ["one", "two"]
        for name in (*NAMES, *NAMES):
            answer = await client.post(f"/{name}", json={"inputs": "win a prize"})
            assert by_label(answer) == pytest.approx(scores[name], abs=1e-5)
        answers = await asyncio.gather(*(client.post(f"/{name}", json={"inputs": "win a prize"}) for name in NAMES * 8))
        for name, answer in zip(NAMES * 8, answers, strict=True):
            assert by_label(answer) == pytest.approx(scores[name], abs=1e-5)
        facts = copy.facts()
        assert len(facts["loaded"]) == 2
        assert 0 < facts["memory_mb"] <= mib(folders, 2)
        assert facts["ongoing"] == 0

    asyncio.run(main())


def test_one_that_cannot_be_loaded_fails_alone(folders, scores):
    async def main():
        copy, client = copy_of(folders, ("one", "cut", "odd"), mib(folders, 9))
        await tried(copy)
        assert set(copy.facts()["faults"]) == {"cut", "odd"}
        assert "model.safetensors" in copy.facts()["faults"]["cut"]
        bad = await client.post("/cut", json={"inputs": "x"})
        assert (bad.status_code, bad.json()["error_type"]) == (500, "RunFailed")
        assert "cannot be loaded" in bad.json()["error"]
        good = await client.post("/one", json={"inputs": "win a prize"})
        assert by_label(good) == pytest.approx(scores["one"], abs=1e-5)

    asyncio.run(main())


def test_a_model_that_is_taken_out_goes_and_its_requests_are_sent_elsewhere(folders):
    async def main():
        copy, client = copy_of(folders, ("one", "two"), mib(folders, 9))
        await tried(copy)
        copy.configure({"memory_mb": mib(folders, 9), "models": {"two": entry("two", folders["two"])}})
        assert copy.facts()["loaded"] == ["two"]
        answer = await client.post("/one", json={"inputs": "x"})
        assert (answer.status_code, answer.headers["x-shoal"]) == (503, "busy")
        # Limits change in a model that is loaded already.
        changed = entry("two", folders["two"])
        changed["config"] = {**changed["config"], "max_body_mb": 0.0001}
        copy.configure({"memory_mb": mib(folders, 9), "models": {"two": changed}})
        assert (await client.post("/two", json={"inputs": "x" * 200})).status_code == 413

    asyncio.run(main())


def test_a_model_that_is_taken_out_while_a_request_waits_for_it_is_asked_for_elsewhere(folders):
    async def main():
        copy, client = copy_of(folders, ("one", "two"), mib(folders, 1))
        await tried(copy)
        (gone,) = {"one", "two"} - set(copy.facts()["loaded"])
        left = ({"one", "two"} - {gone}).pop()
        async with copy.shelf.turn:  # its load has to wait
            asked = asyncio.create_task(client.post(f"/{gone}", json={"inputs": "x"}))
            while len(copy.shelf.books) < 2:
                await asyncio.sleep(0.01)
            copy.configure({"memory_mb": mib(folders, 1), "models": {left: entry(left, folders[left])}})
        answer = await asked
        assert (answer.status_code, answer.headers["x-shoal"]) == (503, "busy")

    asyncio.run(main())


def test_keys_that_would_do_nothing_are_refused(folders):
    with pytest.raises(InputError, match=r"leave out serve.max_replicas, serve.num_cpus"):
        spec("one", folders["one"], shared="small", num_cpus=1, max_replicas=1)
    text = "name: a\ntask: {}\nmodel: org/name\nserve: {{{}}}"
    for task, key, said in (
        ("text-generation", "shared: small", "an engine of its own"),
        ("text-generation", "dtype: bfloat16", "serve.llm.dtype"),
        ("tabular-classification", "dtype: bfloat16", "scikit-learn"),
    ):
        with pytest.raises(InputError, match=said):
            check(parse(text.format(task, key)))
    assert batching(Serve(max_batch_size=64, max_ongoing_requests=8))["max_batch_size"] == 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, folders):
    home = tmp_path_factory.mktemp("shared")
    settings = {"shared": {"small": {"memory_mb": mib(folders, 2), "num_cpus": 0.5, "replicas": 1}}}
    (home / "cluster.yaml").write_text(json.dumps(settings))
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    with connect.session() as found:
        yield found
    patch.undo()


@pytest.mark.slow
def test_models_share_a_copy_come_and_go_and_fail_alone(cluster, folders, scores, tmp_path):
    def deploy(name, **serve):
        return run.deploy(
            spec(name, folders[name], **serve), model_uri=f"models:/{name}/1", folder=folders[name], cluster=cluster
        )

    def right(name):
        answer = httpx.post(f"{cluster.http_url}/models/{name}", json={"inputs": "win a prize"}, timeout=30)
        assert by_label(answer) == pytest.approx(scores[name], abs=1e-5)

    def facts():
        told, said = state(cluster)
        assert told is not None, said
        (one,) = (each for each in told["replicas"] if each["application"] == "_shared-small")
        return one["facts"]

    # What is wrong is said before anything is started.
    with pytest.raises(InputError, match=r"cluster\.yaml has no such name under `shared`; it has small"):
        deploy("one", shared="smal")
    large = tiny.bert(tmp_path / "large", hidden=128, layers=3)
    with pytest.raises(InputError, match=r"large takes \d+ MiB of memory, and a copy has"):
        run.deploy(spec("large", large, shared="small"), model_uri="large", folder=large, cluster=cluster)

    # Three models in one copy that holds two.
    for name in NAMES:
        assert deploy(name, shared="small").state == "RUNNING"
    process = {each["pid"] for each in state(cluster)[0]["replicas"]}  # pyright: ignore[reportOptionalSubscript]
    assert len(process) == 1
    for name in (*NAMES, *NAMES):
        right(name)
    assert [one.name for one in run.endpoints(cluster)] == sorted(NAMES)

    # One that cannot be loaded is told of, and leaves nothing behind.
    with pytest.raises((InputError, RunFailed), match=r"model\.safetensors"):
        deploy("cut", shared="small")
    with pytest.raises(RunFailed, match="odd"):
        deploy("odd", shared="small")
    assert [one.name for one in run.endpoints(cluster)] == sorted(NAMES)
    right("two")

    # One goes to a copy of its own, and one is taken off: the others stay where they are.
    deploy("one", num_cpus=0.5)
    right("one")
    run.remove("three", cluster)
    assert httpx.post(f"{cluster.http_url}/models/three", json={"inputs": "x"}).status_code == 404
    right("two")
    assert {one.name for one in run.endpoints(cluster)} == {"one", "two"}
    assert set(facts()["tried"]) == {"two"}
    assert process < {each["pid"] for each in state(cluster)[0]["replicas"]}  # pyright: ignore[reportOptionalSubscript]
    run.remove("two", cluster)
    right("one")
