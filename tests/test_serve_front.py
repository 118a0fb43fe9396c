"""HAProxy as the front runs it, without Ray: real sockets, real certificates, small gateways behind it."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from certificates import make

from serve import control, places
from serve.front import Front
from serve.gateway.behind import retried
from serve.haproxy import SLOTS

BODY = b"x" * 1000


@pytest.fixture
def folder(tmp_path_factory, monkeypatch):
    """A folder of sockets whose path is short enough."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sf-") as name:
        monkeypatch.setenv("SHOAL_CLUSTER", name)
        yield places.sockets()


@contextlib.contextmanager
def gateway(folder, slot=0):
    """A gateway's place, taken: what it counts, and how to make it break."""
    seen = {"requests": 0, "break": False, "gone": 0}

    async def handle(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/-/ping" in head:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    continue
                if found := [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]:
                    await reader.readexactly(int(found[0].split(b":")[1]))
                seen["requests"] += 1
                if seen["break"]:
                    writer.transport.abort()
                    return
                if b"/slow" in head:
                    seen["gone"] += await reader.read() == b""
                    return
                if b"/stream" in head:
                    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    for _ in range(20):
                        writer.write(b"4\r\npart\r\n")
                        await asyncio.sleep(0.1)
                    writer.write(b"0\r\n\r\n")
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + BODY)
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_unix_server(handle, str(folder / f"g{slot}")))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield seen
    (folder / f"g{slot}").unlink(missing_ok=True)

    def end():
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)

    loop.call_soon_threadsafe(end)
    thread.join()


def url(one):
    return f"http{'s' if 'key' in one.listen else ''}://127.0.0.1:{one.listen['port']}"


@contextlib.contextmanager
def front(**listen):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    made = Front({"host": "127.0.0.1", "port": port, **listen})
    try:
        assert made.ready(10) == ""
        yield made
    finally:
        made.end()


def until(right, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if right():
                return True
        time.sleep(0.05)
    return False


def shown(port):
    """The certificate that is shown to a client."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode()).serial_number


def test_haproxy_comes_back_and_asks_only_places_that_are_taken(folder):
    with gateway(folder, 3) as seen, front() as one:
        assert until(lambda: httpx.get(f"{url(one)}/models").status_code == 200)
        for _ in range(3):
            before = one.pid()
            os.kill(before, signal.SIGKILL)
            # No client is refused, and none is told that no gateway is up.
            for _ in range(20):
                assert httpx.get(f"{url(one)}/models").content == BODY
            assert one.pid() not in (0, before)
        assert seen["requests"] >= 60
        # A second gateway comes, and the first goes.
        with gateway(folder, SLOTS - 1) as second:
            assert until(lambda: httpx.get(f"{url(one)}/models").status_code == 200 and second["requests"] > 0)


def test_without_a_gateway_it_is_429_in_json(folder):
    with front() as one:
        answer = httpx.post(f"{url(one)}/models/a", content=b"{}", timeout=20)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["error_type"] == "Overloaded"
        assert httpx.get(f"{url(one)}/-/healthz").status_code == 429


def test_a_request_that_a_gateway_died_of_is_sent_to_another_where_that_is_allowed(folder):
    models = {"a": {"idempotent": True}, "ab": {"idempotent": False}}
    assert retried({"a": {}, "b": {"idempotent": True}}) == ["/"]
    with gateway(folder, 0) as first, gateway(folder, 1) as second, front() as one:
        assert until(lambda: httpx.get(f"{url(one)}/x").status_code == 200)

        def sent(path, headers=None):
            """How often a gateway had it, both of which break."""
            assert until(lambda: control.say(one.control, "show servers state").count(" 2 0 ") >= 2)
            before = first["requests"] + second["requests"]
            first["break"] = second["break"] = True
            # A connection that HAProxy has used before is cut, not answered.
            with contextlib.suppress(httpx.RemoteProtocolError):
                answer = httpx.post(f"{url(one)}{path}", content=b"{}", headers=headers)
                assert answer.status_code in (429, 502)
            first["break"] = second["break"] = False
            return first["requests"] + second["requests"] - before

        assert sent("/models/a") > 1
        assert sent("/models/a", {"x-shoal-retry": "Never"}) == 1
        one.retry(retried(models))
        assert sent("/models/a") > 1
        for path in ("/models/ab", "/models/a%62", "/models/ab/x", "/v1/completions"):
            assert sent(path) == 1, path
        # It is the same after HAProxy died.
        os.kill(one.pid(), signal.SIGKILL)
        assert until(lambda: httpx.get(f"{url(one)}/x").status_code == 200)
        assert sent("/models/ab") == 1
        one.retry(["/"])
        assert sent("/models/ab") > 1


def test_a_client_that_leaves_is_told_of_to_the_gateway(folder):
    with gateway(folder) as seen, front() as one:
        assert until(lambda: httpx.get(f"{url(one)}/x").status_code == 200)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url(one)}/slow", content=b"{}", timeout=0.3)
        assert until(lambda: seen["gone"] == 1)


def test_a_renewed_certificate_is_shown_and_cuts_no_connection(folder, tmp_path):
    first = make(tmp_path, "127.0.0.1").serial_number
    listen = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with gateway(folder), front(**listen) as one:
        port = one.listen["port"]
        before = one.pid()
        assert shown(port) == first
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        with httpx.Client(verify=context) as client:
            assert until(lambda: client.get(f"{url(one)}/x").status_code == 200)
            with client.stream("GET", f"{url(one)}/stream") as answer:
                parts = answer.iter_raw()
                got = next(parts)
                # Half of a renewal: a key that does not belong to the certificate changes nothing.
                old_key = (tmp_path / "key.pem").read_bytes()
                second = make(tmp_path, "127.0.0.1").serial_number
                new_key = (tmp_path / "key.pem").read_bytes()
                (tmp_path / "key.pem").write_bytes(old_key)
                time.sleep(1.3)
                assert shown(port) == first
                (tmp_path / "key.pem").write_bytes(new_key)
                assert until(lambda: shown(port) == second)
                assert got + b"".join(parts) == b"part" * 20
            assert client.get(f"{url(one)}/x").status_code == 200  # on the connection that it has
        assert one.pid() == before
        os.kill(before, signal.SIGKILL)
        assert until(lambda: one.pid() not in (0, before))
        assert one.ready(5) == ""
        assert shown(port) == second


def test_the_next_life_finds_haproxy_and_an_orphan_ends_by_itself(folder, monkeypatch):
    monkeypatch.setattr("serve.front.ORPHANED_S", 4)
    with gateway(folder), front() as one:
        assert until(lambda: httpx.get(f"{url(one)}/x").status_code == 200)
        orphan = one.pid()
        one.abandon()
        two = Front(one.listen)
        assert two.ready(5) == ""
        assert (two.pid(), two.starts) == (orphan, 0)
        two.abandon()
        assert until(lambda: not two.pid(), 15)


def test_an_haproxy_that_outlived_its_ray_leaves_the_port_to_the_next(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        listen = {"host": "127.0.0.1", "port": probe.getsockname()[1]}
    before, after = folder / "shoal-0-before", folder / "shoal-0-aftert"
    before.mkdir()
    after.mkdir()
    code = (
        "import pathlib, time; from serve import front, places\n"
        f"places.sockets = lambda: pathlib.Path({str(before)!r})\n"
        f"front.Front({listen}); time.sleep(60)"
    )
    # As Ray has it, the actor is another process's child.
    parent = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    words = [sys.executable, "-c", parent, code]
    with subprocess.Popen(words) as ray, contextlib.ExitStack() as stack:
        stack.callback(ray.kill)
        assert until(lambda: (before / "front.ray").exists(), 20)
        left = psutil.Process(int((before / "front.pid").read_text().split()[0]))
        stack.enter_context(contextlib.suppress(psutil.NoSuchProcess))
        stack.callback(left.kill)
        for actor in set(psutil.Process(ray.pid).children()) - {left}:
            actor.kill()
        monkeypatch.setattr(places, "sockets", lambda: after)
        made = Front(listen)
        stack.callback(made.end)
        assert "in use" in made.ready(3)  # its Ray is there, and will start another actor
        assert left.is_running()
        ray.kill()
        ray.wait()
        assert made.ready(10) == ""
        assert made.pid() != left.pid
        assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE
