"""One trial as Ray Tune runs it: the same function as `shoal train`, in a thread of an actor that tells of it.

A class and not a function of Tune's: training goes on while the scheduler thinks, and an actor that is told to stop
waits until its workers are gone and their place is free again.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray.tune import Trainable

from cluster.errors import ShoalError
from cluster.registry import Registry
from cluster.spec import Spec
from train.data import Prepared
from train.run import Stopped, train
from tune.space import short, tried

# Seconds between two signs of life; a trial without a validation to tell of says how far it is.
_BEAT = 2.0
# The longest that a trial's workers may take to end.
_END = 60.0
STOP, LIVE = "stop", "live"


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share. `folder` is the sweep's: a file `stop` in it ends every trial."""

    spec: Spec
    prepared: Prepared
    uri: str
    home: Path
    folder: Path
    run_id: str


class Trial(Trainable):
    """Results: `mark` and the metrics at each validation; `step` of `total` now and then; at the end `ended`, which is
    finished (with the best checkpoint's metrics) or failed (with `error`)."""

    def setup(self, config: dict[str, Any], plan: Plan | None = None) -> None:
        assert plan is not None, "given by ray.tune.with_parameters"
        # Wherever the cluster put this actor, it works in the home of whoever began the sweep.
        os.environ["SHOAL_HOME"] = str(plan.home)
        self._plan = plan
        self._begin(config)

    def step(self) -> dict[str, Any]:
        try:
            told = self._told.get(timeout=_BEAT)
        except queue.Empty:
            told = {}
        return {"seconds": time.monotonic() - self._began} | self._state | told

    def cleanup(self) -> None:
        self._stop.set()
        self._thread.join(timeout=_END)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        if self._thread.is_alive():
            return False
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._state: dict[str, Any] = {"number": config["number"], "run_id": config["run"], "step": 0, "total": 0}
        self._began = time.monotonic()
        # What it told before it was broken off: the scheduler begins where it was.
        for mark, value in json.loads(config["marks"]).items():
            self._told.put({"mark": int(mark), f"validation/{self._plan.spec.tune.metric}": value})
        self._thread = threading.Thread(target=self._work, args=(json.loads(config["values"]),), daemon=True)
        self._thread.start()

    def _work(self, values: dict[str, Any]) -> None:
        plan, number = self._plan, self._state["number"]
        live = plan.folder / LIVE / str(number)
        live.touch()
        try:
            spec = tried(plan.spec, values)
            self._marks = spec.train.epochs * spec.train.checkpoints_per_epoch
            tags = {
                "mlflow.parentRunId": plan.run_id,
                "shoal.sweep": plan.run_id,
                "shoal.trial": str(number),
                "shoal.tuned": json.dumps(values),
                "mlflow.runName": f"trial {number}: {short(values)}",
            }
            trained = train(spec, plan.prepared, registry=Registry(plan.uri), tags=tags, watch=self._watch)
            self._end("finished", **trained.metrics, run_id=trained.run_id, reused=trained.reused)
        except Stopped:
            return  # whoever asked for it knows
        except ShoalError as error:
            self._end("failed", error=error.message)
        except ValidationError as error:
            fault = error.errors()[0]
            self._end("failed", error=f"{short(values)}: {fault['msg']}")
        except BaseException as error:
            self._end("failed", error=f"{type(error).__name__}: {error}")
        finally:
            live.unlink(missing_ok=True)

    def _end(self, ended: str, **about: Any) -> None:
        seconds = round(time.monotonic() - self._began, 2)
        self._told.put({"done": True, "ended": ended, "seconds": seconds, **about})

    def _watch(self, run_id: str, found: list[dict[str, Any]]) -> None:
        if self._stop.is_set() or (self._plan.folder / STOP).exists():
            raise Stopped
        for event in found:
            if "step" not in event:
                continue
            self._state = self._state | {"run_id": run_id, "step": event["step"], "total": event["total"]}
            metrics = {key: value for key, value in event.get("metrics", {}).items() if key.startswith("validation/")}
            # The last validation is followed by the end: nothing is left to stop.
            if metrics and event["step"] < event["total"]:
                mark = max(1, round(event["step"] / event["total"] * self._marks))
                self._told.put({"mark": mark, **metrics})
