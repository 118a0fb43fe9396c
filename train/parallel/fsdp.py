"""Every worker has some rows of each parameter, of its gradient and of its moments (torch's FSDP2, `fully_shard`).

A block of layers is put together on all workers for its forward pass, taken apart, and put together again for its
backward pass (Zhao et al., arXiv 2304.11277).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cluster.errors import InputError
from cluster.spec import Train
from train import checkpoint, optim
from train.parallel import Worker, held, process_group


class Fsdp:
    def __init__(self, model: torch.nn.Module, train: Train, worker: Worker, dtype: torch.dtype) -> None:
        self._sizes = held.sizes_of(model)
        if dtype == torch.float16:
            raise InputError("train.precision: float16 is not made for parallel: fsdp; write bfloat16, or ddp")
        if scalars := [name for name, size in self._sizes.items() if not size.shape]:
            raise InputError(f"train.parallel: fsdp cuts rows, and {scalars[0]} has none; write ddp or deepspeed")
        self._worker, self._max_norm = worker, train.max_grad_norm
        process_group(worker.device)
        mesh = init_device_mesh(worker.device.split(":")[0], (worker.workers,))
        # What is exchanged before a pass has the type it is computed in; sums of gradients are float32.
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        # The root is taken apart as well: between two passes no worker holds more than its share.
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": True}
        for block in _blocks(model):
            fully_shard(block, **options)
        fully_shard(model, **options)
        self.net = self.judged = model
        self._idle: list[held.Size] = []  # what never had a gradient, and so has no moments
        self._adamw = optim.optimizer(model, train)

    def piece(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        # Every piece is exchanged: what waits for the last would be a whole gradient on each worker.
        return contextlib.nullcontext()

    def backward(self, part: torch.Tensor) -> None:
        # FSDP takes the mean over workers; each has a part of the sum.
        torch.autograd.backward(part * self._worker.workers)

    def step(self, rate: float) -> float:
        optim.set_rate(self._adamw, rate)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self._max_norm or math.inf)
        self._adamw.step()
        without = (name for name, p in self.net.named_parameters() if p.requires_grad and p.grad is None)
        self._idle = [self._sizes[name] for name in without]
        self._adamw.zero_grad(set_to_none=True)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def held(self) -> held.Held:
        states = ({k: _local(v) for k, v in state.items()} for state in self._adamw.state.values())
        return held.Held(sum(_local(p).numel() for p in self.net.parameters()), held.moments(states))

    def due(self) -> held.Held:
        place = {"rank": self._worker.rank, "workers": self._worker.workers}
        learning = held.rows((size for size in self._sizes.values() if size.learns), **place)
        idle = held.rows(self._idle, **place)
        return held.Held(held.rows(self._sizes.values(), **place), held.MOMENTS * (learning - idle))

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        weights = {name: _local(p).contiguous() for name, p in self.net.named_parameters() if p.requires_grad}
        if self._worker.rank == 0:
            weights |= checkpoint.buffers(self.net)
        stored = self._adamw.state_dict()
        stored["state"] = {i: {k: _local(v) for k, v in state.items()} for i, state in stored["state"].items()}
        return weights, stored

    @torch.no_grad()
    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        places = {name: _local(p) for name, p in self.net.named_parameters() if p.requires_grad}
        checkpoint.copy(weights, places | checkpoint.buffers(self.net))
        parameters = [p for group in self._adamw.param_groups for p in group["params"]]
        optimizer["state"] = {
            i: {k: v if k == "step" else _like(v, parameters[i]) for k, v in state.items()}
            for i, state in optimizer["state"].items()
        }
        self._adamw.load_state_dict(optimizer)


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated blocks, as transformers names their classes. Not those with a weight that is used outside as well:
    FSDP wants a shared weight in one place, and the root is where all meet."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():  # beneath a wrapper such as peft's
        names |= set(getattr(module, "_no_split_modules", None) or ())
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found: list[torch.nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if type(module).__name__ in names and id(module) not in inside:
            if any(places[id(p)] > 1 for p in module.parameters()):
                continue
            found.append(module)
            inside |= {id(child) for child in module.modules()}
    return found


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _like(local: torch.Tensor, whole: DTensor) -> DTensor:
    """A worker's rows, as a tensor that is laid out over the workers as `whole` is."""
    mesh, placements = whole.device_mesh, whole.placements
    return DTensor.from_local(
        local.view(_local(whole).shape), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
