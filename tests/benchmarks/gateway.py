"""What the way to a model costs: CPU-milliseconds a request and a streamed chunk, and latency added, through HAProxy
and the gateway, against the replica's own socket and against plain FastAPI; the model does nothing.

    python tests/benchmarks/gateway.py [--seconds 4] [--rounds 5] [--concurrent 32] [--rate 300]
        [--keys]

All three are asked in turn, round after round (cluster.bench). CPU time is that of whole process trees, Ray's daemons
included. Latency is taken at a fixed rate too: at full load it only says how long the queue is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from cluster import ports
from cluster.bench import bodies, machine, sides, summary, turns
from cluster.bench.connection import Address
from cluster.bench.turns import Load, Side

NAME, LANGUAGE = "noop", "noop-llm"
TOKENS, GAP_MS = 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--rate", type=float, default=300)
    parser.add_argument("--keys", action="store_true", help="The gateway asks for a key, and counts what it came to.")
    arguments = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))

    results: dict[str, Any] = {}
    with ExitStack() as stack:
        os.environ["SHOAL_HOME"] = home = stack.enter_context(tempfile.TemporaryDirectory(prefix="g"))
        key = _key(home) if arguments.keys else ""
        short = bodies.Bodies([b'{"inputs":"the quick brown fox jumps over it"}'], bodies.JSON, "", "one")
        stream = bodies.Bodies(
            [json.dumps({"prompt": "a", "max_tokens": TOKENS, "gap_ms": GAP_MS, "stream": True}).encode()],
            bodies.JSON,
            "/v1/completions",
            "one",
        )
        plain = _fastapi(stack)
        shoal, replica, headers = _shoal(stack, key)
        closed = Load(arguments.concurrent, None, arguments.seconds, arguments.rounds)
        opened = Load(1, arguments.rate, arguments.seconds, arguments.rounds)
        for title, load, asked in (
            (f"no-op, {arguments.concurrent} at a time", closed, short),
            (f"no-op, {arguments.rate:g} a second", opened, short),
            (f"streams, {arguments.concurrent} at a time, a chunk each {GAP_MS} ms", closed, stream),
        ):
            url, root = f"{shoal.http_url}/models/{NAME}", shoal.http_url
            own, all_of = _replica_only(replica), _cluster(shoal)
            path = asked.path or "/"
            address = Address("replica", 0, path, socket=replica["address"])
            found = [
                sides.side("shoal", root if asked.path else url, asked, all_of, model=LANGUAGE, option="url", key=key),
                sides.at("replica", replica["address"], address, asked, own, model=LANGUAGE, headers=headers),
                sides.side("fastapi", plain[0] if asked.path else f"{plain[0]}/predict", asked, plain[1], option="url"),
            ]
            for one in found[1:]:
                assert not (differ := sides.check([found[0], one], 30)), differ
            results[title] = _measure(title, load, found)
    print(json.dumps(results))


def _measure(title: str, load: Load, asked: list[Side]) -> dict[str, Any]:
    before = machine.load()
    seen = turns.run(asked, load)
    told = {side.name: summary.figures(side, summary.rounds(seen, side)) for side in asked}
    unit = "token" if asked[0].streams else "request"
    print(f"\n{title}; load {before} before, {machine.load()} after")
    print(f"{'':10}{f'{unit}s/s':>12}{f'CPU-ms/{unit}':>16}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}   by process")
    for name, one in told.items():
        which = one["ttft_ms"] if asked[0].streams else one["latency_ms"]
        parts = ", ".join(f"{part} {value:.4f}" for part, value in one["cpu_ms_by_part"].items() if value > 0.0005)
        print(
            f"{name:10}{one[f'{unit}s_per_s']:12.0f}{one[f'cpu_ms_per_{unit}']:16.4f}{which['p50']:9.2f}"
            f"{which['p99']:9.2f}{one['requests'] - one['ok']:8}   {parts}",
            flush=True,
        )
    ours, direct = told["shoal"], told["replica"]
    which = "ttft_ms" if asked[0].streams else "latency_ms"
    added = {key: round(ours[which][key] - direct[which][key], 3) for key in ("p50", "p99")}
    if asked[0].streams or load.rate is not None:
        print(f"added by HAProxy and the gateway: p50 {added['p50']} ms, p99 {added['p99']} ms")
    return {"sides": told, "added_ms": added, "load": [before, machine.load()]}


def _key(home: str) -> str:
    """Let the gateway ask for keys, and make one."""
    from cluster.accounts import Keys

    (Path(home) / "cluster.yaml").write_text("access: {keys: required}\n")
    return Keys().create("bench")[1]


def _shoal(stack: ExitStack, key: str) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """A cluster that serves the no-op under both names; its replica's entry in the directory, and what to show it."""
    from cluster import connect
    from serve import places
    from serve.applications import Change
    from serve.asking import keeper

    cluster = stack.enter_context(connect.session())
    described = {"version": "noop", "request": "anything", "response": "[]", "timeout_s": 60}
    with Change(cluster) as change:
        change.applications[NAME] = {
            "name": NAME,
            "route_prefix": f"/m/{NAME}",
            "import_path": "noop:build",
            "args": {},
            "deployments": [{"name": "Model", "ray_actor_options": {"num_cpus": 0}, "user_config": {"any": 1}}],
        }
        change.tell_gateway(
            {
                NAME: {**described, "task": "text-classification"},
                LANGUAGE: {**described, "task": "text-generation", "application": NAME},
            }
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            shown = {"authorization": f"Bearer {key}"} if key else {}
            url = f"{cluster.http_url}/models/{NAME}"
            if httpx.post(url, json={}, headers=shown, timeout=5).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "the no-op does not answer"
        time.sleep(0.2)

    async def known() -> dict[str, Any]:
        return await keeper().state.remote()

    (replica,) = [one for one in asyncio.run(known())["replicas"] if one["application"] == NAME]
    return cluster, replica, {places.SECRET.decode(): places.secret().decode()}


def _cluster(cluster: Any) -> machine.Processes:
    from cluster import embedded, processes

    root = embedded.scratch_folder(cluster.home)
    return machine.Processes(lambda: processes.members(root), "the embedded Ray")


def _replica_only(replica: dict[str, Any]) -> machine.Processes:
    return machine.behind("http://localhost", replica["pid"], name="replica")


def _fastapi(stack: ExitStack) -> tuple[str, machine.Processes]:
    [port] = ports.pick(1)
    child = subprocess.Popen([sys.executable, str(Path(__file__).with_name("noop.py")), str(port)])
    stack.callback(child.wait)
    stack.callback(child.kill)
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            httpx.post(f"{url}/predict", json={})
            break
        except httpx.HTTPError:
            assert child.poll() is None
            time.sleep(0.2)
    return url, machine.behind(url, child.pid, name="fastapi")


if __name__ == "__main__":
    main()
