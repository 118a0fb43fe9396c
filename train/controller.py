"""Ray Train's controller, the actor that starts a run's workers and watches them: in a hurry, without what an embedded
Ray and a run without Ray Datasets have no use for, and with an end where a fault is the input's.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.scaling_policy.scaling_policy import ScalingPolicy

from cluster import processes
from cluster.errors import ShoalError

# How often the controller asks the workers whether they are done: Ray's 2 s would be a tenth of a short run.
_POLL_SECONDS = 0.5


class Controller(TrainController):
    """Ray's controller, in a hurry, and on one node without the process that watches for nodes being taken away."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{**arguments, "scaling_policy": policy(arguments["scaling_policy"])})
        self._health_check_interval_s = _POLL_SECONDS
        if len(ray.nodes()) == 1:
            callbacks = self._worker_group_callbacks_to_propagate
            self._worker_group_callbacks_to_propagate = [c for c in callbacks if not isinstance(c, PreemptionCallback)]


class NobodyToAsk(FixedScalingPolicy):
    """The number of workers that the file says, on the embedded Ray: that has no autoscaler, and who would ask it for
    nodes is a process that takes seconds to start, and that Ray's own policy waits for."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


def policy(rays: ScalingPolicy) -> ScalingPolicy:
    """Ray's own policy, or the one for the embedded Ray within which this process runs."""
    return NobodyToAsk(rays.scaling_config) if processes.MARKER in os.environ else rays


class NoDatasets(WorkerGroupCallback):
    """The place in a worker's context where Ray's datasets would come from, left empty."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class FaultsOfTheInput(WorkerGroupCallback):
    """Ends a run at once where a worker raised a ShoalError: it would fail again with the next worker.

    Raised in the controller, an error is not Ray's to retry, and it reaches the driver whole.
    """

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        for error in worker_group_status.errors.values():
            if isinstance(error, ShoalError):
                raise error
