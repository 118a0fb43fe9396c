"""Requests a second and CPU-milliseconds a request of one text model: Shoal against plain FastAPI, LitServe and Serve.

    python tests/benchmarks/serving.py [MODEL_FOLDER] [--seconds 5] [--rounds 3] [--concurrent 32] [--only NAME ...]
        [--texts fixed mixed] [--dtype float32]

Without a folder a BERT of 6 layers x 256 is made, with random weights. Each server has one process with the model and
one torch thread in it; all are up at once, and are asked in turn, round after round, so that whatever else the machine
does hits all alike. CPU time is that of a server's whole process tree, Ray's own daemons included; wall times on a
busy machine mean little, CPU times do. `fixed` asks for one text of 29 tokens again and again; `mixed` for 512 texts
whose lengths are log-normal (median 64 tokens, sigma 0.8, 4 to 512), the same for all. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from cluster import ports

TEXT = "the quick brown fox jumps over it"
BATCH, WAIT_S = 32, 0.005


@dataclass
class Server:
    """One contestant: where to post, which processes are its own, and what each round gave."""

    name: str
    url: str
    processes: Callable[[], list[psutil.Process]]
    results: dict[str, Result] = field(default_factory=dict)


@dataclass
class Result:
    """What each round gave one contestant on one kind of texts, and CPU-ms a request by process."""

    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    by_part: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=["fastapi", "litserve", "serve", "shoal"])
    parser.add_argument("--texts", nargs="*", default=["fixed", "mixed"], choices=["fixed", "mixed"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RAY_worker_niceness="0")

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b")))
        folder = (arguments.folder or _make(work / "bert")).resolve()

        # Start everything.
        servers: list[Server] = []
        for kind in arguments.only:
            if kind == "shoal":
                servers.append(_shoal(folder, work, arguments.dtype, stack))
            else:
                servers.append(_child(kind, folder, arguments.dtype, stack))
        expected = None
        for server in servers:
            answer = asyncio.run(_load(server.url, 1, ["fixed, the same"], seconds=0.1))[2]
            scores = sorted((one["label"], one["score"]) for one in answer[0])
            near = 1e-4 if arguments.dtype == "float32" else 0.05
            same = expected is None or all(abs(a[1] - b[1]) < near for a, b in zip(scores, expected, strict=True))
            assert same, f"{server.name} answers {scores}, not {expected}"
            expected = scores
            for kind in arguments.texts:
                server.results[kind] = Result()
                asyncio.run(_load(server.url, arguments.concurrent, TEXTS[kind](), seconds=1.5))

        # In turn, round after round.
        for _ in range(arguments.rounds):
            for kind in arguments.texts:
                for server in servers:
                    _measure(server, server.results[kind], TEXTS[kind](), arguments)

    for kind in arguments.texts:
        print(f"\n{kind:16}{'requests/s':>12}{'CPU-ms/request':>16}{'p50 ms':>10}{'p99 ms':>10}   where the CPU went")
        for server in servers:
            result = server.results[kind]
            parts = sorted(result.by_part.items(), key=lambda item: -item[1])
            text = ", ".join(f"{name} {value:.2f}" for name, value in parts if value >= 0.02)
            columns = (result.rates, result.cpu_ms, result.p50_ms, result.p99_ms)
            rate, cpu, p50, p99 = (statistics.median(values) for values in columns)
            print(f"{server.name:16}{rate:12.1f}{cpu:16.2f}{p50:10.0f}{p99:10.0f}   {text}")
    results = {
        kind: {
            server.name: {
                "requests_per_s": [round(value, 1) for value in server.results[kind].rates],
                "cpu_ms_per_request": [round(value, 3) for value in server.results[kind].cpu_ms],
            }
            for server in servers
        }
        for kind in arguments.texts
    }
    told = {"model": folder.name, "dtype": arguments.dtype, "concurrent": arguments.concurrent}
    print(json.dumps({**told, "results": results}))


def _measure(server: Server, result: Result, texts: list[str], arguments: argparse.Namespace) -> None:
    """One round."""
    before = _cpu(server)
    started = time.perf_counter()
    done, latencies, _ = asyncio.run(_load(server.url, arguments.concurrent, texts, seconds=arguments.seconds))
    wall = time.perf_counter() - started
    used = {pid: seconds - before.get(pid, (0.0, ""))[0] for pid, (seconds, _) in _cpu(server).items()}
    names = {pid: name for pid, (_, name) in _cpu(server).items()}
    latencies.sort()
    result.rates.append(done / wall)
    result.cpu_ms.append(1000 * sum(used.values()) / done)
    result.p50_ms.append(1000 * latencies[len(latencies) // 2])
    result.p99_ms.append(1000 * latencies[int(0.99 * len(latencies))])
    for pid, seconds in used.items():
        part = names.get(pid, "?")
        result.by_part[part] = result.by_part.get(part, 0) + 1000 * seconds / done / arguments.rounds


def _fixed() -> list[str]:
    return [TEXT]


def _mixed() -> list[str]:
    """The tiny model's tokenizer makes a token of every letter, and adds two."""
    draw = random.Random(0)
    lengths = [min(max(int(draw.lognormvariate(math.log(64), 0.8)), 4), 512) - 2 for _ in range(512)]
    return ["".join(draw.choice("etaoinshrdlu") for _ in range(length)) for length in lengths]


TEXTS = {"fixed": _fixed, "mixed": _mixed}


def _make(folder: Path) -> Path:
    sys.path.append(str(Path(__file__).parent.parent))
    from serve_tiny import bert

    return bert(folder, hidden=256, layers=6)


async def _load(url: str, concurrent: int, texts: list[str], *, seconds: float) -> tuple[int, list[float], Any]:
    """Post from `concurrent` connections for so long: how many were answered, how long each took, the last answer."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []
    last: Any = None
    bodies = itertools.cycle([json.dumps({"inputs": text}).encode() for text in texts])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> None:
            nonlocal last
            while time.perf_counter() < end:
                started = time.perf_counter()
                async with session.post(url, data=next(bodies), headers={"content-type": "application/json"}) as answer:
                    last = await answer.json()
                    assert answer.status == 200, last
                latencies.append(time.perf_counter() - started)

        await asyncio.gather(*(one() for _ in range(concurrent)))
    return len(latencies), latencies, last


def _cpu(server: Server) -> dict[int, tuple[float, str]]:
    """CPU seconds so far and a short name of each process of a server."""
    found: dict[int, tuple[float, str]] = {}
    for process in server.processes():
        with suppress(psutil.Error):
            times = process.cpu_times()
            title = " ".join(process.cmdline()[:1]) or process.name()
            name = title.split("/")[-1] if "/" in title.split(" ")[0] else title
            found[process.pid] = (times.user + times.system, name.replace("ray::ServeReplica:", ""))
    return found


def _shoal(folder: Path, work: Path, dtype: str, stack: ExitStack) -> Server:
    os.environ["SHOAL_HOME"] = str(work / "home")
    from cluster import connect, embedded, processes
    from cluster.spec import parse
    from serve import run

    cluster = stack.enter_context(connect.session())
    told = f"{{max_batch_size: {BATCH}, dtype: {dtype}}}"
    spec = parse(f"name: bench\ntask: text-classification\nmodel: {folder}\nserve: {told}")
    endpoint = run.deploy(spec, model_uri="models:/bench/1", folder=folder, cluster=cluster)
    root = embedded.scratch_folder(cluster.home)
    return Server("shoal", endpoint.url, lambda: processes.members(root))


def _child(kind: str, folder: Path, dtype: str, stack: ExitStack) -> Server:
    [port] = ports.pick(1)
    child = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("rivals.py")),
            kind,
            str(folder),
            str(port),
            str(BATCH),
            str(WAIT_S),
            dtype,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process = psutil.Process(child.pid)

    def tree() -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [process, *process.children(recursive=True)]
        return []

    def end() -> None:
        # The children first learn of it, Ray's among them; what is left after ten seconds is killed.
        family = tree()
        child.terminate()
        _, left = psutil.wait_procs(family, timeout=10)
        for one in left:
            with suppress(psutil.Error):
                one.kill()
        child.wait()

    stack.callback(end)
    url = f"http://127.0.0.1:{port}/predict"
    deadline = time.monotonic() + 120
    while True:
        try:
            asyncio.run(_load(url, 1, [TEXT], seconds=0.01))
            return Server(kind, url, tree)
        except (aiohttp.ClientError, AssertionError, ValueError):
            assert child.poll() is None, f"{kind} ended with {child.returncode}"
            assert time.monotonic() < deadline, f"{kind} did not start"
            time.sleep(0.2)


if __name__ == "__main__":
    main()
