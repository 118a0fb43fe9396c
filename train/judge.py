"""A finished model's answers to prepared rows, judged: in this process, or in a Ray task where Ray is attached.

The metrics are computed where the answers are: `evaluate` and scikit-learn take seconds to import, and the driver has
no other use for them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from cluster.errors import ClusterGone, InputError, RunFailed, ShoalError
from cluster.progress import Progress, silent
from cluster.spec import Train
from train.metrics import make
from train.tasks import trainer

_TELL_SECONDS = 0.5


@dataclass(frozen=True)
class Question:
    """The model in `folder` and the Parquet file it is judged by; `labels` are the classes of its `label` column. A
    language model is judged as `train` says (max_length, precision), beside the one in `base`, where that is given."""

    task: str
    folder: Path
    file: Path
    labels: list[str]
    metrics: list[str]
    batch_size: int
    train: Train = field(default_factory=Train)
    base: Path | None = None


@dataclass(frozen=True)
class Judged:
    """`metrics` by name, with `loss` (mean cross-entropy in nats) where the model gives logits; `per_class`: a list
    over classes of each of precision, recall, f1 and support; `confusion`: rows of class i said to be class j; both
    empty where there are no classes."""

    rows: int
    metrics: dict[str, float]
    per_class: dict[str, list[float]]
    confusion: list[list[int]]


def judge(question: Question, *, rows: int, progress: Progress = silent) -> Judged:
    """Judge a model; `rows` is how many the file has.

    Raises InputError where the model cannot be opened or has other labels, RunFailed where it answers no numbers or
    memory runs out, ClusterGone where Ray goes away in the middle.
    """
    progress("evaluate", 0, rows)
    for told in _by_ray(question) if _ray_attached() else work(question):
        if isinstance(told, Judged):
            progress("evaluate", rows, rows)
            return told
        progress("evaluate", told, rows)
    raise AssertionError("the work ends with what was judged")


def work(question: Question) -> Iterator[int | Judged]:
    """Now and then the number of rows done, and at the end what was judged."""
    method = trainer(question.task)
    if hasattr(method, "targets"):
        yield from _written(method, question)
        return
    opened = _tabular if hasattr(method, "predict") else _gradient
    step = opened(method, question.folder, question.labels)

    # Answers.
    predictions: list[int] = []
    references: list[int] = []
    losses: list[float] = []
    told = time.monotonic()
    with parquet.ParquetFile(question.file) as rows:
        for batch in rows.iter_batches(question.batch_size):
            scores, loss = step(batch)
            if not np.isfinite(scores).all():
                raise RunFailed(
                    f"evaluate: the model in {question.folder} answers no numbers (NaN or infinite); its training "
                    "diverged: train again with a lower train.learning_rate"
                )
            predictions += scores.argmax(1).tolist()
            references += batch.column("label").to_pylist()
            losses += [] if loss is None else [loss]
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                yield len(predictions)

    # Metrics.
    pairs = {"predictions": predictions, "references": references}
    size = len(question.labels)
    with tempfile.TemporaryDirectory(prefix="shoal-") as cache:
        metrics = {name: float(make(name, Path(cache)).compute(**pairs)[name]) for name in question.metrics}
        per_class = make("per_class", Path(cache)).compute(**pairs, num_classes=size)
        counts = make("confusion", Path(cache)).compute(**pairs, num_classes=size)["confusion"]
    if losses:
        metrics["loss"] = sum(losses) / len(references)
    yield Judged(len(references), metrics, per_class, counts)


def _written(method: Any, question: Question) -> Iterator[int | Judged]:
    """A language model, by how likely it finds what it should have written."""
    from train.likelihood import measure
    from train.objective import perplexity

    nll, tokens, before = yield from measure(method, question)
    with tempfile.TemporaryDirectory(prefix="shoal-") as cache:
        pairs = {"predictions": nll, "references": tokens}
        metrics = {name: float(make(name, Path(cache)).compute(**pairs)[name]) for name in question.metrics}
    metrics["loss"] = sum(nll) / sum(tokens)
    if before is not None:
        metrics["base_perplexity"] = perplexity(before)
    yield Judged(len(nll), metrics, {}, [])


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
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _on_worker(question: Question) -> Iterator[int | Judged]:
    if not hasattr(trainer(question.task), "predict"):
        import torch

        # Ray allows a task as many threads as it has CPUs, here one; the cores are its own while it runs.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield from work(question)


def _by_ray(question: Question) -> Iterator[int | Judged]:
    """The same, made by a Ray task; Shoal's errors come out as themselves."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(_on_worker)
    told: Any = remote.options(num_returns="streaming", name="evaluate").remote(question)
    try:
        for reference in told:
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
            ray.cancel(told)  # of a task that has ended, nothing; of one that was interrupted, the rest


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
