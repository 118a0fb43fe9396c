"""Training workers as plain processes over gloo, without Ray: what they are sent they do together."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing

from cluster.spec import Spec


class Workers:
    """Processes that live for many runs: importing torch, transformers and DeepSpeed is most of a short one."""

    def __init__(self, folder: Path, count: int) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, count, str(folder / "store")), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def all(self, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
        """What `function(session, *arguments)` returns or raises in each, by rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in self._pipes:
            assert pipe.poll(timeout), "a worker hangs"
            answers.append(pipe.recv())
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


class Session:
    """train.loop.Session of one of them; it may be told to die when it reports a step."""

    device = "cpu"

    def __init__(self, rank: int) -> None:
        self.rank = rank
        group = torch.distributed.is_initialized()
        self.workers = self.local_workers = torch.distributed.get_world_size() if group else 1
        self.kept: list[tuple[Path, dict[str, float]]] = []
        self.dies_at: int | None = None

    def report(self, metrics: dict[str, float], folder: Path | None) -> None:
        from train.parallel import everyone

        assert (folder is not None) == (self.rank == 0)
        first = everyone(folder, self.workers)[0]
        assert first is not None
        self.kept.append((first, metrics))
        if metrics["step"] == self.dies_at:
            raise KeyboardInterrupt

    def checkpoints(self) -> list[tuple[Path, dict[str, float]]]:
        return list(self.kept)


def train(session: Session, spec: Spec, data: Path, labels: list[str], folder: Path) -> dict[str, float]:
    """One run of the loop."""
    from train.job import Job
    from train.loop import loop

    return loop(Job(spec, data, labels, Path(spec.model), folder), session)


def _serve(pipe: Any, rank: int, count: int, store: str) -> None:
    if count > 1:  # one alone has no process group, as a single worker of anybody's
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": "0"}
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    while True:
        function, arguments = pipe.recv()
        try:
            answer = function(Session(rank), *arguments)
        except BaseException as error:
            traceback.print_exc()
            answer = error
        pipe.send(answer)
