"""What training lowers: how a row's loss comes from the model's answer, and what a row weighs in a batch's mean.

The loss of any batch is sum(factor * loss) / sum(mass) over its rows, whichever worker has which: exact with any number
of workers and accumulation pieces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from cluster.errors import InputError
from cluster.spec import Train
from train.batches import Rows

IGNORED = -100  # a label that is not learned, as everywhere in torch
# exp of more is no float; nobody needs to know a perplexity above it.
_LARGEST = 700.0


@dataclass(frozen=True)
class Weighed:
    """Of each row of a split what its loss is multiplied by and what it counts in the mean, both float64 [rows]; `note`
    is what a person should know of it, or empty."""

    factor: np.ndarray
    mass: np.ndarray
    note: str = ""


class Classes:
    """One class a row: cross-entropy, weighted by class."""

    def __init__(self, task: Any, rows: Rows, labels: list[str], train: Train) -> None:
        self._weights = np.ones(len(labels))
        if train.class_weights == "balanced":
            counts = np.bincount(rows.labels, minlength=len(labels))
            self._weights = len(rows) / (len(labels) * np.maximum(counts, 1))

    def weigh(self, rows: Rows, *, rank: int, workers: int, device: str) -> Weighed:
        """By the rows' classes."""
        weights = self._weights[rows.labels]
        return Weighed(weights, weights)

    @staticmethod
    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats, float32 [rows], of logits [rows, classes] and labels [rows]."""
        return F.cross_entropy(logits.float(), labels, reduction="none")

    @staticmethod
    def right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """How many rows are said to be what they are."""
        return (logits.argmax(-1) == labels).sum()

    @staticmethod
    def metrics(loss: float, right: float, *, rows: int, mass: float) -> dict[str, float]:
        """What a validation of `rows` rows tells."""
        return {"validation/loss": loss, "validation/accuracy": right / rows}


class Tokens:
    """The tokens to learn of each row: negative log likelihood, every token of a batch weighing the same."""

    def __init__(self, task: Any, rows: Rows, labels: list[str], train: Train) -> None:
        self._task = task
        self._max_length = train.max_length

    def weigh(self, rows: Rows, *, rank: int, workers: int, device: str) -> Weighed:
        """By the number of tokens to learn; each worker counts a part of the rows. Raises InputError where none has
        any: `train.max_length` cuts all answers off."""
        counts = torch.zeros(len(rows), dtype=torch.int64)
        for start in range(rank * _COUNTED, len(rows), workers * _COUNTED):
            places = np.arange(start, min(start + _COUNTED, len(rows)))
            counts[start : start + _COUNTED] = torch.tensor(self._task.targets(rows.take(places)))
        if workers > 1:
            counts = counts.to(device)
            dist.all_reduce(counts)
        mass = counts.cpu().numpy().astype(np.float64)
        without = int((mass == 0).sum())
        if without == len(rows):
            raise InputError(
                f"train.max_length: {self._max_length} tokens, and in none of {len(rows)} rows is any of the answer "
                "among them; raise it"
            )
        note = (
            f"{without} of {len(rows)} rows teach nothing: their answers begin after train.max_length: "
            f"{self._max_length} tokens"
        )
        return Weighed(np.ones(len(rows)), mass, note if without else "")

    @staticmethod
    def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed negative log likelihood in nats, float32 [rows], of logits [rows, tokens, vocabulary] and labels
        [rows, tokens], which stand where their tokens are: place i is predicted at i - 1."""
        targets = labels[:, 1:]
        learned = targets != IGNORED
        # The vocabulary's width is what costs: logits of other tokens are not even made float32.
        nll = F.cross_entropy(logits[:, :-1][learned].float(), targets[learned], reduction="none")
        return torch.zeros(targets.shape, device=nll.device).masked_scatter(learned, nll).sum(1)

    @staticmethod
    def right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """How many tokens to learn are the likeliest."""
        return (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum()

    @staticmethod
    def metrics(loss: float, right: float, *, rows: int, mass: float) -> dict[str, float]:
        """What a validation of `mass` tokens tells."""
        return {
            "validation/loss": loss,
            "validation/perplexity": perplexity(loss),
            "validation/token_accuracy": right / mass,
        }


_COUNTED = 256  # rows that are counted at a time


def perplexity(loss: float) -> float:
    """exp of the mean negative log likelihood of a token, in nats."""
    return math.exp(min(loss, _LARGEST))
