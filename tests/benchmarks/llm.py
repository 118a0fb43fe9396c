"""Tokens a second, time to the first of them and CPU-milliseconds a token of one language model: Shoal, through its
gateway and past it, against vLLM's own server, and against Ray's `build_openai_app` where that is asked for.

    python tests/benchmarks/llm.py MODEL_FOLDER [--streams 1 16 64] [--rounds 3] [--tokens 64] [--only NAME ...]
        [--adapter FOLDER]

All servers are up at once, with the same keys of the engine, and are asked in turn, round after round: whatever else
the machine does hits all alike. A stream is one client that sends a prompt of its own, reads the answer to its last
token, and is done. CPU time is that of a server's whole process tree, Ray's daemons included. With --adapter the
seconds are taken from a finished LoRA to the first answer from it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

SEQUENCES, CACHE_GB, LENGTH, THREADS = 64, 1, 1024, 2

# The same for all: threads that spin while they wait would measure whatever else the machine does.
_THREADS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass
class Server:
    """One contestant: where to post, under which name the model answers, and which processes are its own."""

    name: str
    url: str
    model: str
    processes: Callable[[], list[psutil.Process]]
    rows: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=["vllm", "shoal"], help="vllm, vllm-lora, shoal, ray")
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAY_worker_niceness="0", VLLM_NO_USAGE_STATS="1")

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b")))
        servers: list[Server] = []
        if "vllm" in arguments.only:
            servers.append(_bare(arguments.folder, stack, work, lora=False))
        if "vllm-lora" in arguments.only:
            servers.append(_bare(arguments.folder, stack, work, lora=True))
        if "ray" in arguments.only:
            servers.append(_ray(arguments.folder, stack, work))
        if "shoal" in arguments.only:
            servers += _shoal(arguments.folder, work, stack, arguments.adapter)

        # Greedy answers are the same everywhere, or the comparison is of different things.
        said = {server.name: asyncio.run(_text(server)) for server in servers}
        assert len(set(said.values())) == 1, said
        print("every server says:", next(iter(said.values()))[:60].replace("\n", " "), flush=True)

        for streams in arguments.streams:
            for turn in range(arguments.rounds):
                for server in servers:
                    row = _round(server, streams, arguments.tokens, f"{streams}/{turn}")
                    server.rows.append(row)
                    print(
                        f"{server.name:16}{streams:4} streams {row['tokens_per_s']:8.1f} tokens/s  first after "
                        f"{row['ttft_ms']:7.0f} ms  {row['cpu_ms_per_token']:6.2f} CPU-ms/token  "
                        f"load {row['load']:.1f}",
                        flush=True,
                    )

    print(f"\n{'medians':16}{'streams':>8}{'tokens/s':>10}{'ratio':>8}{'TTFT ms':>10}{'CPU-ms/token':>14}")
    results = []
    for streams in arguments.streams:
        first = 0.0
        for server in servers:
            rows = [row for row in server.rows if row["streams"] == streams]
            middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            first = first or middle["tokens_per_s"]
            results.append({"server": server.name, **{key: round(value, 3) for key, value in middle.items()}})
            print(
                f"{server.name:16}{streams:8}{middle['tokens_per_s']:10.1f}{middle['tokens_per_s'] / first:8.2f}"
                f"{middle['ttft_ms']:10.0f}{middle['cpu_ms_per_token']:14.2f}"
            )
    print(json.dumps({"model": arguments.folder.name, "tokens": arguments.tokens, "results": results}))


def _round(server: Server, streams: int, tokens: int, salt: str) -> dict[str, float]:
    before = _cpu(server)
    load = os.getloadavg()[0]
    wall, firsts, count = asyncio.run(_streams(server, streams, tokens, salt))
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in _cpu(server).items())
    return {
        "streams": streams,
        "tokens_per_s": count / wall,
        "ttft_ms": 1000 * statistics.median(firsts),
        "cpu_ms_per_token": 1000 * used / count,
        "load": load,
    }


async def _streams(server: Server, streams: int, tokens: int, salt: str) -> tuple[float, list[float], int]:
    """Seconds until all were done, seconds to the first token of each, and tokens written together."""
    firsts: list[float] = []
    written = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(index: int) -> None:
            nonlocal written
            body = {
                "model": server.model,
                "prompt": f"Story {index} of {salt}. Once upon a time there was a fisherman who",
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            began, first = time.perf_counter(), 0.0
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    first = first or time.perf_counter() - began
                    if usage := json.loads(line[6:]).get("usage"):
                        written += usage["completion_tokens"]
            firsts.append(first)

        began = time.perf_counter()
        await asyncio.gather(*(one(index) for index in range(streams)))
    assert written == streams * tokens, (written, streams * tokens)
    return time.perf_counter() - began, firsts, written


async def _text(server: Server) -> str:
    body = {"model": server.model, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/completions", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return (await answer.json())["choices"][0]["text"]


def _cpu(server: Server) -> dict[int, float]:
    found: dict[int, float] = {}
    for process in server.processes():
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def _shoal(folder: Path, work: Path, stack: ExitStack, adapter: Path | None) -> list[Server]:
    """Ready for adapters only where one is given: like is compared with like."""
    os.environ["SHOAL_HOME"] = str(work / "home")
    from cluster import connect, embedded, processes
    from cluster.spec import parse
    from serve import run

    keys = f"max_model_len: {LENGTH}, max_num_seqs: {SEQUENCES}, kv_cache_gb: {CACHE_GB}"
    keys += f", max_loras: {4 if adapter is not None else 0}"
    head = f"name: bench\ntask: text-generation\nmodel: {folder}\n"
    spec = parse(f"{head}serve: {{num_cpus: {THREADS}, max_ongoing_requests: 128, llm: {{{keys}}}}}")
    cluster = stack.enter_context(connect.session())
    began = time.monotonic()
    run.deploy(spec, model_uri=str(folder), folder=folder, cluster=cluster)
    print(f"shoal: up {time.monotonic() - began:.1f} s after Ray", flush=True)
    root = embedded.scratch_folder(cluster.home)

    def own() -> list[psutil.Process]:
        return processes.members(root)

    servers = [
        Server("shoal", cluster.http_url, "bench", own),
        Server("shoal, /m", f"{cluster.http_url}/m/bench", "bench", own),
    ]
    if adapter is not None:
        tuned = parse(
            f"name: tuned\ntask: text-generation\nmodel: {folder}\ndata: {{train: hf://a/b}}\n"
            "train: {lora: {}}\nserve: {llm: {onto: bench}}"
        )
        began = time.monotonic()
        run.deploy(tuned, model_uri="models:/tuned/1", folder=adapter, cluster=cluster)
        text = asyncio.run(_text(Server("tuned", cluster.http_url, "bench:tuned", own)))
        print(f"adapter: {time.monotonic() - began:.2f} s from its folder to an answer: {text[:40]!r}", flush=True)
        run.remove("tuned", cluster)
    return servers


def _bare(folder: Path, stack: ExitStack, work: Path, *, lora: bool) -> Server:
    """vLLM's own server, as its documents start it, but for the keys that Shoal gives its engine as well."""
    port = _port()
    options = ["--max-model-len", str(LENGTH), "--max-num-seqs", str(SEQUENCES), "--enforce-eager"]
    options += ["--kv-cache-memory-bytes", str(CACHE_GB << 30), "--disable-uvicorn-access-log"]
    options += ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "16"] if lora else []
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    environment = {**os.environ, **_THREADS}
    name = "vllm, adapters" if lora else "vllm"
    tree = _child([*command, "--port", str(port), *options], environment, work / f"{port}.log", stack)
    return _ready(Server(name, f"http://127.0.0.1:{port}", str(folder), tree), work / f"{port}.log")


def _ray(folder: Path, stack: ExitStack, work: Path) -> Server:
    """Ray's own ingress for language models, as it comes."""
    port = _port()
    code = f"""
import time, ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app
ray.init(address="local", include_dashboard=False, num_cpus=8, object_store_memory=10**8, log_to_driver=False)
serve.start(http_options={{"port": {port}}})
config = LLMConfig(
    model_loading_config={{"model_id": {str(folder)!r}, "model_source": {str(folder)!r}}},
    accelerator_type=None, accelerator_config={{"kind": "cpu"}},
    placement_group_config={{"bundles": [{{"CPU": 1}}]}},
    engine_kwargs=dict(enforce_eager=True, distributed_executor_backend="mp", max_model_len={LENGTH},
        max_num_seqs={SEQUENCES}, kv_cache_memory_bytes={CACHE_GB << 30}),
    runtime_env={{"env_vars": {_THREADS!r}}},
)
serve.run(build_openai_app({{"llm_configs": [config]}}))
while True: time.sleep(60)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_SERVE_")}
    tree = _child([sys.executable, "-c", code], environment, work / f"{port}.log", stack)
    return _ready(Server("ray.serve.llm", f"http://127.0.0.1:{port}", str(folder), tree), work / f"{port}.log")


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _child(
    command: list[str], environment: dict[str, str], log: Path, stack: ExitStack
) -> Callable[[], list[psutil.Process]]:
    """Start a server; it and all its children end with the stack."""
    with open(log, "wb") as output:
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    process = psutil.Process(child.pid)

    def tree() -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [process, *process.children(recursive=True)]
        return []

    def end() -> None:
        family = tree()
        child.terminate()
        _, left = psutil.wait_procs(family, timeout=10)
        for one in left:
            with suppress(psutil.Error):
                one.kill()
        child.wait()

    stack.callback(end)
    return tree


def _ready(server: Server, log: Path) -> Server:
    deadline = time.monotonic() + 300
    while True:
        with suppress(aiohttp.ClientError, AssertionError):
            asyncio.run(_text(server))
            return server
        waiting = bool(server.processes()) and time.monotonic() < deadline
        assert waiting, f"{server.name}: {log.read_text()[-2000:]}"
        time.sleep(1)


if __name__ == "__main__":
    main()
