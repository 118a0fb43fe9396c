"""What one training worker does, from the first row to the saved model. It knows nothing of Ray: see train.launch.

Everything random is seeded from (seed, step, rank), so a run that was killed goes on with exactly the losses of a run
that was not, and no random state is stored.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cluster.errors import RunFailed
from cluster.spec import Spec
from train import batches, checkpoint, faults, optim, parallel
from train.events import Events
from train.job import Job, Session
from train.objective import Weighed
from train.tasks import trainer

# Points of the training curve that are kept, at most.
CURVE = 2000


def loop(job: Job, session: Session) -> dict[str, float]:
    """Train by gradient descent; the best model lies in `job.folder / "model"` at the end. Returns its metrics.

    Raises RunFailed where the loss is no longer a number, the memory or the disk is full; InputError where model and
    task don't fit.
    """
    train, rank, workers, device = job.spec.train, session.rank, session.workers, session.device
    lead = rank == 0
    events = Events(job.folder) if lead else None

    # The machine: each worker its share of the cores; the arithmetic the device has.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // session.local_workers))
    dtype = optim.arithmetic(train, device)
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)

    # The data.
    rows = batches.Rows(job.data / "train.parquet")
    held_out = batches.Rows(job.data / "validation.parquet")
    per_epoch, total, marks = batches.steps_of(
        len(rows),
        batch_size=train.batch_size,
        epochs=train.epochs,
        checkpoints_per_epoch=train.checkpoints_per_epoch,
    )

    # The model, the same on every worker by the seed, then shared as the file says.
    task = trainer(job.spec.task)
    strategy = parallel.start(_setup(task, job), train, session, dtype)
    objective = task.objective(task, rows, job.labels, train)
    weighed, weighed_out = (objective.weigh(r, rank=rank, workers=workers, device=device) for r in (rows, held_out))

    # Where a killed run stood: the newest checkpoint that is whole.
    state: dict[str, Any] = {"step": 0, "best": math.inf, "worse": 0}
    found, stored, warnings = checkpoint.newest([f for f, _ in session.checkpoints()], rank=rank, workers=workers)
    if found is not None:
        strategy.load(*checkpoint.load(found, device, rank=rank))
        state = stored
    if events:
        for warning in [*warnings, *([weighed.note] if weighed.note else [])]:
            events.write(warning=warning)
        events.write(step=state["step"], total=total, resumed=state["step"])

    def training_batches() -> Iterator[list[tuple[dict[str, torch.Tensor], torch.Tensor]]]:
        for step in range(state["step"], total):
            batch = batches.batch_of(step, rows=len(rows), batch_size=train.batch_size, seed=train.seed)
            # Over the whole batch, whichever worker has which row: the loss is one weighted mean.
            whole = weighed.mass[batch].sum() or 1.0
            pieces = batches.share(batch, rank=rank, workers=workers, pieces=train.gradient_accumulation_steps)
            yield [
                (
                    task.collate(rows.take(indices)),
                    torch.tensor(weighed.factor[indices] * real / whole, dtype=torch.float32),
                )
                for indices, real in pieces
            ]

    metrics: dict[str, float] = {}
    shares: dict[str, Any] = {}
    feed = batches.prefetch(training_batches())
    clock = time.monotonic()
    while state["step"] < total and state["worse"] < (train.early_stopping_patience or math.inf):
        step = state["step"]
        strategy.net.train()
        # One step: the pieces of this worker's share, forward and backward.
        torch.manual_seed(_seed(train.seed, step, rank))
        rate = optim.learning_rate(step, total, train)
        loss = torch.zeros((), device=device)
        pieces = next(feed)
        for number, (inputs, weights) in enumerate(pieces, start=1):
            with faults.memory(job.spec), strategy.piece(last=number == len(pieces)):
                piece = _losses(strategy.net, objective, inputs, dtype, device) @ weights.to(device)
                strategy.backward(piece)
            loss += piece.detach()
        if workers > 1:
            dist.all_reduce(loss)
        if not math.isfinite(value := loss.item()):
            raise RunFailed(faults.not_a_number("training", value, step, job.spec))
        norm = strategy.step(rate)
        if train.lora and step == 0 and not norm > 0:
            raise RunFailed("train.lora: the adapters get no gradient at the first step, so they would never learn")
        if not shares:
            shares = _shares(strategy, job.spec, session)
            if events:
                events.write(step=step, total=total, parallel=shares)
        state["step"] = step = step + 1

        metrics["train/loss"] = value
        if events and (step % math.ceil(total / CURVE) == 0 or step in marks):
            now = time.monotonic()
            events.write(
                step=step,
                total=total,
                metrics={
                    "train/loss": value,
                    "train/learning_rate": rate,
                    "train/grad_norm": norm,
                    "train/rows_per_second": min(math.ceil(total / CURVE), step) * train.batch_size / (now - clock),
                },
            )
            clock = now

        # At a mark: validate, decide whether it got better, checkpoint.
        if step in marks:
            metrics |= _validate(
                strategy.judged, task, objective, held_out, weighed_out, session, dtype, job.spec.evaluate.batch_size
            )
            judged = metrics["validation/loss"]
            if not math.isfinite(judged):
                raise RunFailed(faults.not_a_number("validation", judged, step, job.spec))
            state["worse"] = 0 if judged < state["best"] else state["worse"] + 1
            state["best"] = min(judged, state["best"])
            if events:
                events.write(step=step, total=total, metrics={k: v for k, v in metrics.items() if k[:5] != "train"})
            token = parallel.everyone(secrets.token_hex(4), workers)[0]
            folder = job.folder / f"checkpoint-{step:09}-{token}"
            checkpoint.save(folder, *strategy.state(), state | {"metrics": metrics}, rank=rank, workers=workers)
            session.report({"step": step, "judged": judged}, folder if lead else None)
            clock = time.monotonic()
    feed.close()  # type: ignore[attr-defined]

    # The best checkpoint becomes the model; the later of equals. It is put together in the host's memory, in a model of
    # its own: the one that was trained may lie in parts on many devices.
    if lead:
        kept = [(reported["judged"], -reported["step"], folder) for folder, reported in session.checkpoints()]
        for _, _, folder in sorted(kept):
            if (read := checkpoint.read(folder)) is not None:
                model = _setup(task, job)
                checkpoint.join(folder, model)
                metrics = read["metrics"] | {"step": read["step"], "epochs": read["step"] / per_epoch}
                break
        else:
            raise RunFailed(f"no checkpoint in {job.folder} is whole; run the same again: it starts afresh")
        shutil.rmtree(job.folder / "model.part", ignore_errors=True)
        task.save(model, job.folder / "model.part")
        shutil.rmtree(job.folder / "model", ignore_errors=True)
        (job.folder / "model.part").rename(job.folder / "model")
    return metrics


def _setup(task: Any, job: Job) -> torch.nn.Module:
    """The model as training begins, in the host's memory."""
    train = job.spec.train
    return task.setup(
        job.model,
        labels=job.labels,
        from_scratch=train.from_scratch,
        seed=train.seed,
        max_length=train.max_length,
        **({"lora": train.lora, "base": job.spec.model} if train.lora else {}),
    )


def _shares(strategy: parallel.Strategy, spec: Spec, session: Session) -> dict[str, Any]:
    """What each worker holds, by rank, once it is known to be its due. Raises RunFailed where it is not."""
    held, due = strategy.held(), strategy.due()
    name = parallel.name_of(spec.train)
    parallel.check(name, held, due, rank=session.rank)
    everyone = parallel.everyone((held.parameters, held.optimizer), session.workers)
    return {"strategy": name, "parameters": [p for p, _ in everyone], "optimizer": [o for _, o in everyone]}


def _losses(
    net: torch.nn.Module, objective: Any, inputs: dict[str, torch.Tensor], dtype: torch.dtype, device: str
) -> torch.Tensor:
    """The objective's loss of each row, float32, [rows]."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
    labels = moved.pop("labels")
    with torch.autocast(device.split(":")[0], dtype=dtype, enabled=dtype != torch.float32):
        logits = net(**moved).logits
    return objective.losses(logits, labels)


@torch.no_grad()
def _validate(
    net: torch.nn.Module,
    task: Any,
    objective: Any,
    held_out: batches.Rows,
    weighed: Weighed,
    session: Session,
    dtype: torch.dtype,
    batch_size: int,
) -> dict[str, float]:
    """Loss (weighted as in training) and what else the objective tells, each worker a part of the batches."""
    net.eval()
    cuts = batches.in_turn(len(held_out), batch_size=batch_size, rank=session.rank, workers=session.workers)

    def held_out_batches() -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, float, float]]:
        for indices, real in cuts:
            rows = task.collate(held_out.take(indices))
            yield rows, torch.from_numpy(weighed.factor[indices]), float(weighed.mass[indices].sum()), real

    sums = torch.zeros(3, dtype=torch.float64)
    for inputs, factor, mass, real in batches.prefetch(held_out_batches()):
        moved = {name: tensor.to(session.device) for name, tensor in inputs.items()}
        labels = moved.pop("labels")
        with torch.autocast(session.device.split(":")[0], dtype=dtype, enabled=dtype != torch.float32):
            logits = net(**moved).logits
        loss = objective.losses(logits, labels).double().cpu() @ factor
        told = [loss.item(), mass, objective.right(logits, labels).item()]
        sums += real * torch.tensor(told, dtype=torch.float64)
    if session.workers > 1:
        sums = sums.to(session.device)
        dist.all_reduce(sums)
    loss, mass, right = sums.tolist()
    return objective.metrics(loss / mass, right, rows=len(held_out), mass=mass)


def _seed(seed: int, step: int, rank: int) -> int:
    """One number of (seed, step, rank), well mixed: neighbours must not give related drop-out masks."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
