"""Seconds that a sweep adds to each trial: python tests/benchmarks/sweep.py.

The same trainings of a BERT of 10,000 parameters, by `train` in a loop and by `sweep` one at a time, on one Ray, in
turns. Both make the same runs in the registry; the sweep also keeps its study and asks its scheduler. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    arguments = argparse.ArgumentParser(description="Seconds a trial, in a sweep and in a loop")
    arguments.add_argument("--trials", type=int, default=4)
    arguments.add_argument("--rounds", type=int, default=2)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SHOAL_HOME"] = temporary + "/home"
        import train_tiny as tiny

        from cluster import connect

        model = tiny.bert(Path(temporary) / "model")
        data = tiny.text_data(Path(temporary) / "data", rows=300, held_out=40)
        seconds: dict[str, list[float]] = {"loop": [], "sweep": [], "sweep_two_at_a_time": []}
        with connect.session():
            from cluster.registry import Registry

            registry = Registry()
            registry.runs()  # the store is made before the clock runs
            for turn in range(given.rounds):
                rates = [(1 + turn * given.trials + trial) * 1e-4 for trial in range(given.trials)]
                seconds["loop"].append(_loop(model, data, registry, rates) / given.trials)
                for name, most in (("sweep", 1), ("sweep_two_at_a_time", 2)):
                    seconds[name].append(_sweep(model, data, registry, rates, name, most) / given.trials)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "seconds_a_trial": medians,
                "added_a_trial": round(medians["sweep"] - medians["loop"], 2),
                "every_round": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
                "trials": given.trials,
                "cores": len(os.sched_getaffinity(0)),
                "load": os.getloadavg()[0],
            }
        )
    )


def _spec(model: Path, name: str, rate: float, **tune: Any) -> Any:
    from cluster.spec import Spec

    train = {"epochs": 2, "batch_size": 8, "learning_rate": rate}
    return Spec.model_validate(
        {"name": name, "task": "text-classification", "model": str(model), "train": train, "tune": tune or None}
    )


def _loop(model: Path, data: Any, registry: Any, rates: list[float]) -> float:
    from train.run import train

    started = time.perf_counter()
    for rate in rates:
        train(_spec(model, "loop", rate), data, registry=registry)
    return time.perf_counter() - started


def _sweep(model: Path, data: Any, registry: Any, rates: list[float], name: str, most: int) -> float:
    from tune.run import sweep

    space = {"train.learning_rate": {"choice": rates}}
    spec = _spec(
        model, name.replace("_", "-"), rates[0], space=space, trials=len(rates), max_concurrent=most, scheduler="none"
    )
    started = time.perf_counter()
    done = sweep(spec, data, registry=registry)
    assert [row.status for row in done.rows] == ["finished"] * len(rates)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
