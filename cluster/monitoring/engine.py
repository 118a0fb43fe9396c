"""The row of a language model's engine on the page of one model: vLLM's own series, as Ray exports them."""

from __future__ import annotations

from cluster.monitoring.panels import MODEL, WINDOW, Panel, Query, Row, quantiles

_ENGINE = f'{{model_name="{MODEL}"}}'


def _engine(counter: str) -> str:
    return f"sum(rate(ray_vllm_{counter}_total{_ENGINE}[{WINDOW}]))"


ENGINE = Row(
    "Language model",
    (
        Panel(
            "Tokens",
            "Read of prompts and generated, a second.",
            "short",
            (Query(_engine("prompt_tokens"), "prompt"), Query(_engine("generation_tokens"), "generated")),
            needs="llm",
        ),
        Panel(
            "Time to first token",
            "From arrival at the engine to the first token.",
            "s",
            quantiles("ray_vllm_time_to_first_token_seconds_bucket", _ENGINE),
            needs="llm",
        ),
        Panel(
            "Between tokens",
            "From one token of a stream to its next.",
            "s",
            quantiles("ray_vllm_inter_token_latency_seconds_bucket", _ENGINE),
            needs="llm",
        ),
        Panel(
            "KV cache",
            "Share of it in use, of each replica. Near 100 % requests wait or are begun again.",
            "percentunit",
            (Query(f"ray_vllm_kv_cache_usage_perc{_ENGINE}", "{{ReplicaId}}"),),
            needs="llm",
            most=1,
        ),
        Panel(
            "Sequences",
            "Being generated, and waiting in the engine for room.",
            "short",
            (
                Query(f"sum(ray_vllm_num_requests_running{_ENGINE})", "running"),
                Query(f"sum(ray_vllm_num_requests_waiting{_ENGINE})", "waiting"),
            ),
            needs="llm",
        ),
        Panel(
            "Prefix cache",
            "Share of prompt tokens whose keys and values were there already.",
            "percentunit",
            (Query(f"{_engine('prefix_cache_hits')} / {_engine('prefix_cache_queries')}", "hits"),),
            needs="llm",
            most=1,
        ),
    ),
)
