"""What counting costs: CPU-microseconds a request of the gateway, with its metrics and without.

    python tests/benchmarks/metering.py [--requests 3000] [--rounds 7]

One gateway in this process, attached to a Ray as a replica is, in front of a server in another process that answers at
once. Both ways are taken in turn, round after round, so that whatever else the machine does hits both alike. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UPSTREAM = """
import asyncio
async def serve(reader, writer):
    while True:
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\\r")[0])
        await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m") as home:
        os.environ["SHOAL_HOME"] = home
        from cluster import connect

        upstream = subprocess.Popen([sys.executable, "-c", UPSTREAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert upstream.stdout is not None
            port = int(upstream.stdout.readline())
            with connect.session():
                result = asyncio.run(measure(f"http://127.0.0.1:{port}", arguments.requests, arguments.rounds))
        finally:
            upstream.kill()
            upstream.wait()
    print(json.dumps(result))


async def measure(upstream: str, requests: int, rounds: int) -> dict[str, Any]:
    """CPU-microseconds a request of this process: median over rounds, and of the difference in each round."""
    sys.path.append(str(Path(__file__).parent.parent))
    from serve_tiny import replicas

    from serve.gateway.app import Gateway

    model = {"task": "text-classification", "version": "1", "request": "", "response": "", "timeout_s": 20}
    way = Gateway()
    way.learn({"models": {"reviews": model}, "public_url": upstream, "max_body_mb": 1})
    replicas(way, upstream, "reviews")
    counted, plain = way.requests.measured(way.answer), way.answer
    routed = way.requests.routed

    async def go(answer: Any) -> float:
        started = time.process_time()
        for _ in range(requests):
            scope = {"type": "http", "method": "POST", "path": "/models/reviews", "headers": [], "query_string": b""}
            await answer(scope, receive, send)
        return 1e6 * (time.process_time() - started) / requests

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"inputs": "hello"}'}

    async def send(message: Any) -> None:
        pass

    without, differences = [], []
    await go(counted)
    for _ in range(rounds):
        way.requests.routed = lambda scope, name: None
        without.append(await go(plain))
        way.requests.routed = routed
        differences.append(await go(counted) - without[-1])
    base, more = statistics.median(without), statistics.median(differences)
    return {"without_us": round(base, 1), "metrics_us": round(more, 1), "share": round(more / base, 3)}


if __name__ == "__main__":
    main()
