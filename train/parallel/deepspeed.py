"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and parameters (3) in equal parts (arXiv 1910.02054).

DeepSpeed 0.19 is taken as it is, with some names of its inside, all of them here and in a test: the flat float32
partitions of its two optimizers, `ds_tensor` (a worker's part of a parameter at stage 3), the loss scaler's numbers,
and the list of native extensions. Its own checkpoints are pickles that are run when they are loaded, so the tensors
are taken out and put back by hand.
"""

from __future__ import annotations

import contextlib
import logging
import os
from importlib import import_module
from typing import Any

import torch

from cluster.errors import RunFailed
from cluster.spec import Train
from train import checkpoint, optim
from train.parallel import Worker, held, process_group

# Elements exchanged at a time. DeepSpeed's default of 5e8 takes 2 GB of a GPU for each of its buffers.
_BUCKET = 50_000_000
# Stages 1 and 2 fill a group of weights up to a multiple of so many elements a worker.
_ALIGNMENT = 2


class Zero:
    def __init__(self, model: torch.nn.Module, train: Train, worker: Worker, dtype: torch.dtype) -> None:
        deepspeed = _library(worker)
        self._sizes = held.sizes_of(model)
        self._worker, self._stage, self._dtype = worker, train.deepspeed.zero_stage, dtype
        self._offload = train.deepspeed.offload == "cpu"
        settings = config(train, dtype, on_gpu=worker.device.startswith("cuda"))
        # By the shapes of whole weights: what is laid flat has no matrices.
        adamw = optim.optimizer(model, train)
        names = {id(p): name for name, p in model.named_parameters()}
        self._groups = [[self._sizes[names[id(p)]] for p in group["params"]] for group in adamw.param_groups]
        if self._stage == 3:
            # One weight after the other goes to the device and is cut there: no device ever has them all.
            for tensor in model.parameters():
                tensor.data = tensor.data.to(dtype)
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
            for buffer in model.buffers():
                buffer.data = buffer.data.to(worker.device)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=settings)
        self.net = self.judged = self._engine

    @property
    def _zero(self) -> Any:
        return self._engine.optimizer

    @property
    def _flat(self) -> list[torch.Tensor]:
        """This worker's part of the float32 weights, a flat tensor a group."""
        return (
            self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        )

    def piece(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, part: torch.Tensor) -> None:
        # DeepSpeed takes the mean over workers; each has a part of the sum.
        self._engine.backward(part * self._worker.workers, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        optim.set_rate(self._zero, rate)
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def held(self) -> held.Held:
        parameters = sum(p.numel() for p in self._engine.module.parameters())
        if self._stage == 3:
            # What is put together for a pass counts too, and should be gone after it.
            parameters += sum(p.ds_tensor.numel() for p in self._engine.module.parameters())
        states = [self._zero.optimizer.state[flat] for flat in self._flat]
        places = {v.device.type for state in states for k, v in state.items() if k.startswith("exp_avg")}
        if self._offload and places - {"cpu"}:
            raise RunFailed(f"train.deepspeed.offload: cpu, but optimizer state lies on {places}; write none")
        return held.Held(parameters, held.moments(states))

    def due(self) -> held.Held:
        sizes, workers = self._sizes.values(), self._worker.workers
        if self._stage == 3:
            learning = held.equal((size for size in sizes if size.learns), workers=workers)
            return held.Held(held.equal(sizes, workers=workers), held.MOMENTS * learning)
        return held.Held(
            held.whole(sizes), held.MOMENTS * held.flat(self._groups, workers=workers, alignment=_ALIGNMENT)
        )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        weights: dict[str, torch.Tensor] = {}
        if self._stage == 3:
            learning = ((name, p) for name, p in self._engine.module.named_parameters() if p.requires_grad)
            weights = {name: p.ds_tensor.detach() for name, p in learning}
        elif self._worker.rank == 0:
            weights = checkpoint.learned(self._engine.module)
        if self._worker.rank == 0:
            weights |= checkpoint.buffers(self._engine.module)
        # In float32 the flat weights are the model's; otherwise they know more than it.
        exact = [] if self._dtype == torch.float32 else [flat.detach() for flat in self._flat]
        moments = [dict(self._zero.optimizer.state[flat]) for flat in self._flat]
        scaler = {k: v for k, v in vars(self._zero.loss_scaler).items() if isinstance(v, (bool, int, float))}
        return weights, {"exact": exact, "moments": moments, "scaler": scaler}

    @torch.no_grad()
    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        module = self._engine.module
        if self._stage == 3:
            learning = ((name, p) for name, p in module.named_parameters() if p.requires_grad)
            checkpoint.copy(weights, {name: p.ds_tensor for name, p in learning} | checkpoint.buffers(module))
        else:
            checkpoint.put(weights, module)
        self._zero.refresh_fp32_params()
        for flat, saved in zip(self._flat, optimizer["exact"]):
            flat.copy_(saved)
        for flat, moments in zip(self._flat, optimizer["moments"], strict=True):
            # The count of steps stays where it was: torch keeps it in the host's memory, or beside the weights.
            self._zero.optimizer.state[flat] = {k: v if k == "step" else v.to(flat.device) for k, v in moments.items()}
        vars(self._zero.loss_scaler).update(optimizer["scaler"])


def config(train: Train, dtype: torch.dtype, *, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration. Batches, schedule and weights of rows are the loop's: the batch sizes here only keep
    DeepSpeed's own arithmetic quiet, so no batch has to divide by anything."""
    host = {"device": "cpu", "pin_memory": on_gpu}
    zero: dict[str, Any] = {
        "stage": train.deepspeed.zero_stage,
        "reduce_bucket_size": _BUCKET,
        "allgather_bucket_size": _BUCKET,
    }
    if train.deepspeed.zero_stage == 3:
        # No weight is so small that it stays whole, and none stays for its next use: a share is all that is held.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
        zero |= {"stage3_prefetch_bucket_size": _BUCKET}
    if train.deepspeed.offload == "cpu":
        zero["offload_optimizer"] = host
        if train.deepspeed.zero_stage == 3:
            zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        # DeepSpeed's default is 1; 0 is none.
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": zero,
        # Torch's AdamW, on the host as well: DeepSpeed's own would be compiled at first use, for 37 seconds.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 40,
    }


def _library(worker: Worker) -> Any:
    """DeepSpeed, quiet, on the worker's process group, and without compiling anything."""
    place = worker.device.split(":")
    os.environ["DS_ACCELERATOR"] = place[0]
    for name, value in (("LOCAL_RANK", place[1:] or ["0"]), ("RANK", [worker.rank]), ("WORLD_SIZE", [worker.workers])):
        os.environ.setdefault(name, str(value[0]))
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed: Any = import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On CPUs it would compile an all-reduce that only inference uses, for 26 seconds; and a worker that is killed
    # meanwhile leaves a lock for which the next one waits for ever.
    deepspeed.ops.__compatible_ops__ = {}
    process_group(worker.device)
    deepspeed.init_distributed("nccl" if place[0] == "cuda" else "gloo", auto_mpi_discovery=False)
    return deepspeed
