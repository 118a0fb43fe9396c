"""Adapters (LoRA, as peft saves them) in a folder that may come from anyone: checked before vLLM sees one.

vLLM falls back to pickles where there is no safetensors file, to the Hub where there is no folder, and takes patterns
of module names as regular expressions. None of that is reached from here on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import weights
from cluster.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_BYTES = 4 << 30
_MAX_CONFIG = 1 << 20
_MAX_NAMES = 256
# Keys of peft's that change what is computed in a way that vLLM does not follow; each with the value that does not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "fan_in_fan_out": (False, None),
}


@dataclass(frozen=True)
class Adapter:
    """An adapter that was checked: its rank, and shapes of its matrices by module: (A's inputs, B's outputs)."""

    folder: Path
    rank: int
    shapes: dict[str, tuple[int, int]]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def inspect(folder: Path, *, max_rank: int) -> Adapter:
    """Read an adapter's configuration and the header of its weights. Raises InputError where anything is not sound."""
    config = _config(folder / CONFIG)
    for key, plain in _PLAIN.items():
        if config.get(key, plain[-1]) not in plain:
            raise InputError(
                f"{folder / CONFIG}: {key}: {config[key]!r:.80} is not served; train a plain LoRA ({key}: {plain[0]!r})"
            )
    rank, targets = config.get("r"), config.get("target_modules")
    if type(rank) is not int or rank < 1:
        raise InputError(f"{folder / CONFIG}: r: {rank!r:.80} is no rank; save the adapter again with peft")
    if rank > max_rank:
        raise InputError(
            f"{folder / CONFIG}: r: {rank} is more than serve.llm.max_lora_rank: {max_rank} of the engine; raise that "
            "in the file of the base, or lower train.lora.rank"
        )
    if not isinstance(targets, list) or not 0 < len(targets) <= _MAX_NAMES or not all(map(_name, targets)):
        raise InputError(f"{folder / CONFIG}: target_modules: {targets!r:.80}; write a list of module names")
    return Adapter(folder, rank, _shapes(folder / WEIGHTS, rank))


def check_fit(adapter: Adapter, base: Path) -> None:
    """Refuse an adapter that was made for another model. Raises InputError, naming the first matrix that does not fit.

    Each adapted module must be in the base, with as many inputs and outputs. Modules are found by the end of their
    name: peft puts prefixes of its own before it.
    """
    found = {name.removesuffix(".weight"): shape for name, shape in _base_shapes(base).items()}
    for module, (inputs, outputs) in adapter.shapes.items():
        name = module.removeprefix("base_model.model.")
        shape = found.get(name, found.get(name.removeprefix("model.")))
        if shape != (outputs, inputs):
            has = f"has {'x'.join(map(str, shape))}" if shape else "has no such weight"
            raise InputError(
                f"{adapter.folder}: the adapter was made for another model: {name[:120]} wants {outputs}x{inputs}, "
                f"and {base} {has}; serve it on the model it was trained from"
            )


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.replace("_", "").replace(".", "").isalnum()


def _config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG + 1)
        value = json.loads(content.decode("utf-8")) if len(content) <= _MAX_CONFIG else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; an adapter's folder holds it") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: no JSON object of {_MAX_CONFIG >> 20} MiB at most; save the adapter again with peft")
    return value


def _shapes(path: Path, rank: int) -> dict[str, tuple[int, int]]:
    if not path.is_file():
        raise InputError(
            f"{path.parent}: no {WEIGHTS} in it (pickles are never loaded); peft's save_pretrained() writes one"
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes; {MAX_BYTES} at most for an adapter")
    sides: dict[str, dict[str, int]] = {}
    for name, shape in header_shapes(path).items():
        module, _, end = name.rpartition(".lora_")
        if not module or end not in ("A.weight", "B.weight") or len(shape) != 2:
            raise InputError(f"{path}: {name[:120]!r} is no matrix of a plain LoRA; save the adapter again with peft")
        inner, outer = shape if end == "A.weight" else reversed(shape)
        if inner != rank:
            raise InputError(f"{path}: {name[:120]!r} has rank {inner}, and {CONFIG} says r: {rank}")
        sides.setdefault(module, {})[end[0]] = outer
    for module, pair in sides.items():
        if len(pair) != 2:
            raise InputError(f"{path}: {module[:120]!r} has one of its two matrices only; save the adapter again")
    if not sides:
        raise InputError(f"{path}: no weights in it; save the adapter again with peft")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in weights.inspect(folder).files:
        found |= header_shapes(folder / file)
    return found


def header_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name to shape of each tensor in a safetensors file, by the library that will load them; it checks the header
    against the file. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {str(error)[:120]}; save it again") from None
