"""A Hugging Face model ready for forward passes: in which arithmetic, how many bytes, and on CPUs as fast as they go.

torch computes float32 layers on CPUs with Intel's MKL, which takes the slow road on other makers' processors: on a core
of Zen 5 a BERT's layers run at 110 GFLOP/s with it and at 255 with oneDNN, which torch has as well. So linear layers
are handed to oneDNN where a trial shows that the model gets faster and its answers stay what they were.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from cluster import weights
from serve.sizes import arithmetic

log = logging.getLogger("ray.serve")
# While a model is tried out both ways, its weights are there twice.
MOST_BYTES = 2 << 30
# Two orders of adding up float32 products differ by less than this, as a share of the largest answer.
_SAME = 1e-5
_TRIALS = 3
# glibc's numbers for mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def load(kind: Any, folder: Path, *, device: str, dtype: str) -> Any:
    """The model of a folder, by a transformers Auto class, in eval mode on its device. `dtype` is serve.dtype. Raises
    InputError where the folder holds no sound safetensors weights; nothing in it is run."""
    stored = weights.inspect(folder).dtype
    with _Unfilled():
        model = kind.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=getattr(torch, arithmetic(stored, device=device, dtype=dtype)),
            trust_remote_code=False,
            local_files_only=True,
        )
    keep_freed_memory()
    return model.to(device).eval()


def size(model: Any) -> int:
    """Bytes of a model's weights and buffers."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def quicken(model: Any, answer: Callable[[], np.ndarray]) -> bool:
    """Hand a CPU model's linear layers to oneDNN, if that is faster and `answer`, a pass over the model, stays the
    same. Whether it was done. float16 is left alone: few CPUs have it."""
    linears = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    if not linears or size(model) > MOST_BYTES:
        return False
    first = next(iter(linears.values())).weight
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.bfloat16):
        return False
    before, plain = _timed(answer)
    try:
        packed = {name: Packed(module) for name, module in linears.items()}
        _put(model, packed)
        after, quick = _timed(answer)
        # bfloat16 keeps 8 bits of a number.
        near = _SAME if first.dtype == torch.float32 else 2**-7
        if quick < 0.95 * plain and np.abs(after - before).max() <= near * max(np.abs(before).max(), 1):
            return True
    except Exception:
        # Some models reach into their layers' weights, which are in oneDNN's own order now.
        log.info("linear layers stay with torch", exc_info=True)
    _put(model, linears)
    return False


class Packed(torch.nn.Module):
    """A linear layer computed by oneDNN, its weights laid out as that wants them. By the two operators to which torch's
    own compiler (inductor, with freezing) turns linear layers on CPUs; they have no public name."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()))
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class _Unfilled(TorchFunctionMode):
    """Weights that have no storage yet are not filled with random numbers. It changes nothing, and for such tensors
    torch imports its compiler to do it, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            tensor = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def keep_freed_memory() -> None:
    """Have glibc keep what a pass frees for the next one: given back to the system and taken again, page by page, it
    costs a fifth of a small model's time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, 256 << 20)


def _put(model: Any, layers: dict[str, Any]) -> None:
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)


def _timed(answer: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """An answer and the seconds of the quickest of a few passes."""
    best = float("inf")
    value = answer()
    for _ in range(_TRIALS):
        began = time.perf_counter()
        value = answer()
        best = min(best, time.perf_counter() - began)
    return value, best
