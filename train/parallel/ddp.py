"""Every worker has the whole model, gradients are averaged (torch's DistributedDataParallel); or one alone."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from cluster.spec import Train
from train import checkpoint, optim
from train.parallel import Worker, held


class Ddp:
    def __init__(self, model: torch.nn.Module, train: Train, worker: Worker, dtype: torch.dtype) -> None:
        self._sizes = held.sizes_of(model)
        self._worker, self._max_norm = worker, train.max_grad_norm
        self.net = self.judged = model.to(worker.device)
        self._idle = 0  # elements of what never had a gradient, and so has no moments
        self._adamw = optim.optimizer(model, train)
        self._scaler = torch.amp.GradScaler(worker.device.split(":")[0], enabled=dtype == torch.float16)
        self._alone: Any = contextlib.nullcontext
        # Unused parameters are looked for because many models have some. It also keeps the gradient buckets, and with
        # them the order of sums, as they were from the first step: otherwise a resumed run of 3 workers differs in the
        # last bit.
        if worker.workers > 1:
            self.net = torch.nn.parallel.DistributedDataParallel(
                model, find_unused_parameters=True, gradient_as_bucket_view=True, forward_sync_buffers=False
            )
            self._alone = self.net.no_sync

    def piece(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._alone()

    def backward(self, part: torch.Tensor) -> None:
        # DDP takes the mean over workers; each has a part of the sum.
        torch.autograd.backward(self._scaler.scale(part * self._worker.workers))

    def step(self, rate: float) -> float:
        optim.set_rate(self._adamw, rate)
        self._scaler.unscale_(self._adamw)
        norm = torch.nn.utils.clip_grad_norm_(self.judged.parameters(), self._max_norm or math.inf)
        self._scaler.step(self._adamw)
        self._scaler.update()
        self._idle = sum(p.numel() for p in self.judged.parameters() if p.requires_grad and p.grad is None)
        self._adamw.zero_grad(set_to_none=True)
        return norm.item()

    def held(self) -> held.Held:
        parameters = sum(p.numel() for p in self.judged.parameters())
        return held.Held(parameters, held.moments(self._adamw.state.values()))

    def due(self) -> held.Held:
        learning = held.whole(size for size in self._sizes.values() if size.learns)
        return held.Held(held.whole(self._sizes.values()), held.MOMENTS * (learning - self._idle))

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        if self._worker.rank > 0:
            return {}, {}
        optimizer = {"optimizer": self._adamw.state_dict(), "scaler": self._scaler.state_dict()}
        return checkpoint.learned(self.judged), optimizer

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        checkpoint.put(weights, self.judged)
        self._adamw.load_state_dict(optimizer["optimizer"])
        self._scaler.load_state_dict(optimizer["scaler"])
