"""What an optimizer step is: which parameters decay, the learning rate of every step, the arithmetic."""

from __future__ import annotations

import math
from typing import Any

import torch

from cluster.errors import InputError
from cluster.spec import Train


def learning_rate(step: int, total: int, train: Train) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`.

    It rises in a line over the first `warmup_ratio` of the steps, the first of them already above 0, and then falls to
    0 in a line or half a cosine, or stays. A function of the step alone, so that a resumed run needs no other state.
    """
    warmup = math.ceil(train.warmup_ratio * total)
    if step < warmup:
        return train.learning_rate * (step + 1) / (warmup + 1)
    left = (total - step) / max(1, total - warmup)
    match train.schedule:
        case "constant":
            return train.learning_rate
        case "linear":
            return train.learning_rate * left
        case "cosine":
            return train.learning_rate * (1 - math.cos(math.pi * left)) / 2


def optimizer(model: torch.nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the parameters that learn.

    Weight decay is for matrices: biases and the weights of normalisations have one dimension and are left alone.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=train.learning_rate, fused=True)


def set_rate(optimizer: Any, rate: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def arithmetic(train: Train, device: str) -> torch.dtype:
    """The type of forward and backward passes on `device` ("cpu", "cuda:0").

    Raises InputError for float16 without a GPU: kernels for its small range are made for GPUs only.
    """
    on_gpu = device.startswith("cuda")
    match train.precision:
        case "auto":
            return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
        case "float16" if not on_gpu:
            raise InputError("train.precision: float16 needs a GPU; write auto, float32 or bfloat16")
        case name:
            return getattr(torch, name)
