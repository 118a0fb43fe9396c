"""How many elements of a model and of its optimizer's state a worker has to hold, worked out from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from cluster.errors import RunFailed

# AdamW keeps two moments of every weight that learns.
MOMENTS = 2


@dataclass(frozen=True)
class Held:
    """Elements of the model's parameters, and of the moments of its optimizer."""

    parameters: int
    optimizer: int


@dataclass(frozen=True)
class Size:
    """A parameter as it is whole."""

    shape: tuple[int, ...]
    learns: bool

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def sizes_of(model: torch.nn.Module) -> dict[str, Size]:
    """The parameters of a whole model by name, each once."""
    return {name: Size(tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}


def whole(sizes: Iterable[Size]) -> int:
    """All elements."""
    return sum(size.elements for size in sizes)


def rows(sizes: Iterable[Size], *, rank: int, workers: int) -> int:
    """Elements of worker `rank` where each parameter is cut along its first dimension into equal runs of rows, the
    last ones shorter or empty."""
    total = 0
    for size in sizes:
        run = math.ceil(size.shape[0] / workers)
        mine = min(run, max(0, size.shape[0] - rank * run))
        total += mine * math.prod(size.shape[1:])
    return total


def equal(sizes: Iterable[Size], *, workers: int) -> int:
    """Elements of any worker where each parameter is laid flat and cut into equal parts, the last one filled up."""
    return sum(math.ceil(size.elements / workers) for size in sizes)


def flat(groups: Iterable[Iterable[Size]], *, workers: int, alignment: int) -> int:
    """Elements of any worker where each group is laid flat as one, filled up to a multiple of `alignment` a worker, and
    cut into equal parts."""
    return sum(math.ceil(whole(group) / (alignment * workers)) * alignment for group in groups)


def moments(states: Iterable[dict[str, torch.Tensor]]) -> int:
    """Elements of AdamW's moments in what an optimizer keeps for each tensor; the count of steps is none."""
    return sum(value.numel() for state in states for name, value in state.items() if name.startswith("exp_avg"))


def check(name: str, held: Held, due: Held, *, rank: int) -> None:
    """Raises RunFailed where a worker holds another share than is its due."""
    if held != due:
        raise RunFailed(
            f"train.parallel: {name}: worker {rank} holds {held.parameters:,} elements of parameters and "
            f"{held.optimizer:,} of optimizer state; its share is {due.parameters:,} and {due.optimizer:,}. The model "
            "is not shared as the file says, so nothing was trained; write train.parallel: ddp"
        )
