"""How workers share a model: one small class a strategy, which the loop asks for all that differs between them.

A strategy takes the model that every worker has whole, keeps its share, and says how many elements that is. What a
worker should keep is worked out beforehand from the model's shapes alone (`train.parallel.held`); where the two differ
the run ends: a library that quietly shares nothing would only be noticed by memory running out.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch

from cluster.spec import Train
from train.parallel.held import Held, check

__all__ = ["Held", "Strategy", "Worker", "check", "everyone", "name_of", "process_group", "start"]


class Worker(Protocol):
    """Which of the workers this is, and its device ("cpu", "cuda:0")."""

    rank: int
    workers: int
    device: str


class Strategy(Protocol):
    """A model, its optimizer and what of both lies here. All workers call every method together."""

    net: torch.nn.Module
    """What training batches go through, on every worker equally often."""
    judged: torch.nn.Module
    """What validation batches go through, on every worker equally often."""

    def piece(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around one forward and backward pass; the last one of a step exchanges what the others left."""
        ...

    def backward(self, part: torch.Tensor) -> None:
        """Add the gradient of this worker's part of the loss; the loss is the sum of all parts of all workers."""
        ...

    def step(self, rate: float) -> float:
        """Clip, step with learning rate `rate`, and forget the gradient. Returns its norm before clipping."""
        ...

    def held(self) -> Held:
        """The elements that lie here, counted."""
        ...

    def due(self) -> Held:
        """The elements that should, by the shapes of the model as it was whole."""
        ...

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What of learning weights and optimizer this worker has to store; empty where another one stores the same."""
        ...

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        ...


def start(model: torch.nn.Module, train: Train, worker: Worker, dtype: torch.dtype) -> Strategy:
    """Share `model`, whole and in the host's memory, as `train.parallel` says; `dtype` is that of the arithmetic.

    Raises InputError where the model cannot be shared so, RunFailed where a worker keeps another share than is due.
    """
    # Said by torch, at every exchange, of names that its own FSDP and DeepSpeed still use.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    match train.parallel:
        case "fsdp":
            from train.parallel.fsdp import Fsdp as chosen
        case "deepspeed":
            from train.parallel.deepspeed import Zero as chosen
        case _:  # "auto" was settled where the run began; a loop without one has a whole model
            from train.parallel.ddp import Ddp as chosen
    return chosen(model, train, worker, dtype)


def name_of(train: Train) -> str:
    """The strategy in a word: ddp, fsdp, zero1, zero2, zero3."""
    return (
        f"zero{train.deepspeed.zero_stage}" if train.parallel == "deepspeed" else train.parallel.replace("auto", "ddp")
    )


def process_group(device: str) -> None:
    """See to a process group where there is none: a single worker, whom nobody gave one."""
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.startswith("cuda") else "gloo"
        # A store in this process alone: no port is opened.
        store = cast(Any, torch.distributed).HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def everyone(value: Any, workers: int) -> list[Any]:
    """`value` of each worker, by rank; plain Python values."""
    values = [value] * workers
    if workers > 1:
        torch.distributed.all_gather_object(values, value)
    return values
