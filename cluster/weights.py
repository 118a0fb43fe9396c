"""What a model folder holds, read from its files by hand: no torch, no unpickling, nothing in it is run.

The folder may come from anyone. A safetensors file is an 8-byte little-endian length, so many bytes of JSON that name
each tensor's type, shape and place, and the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InputError
from cluster.progress import Progress, silent

MAX_HEADER = 100_000_000
MAX_CONFIG = 20_000_000
CHUNK = 1 << 20
# What a model is made of, by file name; the same list is what is fetched from the Hub.
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
# A trainer leaves these pickles beside good weights; nothing loads them.
_NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "scaler.pt"}
_INDEX = "model.safetensors.index.json"
# Width in bits and torch's name of each safetensors type.
_DTYPES = {
    "BOOL": (8, "bool"),
    "F4": (4, "float4_e2m1fn"),
    "F6_E2M3": (6, "float6_e2m3fn"),
    "F6_E3M2": (6, "float6_e3m2fn"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "I16": (16, "int16"),
    "U16": (16, "uint16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I32": (32, "int32"),
    "U32": (32, "uint32"),
    "F32": (32, "float32"),
    "C64": (64, "complex64"),
    "F64": (64, "float64"),
    "I64": (64, "int64"),
    "U64": (64, "uint64"),
}


@dataclass(frozen=True)
class Weights:
    """A folder's weights: number of parameters, their bytes, the type most of them have (torch's name, such as
    float32), and the files they lie in (paths relative to the folder)."""

    parameters: int
    bytes: int
    dtype: str
    files: tuple[str, ...]


def inspect(folder: Path) -> Weights:
    """Read the headers of a model folder's safetensors files, and check them against the files' sizes.

    Raises InputError where the folder or its config.json is missing, where there are only pickles or no weights at
    all, and where a file is cut short or corrupt.
    """
    folder = Path(folder)
    read_config(folder)
    files = _weight_files(folder)
    if not files:
        raise InputError(_without_weights(folder))

    by_dtype: dict[str, int] = {}
    names: dict[str, set[str]] = {}
    total = 0
    for file in files:
        tensors, size = _header(folder / file)
        names[file] = {name for name, _, _ in tensors}
        total += size
        for _, dtype, count in tensors:
            by_dtype[dtype] = by_dtype.get(dtype, 0) + count
    if files != ["model.safetensors"] and (folder / _INDEX).is_file():
        for tensor, file in _weight_map(folder).items():
            if tensor not in names[file]:
                raise InputError(
                    f"{folder / _INDEX}: {tensor} should lie in {file}, which has no such tensor; {_AGAIN}"
                )

    dtype = max(by_dtype, key=lambda name: by_dtype[name]) if by_dtype else "F32"
    return Weights(sum(by_dtype.values()), total, _DTYPES[dtype][1], tuple(files))


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json. Raises InputError where the folder or the file is missing or is no JSON object."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; name a model folder (with config.json and model.safetensors in it)")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: no config.json in it, so no Hugging Face model folder; save_pretrained() writes one"
        )
    return _json_object(folder / "config.json")


def digest(folder: Path, progress: Progress = silent) -> str:
    """SHA-256 (hex) over names and bytes of a folder's configuration, tokenizer and weights.

    Other files (a README, a log, a trainer's pickles) do not count. Raises InputError where a file cannot be read.
    """
    folder = Path(folder)
    files = sorted(model_files(folder))
    if not files:
        raise InputError(f"{folder}: no model files in it")
    whole, done = hashlib.sha256(), 0
    try:
        total = sum((folder / file).stat().st_size for file in files)
        for file in files:
            # The size closes each name off, so that no two folders give the same stream.
            whole.update(f"{file}\0{(folder / file).stat().st_size}\0".encode("utf-8", "surrogateescape"))
            with (folder / file).open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    whole.update(chunk)
                    done += len(chunk)
                    progress("digest", done, total, file)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    return whole.hexdigest()


_AGAIN = "fetch or save it again"


def model_files(folder: Path) -> Iterator[str]:
    """Paths, relative to the folder, of everything that makes up the model. Hidden folders are caches."""
    suffixes = tuple(pattern.removeprefix("*") for pattern in (*PATTERNS, "*.skops"))
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = Path(place, file)
            if file.endswith(suffixes) and not file.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


def _weight_files(folder: Path) -> list[str]:
    """The files transformers would load, in its order: one file, else an index's shards, else whatever there is."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if (folder / _INDEX).is_file():
        return sorted(set(_weight_map(folder).values()))
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to file name, from the index; every file is checked to be one in this folder."""
    index = folder / _INDEX
    mapping = _json_object(index, limit=MAX_HEADER).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(file, str) for file in mapping.values()):
        raise InputError(f"{index}: no weight_map of tensors to files in it; {_AGAIN}")
    for file in sorted(set(mapping.values())):
        # The name itself may lead nowhere else. What it names may be a link out: the Hub's cache is made of those.
        if "\0" in file or Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(f"{index}: {file!r} is no safetensors file beside it; refused")
        if not (folder / file).is_file():
            raise InputError(f"{index}: {file} is missing; {_AGAIN}")
    return mapping


def _without_weights(folder: Path) -> str:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    pickles = sorted(name for name in names - _NO_WEIGHTS if Path(name).suffix in _PICKLES)
    if pickles:
        return (
            f"{folder}: only pickled weights ({', '.join(pickles[:3])}), which can run code when they are loaded; "
            "convert to safetensors where you trust them: model.save_pretrained(folder), or the Hub's "
            "safetensors/convert"
        )
    return f"{folder}: no weights in it; a model folder holds model.safetensors (or its shards and their index)"


def _json_object(path: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path}: {path.stat().st_size} bytes; {limit} at most")
        value = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON; {_AGAIN}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; {_AGAIN}")
    return value


def _header(path: Path) -> tuple[list[tuple[str, str, int]], int]:
    """A file's tensors as (name, type, number of elements), and the bytes they take. Every number is checked."""

    def corrupt(why: str) -> InputError:
        return InputError(f"{path}: not a whole safetensors file: {why}; {_AGAIN}")

    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 10:
                raise corrupt(f"{size} bytes, too few for a header")
            if length > MAX_HEADER:
                raise corrupt(f"its header claims {length} bytes, {MAX_HEADER} at most")
            if length > size - 8:
                raise corrupt(f"cut short within its header of {length} bytes")
            raw = stream.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise corrupt(f"its header is no JSON ({str(error)[:80]})") from None
    if not isinstance(header, dict):
        raise corrupt("its header is no JSON object")
    header.pop("__metadata__", None)

    data = size - 8 - length
    tensors, spans = [], []
    for name, entry in header.items():
        count, begin, end = _tensor(entry, data) or (-1, 0, 0)
        if count < 0:
            raise corrupt(f"tensor {name[:80]!r} has an impossible type, shape or place")
        tensors.append((name, entry["dtype"], count))
        spans.append((begin, end))
    # Tensors follow one another without holes or overlaps, to the last byte.
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise corrupt("its tensors overlap or leave holes")
        place = end
    if place > data:
        raise corrupt(f"{place - data} of its {place} bytes of tensors are missing")
    if place < data:
        raise corrupt(f"{data - place} bytes too many")
    return tensors, data


def _tensor(entry: Any, data: int) -> tuple[int, int, int] | None:
    """Elements, begin and end of a header's entry; None where its numbers cannot be."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _DTYPES:
        return None
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return None
    if any(type(number) is not int or number < 0 for number in (*shape, *offsets)):
        return None
    begin, end = offsets
    count = 0 if 0 in shape else 1
    for dimension in shape if count else ():
        count *= dimension
        # A file cut short is told apart later; numbers no file could hold are refused before they grow.
        if count > max(data, end) * 8:
            return None
    bits = count * _DTYPES[entry["dtype"]][0]
    return (count, begin, end) if bits % 8 == 0 and begin + bits // 8 == end else None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) != len(pairs):
        raise ValueError("a name stands twice")
    return whole
