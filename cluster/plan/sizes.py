"""Memory of training, by part. Estimates: good to a factor of about two, meant to tell "fits" from "never will"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.spec import Train

# Python with torch, transformers and Ray loaded, measured as resident memory on Linux, CPU build.
PROCESS = 600 << 20
FLOAT32 = 4
# Elements that DeepSpeed exchanges at a time, as train.parallel.deepspeed sets it.
BUCKET = 50_000_000
# What in the name of a linear module says that it is one of the feed-forward.
_WIDE = ("gate", "up_proj", "down_proj", "fc", "mlp", "lin1", "lin2", "intermediate", "w1", "w2", "w3")


@dataclass(frozen=True)
class Shape:
    """What of a transformer's configuration decides its memory."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    tokens: int | None  # the most it can take in (text), or what a picture is cut into


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Read a config.json under the names that the architectures use; None where it is no plain transformer."""

    def first(*names: str) -> int | None:
        found = (config.get(name) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), None)

    hidden = first("hidden_size", "n_embd", "d_model", "dim")
    layers = first("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads = first("num_attention_heads", "n_head", "n_heads", "num_heads")
    if hidden is None or layers is None or heads is None:
        return None
    intermediate = first("intermediate_size", "hidden_dim", "n_inner", "d_ff", "ffn_dim") or 4 * hidden
    side, patch = first("image_size"), first("patch_size")
    tokens = (side // patch) ** 2 + 1 if side and patch else first("max_position_embeddings", "n_positions")
    return Shape(hidden, layers, heads, intermediate, first("vocab_size") or 0, tokens)


def parameters(shape: Shape) -> int:
    """About how many parameters a plain encoder of this shape has: embeddings, attention, feed-forward."""
    embeddings = (shape.vocabulary + (shape.tokens or 0)) * shape.hidden
    return embeddings + shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)


def together(shape: Shape) -> int:
    """Parameters that are whole at one time where workers share the weights: embeddings, and two layers."""
    layer = 4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate
    return (shape.vocabulary + (shape.tokens or 0)) * shape.hidden + 2 * layer


def activations(shape: Shape, *, rows: int, tokens: int, half: bool) -> int:
    """Bytes kept for the backward pass of one forward pass: layers * s * b * h * (34 + 5 a s / h) in 16 bit, twice
    that in float32 (Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, eq. 2)."""
    layer = tokens * rows * (34 * shape.hidden + 5 * shape.heads * tokens)
    return shape.layers * layer * (1 if half else 2)


def adapters(shape: Shape, *, rank: int, targets: Sequence[str]) -> int:
    """About how many parameters LoRA adds: rank * (in + out) for each adapted weight of each layer.

    By the shape alone: attention's four weights are taken as hidden x hidden (grouped heads have fewer columns), the
    feed-forward's as hidden x intermediate, with a gate where all are adapted. So the estimate errs to the high side.
    """
    square, wide = 2 * shape.hidden, shape.hidden + shape.intermediate
    if not targets:
        return shape.layers * rank * (4 * square + 3 * wide)
    return shape.layers * rank * sum(wide if any(part in name for part in _WIDE) else square for name in targets)


def training(
    count: int,
    *,
    learning: int,
    train: Train,
    parallel: str,
    half: bool,
    kept: int | None,
    together: int | None,
) -> dict[str, int]:
    """Bytes a worker needs, by part, under `parallel` (ddp, fsdp, deepspeed).

    `count` parameters of which `learning` learn: float32 weights and gradients, AdamW's two moments, activations
    (`kept` bytes), the process. `together`: parameters that are whole at one time where weights are shared (the largest
    parts of the model beside each other); None: all of them.
    """
    ways, width = train.workers, 2 if half else FLOAT32
    together = count if together is None else min(count, together)
    parts: dict[str, int] = {}
    if parallel == "ddp":
        parts |= {"weights": count * FLOAT32, "gradients": learning * FLOAT32, "optimizer": 2 * learning * FLOAT32}
        if half:
            parts["16-bit copies"] = count * 2
        if ways > 1:
            parts["all-reduce"] = learning * FLOAT32  # DDP's buckets
    elif parallel == "fsdp":
        parts |= {"weights": _share(count, ways) * FLOAT32, "gradients": _share(learning, ways) * FLOAT32}
        parts |= {"optimizer": 2 * _share(learning, ways) * FLOAT32, "put together": 2 * together * width}
    else:
        # DeepSpeed computes with 16-bit weights where the arithmetic is 16-bit, and keeps float32 ones beside them.
        stage = train.deepspeed.zero_stage
        parts["weights"] = (_share(count, ways) if stage == 3 else count) * width
        parts["gradients"] = (learning if stage == 1 else _share(learning, ways)) * width
        host = " on the host" if train.deepspeed.offload == "cpu" else ""
        parts[f"optimizer{host}"] = 2 * _share(learning, ways) * FLOAT32
        parts[f"float32 weights{host}"] = _share(learning, ways) * FLOAT32
        parts["put together"] = (together if stage == 3 else 0) * width + 2 * min(learning, BUCKET) * width
    if kept is not None:
        parts["activations"] = kept
    return {**parts, "process": PROCESS}


def _share(count: int, ways: int) -> int:
    return -(-count // ways)
