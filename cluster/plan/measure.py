"""The numbers of a plan: sizes of model and data by their files, and what training and serving make of them."""

from __future__ import annotations

import math
from pathlib import Path

from cluster import weights
from cluster.plan import sizes
from cluster.plan.rows import Counted, count
from cluster.spec import Spec, Train
from cluster.tasks.row import Task

SPLITS = ("train", "validation", "test")
# Two checkpoints are kept while a third is written, each weights and AdamW's two moments; then the model, in the run's
# folder and in the registry.
CHECKPOINTS = 3
MODEL_COPIES = 2


def model(spec: Spec, notes: list[str]) -> tuple[int | None, sizes.Shape | None, int | None]:
    """Parameters, shape and bytes on disk of a local model; None for what is not known before it is fetched."""
    ref = spec.model_ref()
    if ref.kind == "hub":
        notes.append("the model is on the Hub: its size is known once it is downloaded")
    if ref.kind == "registry":
        notes.append("the model is in the registry: its size is known once it is looked up")
    return at(ref.path, spec, notes) if ref.path is not None else (None, None, None)


def at(folder: Path, spec: Spec, notes: list[str]) -> tuple[int | None, sizes.Shape | None, int | None]:
    """The same of the model in a folder."""
    config = weights.read_config(folder)
    shape = sizes.shape_of(config)
    if spec.data.train is not None and spec.train.from_scratch and not any(folder.glob("*.safetensors")):
        notes.append("the model has no weights: parameters are estimated from its configuration")
        return sizes.parameters(shape) if shape else None, shape, None
    if isinstance(config.get("shoal"), dict):  # scikit-learn's, saved through skops
        return None, None, sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    found = weights.inspect(folder)
    return found.parameters, shape, found.bytes


def data(spec: Spec, notes: list[str]) -> dict[str, Counted]:
    """The rows and bytes of each split that the file gives. Raises InputError where one is missing or empty."""
    counted = {}
    for split in SPLITS:
        ref = spec.data_ref(split)
        if ref is not None:
            counted[split] = count(ref, key=f"data.{split}")
            if ref.kind == "hub":
                notes.append(f"data.{split} is on the Hub: its size is known once it is downloaded")
            elif not counted[split].exact:
                notes.append(f"data.{split} is too large to count here, or one list: rows are projected where given")
    return counted


def split(spec: Spec, counted: dict[str, Counted]) -> dict[str, int | None]:
    """Rows of each split, a validation split made of the training rows where none is given."""
    rows = {name: one.rows for name, one in counted.items()}
    whole = rows.get("train")
    if whole is not None and "validation" not in rows:
        held_out = round(whole * spec.data.validation_split)
        rows = {"train": whole - held_out, "validation": held_out, **{k: v for k, v in rows.items() if k != "train"}}
    return rows


def learning(spec: Spec, parameters: int, shape: sizes.Shape | None, notes: list[str]) -> int:
    """Parameters that learn: all, or those of the adapters."""
    lora = spec.train.lora
    if lora is None:
        return parameters
    if shape is None:
        notes.append("the adapters' size is not estimated: the model is no plain transformer")
        return 0
    notes.append("the adapters' size is estimated from the model's configuration")
    return sizes.adapters(shape, rank=lora.rank, targets=lora.target_modules)


def training(
    spec: Spec, row: Task, parameters: int, shape: sizes.Shape | None, gpus: int, notes: list[str], parallel: str
) -> dict[str, int]:
    """Bytes a worker needs while it trains under `parallel`, by part."""
    train = spec.train
    half = train.precision in ("bfloat16", "float16") or (train.precision == "auto" and gpus > 0)
    learns = learning(spec, parameters, shape, notes)
    count = parameters + learns if train.lora else parameters
    kept = together = None
    tokens = shape.tokens if shape else None
    if row.modality == "text":
        tokens = min(train.max_length, tokens) if tokens else train.max_length
    if shape is None or tokens is None:
        notes.append("activations are not estimated: the model is no plain transformer")
    else:
        kept = sizes.activations(shape, rows=rows_per_pass(train), tokens=tokens, half=half)
        together = sizes.together(shape)
    return sizes.training(
        count, learning=learns, train=train, parallel=parallel, half=half, kept=kept, together=together
    )


def rows_per_pass(train: Train) -> int:
    """Rows of a worker's forward pass."""
    return math.ceil(train.batch_size / (train.workers * train.gradient_accumulation_steps))


def replica(parameters: int | None, stored: int | None, trains: bool) -> int | None:
    """Bytes a serving copy needs: the process and the weights, float32 where they were trained here."""
    if trains and parameters is not None:
        return parameters * sizes.FLOAT32 + sizes.PROCESS
    return stored + sizes.PROCESS if stored is not None else None


def disk(parameters: int | None, counted: dict[str, Counted]) -> int | None:
    """Bytes that training writes under $SHOAL_HOME: prepared data, checkpoints, the model in run and registry."""
    if parameters is None:
        return None
    model_bytes = parameters * sizes.FLOAT32
    return (total(counted) or 0) + CHECKPOINTS * 3 * model_bytes + MODEL_COPIES * model_bytes


def total(counted: dict[str, Counted]) -> int | None:
    """Bytes of all data on disk; None where none is known."""
    known = [one.bytes for one in counted.values() if one.bytes is not None]
    return sum(known) if known else None
