"""How workers share a model: what `train.parallel: auto` comes to, for a plan and for training alike."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.plan.show import binary
from cluster.spec import Train


@dataclass(frozen=True)
class Choice:
    """ddp, fsdp or deepspeed, and why."""

    parallel: str
    why: str


def settle(train: Train, *, whole: int | None, memory: int | None, gpus: int) -> Choice:
    """What `train.parallel` comes to. `whole`: bytes a worker needs with the whole model under ddp; `memory`: bytes a
    worker can have. Both are of the machine as it is built, not of what is free now: a run that goes on finds the
    strategy it began with."""
    if train.parallel != "auto":
        return Choice(train.parallel, "the file says so")
    if train.workers == 1:
        return Choice("ddp", "auto: one worker has the whole model")
    if whole is None or memory is None:
        missing = "the model's size" if whole is None else "the GPUs' memory"
        return Choice("ddp", f"auto: {missing} is not known, and a whole model is the simplest")
    place = "a GPU" if gpus else f"1/{train.workers} of the machine"
    needs = f"a whole model takes {binary(whole)}, {place} has {binary(memory)}"
    if whole <= memory:
        return Choice("ddp", f"auto: {needs}")
    return Choice("fsdp", f"auto: {needs}, so each worker keeps a part")
