"""Rows a second of one and of two workers against a plain torch loop, in one run: python tests/benchmarks/training.py.

All three do the same steps on the same rows: whole batches of equally long texts, forward, backward, clipping, AdamW.
The plain loop has two threads, one worker has two, two workers have one each. They take turns, so that what else the
machine does hits all of them; the median counts. The last line is one JSON object.

--model FOLDER is a BERT-like folder; without it one of MiniLM's size (22.7M parameters) is made with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, BATCH, LENGTH = 12, 16, 128
SECTION: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "max_length": LENGTH, "learning_rate": 1e-5}


def main() -> None:
    arguments = argparse.ArgumentParser(description="Rows a second, against a plain torch loop")
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--rounds", type=int, default=2)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SHOAL_HOME"] = temporary + "/home"
        model = given.model or make_model(Path(temporary) / "model")
        data = make_data(model, Path(temporary) / "data")
        import ray

        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        seen: dict[str, list[float]] = {"plain": [], "workers_1": [], "workers_2": []}
        starts: dict[str, list[float]] = {"workers_1": [], "workers_2": []}
        for turn in range(given.rounds):
            seen["plain"].append(_plain(model, data))
            for workers in (1, 2):
                rate, start = ours(model, data, workers, turn)
                seen[f"workers_{workers}"].append(rate)
                starts[f"workers_{workers}"].append(start)
        ray.shutdown()
    rates = {name: round(statistics.median(values), 2) for name, values in seen.items()}
    print(
        json.dumps(
            {
                "rows_per_second": rates,
                "of_plain": {name: round(rate / rates["plain"], 3) for name, rate in rates.items()},
                "seconds_to_first_step": {name: round(statistics.median(v), 1) for name, v in starts.items()},
                "batch_size": BATCH,
                "tokens": LENGTH,
                "cores": len(os.sched_getaffinity(0)),
                "load": os.getloadavg()[0],
            }
        )
    )


def make_model(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{f"w{i}": i for i in range(2, 1000)}}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    shape: dict[str, Any] = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    BertForSequenceClassification(BertConfig(**shape)).save_pretrained(folder)
    return folder


def make_data(model: Path, folder: Path) -> Any:
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    from train.data import Prepared

    generator = np.random.default_rng(0)
    folder.mkdir()
    rows = STEPS * BATCH
    for split, count in (("train", rows), ("validation", 2)):
        texts = [" ".join(f"w{word}" for word in generator.integers(2, 1000, 2 * LENGTH)) for _ in range(count)]
        table = pa.table({"text": texts, "label": pa.array(generator.integers(0, 2, count), pa.int64())})
        parquet.write_table(table, folder / f"{split}.parquet")
    about = {"digest": "bench", "labels": ["a", "b"], "rows": {"train": rows, "validation": 2}}
    sources = {"train": {"name": "random", "sha256": "00" * 32}}
    (folder / "data.json").write_text(json.dumps({**about, "sources": sources}))
    return Prepared.open(folder)


def _plain(model: Path, data: Any) -> float:
    """The loop everyone writes. The first steps, in which memory is found, are left out here as below."""
    import torch
    from pyarrow import parquet
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForSequenceClassification.from_pretrained(model).train()
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-5)
    rows = parquet.read_table(data.file("train")).to_pylist()
    times = []
    for step in range(STEPS):
        started = time.perf_counter()
        batch = rows[step * BATCH : (step + 1) * BATCH]
        inputs = tokenizer(
            [row["text"] for row in batch], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        loss = net(**inputs, labels=torch.tensor([row["label"] for row in batch])).loss
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adamw.step()
        times.append(time.perf_counter() - started)
    return BATCH / statistics.median(times[2:])


def ours(model: Path, data: Any, workers: int, turn: int, progress: Any = None, **section: Any) -> tuple[float, float]:
    """Rows a second by the run's own curve, and the seconds from the call to the end of the first step."""
    from cluster.registry import Registry
    from cluster.registry.store import open_client
    from cluster.spec import Spec
    from train.run import train

    registry = Registry()
    registry.runs("bench")  # the store is made before the clock runs
    spec = Spec.model_validate(
        {
            "name": "bench",
            "task": "text-classification",
            "model": str(model),
            "train": {**SECTION, "seed": turn, "workers": workers, **section},
        }
    )
    started, first = time.time(), []

    def watch(stage: str, done: float, total: float, note: str = "") -> None:
        if done > 0 and not first:
            first.append(time.time())
        if progress is not None:
            progress(stage, done, total, note)

    trained = train(
        spec,
        data,
        registry=registry,
        progress=watch,
    )
    history = open_client(registry.uri).get_metric_history(trained.run_id, "train/rows_per_second")
    curve = {point.step: point.value for point in history}
    return statistics.median(rate for step, rate in curve.items() if step > 2), first[0] - started


if __name__ == "__main__":
    main()
