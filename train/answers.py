"""What a finished model answers to prepared rows: in this process, or as a Ray task where Ray is attached."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from cluster.errors import ClusterGone, InputError, RunFailed, ShoalError
from cluster.progress import Progress, silent
from train.tasks import trainer

_TELL_SECONDS = 0.5  # how often a portion of answers is handed over, and progress told


@dataclass(frozen=True)
class Answers:
    """`predictions` and `references`: int64 indices of classes, [rows]. `loss`: mean cross-entropy in nats, or None
    where the model gives no logits."""

    predictions: np.ndarray
    references: np.ndarray
    loss: float | None


@dataclass(frozen=True)
class _Portion:
    predictions: list[int]
    references: list[int]
    loss: float | None  # summed over the rows


def answers(
    task: str, folder: Path, file: Path, *, labels: list[str], batch_size: int, rows: int, progress: Progress = silent
) -> Answers:
    """Answers of the model in `folder` to all rows of a Parquet file, in their order; classes by place in `labels`.

    Raises InputError where the model cannot be opened or has other labels, RunFailed where it answers no numbers or
    memory runs out, ClusterGone where Ray goes away in the middle.
    """
    arguments = (task, folder, file, labels, batch_size)
    portions: list[_Portion] = []
    done = 0
    progress("evaluate", 0, rows)
    for portion in _by_ray(*arguments) if _ray_attached() else work(*arguments):
        portions.append(portion)
        done += len(portion.predictions)
        progress("evaluate", done, rows)
    losses = [portion.loss for portion in portions if portion.loss is not None]
    return Answers(
        np.array([value for portion in portions for value in portion.predictions], dtype=np.int64),
        np.array([value for portion in portions for value in portion.references], dtype=np.int64),
        sum(losses) / done if losses else None,
    )


def work(task: str, folder: Path, file: Path, labels: list[str], batch_size: int) -> Iterator[_Portion]:
    """Portions of answers, in the order of the rows."""
    method = trainer(task)
    step = _tabular(method, folder, labels) if hasattr(method, "predict") else _gradient(method, folder, labels)
    predictions: list[int] = []
    references: list[int] = []
    losses: list[float] = []
    told = time.monotonic()
    with parquet.ParquetFile(file) as rows:
        for batch in rows.iter_batches(batch_size):
            scores, loss = step(batch)
            if not np.isfinite(scores).all():
                raise RunFailed(
                    f"evaluate: the model in {folder} answers no numbers (NaN or infinite); its training diverged: "
                    "train again with a lower train.learning_rate"
                )
            predictions += scores.argmax(1).tolist()
            references += batch.column("label").to_pylist()
            losses += [] if loss is None else [loss]
            if time.monotonic() - told > _TELL_SECONDS:
                yield _Portion(predictions, references, sum(losses) if losses else None)
                predictions, references, losses, told = [], [], [], time.monotonic()
    yield _Portion(predictions, references, sum(losses) if losses else None)


def _gradient(method: Any, folder: Path, labels: list[str]) -> Any:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = method.load(folder).to(device).eval()
    order = _order([model.config.id2label[i] for i in range(len(model.config.id2label))], labels, folder)

    def step(batch: Any) -> tuple[np.ndarray, float]:
        with torch.inference_mode():
            tensors = {name: value.to(device) for name, value in method.collate(batch.to_pylist()).items()}
            truth = tensors.pop("labels")
            logits = model(**tensors).logits.float()[:, order]
            loss = torch.nn.functional.cross_entropy(logits, truth, reduction="sum")
        return logits.cpu().numpy(), float(loss)

    return step


def _tabular(method: Any, folder: Path, labels: list[str]) -> Any:
    method.load(folder)
    order = _order(method.labels, labels, folder)

    def step(batch: Any) -> tuple[np.ndarray, None]:
        return method.predict(batch.to_pandas())[:, order], None

    return step


def _order(of_model: Sequence[str], labels: list[str], folder: Path) -> list[int]:
    """For each label its place among the model's. Raises InputError where the two are not the same set."""
    place = {str(label): number for number, label in enumerate(of_model)}
    if set(place) != set(labels) or len(place) != len(of_model):
        shown = [
            ", ".join(map(repr, list(names)[:8])) + (", ..." if len(names) > 8 else "") for names in (place, labels)
        ]
        raise InputError(
            f"data: the model in {folder} tells {shown[0]} apart, the data has {shown[1]}; give the data it was "
            "trained for, or train it on these"
        )
    return [place[label] for label in labels]


def _ray_attached() -> bool:
    import sys

    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _on_worker(*arguments: Any) -> Iterator[_Portion]:
    import torch

    # Ray allows a task as many threads as it has CPUs, here one; the cores are its own while it runs.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield from work(*arguments)


def _by_ray(*arguments: Any) -> Iterator[_Portion]:
    """The same portions, made by a Ray task; Shoal's errors come out as themselves."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_on_worker)
    portions = remote.options(num_returns="streaming", name="evaluate").remote(*arguments)
    try:
        for reference in portions:
            yield ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ShoalError):
            raise error.cause from None
        hint = "; write a smaller evaluate.batch_size" if "out of memory" in str(error.cause).lower() else ""
        raise RunFailed(f"evaluate: {_first_line(error.cause)}{hint}") from error
    except OutOfMemoryError as error:
        raise RunFailed(
            f"evaluate: out of memory ({_first_line(error)}); write a smaller evaluate.batch_size"
        ) from None
    except RayError as error:
        raise ClusterGone(
            f"evaluate: the Ray cluster went away in the middle ({_first_line(error)}); run the command again"
        ) from None
    finally:
        if ray.is_initialized():
            ray.cancel(portions)  # of a task that has ended, nothing; of one that was interrupted, the rest


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
