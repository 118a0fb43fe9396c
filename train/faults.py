"""What a step can fail of that is the file's business, said with the keys that help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from cluster.errors import RunFailed
from cluster.spec import Spec


def not_a_number(which: str, value: float, step: int, spec: Spec) -> str:
    train = spec.train
    return (
        f"the {which} loss is {value} at step {step}; try a lower train.learning_rate (now {train.learning_rate:g}), "
        f"train.max_grad_norm: 1 (now {train.max_grad_norm:g}) or train.precision: float32 (now {train.precision})"
    )


@contextlib.contextmanager
def memory(spec: Spec) -> Iterator[None]:
    """A GPU's memory that is full is the file's business, not the cluster's: say which keys."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        train = spec.train
        raise RunFailed(
            f"the GPU's memory is full; raise train.gradient_accumulation_steps (now "
            f"{train.gradient_accumulation_steps}), or lower train.batch_size (now {train.batch_size}) or "
            f"train.max_length (now {train.max_length})"
        ) from error
