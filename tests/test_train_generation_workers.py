"""A language model learned by two processes is the one that one learns, though their shares have unlike many tokens."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import llm_tiny
import pytest
from test_train_generation import spec_of
from test_train_loop import Alone, curve, events, run

from cluster.spec import Spec
from train.data import Prepared, prepare


class One(Alone):
    """One of two workers; only the first has checkpoints to tell of."""

    workers = local_workers = 2

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def report(self, metrics: dict[str, float], folder: Path | None) -> None:
        assert (folder is None) == (self.rank > 0)
        if folder is not None:
            super().report(metrics, folder)


def work(rank: int, spec: Spec, prepared: Prepared, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    run(spec, prepared, folder / "run", One(rank))
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo's that is still in its last step aborts an orderly exit


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_two_workers_learn_what_one_does(tmp_path: Path, lora: Any) -> None:
    from safetensors.torch import load_file

    model = llm_tiny.llama(tmp_path / "llama")
    rows = [{"prompt": "say ", "completion": "x" * length} for length in (1, 40, 2, 35, 3, 30, 4, 25, 60, 6, 20)]
    llm_tiny.lines(tmp_path / "rows.jsonl", rows)
    train = {"batch_size": 5, "epochs": 2, "learning_rate": 1e-3, "max_length": 64, "max_grad_norm": 0.5, "lora": lora}
    train |= {"gradient_accumulation_steps": 2}
    data = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    spec = spec_of(tmp_path, data, model=str(model), train={**train, "workers": 1})
    prepared = prepare(spec, into=tmp_path / "home")
    run(spec, prepared, tmp_path / "one")

    two = spec_of(tmp_path, data, model=str(model), train={**train, "workers": 2})
    context = multiprocessing.get_context("spawn")
    (tmp_path / "two").mkdir()
    workers = [context.Process(target=work, args=(rank, two, prepared, tmp_path / "two")) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]

    assert curve(tmp_path / "two" / "run") == pytest.approx(curve(tmp_path / "one"), rel=1e-5)
    told = [
        [
            event["metrics"]["validation/perplexity"]
            for event in events(folder)
            if "validation/loss" in event.get("metrics", {})
        ]
        for folder in (tmp_path / "one", tmp_path / "two" / "run")
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-5)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    one, both = (load_file(folder / "model" / name) for folder in (tmp_path / "one", tmp_path / "two" / "run"))
    assert one.keys() == both.keys()
    assert all((one[key] - both[key]).abs().max() < 1e-4 for key in one)
