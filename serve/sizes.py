"""What a model will compute in and how much memory its weights will take, read from its files: no torch."""

from __future__ import annotations

from pathlib import Path

from cluster import weights

_STORED = ("bfloat16", "float16")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def arithmetic(stored: str, *, device: str, dtype: str) -> str:
    """The name of torch's type for weights stored in the type `stored`; `dtype` is serve.dtype. auto changes no answer
    by much: CPUs compute in float32, GPUs in the type that the model was published in."""
    if dtype != "auto":
        return dtype
    return stored if device != "cpu" and stored in _STORED else "float32"


def weight_of(folder: Path, *, device: str, dtype: str) -> int:
    """Bytes of a model's weights once it is loaded. Raises InputError where the folder holds no sound weights."""
    if (file := folder / "model.skops").is_file():
        return file.stat().st_size
    found = weights.inspect(folder)
    return found.parameters * _BYTES[arithmetic(found.dtype, device=device, dtype=dtype)]
