"""Two Ray workers against the same loop under torchrun, and kill -9 to training again.

python tests/benchmarks/torchrun.py

Both run train.loop.loop on the same rows with the same settings, DDP and ZeRO-2; they take turns, and the load is told
with each. The last line is one JSON object. --rounds is how many turns.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import training as common

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "zero2": {"parallel": "deepspeed", "deepspeed": {"zero_stage": 2}},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description="Rows a second: Ray's workers against torchrun")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--worker", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        return _worker(json.loads(given.worker))
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ["SHOAL_HOME"] = f"{place / 'home'}"
        model = common.make_model(place / "model")
        data = common.make_data(model, place / "data")
        seen: dict[str, list[float]] = {f"{way}_{name}": [] for name in STRATEGIES for way in ("torchrun", "ray")}
        loads = []
        from cluster import connect

        with connect.session():
            for turn in range(given.rounds):
                for name, section in STRATEGIES.items():
                    seen[f"torchrun_{name}"].append(_torchrun(model, data, place / f"{name}-{turn}", section, turn))
                    seen[f"ray_{name}"].append(common.ours(model, data, 2, turn, **section)[0])
                    loads.append(round(os.getloadavg()[0], 1))
            again = _kill(model, data)
    rates = {name: round(statistics.median(values), 2) for name, values in seen.items()}
    ratios = {name: round(rates[f"ray_{name}"] / rates[f"torchrun_{name}"], 3) for name in STRATEGIES}
    about = {"kill_to_training_again_s": again, "loads": loads, "cores": len(os.sched_getaffinity(0))}
    print(json.dumps({"rows_per_second": rates, "ray_of_torchrun": ratios, **about}))
    return None


def _torchrun(model: Path, data: Any, folder: Path, section: dict[str, Any], turn: int) -> float:
    train = {**common.SECTION, "seed": turn, "workers": 2, **section}
    spec = {"name": "bench", "task": "text-classification", "model": str(model), "train": train}
    told = json.dumps({"spec": spec, "data": str(data.folder), "labels": data.labels, "folder": str(folder)})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    subprocess.run([*command, "--worker", told], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() if line]
    rates = [
        line["metrics"]["train/rows_per_second"]
        for line in lines
        if "train/rows_per_second" in line.get("metrics", {}) and line["step"] > 2
    ]
    return statistics.median(rates)


def _worker(told: dict[str, Any]) -> None:
    """One of torchrun's processes."""
    import torch.distributed as dist

    from cluster.spec import Spec
    from train.job import Job
    from train.loop import loop

    class Session:
        device = "cpu"

        def __init__(self) -> None:
            self.rank, self.workers = dist.get_rank(), dist.get_world_size()
            self.local_workers = self.workers
            self.kept: list[tuple[Path, dict[str, float]]] = []

        def report(self, metrics: dict[str, float], folder: Path | None) -> None:
            if folder is not None:
                self.kept.append((folder, metrics))

        def checkpoints(self) -> list[tuple[Path, dict[str, float]]]:
            return list(self.kept)

    dist.init_process_group("gloo")
    spec = Spec.model_validate(told["spec"])
    loop(Job(spec, Path(told["data"]), told["labels"], Path(spec.model), Path(told["folder"])), Session())
    dist.destroy_process_group()


def _kill(model: Path, data: Any) -> float:
    """Seconds from kill -9 of one of two workers to the next step that is done."""
    import psutil

    from cluster import embedded, settings

    state = embedded.read(settings.home())
    assert state is not None
    raylet, _ = state.pids["raylet"]
    times: dict[str, float] = {}
    furthest = 0.0

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        nonlocal furthest
        if "killed" not in times and done > common.STEPS:
            for process in psutil.Process(raylet).children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    times["killed"] = time.monotonic()
                    break
        elif "killed" in times and "back" not in times and done < furthest:
            times["back"], furthest = time.monotonic(), done
        elif "back" in times and "again" not in times and done > furthest:
            times["again"] = time.monotonic()
        furthest = max(furthest, done) if "back" not in times else furthest

    common.ours(model, data, 2, 99, epochs=4, progress=progress, checkpoints_per_epoch=2, parallel="ddp")
    return round(times["again"] - times["killed"], 1)


if __name__ == "__main__":
    main()
