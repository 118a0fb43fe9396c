"""What Serve is told of a language model beyond what every model has: its engine, its cores or GPUs, its adapters.
A part of cluster.serving, and as pure as that. Imports no Ray.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from cluster.spec import Spec

TASK = "text-generation"
ENGINE = 1200 << 20


def adapted(spec: Spec) -> bool:
    """Whether a file trains an adapter, which is served beside its untouched `model`."""
    return spec.data.train is not None and spec.train.lora is not None


def served_name(spec: Spec) -> str:
    """What clients write as `model`: the file's name, or `other:name` where its adapter goes onto another's engine."""
    return f"{spec.serve.llm.onto}:{spec.name}" if spec.task == TASK and spec.serve.llm.onto else spec.name


def args(spec: Spec, *, version: str, folder: str, attempt: int) -> dict[str, Any]:
    """The arguments of serve.llm:build: what a change of starts new replicas. `folder` is a whole model's, or a
    reference that the replica resolves."""
    llm = spec.serve.llm
    return {
        "name": spec.name,
        "task": spec.task,
        "version": version,
        "folder": folder,
        "device": "cuda" if spec.serve.num_gpus > 0 else "cpu",
        "attempt": attempt,
        "engine": {
            "max_model_len": llm.max_model_len,
            "max_num_seqs": llm.max_num_seqs,
            "dtype": llm.dtype,
            "kv_cache_bytes": int(llm.kv_cache_gb * 2**30),
            "gpu_memory_utilization": llm.gpu_memory_utilization,
            "tensor_parallel_size": llm.tensor_parallel_size,
            "max_loras": llm.max_loras,
            "max_lora_rank": llm.max_lora_rank,
            "threads": max(1, math.ceil(spec.serve.num_cpus)),
        },
    }


def adapter(*, version: str, folder: str, tag: str = "") -> dict[str, str]:
    """An entry of `adapters`, under the name that it answers to. `tag` tells versions apart, in a model's answer as
    well: `name@tag`; by itself the end of the version, 3 of models:/reviews/3."""
    return {"version": version, "folder": folder, "tag": tag or re.split("[/@]", version)[-1]}


def user_config(adapters: Mapping[str, Mapping[str, str]], *, timeout_s: float, max_body_mb: float) -> dict[str, Any]:
    """What changes live: adapters come and go without a restart."""
    return {
        "adapters": {name: dict(adapters[name]) for name in sorted(adapters)},
        "request_timeout_s": timeout_s,
        "max_body_mb": max_body_mb,
    }


def memory(spec: Spec) -> int:
    """Bytes of the host's memory that an engine takes beside the weights and one process: another process, and on CPUs
    the cache of keys and values."""
    return ENGINE + (int(spec.serve.llm.kv_cache_gb * 2**30) if spec.serve.num_gpus == 0 else 0)


def actor_options(spec: Spec) -> dict[str, Any]:
    """Cores and GPUs of a replica. The engine's processes are children of the replica and share what Ray gave it, so
    tensor parallelism takes GPUs of one machine."""
    serve = spec.serve
    gpus = max(serve.num_gpus, serve.llm.tensor_parallel_size) if serve.num_gpus > 0 else 0
    return {"num_cpus": serve.num_cpus, "num_gpus": gpus}
