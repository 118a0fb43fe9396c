"""Everything of Shoal's that touches vLLM: one engine in this process, vLLM's own OpenAI application, its adapters.

vLLM calls none of this stable but the engine's arguments, so it stands here alone and tests/test_serve_vllm_engine.py
checks each name. What is used: AsyncLLM (the engine's client; the engine itself is a process of its own below this
one), build_app and init_app_state (what `vllm serve` serves), GenerationError (a request that the engine gave up),
OpenAIServingModels.lora_requests and base_model_paths (which name answers with which weights), and
RayPrometheusStatLogger (the engine's metrics on Ray's port).
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cluster.errors import InputError, RunFailed

# In a request's scope: tells, once the body is read, whether it asks for a form of the answer.
FORMED = "shoal.formed"


class EngineKeys(BaseModel):
    """What an engine is started with; see cluster.spec.Llm for the meaning of most."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    max_model_len: int | None
    max_num_seqs: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    kv_cache_bytes: int
    gpu_memory_utilization: float
    tensor_parallel_size: int
    max_loras: int
    max_lora_rank: int
    threads: int
    """Of the engine's arithmetic, on CPUs."""


class Engine:
    """A running engine. `app` is vLLM's own ASGI application; it answers for `name` and for the adapters."""

    def __init__(self, name: str, client: Any, app: Any) -> None:
        self.name = name
        self.client = client
        self.app = app
        self.models = app.state.openai_serving_models
        self.tags: dict[str, str] = {}
        self.newest = 0

    @classmethod
    async def start(cls, name: str, folder: Path, keys: EngineKeys, *, device: str) -> Engine:
        """Start an engine on a model folder; a minute, most of it imports.

        Raises InputError where a key does not fit the model, RunFailed where the engine does not come up.
        """
        _environment(keys, device)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.exceptions import GenerationError
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

        options = arguments(name, folder, keys, device=device)
        try:
            config = AsyncEngineArgs.from_cli_args(options).create_engine_config(UsageContext.OPENAI_API_SERVER)
        except (ValueError, NotImplementedError) as error:
            raise InputError(
                f"{name}: vLLM does not take this model with these keys of serve.llm: {_said(error)}"
            ) from None
        try:
            client = AsyncLLM.from_vllm_config(
                config,
                usage_context=UsageContext.OPENAI_API_SERVER,
                stat_loggers=[RayPrometheusStatLogger],
                disable_log_stats=True,  # the loggers that come by default; the one above is given, and stays
            )
        except (RuntimeError, ValueError) as error:
            raise RunFailed(
                f"{name}: vLLM's engine did not start: {_said(error)}; `shoal logs` has its own words. Where memory is "
                "short, lower serve.llm.kv_cache_gb, max_model_len or max_num_seqs"
            ) from None
        supported = await client.get_supported_tasks()
        if "generate" not in supported:
            client.shutdown()
            raise InputError(f"{name}: the model in {folder} generates no text, vLLM says; it does: {supported}")
        app = build_app(options, supported, config.model_config)
        # Where an engine fails, vLLM tells the server that it started to end. Ours is ended by Serve (see `check`).
        app.state.server = SimpleNamespace(should_exit=False)
        app.add_exception_handler(GenerationError, _given_up)
        app.middleware_stack = None  # it was made already, and is made anew with the handler
        await init_app_state(client, app.state, options, supported)
        return cls(name, client, app)

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, as the engine takes them."""
        return self.client.model_config.max_model_len

    @property
    def unfinished(self) -> int:
        """Requests that wait or are being written."""
        return self.client.get_num_unfinished_requests()

    def loaded(self) -> dict[str, str]:
        """The adapters that answer now: name to what `load` was given as `tag`."""
        return dict(self.tags)

    async def load(self, name: str, folder: Path, tag: str) -> None:
        """Let `name` answer with an adapter from now on; requests in flight end with the weights they began with.

        The adapter is a new one to vLLM each time: it caches weights by number, a batch tells adapters apart by name,
        and prompts that were computed before are found by name and folder. So number and name (`name@tag`) are new,
        and no old weight, nor what was computed with one, is met again. Raises RunFailed where vLLM refuses it.
        """
        from vllm.lora.request import LoRARequest

        self.newest += 1
        request = LoRARequest(lora_name=f"{name}@{tag}", lora_int_id=self.newest, lora_path=str(folder))
        try:
            await self.client.add_lora(request)
        except Exception as error:
            await self.check()
            raise RunFailed(f"{name}: vLLM does not take the adapter in {folder}: {_said(error)}") from None
        before = self.models.lora_requests.get(name)
        self.models.lora_requests[name], self.tags[name] = request, tag
        self._name_base()
        if before is not None:
            await self.client.remove_lora(before.lora_int_id)

    async def unload(self, name: str) -> None:
        """Let `name` not answer any more, or with the base again where it is the engine's own."""
        request = self.models.lora_requests.pop(name)
        del self.tags[name]
        self._name_base()
        await self.client.remove_lora(request.lora_int_id)

    def _name_base(self) -> None:
        """The base answers as `name`, and as `name:base` where an adapter has that name. vLLM's two lists of names are
        one and the same, changed in place."""
        taken = self.name in self.models.lora_requests
        for base in self.models.base_model_paths:
            base.name = f"{self.name}:base" if taken else self.name

    async def check(self) -> None:
        """Raises RunFailed where the engine's process is gone or has given up."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self.client.check_health()
        except EngineDeadError as error:
            raise RunFailed(f"{self.name}: vLLM's engine died: {_said(error)}") from None

    def tell_idle(self) -> None:
        """Say again that nothing runs or waits, where nothing does. Ray forgets a gauge that was not set for 20 s, and
        an idle engine sets none; to be called more often than that."""
        from vllm.v1.metrics.stats import SchedulerStats

        if self.client.logger_manager is not None and not self.unfinished:
            self.client.logger_manager.record(SchedulerStats(), None)

    def stop(self) -> None:
        """End the engine's process."""
        self.client.shutdown(timeout=1)


def arguments(name: str, folder: Path, keys: EngineKeys, *, device: str) -> Namespace:
    """The arguments of `vllm serve` for an engine, all others as they come."""
    from vllm.config import StructuredOutputsConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    assert options is not None
    chosen: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": [name],
        # Nothing of a stranger's folder is run: no code of its own, no pickles.
        "trust_remote_code": False,
        "load_format": "safetensors",
        "dtype": keys.dtype,
        # -1: as long as the model was made for, or as the cache of keys and values holds.
        "max_model_len": keys.max_model_len if keys.max_model_len is not None else -1,
        "max_num_seqs": keys.max_num_seqs,
        "tensor_parallel_size": keys.tensor_parallel_size,
        "gpu_memory_utilization": keys.gpu_memory_utilization,
        **_adapters(keys),
        # No prompt goes to a log, no page of other sites may ask, no documentation pages, no stack traces.
        "enable_log_requests": False,
        "allowed_origins": [],
        "disable_fastapi_docs": True,
        "disable_log_stats": True,
        # What grammars are made by is chosen once an engine, by the first request with one. Left to "auto", a request
        # that xgrammar does not take is checked by another library, and fails in the engine: a 500, where 400 is right.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar"),
    }
    if device == "cpu":
        # With adapters vLLM compiles nothing on CPUs; said beforehand, it doesn't prepare for it either.
        chosen |= {"enforce_eager": True, "kv_cache_memory_bytes": keys.kv_cache_bytes}
    unknown = [key for key in chosen if not hasattr(options, key)]
    assert not unknown, f"vLLM has no argument {unknown} any more"
    for key, value in chosen.items():
        setattr(options, key, value)
    return options


async def _given_up(request: Any, error: Exception) -> Any:
    """Answers for a request that the engine ended without an answer. To one with a grammar that is the grammar: it
    cannot be compiled after all, or no text fits it, as none fits {"$ref": "#"}."""
    from starlette.responses import JSONResponse

    status = getattr(error, "status_code", 500)
    message, kind = str(error), "InternalServerError"
    if status == 500 and request.scope.get(FORMED, lambda: False)():
        status, kind = 400, "BadRequestError"
        message = "no text keeps to the form that was asked for; mend response_format, structured_outputs or tools"
    told = {"message": message, "type": kind, "param": None, "code": int(status)}
    return JSONResponse({"error": told}, status_code=status)


def _adapters(keys: EngineKeys) -> dict[str, Any]:
    if keys.max_loras == 0:
        return {"enable_lora": False}
    return {
        "enable_lora": True,
        "max_loras": keys.max_loras,
        "max_lora_rank": keys.max_lora_rank,
        # Held in memory beside those that are in use; one beyond them is read from its folder again when it is asked.
        "max_cpu_loras": max(16, 2 * keys.max_loras),
    }


def _environment(keys: EngineKeys, device: str) -> None:
    """What vLLM and its children read from the environment, before it is imported."""
    os.environ |= {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The folders are here already: nothing that one of them names is fetched.
        "HF_HUB_OFFLINE": "1",
        # By itself each engine binds its threads to the machine's first cores, so that two of them share these and
        # leave the others idle. The kernel places them better.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(keys.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu" and keys.tensor_parallel_size == 1:
        # On CPUs vLLM puts the arithmetic into a third process, to bind its threads; unbound, it can stay with the
        # scheduler: 9 s and 0.7 GB less. The switch is meant for debugging and leaves the engine a process of its own.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def _said(error: BaseException) -> str:
    """The sentence of an error of vLLM's that says what was wrong: pydantic puts it between a heading and a link."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next(
        (line for line in lines if line.startswith("Value error, ")), lines[-1] if lines else type(error).__name__
    )
    return told.removeprefix("Value error, ").partition(" [type=")[0][:500]
