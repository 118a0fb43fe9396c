"""How likely a language model finds what it should have written: the tuned one, and the base it began as."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from pyarrow import parquet

from cluster.errors import InputError, RunFailed

if TYPE_CHECKING:
    from train.judge import Question

_TELL_SECONDS = 0.5


def measure(method: Any, question: Question) -> Generator[int, None, tuple[list[float], list[int], float | None]]:
    """Now and then the number of rows done. Returns the rows' summed negative log likelihoods (nats) by the model, how
    many tokens are learned of each, and the mean negative log likelihood of a token by its untouched base, where the
    question names one.

    The arithmetic is that of training. Raises InputError where the model cannot be opened or no row has an answer left
    after `train.max_length`, RunFailed where it answers no numbers.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = {"max_length": question.train.max_length}
    model = method.load(question.folder, base=question.base, **limit).to(device).eval()
    passes = 2 if question.base is not None else 1
    nll, tokens = yield from _pass(method, model, question, device, passes=passes, before=0)
    if not sum(tokens):
        raise InputError(
            f"train.max_length: {question.train.max_length} tokens, and in none of {len(tokens)} rows is any of the "
            "answer among them; raise it"
        )
    if not math.isfinite(sum(nll)):
        raise RunFailed(
            f"evaluate: the model in {question.folder} answers no numbers (NaN or infinite); its training diverged: "
            "train again with a lower train.learning_rate"
        )
    if question.base is None:
        return nll, tokens, None
    untouched: Any = getattr(model, "disable_adapter", None)
    if untouched is None:
        del model  # one of the two in memory at a time
        model = method.load(question.base, **limit).to(device).eval()
    with untouched() if untouched else contextlib.nullcontext():
        told = yield from _pass(method, model, question, device, passes=2, before=len(tokens))
    return nll, tokens, sum(told[0]) / sum(told[1])


def _pass(
    method: Any, model: Any, question: Question, device: str, *, passes: int, before: int
) -> Generator[int, None, tuple[list[float], list[int]]]:
    """All rows once; `before` rows of other passes count as done."""
    import torch

    from train.objective import IGNORED
    from train.optim import arithmetic

    dtype = arithmetic(question.train, device)
    nll: list[float] = []
    tokens: list[int] = []
    told = time.monotonic()
    with parquet.ParquetFile(question.file) as rows, torch.inference_mode():
        for batch in rows.iter_batches(question.batch_size):
            inputs = {name: value.to(device) for name, value in method.collate(batch.to_pylist()).items()}
            labels = inputs.pop("labels")
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(**inputs).logits
            nll += method.objective.losses(logits, labels).double().cpu().tolist()
            tokens += (labels != IGNORED).sum(1).cpu().tolist()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                yield (before + len(tokens)) // passes
    return nll, tokens
