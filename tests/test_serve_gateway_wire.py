"""Connections to replicas, against servers that do what servers do: close, half-close, say too much or too early."""

import asyncio
import contextlib
import os

import pytest
from gateway_peers import OK, answers, serving

from serve.gateway.answer import Lost
from serve.gateway.wire import IDLE, Peer, head


def told(length: int | None = 0) -> bytes:
    return head("POST", "/", [], length)


def sockets() -> set[str]:
    """The open ones of this process. Other open files may be anybody's: what Ray left of earlier tests has threads."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith("socket:")}


def run(main):
    """To its end, with nothing left behind: no task, no open socket."""

    async def all_of_it():
        before, left = sockets(), []
        await main()
        for _ in range(100):
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if not left and not sockets() - before:
                return
            await asyncio.sleep(0.05)
        raise AssertionError((left, sockets() - before))

    asyncio.run(all_of_it())


async def lost(peer) -> Lost:
    async def ask():
        return await (await peer.ask(told(), b"")).read()

    with pytest.raises(Lost) as caught:
        await ask()
    return caught.value


def test_a_connection_is_used_again_and_closed_in_the_end(tmp_path):
    async def main():
        async with serving(answers, tmp_path / "s") as server:
            peer = Peer(server.path)
            for _ in range(5):
                answer = await peer.ask(told(), b"")
                assert (answer.status, await answer.read()) == (200, b"ok")
            assert (server.connections, len(peer.idle), len(peer.busy)) == (1, 1, 0)
            peer.retire()
            await asyncio.sleep(0.02)
            assert (server.open, peer.idle) == (0, [])
            answer = await peer.ask(told(), b"")  # one that is retired still answers, and keeps nothing
            assert await answer.read() == b"ok"
            assert peer.idle == []

    run(main)


def test_no_more_connections_are_kept_than_the_most(tmp_path):
    async def main():
        async with serving(answers, tmp_path / "s") as server:
            peer = Peer(server.path)
            found = await asyncio.gather(*(peer.ask(told(), b"") for _ in range(IDLE + 40)))
            assert {await one.read() for one in found} == {b"ok"}
            assert len(peer.idle) == IDLE
            peer.cut("over")
            await asyncio.sleep(0.05)
            assert server.open == 0

    run(main)


def test_a_connection_that_was_closed_while_idle_is_not_taken_for_a_sent_request(tmp_path):
    async def once(server, reader, writer):
        await server.request(reader)
        writer.write(OK)

    async def main():
        async with serving(once, tmp_path / "s") as server:
            peer = Peer(server.path)
            for round in range(1, 4):
                assert await (await peer.ask(told(), b"")).read() == b"ok"
                # The end is there, and this loop has not had the time to see it: no await lies between.
                kept = list(peer.idle)
                for connection in kept:
                    import select

                    poll = select.poll()
                    poll.register(connection.transport.get_extra_info("socket").fileno(), select.POLLIN)
                    while not poll.poll(10):
                        await asyncio.sleep(0)
                assert server.connections == round
            peer.cut("over")

    run(main)


def test_nobody_there_is_not_sent(tmp_path):
    async def main():
        fault = await lost(Peer(str(tmp_path / "nobody")))
        assert (fault.sent, fault.begun) == (False, False)
        fault = await lost(Peer("127.0.0.1:1"))
        assert (fault.sent, fault.begun) == (False, False)

    run(main)


@pytest.mark.parametrize(
    ("said", "begun"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\ncontent-le", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", True),
        (b"not HTTP at all\r\n\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n", False),
    ],
)
def test_an_answer_that_breaks_off_is_lost_and_says_how_far_it_came(tmp_path, said, begun):
    async def broken(server, reader, writer):
        await server.request(reader)
        writer.write(said)

    async def main():
        async with serving(broken, tmp_path / "s") as server:
            fault = await lost(Peer(server.path))
            assert (fault.sent, fault.begun) == (True, begun)

    run(main)


def test_interim_answers_are_passed_over(tmp_path):
    async def patient(server, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK)
        await writer.drain()
        await answers(server, reader, writer)

    async def main():
        async with serving(patient, tmp_path / "s") as server:
            peer = Peer(server.path)
            for _ in range(2):
                answer = await peer.ask(told(), b"")
                assert (answer.status, await answer.read(), answer.get(b"link")) == (200, b"ok", b"")
            assert server.connections == 1
            peer.cut("over")

    run(main)


def test_bytes_after_an_answer_are_nobodys_answer(tmp_path):
    """Else the next client would get what this one smuggled in."""

    async def garbage(server, reader, writer):
        await server.request(reader)
        writer.write(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await writer.drain()
        await answers(server, reader, writer)

    async def later(server, reader, writer):
        await server.request(reader)
        writer.write(OK)
        await writer.drain()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await writer.drain()
        await answers(server, reader, writer)

    async def main():
        for script in (garbage, later):
            async with serving(script, tmp_path / script.__name__) as server:
                peer = Peer(server.path)
                for number in range(1, 4):
                    assert await (await peer.ask(told(), b"")).read() == b"ok"
                    assert server.connections == number
                peer.cut("over")

    run(main)


def test_an_answer_without_a_length_ends_with_its_connection_and_an_empty_one_at_once(tmp_path):
    async def plain(server, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of ")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"it")

    async def empty(server, reader, writer):
        while await server.request(reader) is not None:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def main():
        async with serving(plain, tmp_path / "p") as server:
            assert await (await Peer(server.path).ask(told(), b"")).read() == b"all of it"
        async with serving(empty, tmp_path / "e") as server:
            peer = Peer(server.path)
            for _ in range(2):
                assert await (await peer.ask(told(), b"")).read() == b""
            assert server.connections == 1
            peer.cut("over")

    run(main)


def test_an_answer_that_comes_before_the_body_is_taken_and_the_rest_is_not_sent(tmp_path):
    async def refuses(server, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()  # until the other side closes

    async def main():
        given = 0
        closed = False

        async def endless():
            nonlocal given, closed
            try:
                while True:
                    given += 1
                    yield b"a" * 10_000
                    await asyncio.sleep(0.2 if given > 3 else 0)  # a client that is slow
            finally:
                closed = True

        async with serving(refuses, tmp_path / "s") as server:
            peer = Peer(server.path)
            async with asyncio.timeout(0.15):
                answer = await peer.ask(told(None), endless())
                assert (answer.status, await answer.read()) == (413, b"no")
            await asyncio.sleep(0.05)
            assert given < 10
            assert closed
            assert (server.open, peer.idle, len(peer.busy)) == (0, [], 0)

    run(main)


def test_a_body_in_pieces_arrives_whole_and_its_fault_is_its_own(tmp_path):
    async def main():
        async def pieces():
            for part in (b"one ", b"", b"two"):
                yield part

        async def broken():
            yield b"one"
            raise ValueError("the client's")

        async with serving(answers, tmp_path / "s") as server:
            peer = Peer(server.path)
            assert await (await peer.ask(told(None), pieces())).read() == b"ok"
            assert (server.requests, len(peer.idle)) == ([b"one two"], 1)
            with pytest.raises(ValueError, match="the client's"):
                await peer.ask(told(None), broken())
            await asyncio.sleep(0.02)
            assert (server.open, peer.idle, len(peer.busy)) == (0, [], 0)

    run(main)


def test_a_request_that_is_given_up_is_seen_by_the_replica(tmp_path):
    noticed = asyncio.Event()

    async def slow(server, reader, writer):
        await server.request(reader)
        assert await reader.read() == b""
        noticed.set()

    async def main():
        async with serving(slow, tmp_path / "s") as server:
            peer = Peer(server.path)
            asking = asyncio.create_task(peer.ask(told(), b""))
            await asyncio.sleep(0.05)
            asking.cancel()
            async with asyncio.timeout(1):
                await noticed.wait()
            assert (peer.idle, len(peer.busy)) == ([], 0)
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(main)


def test_a_slow_reader_makes_the_replica_wait_and_loses_no_byte(tmp_path):
    whole = os.urandom(1_000_000) * 8
    written = 0

    async def big(server, reader, writer):
        nonlocal written
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(whole))
        for start in range(0, len(whole), 100_000):
            writer.write(whole[start : start + 100_000])
            await writer.drain()
            written = start
        await answers(server, reader, writer)

    async def main():
        async with serving(big, tmp_path / "s") as server:
            peer = Peer(server.path)
            answer = await peer.ask(told(), b"")
            await asyncio.sleep(0.2)
            assert written < 3_000_000
            assert b"".join([chunk async for chunk in answer.chunks()]) == whole
            assert await (await peer.ask(told(), b"")).read() == b"ok"
            assert server.connections == 1
            peer.cut("over")

    run(main)


def test_an_answer_that_is_dropped_breaks_its_connection(tmp_path):
    async def endless(server, reader, writer):
        await server.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"2\r\nab\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async def main():
        async with serving(endless, tmp_path / "s") as server:
            peer = Peer(server.path)
            answer = await peer.ask(told(), b"")
            answer.drop()
            await asyncio.sleep(0.05)
            assert (server.open, len(peer.busy)) == (0, 0)
            with pytest.raises(Lost):
                await answer.read()

    run(main)
