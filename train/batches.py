"""Which rows an optimizer step sees, and how workers share them.

Everything is a function of (seed, step): a resumed run, and a run with another number of workers, sees the same rows
in the same steps. No random state is ever stored.
"""

from __future__ import annotations

import functools
import itertools
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as parquet

Item = TypeVar("Item")


class Rows:
    """The rows of one split: `labels` (int64, [rows]; empty where rows have no class) at hand, the rest on demand."""

    def __init__(self, file: Path) -> None:
        self._table = parquet.read_table(file, memory_map=True)
        labelled = "label" in self._table.column_names
        self.labels: np.ndarray = self._table.column("label").to_numpy() if labelled else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return self._table.num_rows

    def take(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Rows as dicts of columns."""
        return self._table.take(indices).to_pylist()


def steps_of(rows: int, *, batch_size: int, epochs: float, checkpoints_per_epoch: int) -> tuple[int, int, set[int]]:
    """Steps an epoch, steps in all (at least 1), and the numbers of finished steps after which to validate."""
    per_epoch = math.ceil(rows / batch_size)
    total = max(1, math.ceil(epochs * per_epoch - 1e-9))
    marks = (math.ceil(mark * per_epoch / checkpoints_per_epoch) for mark in itertools.count(1))
    return per_epoch, total, {*itertools.takewhile(lambda mark: mark < total, marks), total}


def batch_of(step: int, *, rows: int, batch_size: int, seed: int) -> np.ndarray:
    """Row numbers of global batch `step` (from 0): the next `batch_size` of the epoch's own permutation.

    The last batch of an epoch may be shorter, so that an epoch is every row once.
    """
    per_epoch = math.ceil(rows / batch_size)
    epoch, place = divmod(step, per_epoch)
    return _order(rows, seed, epoch)[place * batch_size : (place + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)


def share(batch: np.ndarray, *, rank: int, workers: int, pieces: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Worker `rank`'s part of a global batch, as `pieces` forward passes of one size: (row numbers, real or padding).

    Where the batch does not divide, row 0 of the batch fills up, marked False: it weighs nothing in the loss, so the
    gradient is the whole batch's, exactly.
    """
    size = math.ceil(len(batch) / (workers * pieces))
    padded = np.full(size * workers * pieces, batch[0], dtype=batch.dtype)
    padded[: len(batch)] = batch
    real = np.arange(len(padded)) < len(batch)
    first = rank * pieces
    cuts = [slice(piece * size, (piece + 1) * size) for piece in range(first, first + pieces)]
    return [(padded[cut], real[cut]) for cut in cuts]


def in_turn(rows: int, *, batch_size: int, rank: int, workers: int) -> list[tuple[np.ndarray, float]]:
    """Worker `rank`'s batches of `rows` rows that are gone through once: (row numbers, 1), in turn with the others.

    Every worker has as many, for where a model lies in parts a pass is all workers' together; where there is none left
    for one, it takes row 0 once more, with a 0: it counts for nothing.
    """
    starts = range(
        rank * batch_size, math.ceil(rows / (batch_size * workers)) * batch_size * workers, batch_size * workers
    )
    return [
        (np.arange(start, min(start + batch_size, rows)), 1.0) if start < rows else (np.zeros(1, dtype=np.int64), 0.0)
        for start in starts
    ]


def prefetch(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The same items in the same order, made by a thread that stays up to `depth` ahead of who asks.

    An exception of the thread is raised where its item would have come.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    over = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not over.is_set():
            try:
                ready.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    threading.Thread(target=work, daemon=True, name="prefetch").start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        over.set()
