"""Tokens a second, time to the first of them and CPU-milliseconds a token of one language model: Shoal, through its
gateway, against vLLM's own server, and against Ray's `build_openai_app` where that is asked for.

    python tests/benchmarks/llm.py MODEL_FOLDER [--streams 1 16 64] [--rounds 3] [--tokens 64] [--only NAME ...]
        [--adapter FOLDER]

The load is that of `shoal bench serve` (cluster.bench); this starts the rivals, with the same keys of the engine. A
stream is one client that sends a prompt of its own, reads the answer to its last token, and is done. CPU time is that
of a server's whole process tree, Ray's daemons included. With --adapter the seconds are taken from a finished LoRA to
the first answer from it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster import ports
from cluster.bench import bodies, compare, machine, sides, summary, turns
from cluster.bench.turns import Load, Side

SEQUENCES, CACHE_GB, LENGTH, THREADS = 64, 1, 1024, 2

# The same for all: threads that spin while they wait would measure whatever else the machine does.
_THREADS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_WAIT_POLICY": "PASSIVE",
}


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
        asked: list[Side] = []
        if "vllm" in arguments.only:
            asked.append(_bare(arguments, stack, work, lora=False))
        if "vllm-lora" in arguments.only:
            asked.append(_bare(arguments, stack, work, lora=True))
        if "ray" in arguments.only:
            asked.append(_ray(arguments, stack, work))
        if "shoal" in arguments.only:
            asked.append(_shoal(arguments, work, stack))

        # Greedy answers are the same everywhere, or the comparison is of different things.
        for one in asked[1:]:
            assert not (differ := sides.check([asked[0], one], 300)), differ

        results: list[dict[str, Any]] = []
        heads = f"{'tokens/s':>10}{'of the first':>22}{'TTFT p50':>10}{'p99 ms':>8}{'CPU-ms/token':>14}"
        print(f"{'':16}{'streams':>8}{heads}")
        for streams in arguments.streams:
            # A turn so short that each client asks once.
            load = Load(streams, None, 0.001, arguments.rounds, 600)
            seen = turns.run(asked, load)
            found = [summary.rounds(seen, one) for one in asked]
            for one, rounds in zip(asked, found):
                told = summary.figures(one, rounds)
                assert told["tokens"] == streams * arguments.tokens * arguments.rounds, told
                ratio = compare.ratios(rounds, found[0], streams=True)[0]
                told |= {"streams": streams, "load": machine.load(), "tokens_per_s_of_first": ratio}
                results.append(told)
                between = f"{ratio['ratio']:.2f}" + (
                    f" ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio["low"] else ""
                )
                print(
                    f"{one.name:16}{streams:8}{told['tokens_per_s']:10.1f}{between:>22}{told['ttft_ms']['p50']:10.0f}"
                    f"{told['ttft_ms']['p99']:8.0f}{told['cpu_ms_per_token']:14.3f}   load {told['load']:.1f}",
                    flush=True,
                )
    print(json.dumps({"model": arguments.folder.name, "tokens": arguments.tokens, "results": results}))


def _side(name: str, url: str, model: str, processes: Callable[[], list[psutil.Process]], tokens: int) -> Side:
    rows = [{"prompt": f"Story {index}. Once upon a time there was a fisherman who"} for index in range(1000)]
    asked = bodies.of_rows("text-generation", rows, "stories", tokens=tokens)
    return sides.side(name, url, asked, machine.Processes(processes, name), model=model, option="url")


def _text(url: str, model: str) -> str:
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=300, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def _shoal(arguments: argparse.Namespace, work: Path, stack: ExitStack) -> Side:
    """Ready for adapters only where one is given: like is compared with like."""
    folder, adapter = arguments.folder, arguments.adapter
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

    ours = _side("shoal", cluster.http_url, "bench", own, arguments.tokens)
    if adapter is not None:
        tuned = parse(
            f"name: tuned\ntask: text-generation\nmodel: {folder}\ndata: {{train: hf://a/b}}\n"
            "train: {lora: {}}\nserve: {llm: {onto: bench}}"
        )
        began = time.monotonic()
        run.deploy(tuned, model_uri="models:/tuned/1", folder=adapter, cluster=cluster)
        text = _text(cluster.http_url, "bench:tuned")
        print(f"adapter: {time.monotonic() - began:.2f} s from its folder to an answer: {text[:40]!r}", flush=True)
        run.remove("tuned", cluster)
    return ours


def _bare(arguments: argparse.Namespace, stack: ExitStack, work: Path, *, lora: bool) -> Side:
    """vLLM's own server, as its documents start it, but for the keys that Shoal gives its engine as well."""
    [port] = ports.pick(1)
    options = ["--max-model-len", str(LENGTH), "--max-num-seqs", str(SEQUENCES), "--enforce-eager"]
    options += ["--kv-cache-memory-bytes", str(CACHE_GB << 30), "--disable-uvicorn-access-log"]
    options += ["--enable-lora", "--max-loras", "4", "--max-lora-rank", "16"] if lora else []
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(arguments.folder)]
    environment = {**os.environ, **_THREADS}
    name = "vllm, adapters" if lora else "vllm"
    tree = _child([*command, "--port", str(port), *options], environment, work / f"{port}.log", stack)
    return _ready(name, port, arguments, tree, work / f"{port}.log")


def _ray(arguments: argparse.Namespace, stack: ExitStack, work: Path) -> Side:
    """Ray's own ingress for language models, as it comes."""
    [port], folder = ports.pick(1), arguments.folder
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
    return _ready("ray.serve.llm", port, arguments, tree, work / f"{port}.log")


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


def _ready(
    name: str, port: int, arguments: argparse.Namespace, tree: Callable[[], list[psutil.Process]], log: Path
) -> Side:
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 300
    while True:
        with suppress(httpx.HTTPError, AssertionError):
            _text(url, str(arguments.folder))
            return _side(name, url, str(arguments.folder), tree, arguments.tokens)
        waiting = bool(tree()) and time.monotonic() < deadline
        assert waiting, f"{name}: {log.read_text()[-2000:]}"
        time.sleep(1)


if __name__ == "__main__":
    main()
