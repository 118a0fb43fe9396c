"""Which replica a request goes to, and what becomes of it when that one dies: over real sockets, without Ray."""

import asyncio
import json

import pytest
from gateway_peers import OK, answers, serving

from serve.asgi import Disconnected
from serve.gateway.body import HELD_BYTES, Body
from serve.gateway.directory import Directory
from serve.gateway.errand import Errand
from serve.gateway.forward import Forwarder
from serve.gateway.openai_routes import refuse as openai_refuse
from serve.gateway.suspects import MOST, Suspects

SHORT = b"HTTP/1.1 503 Service Unavailable\r\nx-shoal: %b\r\ncontent-length: 0\r\n\r\n"


async def dies(server, reader, writer):
    await server.request(reader)
    writer.transport.abort()


async def leaves(server, reader, writer):
    while await server.request(reader) is not None:
        writer.write(SHORT % b"leaving")


def entry(name, path, *, state="up", beat=1, application="a"):
    return {"id": name, "application": application, "address": str(path), "state": state, "facts": {}, "beat": beat}


class Client:
    """One request, and what came back."""

    def __init__(self, way, body=b"{}", *, chunks=(), headers=(), timeout_s: float = 5, idempotent=True, **model):
        self.messages = []
        self.gone = asyncio.Event()
        self.chunks = list(chunks)

        async def receive():
            if self.chunks:
                part = self.chunks.pop(0)
                await asyncio.sleep(0)
                return {"type": "http.request", "body": part, "more_body": bool(self.chunks)}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            self.messages.append(message)

        async def refuse(send, status, message, kind, headers=()):
            await send({"type": "http.response.start", "status": status, "headers": list(headers)})
            await send({"type": "http.response.body", "body": json.dumps({"error": message, "kind": kind}).encode()})

        self.receive = receive
        model = {"timeout_s": timeout_s - 1, "idempotent": idempotent, "version": "1", **model}
        scope = {"query_string": b"", "headers": list(headers)}
        self.errand = Errand("a", model, "", Body.of(body, receive), scope, send, refuse)
        self.way = way

    async def go(self):
        if self.chunks:
            self.errand.body = await Body.take(self.receive, 2**30)
        await self.way.send(self.errand)
        return self.status

    @property
    def status(self):
        return self.messages[0]["status"] if self.messages else None

    @property
    def text(self):
        return b"".join(one.get("body", b"") for one in self.messages).decode()

    @property
    def retry_after(self):
        return dict(self.messages[0]["headers"]).get(b"retry-after")


made: list[Forwarder] = []


def forwarder(*entries):
    way = Forwarder(Directory(), lambda: b"secret")
    made.append(way)
    way.directory.update(entries)
    return way


def run(main):
    async def all_of_it():
        await main()
        while made:
            way = made.pop()
            assert all(load.ongoing == load.held == 0 for load in way.loads.values())
            way.directory.update([])
        await asyncio.sleep(0.05)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, left

    asyncio.run(all_of_it())


def test_a_lost_request_runs_once_more_elsewhere_unless_that_is_forbidden(tmp_path):
    async def main():
        never = [(b"x-shoal-retry", b"Never")]
        cases: list[tuple[dict, int]] = [({}, 200), ({"headers": never}, 502), ({"idempotent": False}, 502)]
        for number, (asked, status) in enumerate(cases):
            async with serving(dies, tmp_path / f"d{number}") as bad, serving(answers, tmp_path / f"g{number}") as good:
                way = forwarder(entry("bad", bad.path))
                way.directory.update([entry("bad", bad.path), entry("good", good.path)])
                way.directory.replicas["a"]["good"].ongoing = 1  # so that the bad one is asked first
                client = Client(way, **asked)
                assert (await client.go(), len(bad.requests)) == (status, 1)
                assert len(good.requests) == (status == 200)
                assert (way.load("a").again, way.load("a").failed) == ((1, 0) if status == 200 else (0, 1))
                assert way.load("a").ongoing == 0

    run(main)


def test_what_was_not_sent_goes_elsewhere_whatever_is_forbidden(tmp_path):
    async def main():
        async with serving(leaves, tmp_path / "l") as leaving, serving(answers, tmp_path / "g") as good:
            way = forwarder(
                entry("gone", tmp_path / "nobody"), entry("leaving", leaving.path), entry("good", good.path)
            )
            way.directory.replicas["a"]["good"].ongoing = 1
            assert await Client(way, idempotent=False).go() == 200
            # A large body as well: what has gone out of it is still here.
            parts = [b"a" * 1_000_000] * 6
            way = forwarder(entry("leaving", leaving.path), entry("good", good.path))
            way.directory.replicas["a"]["good"].ongoing = 1
            assert sum(map(len, parts)) > HELD_BYTES
            assert await Client(way, chunks=parts, idempotent=False).go() == 200
            assert good.requests[-1] == b"".join(parts)

    run(main)


def test_a_body_that_no_replica_lived_to_have_goes_elsewhere_as_far_as_it_is_kept(tmp_path):
    async def ended(parts, read):
        """Of so many parts, a megabyte each, one replica dies when it has read so much."""

        async def dies_of(server, reader, writer):
            await reader.readexactly(read)
            server.requests.append(b"")
            writer.transport.abort()

        content = [b"a" * 1_000_000] * parts
        async with serving(dies_of, tmp_path / f"d{parts}") as bad, serving(answers, tmp_path / f"g{parts}") as good:
            way = forwarder(entry("bad", bad.path), entry("good", good.path))
            way.directory.replicas["a"]["good"].ongoing = 1
            # Nothing was done with it, so that it does not matter whether it may be done twice.
            client = Client(way, chunks=content, idempotent=False)
            status = await client.go()
            assert (len(bad.requests), way.load("a").failed) == (1, 0)
            assert good.requests == ([b"".join(content)] if status == 200 else [])
            return status, client.retry_after

    async def main():
        assert await ended(7, 5_000_000) == (200, None)
        assert await ended(14, 10_000_000) == (429, b"1")

    run(main)


def test_a_replica_at_the_address_of_another_is_not_asked_for_it(tmp_path):
    """The head names who is meant; see Host.answer for the other side."""
    heads = []

    async def notes(server, reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(2)
        writer.write(OK)

    async def main():
        async with serving(notes, tmp_path / "n") as server:
            await Client(forwarder(entry("this-one", server.path))).go()
            assert b"\r\nx-shoal-replica: this-one\r\n" in heads[0]

    run(main)


def test_while_no_replica_is_up_a_request_is_held_and_then_answered(tmp_path):
    async def main():
        async with serving(answers, tmp_path / "g") as good:
            way = forwarder()
            waiting = [asyncio.create_task(Client(way).go()) for _ in range(5)]
            await asyncio.sleep(0.05)
            assert way.load("a").held == 5
            way.directory.update([entry("b", good.path, application="other")])
            await asyncio.sleep(0.02)
            assert way.load("a").held == 5
            way.directory.update([entry("good", good.path)])
            assert await asyncio.gather(*waiting) == [200] * 5
            assert (way.load("a").held, way.directory.waiting.any("a")) == (0, False)

    run(main)


def test_held_too_long_is_429_and_a_client_that_leaves_is_forgotten(tmp_path):
    async def main():
        way = forwarder()
        way.directory.waiting.starts = {"a": 7}  # as the Keeper has it
        client = Client(way, hold_s=0.2)
        assert (await client.go(), client.retry_after) == (429, b"7")
        client = Client(way)
        asking = asyncio.create_task(client.go())
        await asyncio.sleep(0.05)
        client.gone.set()
        with pytest.raises(Disconnected):
            await asking
        assert (way.load("a").held, way.directory.waiting.any("a")) == (0, False)
        client = Client(way, max_held=0)
        assert (await client.go(), client.retry_after) == (429, b"7")

    run(main)


def test_the_only_replica_is_tried_again_though_the_keeper_is_away(tmp_path, monkeypatch):
    """It was shunned for one broken connection; nobody brings news of it."""
    monkeypatch.setattr("serve.gateway.directory.SHUNNED_S", 0.3)

    async def once(server, reader, writer):
        if server.connections == 1:
            return await dies(server, reader, writer)
        return await answers(server, reader, writer)

    async def main():
        async with serving(once, tmp_path / "s") as server:
            way = forwarder(entry("only", server.path))
            assert await Client(way).go() == 200
            assert len(server.requests) == 2

    run(main)


def test_a_busy_replica_is_429_and_one_that_leaves_holds(tmp_path):
    async def busy(server, reader, writer):
        while await server.request(reader) is not None:
            writer.write(SHORT % b"busy")

    async def main():
        async with serving(busy, tmp_path / "b") as full, serving(leaves, tmp_path / "l") as leaving:
            way = forwarder(entry("full", full.path))
            client = Client(way)
            assert (await client.go(), client.retry_after) == (429, b"1")
            way = forwarder(entry("leaving", leaving.path))
            asking = asyncio.create_task(Client(way).go())
            await asyncio.sleep(0.05)
            assert way.load("a").held == 1
            # The Keeper has not heard of it yet: it is not asked again for that.
            way.directory.update([entry("leaving", leaving.path, beat=2)])
            await asyncio.sleep(0.02)
            assert (way.load("a").held, len(leaving.requests)) == (1, 1)
            async with serving(answers, tmp_path / "g") as good:
                way.directory.update([entry("good", good.path)])
                assert await asking == 200

    run(main)


def test_a_client_that_leaves_stops_the_replicas_work(tmp_path):
    stopped = asyncio.Event()

    async def slow(server, reader, writer):
        await server.request(reader)
        assert await reader.read() == b""
        stopped.set()

    async def streams(server, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(b"2\r\nab\r\n")
                await writer.drain()
                await asyncio.sleep(0.005)
        finally:
            stopped.set()

    async def main():
        for script in (slow, streams):
            for large in (False, True):
                stopped.clear()
                async with serving(script, tmp_path / f"{script.__name__}{large}") as server:
                    way = forwarder(entry("only", server.path))
                    client = Client(way, chunks=[b"a" * 1_000_000] * 6 if large else ())
                    asking = asyncio.create_task(client.go())
                    await asyncio.sleep(0.3)
                    client.gone.set()
                    async with asyncio.timeout(1):
                        await stopped.wait()
                    with pytest.raises(Disconnected):
                        await asking
                    assert way.load("a").ongoing == 0

    run(main)


def test_a_hung_replica_is_cut_off_once_another_is_up(tmp_path):
    async def hangs(server, reader, writer):
        await server.request(reader)
        await reader.read()

    async def main():
        async with serving(hangs, tmp_path / "h") as hung, serving(answers, tmp_path / "g") as good:
            way = forwarder(entry("hung", hung.path))
            asking = asyncio.create_task(Client(way).go())
            await asyncio.sleep(0.05)
            way.directory.update([entry("hung", hung.path, state="lost")])
            await asyncio.sleep(0.05)
            assert not asking.done()  # it may still answer what nobody else can
            later = asyncio.create_task(Client(way).go())
            await asyncio.sleep(0.05)
            assert (way.load("a").held, len(hung.requests)) == (1, 1)
            way.directory.update([entry("hung", hung.path, state="lost"), entry("good", good.path)])
            assert await asyncio.gather(asking, later) == [200, 200]
            assert len(good.requests) == 2

    run(main)


def test_a_keeper_that_is_new_takes_nothing_away(tmp_path):
    async def main():
        async with serving(answers, tmp_path / "g") as good:
            way = forwarder(entry("good", good.path))
            way.directory.update([], whole=False)
            assert await Client(way).go() == 200
            way.directory.update([])
            assert way.directory.pick("a") is None
            await asyncio.sleep(0.02)
            assert good.open == 0  # nor is its connection kept

    run(main)


def test_what_kills_two_replicas_is_poison_and_its_neighbours_live(tmp_path):
    """Six replicas that die of one body, with ten requests at work on each."""

    async def fragile(server, reader, writer):
        while (body := await server.request(reader)) is not None:
            if body == b"poison":
                await asyncio.sleep(0.05)
                server.dead = True
            for _ in range(30):
                if getattr(server, "dead", False):
                    writer.transport.abort()
                    return
                await asyncio.sleep(0.005)
            writer.write(OK)

    async def main():
        async with (
            serving(fragile, tmp_path / "0") as a,
            serving(fragile, tmp_path / "1") as b,
            serving(fragile, tmp_path / "2") as c,
        ):
            servers = [a, b, c]
            way = forwarder(*(entry(str(number), server.path) for number, server in enumerate(servers)))
            neighbours = [Client(way, b"good %d" % number) for number in range(10)]
            poison = Client(way, b"poison")
            statuses = await asyncio.gather(*(client.go() for client in [*neighbours, poison]))
            assert statuses == [200] * 10 + [422]
            assert "PoisonRequest" in poison.text
            assert sum(getattr(server, "dead", False) for server in servers) == 2
            # The same bytes again, here and where it is only known by hearsay, also in OpenAI's words.
            again = Client(way, b"poison")
            assert await again.go() == 422
            other = forwarder(entry("2", next(s for s in servers if not getattr(s, "dead", False)).path))
            other.suspects.learn(way.suspects.told())
            client = Client(other, b"poison")
            client.errand.refuse = openai_refuse
            assert await client.go() == 422
            assert json.loads(client.text)["error"]["type"] == "PoisonRequest"
            assert sum(server.requests.count(b"poison") for server in servers) == 2
            assert await Client(other, b"poison!").go() == 200

    run(main)


def test_suspects_are_cleared_by_an_answer_forgotten_in_time_and_bounded():
    now = 0.0
    suspects = Suspects(lambda: now)
    assert suspects.struck("a", "app", turn=False) == 1
    assert suspects.seconds_left("a") == 0
    suspects.cleared("a")
    assert suspects.struck("a", "app", turn=False) == 1
    assert suspects.struck("a", "app", turn=False) == 2
    assert suspects.seconds_left("a") == pytest.approx(300)
    assert suspects.told() == {"a": pytest.approx(300)}
    now = 299.0
    assert suspects.seconds_left("a") == pytest.approx(1)
    now = 301.0
    assert (suspects.seconds_left("a"), suspects.told()) == (0, {})
    for number in range(3 * MOST):
        suspects.struck(str(number), "app", turn=False)
    assert len(suspects.deaths) == MOST
    suspects.learn({str(number): 10.0 for number in range(-MOST, 0)})
    assert len(suspects.deaths) == MOST
    assert suspects.seconds_left("-1") == pytest.approx(10)


def test_one_suspect_runs_at_a_time_and_none_waits_for_ever():
    async def main():
        suspects = Suspects()
        at_work, most, order = 0, 0, []

        async def one(name, seconds, turn_s):
            nonlocal at_work, most
            async with suspects.alone("a", turn_s):
                at_work += 1
                most = max(most, at_work)
                order.append(name)
                await asyncio.sleep(seconds)
                at_work -= 1

        await asyncio.gather(*(one(number, 0.01, 1) for number in range(5)))
        assert (most, order) == (1, [0, 1, 2, 3, 4])
        # One that takes long lets the next go when its turn is over.
        async with asyncio.timeout(0.5):
            slow = asyncio.create_task(one("slow", 0.4, 0.05))
            await asyncio.sleep(0)
            await one("fast", 0.01, 1)
            assert not slow.done()
            await slow
        assert suspects.running == {"a": 0}
        assert not suspects.turns["a"].locked()

    asyncio.run(main())
