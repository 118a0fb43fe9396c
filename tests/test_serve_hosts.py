"""What serving on several hosts rests on, without hosts: who comes back from a host that was given up, and silence."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from serve import keeper
from serve.gateway.wire import SILENT_S, Lost, Peer
from serve.keeper import Keeper


def said(key: str, node: str) -> dict[str, Any]:
    return {"id": key, "application": "a", "address": "10.0.0.2:1", "node": node}


def test_a_replica_of_a_node_that_was_given_up_is_not_taken_back(monkeypatch: Any):
    up = {"near", "far"}
    known = Keeper(is_up=lambda node: node in up)

    def states() -> dict[str, str]:
        return {key: entry.state for key, entry in known.entries.items()}

    async def story() -> None:
        for key, node in (("1", "near"), ("2", "far")):
            await known.hello(said(key, node), {})
        assert states() == {"1": "up", "2": "up"}
        # Both fall silent; one's node is given up meanwhile, the other's was merely slow.
        monkeypatch.setattr(keeper, "LOST_S", -1.0)
        await known.look("g", 0, {}, {})
        assert states() == {"1": "lost", "2": "lost"}
        up.remove("far")
        for key, node in (("1", "near"), ("2", "far"), ("3", "far")):
            await known.hello(said(key, node), {})
        assert states() == {"1": "up", "2": "lost"}

    asyncio.run(story())


def test_the_kernel_breaks_a_connection_to_a_host_that_is_silent():
    async def story() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        peer = Peer(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        asking = asyncio.ensure_future(peer.ask(b"GET / HTTP/1.1\r\n\r\n", b""))
        while not peer.busy:
            await asyncio.sleep(0.01)
        sock = next(iter(peer.busy)).transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENT_S * 1000
        peer.cut("enough")
        with pytest.raises(Lost) as lost:
            await asking
        assert (lost.value.sent, lost.value.begun) == (True, False)
        server.close()

    asyncio.run(story())
