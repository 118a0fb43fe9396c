"""How a language model is served: the engine's keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.section import NAME, Section


class Llm(Section):
    """vLLM, for task text-generation."""

    max_model_len: Annotated[int, Field(ge=16, le=10_485_760)] | None = None
    """Tokens of prompt and answer together, at most. Left out: what the model was made for, or as much of it as the
    cache of keys and values holds."""
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Sequences in one step of the engine."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic; auto: the model's own."""
    kv_cache_gb: Annotated[float, Field(gt=0, le=10_000)] = 1
    """Memory of the cache of keys and values, in GiB, on CPUs."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that the engine takes, on GPUs."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of one machine that share one copy."""
    max_loras: Annotated[int, Field(ge=0, le=256)] = 4
    """Different adapters in one step of the engine; more may be loaded, and take turns. 0: none can be loaded, and none
    of what it costs every step to be ready for them."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Highest rank of an adapter."""
    onto: Annotated[str, Field(pattern=NAME)] | None = None
    """Name of a served model onto which this file's adapter is loaded, as `<onto>:<name>`, with no engine of its own.
    Left out: an engine of its own, `<name>`, with the untouched base beside it as `<name>:base`."""
