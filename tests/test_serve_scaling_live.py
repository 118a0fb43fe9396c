"""Scaling over a real cluster: one more copy under load, one less under long requests, to zero and back."""

import asyncio
import collections
import json
import time

import aiohttp
import httpx
import pytest
import serve_tiny as tiny

from cluster import connect
from cluster.spec import parse
from serve import run
from serve.state import state

pytestmark = pytest.mark.slow
SERVE = {
    "num_cpus": 0.5,
    "min_replicas": 0,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "max_ongoing_requests": 4,
    "autoscale": {"upscale_delay_s": 0.2, "downscale_delay_s": 2, "idle_s": 4, "max_held_requests": 60, "hold_s": 90},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(tmp_path_factory.mktemp("scaling")))
    with connect.session() as found:
        yield found
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("folder") / "bert")


def deploy(cluster, folder, **keys):
    text = f"name: reviews\ntask: text-classification\nmodel: {folder}\nserve: {json.dumps({**SERVE, **keys})}"
    return run.deploy(parse(text), model_uri="models:/reviews/1", folder=folder, cluster=cluster)


@pytest.fixture(scope="module")
def url(cluster, folder):
    return deploy(cluster, folder).url


def scaling(cluster):
    told, why = state(cluster)
    assert told is not None, why
    return told["scaling"]["reviews"], sum(one["state"] == "up" for one in told["replicas"])


def until(cluster, right, wait_s=60):
    """The Keeper's word of the model, once it and the copies that are up are as they should be."""
    end = time.monotonic() + wait_s
    while not right(*(found := scaling(cluster))) and time.monotonic() < end:
        time.sleep(0.1)
    if right(*found):
        return found[0]
    raise AssertionError(f"not within {wait_s} s: {found}")


async def ask(url, values, stop=None):
    """Every value posted by a client of its own, once, or again and again until `stop()`: a counter of statuses."""
    seen, ended = collections.Counter(), asyncio.Event()

    async def watch():
        # In a thread: whoever asks for the state must not keep the clients from asking.
        while stop is not None and not await asyncio.to_thread(stop):
            await asyncio.sleep(0.2)
        ended.set()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(180)) as session:

        async def one(value):
            while True:
                async with session.post(url, json=value) as answer:
                    body = await answer.json()
                    seen[answer.status if answer.status == 200 else (answer.status, body["error_type"])] += 1
                    if answer.status == 429:
                        assert 1 <= int(answer.headers["retry-after"]) <= 60
                if stop is None or ended.is_set():
                    return

        await asyncio.gather(watch(), *(one(value) for value in values))
    return seen


def test_load_is_answered_by_a_second_copy_that_is_decided_on_at_once(cluster, url):
    began = time.time()

    def done():
        return time.time() - began > 60 or scaling(cluster)[1] == 2

    seen = asyncio.run(ask(url, [{"inputs": "x" * 400}] * 8, stop=done))
    known = until(cluster, lambda told, up: up == 2, wait_s=1)
    assert set(seen) == {200}, seen
    rise = next(one for one in known["changes"] if one["to"] == 2)
    # Two seconds are promised; a busy machine gets three times that here, and Ray's own policy takes thirty.
    assert 0 < rise["at"] - began < 6, known["changes"]
    assert "requests in hand, 2 a copy" in rise["why"]


def test_a_copy_that_goes_finishes_what_it_has_in_hand(cluster, url):
    until(cluster, lambda told, up: up == 2)
    long = {"inputs": ["x " * 200] * 400}

    def done():
        return scaling(cluster)[1] == 1

    # Two at a time are one copy's: the other one goes while both are answered, again and again.
    seen = asyncio.run(ask(url, [long], stop=done))
    assert set(seen) == {200}, seen
    assert httpx.post(url, json={"inputs": "still here"}).status_code == 200


def test_an_idle_model_goes_and_comes_back_for_those_who_wait(cluster, url):
    known = until(cluster, lambda told, up: up == 0 and told["wanted"] == 0)
    assert known["why"] == "no request for 4 s"
    seen = asyncio.run(ask(url, [{"inputs": f"held {number}"} for number in range(50)]))
    assert seen == {200: 50}
    # To four at once at most, and here there are two at most; never one after another.
    assert [one["to"] for one in scaling(cluster)[0]["changes"]][-1] in (1, 2)


def test_more_than_may_wait_are_told_when_to_come_back(cluster, url):
    until(cluster, lambda told, up: up == 0 and told["wanted"] == 0)
    seen = asyncio.run(ask(url, [{"inputs": "herd"}] * 100))
    assert set(seen) == {200, (429, "Overloaded")}, seen
    assert 50 <= seen[200] <= 62, seen
