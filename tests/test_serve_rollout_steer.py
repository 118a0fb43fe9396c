"""A roll-out at the gateway, over real sockets: which version is asked, and who answers where the new one fails."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from aiohttp import web

from cluster.spec.rollout import Rollout
from serve.asgi import application
from serve.gateway.app import Gateway


@asynccontextmanager
async def two(old, new, *, canary=0.5, shadow=0.0, timeout_s=20, state="running"):
    """A client of a gateway that has `new` beside `old`, and that gateway."""
    runners, addresses = [], []
    for handler in (old, new):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        addresses.append(f"127.0.0.1:{runner.addresses[0][1]}")
    way = Gateway()
    way.learn({"models": {"reviews": model(canary, shadow, timeout_s, state)}, "public_url": "", "max_body_mb": 9})
    way.directory.update(
        {"id": name, "application": name, "address": address, "state": "up", "facts": {}, "beat": 1}
        for name, address in zip(("reviews", "reviews_next"), addresses)
    )
    transport = httpx.ASGITransport(application(way.answer))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as asker:
        yield asker, way
    for runner in runners:
        await runner.cleanup()


def model(canary, shadow, timeout_s=20, state="running"):
    keys = Rollout(canary=canary or 1e-9, shadow=shadow).model_dump()
    rollout = {"id": "a", "application": "reviews_next", "version": "v2", "previous": "v1", "keys": keys}
    return {
        "task": "text-classification",
        "version": "v1",
        "request": "",
        "response": "",
        "timeout_s": timeout_s,
        "rollout": {**rollout, "state": state, "reason": "", "began": 0.0},
    }


def answers(text, status=200, wait_s=0.0):
    async def handler(request):
        await request.read()
        await asyncio.sleep(wait_s)
        return web.json_response([{"label": text, "score": 1.0}] if status < 400 else {"error": text}, status=status)

    return handler


async def ask(asker, number=0, **headers):
    return await asker.post(
        "/models/reviews", json={"inputs": "a"}, headers={"x-shoal-session": str(number), **headers}
    )


def said(answer):
    return answer.json()[0]["label"], answer.headers["x-shoal-version"]


def test_clients_are_split_and_each_sees_one_version():
    async def main():
        async with two(answers("old"), answers("new"), canary=0.3) as (asker, way):
            first = [said(await ask(asker, number)) for number in range(200)]
            assert [said(await ask(asker, number)) for number in range(200)] == first
            assert set(first) == {("old", "v1"), ("new", "v2")}
            share = first.count(("new", "v2")) / 200
            assert share == pytest.approx(0.3, abs=0.13)
            course = way.steering.courses["reviews"]
            assert (course.new.requests, course.old.requests) == (
                2 * first.count(("new", "v2")),
                2 * first.count(("old", "v1")),
            )
            assert course.new.errors == course.old.errors == 0
            way.steering.learn({"reviews": model(0.6, 0.0)})
            more = [said(await ask(asker, number)) for number in range(200)]
            assert all(one == ("new", "v2") for one, before in zip(more, first) if before == ("new", "v2"))
            assert 0.47 < more.count(("new", "v2")) / 200 < 0.73
            assert way.steering.courses["reviews"] is course, "raising the share loses no counts"

    asyncio.run(main())


@pytest.mark.parametrize("status", [500, 502, 400, 429])
def test_where_the_new_version_fails_the_old_one_answers(status):
    async def main():
        async with two(answers("old"), answers("broken", status), canary=1) as (asker, way):
            for number in range(5):
                assert said(await ask(asker, number)) == ("old", "v1")
            new = way.steering.courses["reviews"].new
            # One that is full has not failed.
            assert (new.requests, new.errors) == ((0, 0) if status == 429 else (5, 5))

    asyncio.run(main())


def test_a_request_that_is_wrong_is_nobodys_failure():
    async def main():
        async with two(answers("old: wrong", 400), answers("new: wrong", 400), canary=1) as (asker, way):
            answer = await ask(asker)
            assert (answer.status_code, answer.json()) == (400, {"error": "old: wrong"})
            course = way.steering.courses["reviews"]
            assert (course.new.requests, course.old.requests) == (0, 0)

    asyncio.run(main())


def test_what_may_not_run_twice_does_not():
    asked = []

    async def old(request):
        asked.append("old")
        return web.json_response([])

    async def main():
        async with two(old, answers("broken", 500), canary=1) as (asker, way):
            answer = await ask(asker, 0, **{"x-shoal-retry": "never"})
            assert (answer.status_code, answer.json(), asked) == (500, {"error": "broken"}, [])
            assert way.steering.courses["reviews"].new.errors == 1

    asyncio.run(main())


def test_a_new_version_that_is_not_there_is_passed_by_and_counted():
    async def main():
        async with two(answers("old"), answers("new"), canary=1) as (asker, way):
            way.directory.replicas.pop("reviews_next")
            assert said(await ask(asker)) == ("old", "v1")
            assert way.steering.courses["reviews"].new.errors == 1

    asyncio.run(main())


def test_who_waits_for_a_version_that_hangs_is_answered_when_it_goes_back():
    async def main():
        async with two(answers("old"), answers("new", wait_s=4), canary=1) as (asker, way):
            course = way.steering.courses["reviews"]
            waiting = asyncio.create_task(ask(asker))
            await asyncio.sleep(0.3)
            assert len(course.told()["new"]["ages"]) == 1
            course.decided("rolled back", "it hangs")
            assert said(await asyncio.wait_for(waiting, 2)) == ("old", "v1")
            assert said(await asyncio.wait_for(ask(asker), 2)) == ("old", "v1")
            # The configuration that comes meanwhile still says that it runs.
            way.steering.learn({"reviews": model(1, 0.0)})
            assert said(await asyncio.wait_for(ask(asker), 2)) == ("old", "v1")

    asyncio.run(main())


def test_a_shadow_is_compared_and_seen_by_nobody():
    seen = []

    async def new(request):
        seen.append(await request.json())
        label = "old" if len(seen) % 2 else "other"
        await asyncio.sleep(0.2)
        return web.json_response([{"label": label, "score": 1.0}])

    async def main():
        async with two(answers("old"), new, canary=0, shadow=1.0) as (asker, way):
            loop = asyncio.get_running_loop()
            began = loop.time()
            for number in range(4):
                assert said(await ask(asker, number)) == ("old", "v1")
            assert loop.time() - began < 0.2, "nobody waits for a shadow"
            course = way.steering.courses["reviews"]
            await asyncio.gather(*course.shadows)
            assert seen == [{"inputs": "a"}] * 4
            assert (course.new.compared, course.new.agreed, course.new.errors) == (4, 2.0, 0)
            assert course.new.latencies.total() == 4
            # When it is busy more are not asked.
            await asyncio.gather(*(ask(asker, number) for number in range(40)))
            assert len(course.shadows) <= 8

    asyncio.run(main())


def test_a_shadow_that_fails_is_a_failure_and_the_client_has_its_answer():
    async def main():
        async with two(answers("old"), answers("broken", 400), canary=0, shadow=1.0) as (asker, way):
            assert said(await ask(asker)) == ("old", "v1")
            course = way.steering.courses["reviews"]
            await asyncio.gather(*course.shadows)
            assert (course.new.compared, course.new.agreed, course.new.errors) == (1, 0.0, 1)

    asyncio.run(main())


def test_an_ended_roll_out_sends_nothing_anywhere_else():
    async def main():
        async with two(answers("old"), answers("new"), canary=1, shadow=1.0, state="rolled back") as (asker, way):
            assert said(await ask(asker)) == ("old", "v1")
            assert not way.steering.courses["reviews"].shadows

    asyncio.run(main())
