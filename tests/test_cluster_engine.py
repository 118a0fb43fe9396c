"""What Serve is told of a language model: pure functions, for a running cluster and for Kubernetes alike."""

import subprocess
import sys

from cluster import engine
from cluster.serving import model_application
from cluster.spec import parse

HEAD = "name: chat\ntask: text-generation\nmodel: org/base\n"


def test_a_whole_model_has_an_engine_of_its_own():
    spec = parse(HEAD + "serve: {num_cpus: 1.5, llm: {max_model_len: 1024, kv_cache_gb: 0.5, max_loras: 2}}")
    found = model_application(spec, model_uri="org/base", folder="/models/base", attempt=3)
    assert found["import_path"] == "serve.llm:build"
    assert found["route_prefix"] == "/m/chat"
    args = found["args"]
    assert (args["version"], args["folder"], args["attempt"], args["device"]) == ("org/base", "/models/base", 3, "cpu")
    assert args["engine"] == {
        "max_model_len": 1024,
        "max_num_seqs": 64,
        "dtype": "auto",
        "kv_cache_bytes": 2**29,
        "gpu_memory_utilization": 0.9,
        "tensor_parallel_size": 1,
        "max_loras": 2,
        "max_lora_rank": 16,
        "threads": 2,
    }
    (deployment,) = found["deployments"]
    assert deployment["name"] == "Llm"
    assert deployment["ray_actor_options"] == {"num_cpus": 1.5, "num_gpus": 0}
    assert deployment["user_config"] == {
        "adapters": {},
        "request_timeout_s": 60.0,
        "max_body_mb": 32.0,
        "max_ongoing_requests": 64,
        "max_queued_requests": 256,
        "max_memory_gb": None,
    }


def test_a_tuned_file_serves_its_base_with_the_adapter_live():
    spec = parse(HEAD + "data: {train: hf://a/b}\ntrain: {lora: {}}")
    found = model_application(spec, model_uri="models:/chat/3", folder="models:/chat/3")
    newer = model_application(spec, model_uri="models:/chat/4", folder="models:/chat/4")
    assert (found["args"]["version"], found["args"]["folder"]) == ("org/base", "org/base")
    entry = {"version": "models:/chat/3", "folder": "models:/chat/3", "tag": "3"}
    assert found["deployments"][0]["user_config"]["adapters"] == {"chat": entry}
    # A newer version is no reason for new replicas.
    assert found["args"] == newer["args"]
    assert newer["deployments"][0]["user_config"]["adapters"]["chat"]["tag"] == "4"


def test_gpus_are_as_many_as_share_a_copy():
    spec = parse(HEAD + "serve: {num_gpus: 1, llm: {tensor_parallel_size: 4}}")
    found = model_application(spec, model_uri="x", folder="x")
    assert found["args"]["device"] == "cuda"
    assert found["deployments"][0]["ray_actor_options"]["num_gpus"] == 4


def test_the_plan_counts_the_engine_and_its_cache(tmp_path):
    import llm_served_tiny as tiny

    from cluster.plan import plan

    base = tiny.llama(tmp_path / "base")
    head = f"name: chat\ntask: text-generation\nmodel: {base}\n"
    machine = {"cores": 2, "memory": 2**33, "free_disk": 2**33}
    small = plan(parse(head + "serve: {llm: {kv_cache_gb: 0.5}}"), **machine).memory_replica
    large = plan(parse(head + "serve: {llm: {kv_cache_gb: 2}}"), **machine).memory_replica
    assert small is not None
    assert large is not None
    assert large - small == 3 * 2**29
    assert small > 2**29 + engine.ENGINE
    # On another's engine it takes none of its own.
    assert plan(parse(head + "serve: {llm: {onto: other}}"), **machine).memory_replica == 0


def test_a_name_on_anothers_engine():
    assert engine.served_name(parse(HEAD + "serve: {llm: {onto: other}}")) == "other:chat"
    assert engine.served_name(parse(HEAD)) == "chat"


def test_tags_tell_versions_apart():
    tags = [
        engine.adapter(version=version, folder="x")["tag"]
        for version in ("models:/a/12", "models:/a@champion", "./folder")
    ]
    assert tags == ["12", "champion", "folder"]


def test_nothing_heavy_is_imported():
    code = (
        "import sys, cluster.serving, serve.gateway.openai_routes, serve.language; "
        "sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'transformers', 'vllm', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
