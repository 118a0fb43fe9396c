"""Seconds of scaling by part: from load to a second replica that takes requests, and from zero to the first answer.

    python tests/benchmarks/scaling.py [MODEL_FOLDER] [--rounds 2]

Without a folder a BERT of 6 layers x 256 is made, with random weights. `decision` is from the first request to the
Keeper's decision; `answer` from the replica that listens to the first answer that the client has of it. The last line
is JSON, with the median of each part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from cluster.connect import Cluster

NAMES = ("decision", "scheduling", "process", "imports", "weights", "warm", "ready", "answer", "total")
CONCURRENT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b")))
        os.environ["SHOAL_HOME"] = str(work / "home")
        folder = (arguments.folder or _make(work / "bert")).resolve()
        from cluster import connect

        cluster = stack.enter_context(connect.session())
        results: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            url = _deploy(cluster, folder)
            _until(cluster, up=0)
            for what, up in (("zero to first answer", 1), ("load to second replica", 2)):
                found = asyncio.run(_measure(cluster, url, up))
                results.setdefault(what, []).append(found)
                print(f"{what}: {_text(found)}", flush=True)
            _remove(cluster)

    medians = {
        what: {part: round(statistics.median(run.get(part, 0.0) for run in runs), 2) for part in NAMES}
        for what, runs in results.items()
    }
    print(f"\n{'median seconds':34}" + "".join(f"{name:>11}" for name in NAMES))
    for what, parts in medians.items():
        print(f"{what:34}" + "".join(f"{parts[name]:11.2f}" for name in NAMES))
    print(json.dumps({"model": folder.name, "rounds": arguments.rounds, "seconds": medians}))


def _make(folder: Path) -> Path:
    sys.path.append(str(Path(__file__).parent.parent))
    from serve_tiny import bert

    return bert(folder, hidden=256, layers=6)


def _deploy(cluster: Cluster, folder: Path) -> str:
    from cluster.spec import parse
    from serve import run

    scale = {"idle_s": 3, "downscale_delay_s": 2}
    serve = {"num_cpus": 0.5, "min_replicas": 0, "max_replicas": 2, "target_ongoing_requests": 2, "autoscale": scale}
    text = f"name: scaled\ntask: text-classification\nmodel: {folder}\nserve: {json.dumps(serve)}"
    return run.deploy(parse(text), model_uri="models:/scaled/1", folder=folder, cluster=cluster).url


def _remove(cluster: Cluster) -> None:
    from serve import run

    run.remove("scaled", cluster)
    time.sleep(17)  # until the Keeper has forgotten how the model scaled


def _known(cluster: Cluster) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from serve.state import state

    told, why = state(cluster)
    assert told is not None, why
    return told["scaling"]["scaled"], [one for one in told["replicas"] if one["state"] == "up"]


def _until(cluster: Cluster, *, up: int) -> None:
    end = time.monotonic() + 120
    while len(_known(cluster)[1]) != up or _known(cluster)[0]["wanted"] != up:
        assert time.monotonic() < end, _known(cluster)
        time.sleep(0.2)


async def _measure(cluster: Cluster, url: str, up: int) -> dict[str, float]:
    """Ask until there are `up` replicas and the last of them has answered: seconds by part."""
    from serve.scaling.parts import spans

    loop, concurrent = asyncio.get_running_loop(), 1 if up == 1 else CONCURRENT
    ended = asyncio.Event()
    began, first = time.time(), 0.0

    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            nonlocal first
            while not ended.is_set():
                async with session.post(url, json={"inputs": "x " * 200}) as answer:
                    assert answer.status == 200, await answer.text()
                first = first or time.time()
                if up == 1:
                    ended.set()

        async def watch() -> None:
            while not ended.is_set():
                _, replicas = await loop.run_in_executor(None, _known, cluster)
                newest = max(replicas, key=lambda one: one["started"], default=None)
                if len(replicas) == up and newest and newest["facts"]["answered"]:
                    ended.set()
                await asyncio.sleep(0.05)

        await asyncio.gather(*(ask() for _ in range(concurrent)), *([watch()] if up > 1 else []))
    known, replicas = await loop.run_in_executor(None, _known, cluster)
    while len(replicas) < up:
        known, replicas = await loop.run_in_executor(None, _known, cluster)
    newest = max(replicas, key=lambda one: one["started"])
    decided = next(one["at"] for one in reversed(known["changes"]) if one["to"] > one["from"])
    ready = newest["parts"]["ready"]
    # Of the second replica the answers are not told apart: what is known is when it was up.
    answer = first - ready if up == 1 else 0.0
    parts = {**spans(newest["parts"], decided), "decision": decided - began, "answer": answer}
    return {**parts, "total": (first if up == 1 else ready) - began}


def _text(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {found[name]:.2f}" for name in NAMES if name in found)


if __name__ == "__main__":
    main()
