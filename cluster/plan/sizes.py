"""Memory of training, by part. Estimates: good to a factor of about two, meant to tell "fits" from "never will"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Python with torch, transformers and Ray loaded, measured as resident memory on Linux, CPU build.
PROCESS = 600 << 20
FLOAT32 = 4


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


def activations(shape: Shape, *, rows: int, tokens: int, half: bool) -> int:
    """Bytes kept for the backward pass of one forward pass: layers * s * b * h * (34 + 5 a s / h) in 16 bit, twice
    that in float32 (Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, eq. 2)."""
    layer = tokens * rows * (34 * shape.hidden + 5 * shape.heads * tokens)
    return shape.layers * layer * (1 if half else 2)


def training(count: int, *, workers: int, half: bool, kept: int | None) -> dict[str, int]:
    """Bytes a worker needs, by part: float32 weights and gradients, AdamW's two moments, activations, the process."""
    parts = {"weights": count * FLOAT32, "gradients": count * FLOAT32, "optimizer": 2 * count * FLOAT32}
    if half:
        parts["16-bit copies"] = count * 2
    if workers > 1:
        parts["all-reduce"] = count * FLOAT32  # DDP's buckets
    if kept is not None:
        parts["activations"] = kept
    return {**parts, "process": PROCESS}
