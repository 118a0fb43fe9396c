"""Forward passes: what they cost and how full they are, and what becomes of one that fails."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import RunFailed, ShoalError

log = logging.getLogger("ray.serve")
# How far back `Recent` looks: long enough to hold a few passes of a slow model, short enough to scale by.
RECENT_S = 10.0


@dataclass(frozen=True)
class Pass:
    """One forward pass: how many inputs, of how many tokens in all, how many with padding, how long it took, and how
    long each input's request had waited for it (seconds)."""

    inputs: int
    tokens: int
    padded: int
    seconds: float
    queued: tuple[float, ...]


class Recent:
    """The passes of the last seconds, for whoever decides on replicas and waiting times."""

    def __init__(self) -> None:
        self.passes: deque[tuple[float, Pass]] = deque(maxlen=4096)

    def add(self, one: Pass) -> None:
        self.passes.append((time.monotonic(), one))

    def facts(self) -> dict[str, float]:
        """Seconds of a queue (median, 99th percentile) and of a pass (mean), inputs a pass (mean), the share of
        computed tokens that was padding, and inputs a second. All 0 where no pass was made."""
        since = time.monotonic() - RECENT_S
        while self.passes and self.passes[0][0] < since:
            self.passes.popleft()
        passes = [one for _, one in self.passes]
        queued = sorted(seconds for one in passes for seconds in one.queued)
        padded = sum(one.padded for one in passes)
        count = max(len(passes), 1)
        return {
            "queue_p50_s": queued[len(queued) // 2] if queued else 0.0,
            "queue_p99_s": queued[int(0.99 * len(queued))] if queued else 0.0,
            "pass_s": sum(one.seconds for one in passes) / count,
            "batch_size": sum(one.inputs for one in passes) / count,
            "padding": 1 - sum(one.tokens for one in passes) / padded if padded else 0.0,
            "inputs_per_s": sum(one.inputs for one in passes) / RECENT_S,
        }


class Overhead:
    """What a pass costs beside its tokens, as a number of tokens: least squares of seconds over tokens, in which a pass
    weighs half as much 64 passes later."""

    # Where little is known yet, and where the line through the passes makes no sense.
    FIRST, LEAST, MOST = 32, 8, 2048

    def __init__(self) -> None:
        self.weight = self.x = self.y = self.xx = self.xy = 0.0

    def add(self, one: Pass) -> None:
        keep = 0.5 ** (1 / 64)
        x, y = float(one.padded), one.seconds
        self.weight = self.weight * keep + 1
        self.x, self.y = self.x * keep + x, self.y * keep + y
        self.xx, self.xy = self.xx * keep + x * x, self.xy * keep + x * y

    def tokens(self) -> int:
        spread = self.weight * self.xx - self.x**2
        slope = self.weight * self.xy - self.x * self.y
        if self.weight < 8 or spread <= 0.01 * self.weight * self.xx or slope <= 0:
            return self.FIRST
        base = self.y * self.xx - self.x * self.xy
        return int(min(max(base / slope, self.LEAST), self.MOST))


def isolated(
    predict: Callable[[list[Any]], list[Any]],
    inputs: list[Any],
    *,
    name: str,
    out_of_memory: Callable[[list[Any]], None],
) -> list[Any]:
    """The outputs of these inputs; in place of an output the error of an input that fails by itself.

    A pass that raises is run again in halves, so one bad input among n costs 2 log2(n) passes and its neighbours
    nothing. `out_of_memory` is told of inputs that were together too much for the memory there is.
    """
    try:
        return predict(inputs)
    except Exception as error:
        full = is_out_of_memory(error)
        if len(inputs) == 1:
            if isinstance(error, ShoalError):
                return [error]
            if full:
                return [RunFailed("the memory of this replica does not hold this one input; send less of it")]
            log.exception("%s: an input failed", name)
            return [RunFailed(f"the model failed on this input: {type(error).__name__}")]
    # Outside of the handler: the traceback holds the tensors of the pass that failed.
    if full:
        out_of_memory(inputs)
    half = len(inputs) // 2
    return [
        output
        for part in (inputs[:half], inputs[half:])
        for output in isolated(predict, part, name=name, out_of_memory=out_of_memory)
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, CUDA's (torch.OutOfMemoryError), and the plain RuntimeError of torch's CPU allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # torch's words with posix_memalign and without it.
    said = str(error) if isinstance(error, RuntimeError) else ""
    return "DefaultCPUAllocator" in said and ("not enough memory" in said or "can't allocate memory" in said)
