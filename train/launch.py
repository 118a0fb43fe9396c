"""Ray Train v2 around our loop: workers, their failures, and a driver that reads along and can be interrupted.

Ray 2.60 is taken as it is, with names of its inside, here and in train/controller.py: its public `fit` turns Ctrl-C
into an exit without an exception, and retries faults of the input.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import BackendConfig, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.report_config import CheckpointConsistencyMode, CheckpointUploadMode

from cluster import tasks
from cluster.errors import ClusterGone, InputError, RunFailed, ShoalError
from cluster.spec import Spec
from train.controller import Controller, FaultsOfTheInput, NoDatasets
from train.events import Events
from train.job import Job

# A cluster that does not answer for so long is gone.
_GONE_SECONDS = 8.0


def launch(job: Job, watch: Callable[[], None]) -> dict[str, float]:
    """Run `job` on the attached Ray cluster and return its metrics; `watch` is called once a second meanwhile.

    A worker that is lost is replaced, `train.max_failures` times, and the run goes on from the last checkpoint; so
    does the next call for the same folder, whatever ended this one. Raises what a worker raised of ShoalError, at once;
    RunFailed where workers were lost too often; ClusterGone; KeyboardInterrupt, once no worker is left.
    """
    train = job.spec.train
    gpu = on_gpu(job.spec)
    run = RunConfig(
        name=job.folder.name,
        storage_path=str(job.folder.parent),
        failure_config=FailureConfig(max_failures=train.max_failures),
        # The latest is kept besides the two best: there is always one to fall back to.
        checkpoint_config=CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="judged", checkpoint_score_order="min"
        ),
        callbacks=cast(Any, [FaultsOfTheInput()]),
    )
    _forget_what_is_broken(job.folder, run)
    trainer = _Trainer(
        work,
        train_loop_config={"job": job},
        backend_config=_backend(job.spec),
        scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=gpu, resources_per_worker=_resources(gpu)),
        run_config=run,
    )
    trainer.watch = watch
    try:
        return trainer.fit().return_value or {}
    except ControllerError as error:
        if isinstance(error.controller_failure, ShoalError):
            raise error.controller_failure from None
        raise RunFailed(f"training: {_last_line(error.controller_failure)}; `shoal logs` has more") from error
    except WorkerGroupError as error:
        fault = min(error.worker_failures.items())
        raise RunFailed(
            f"training failed {train.max_failures + 1} times (train.max_failures: {train.max_failures}); at last "
            f"worker {fault[0]}: {_last_line(fault[1])}; `shoal logs` has more"
        ) from error
    except TrainingFailedError as error:
        raise RunFailed(f"training: {_last_line(error)}; `shoal logs` has more") from error
    except (RayError, ConnectionError) as error:
        raise ClusterGone(f"the Ray cluster went away: {_last_line(error)}; run the same again to go on") from error


def on_gpu(spec: Spec) -> bool:
    """Whether the workers get a GPU each. Raises InputError where there are some, but too few."""
    if spec.model_ref().kind == "estimator":
        return False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < spec.train.workers:
        raise InputError(f"train.workers: {spec.train.workers}, but the cluster has {gpus} GPUs; write {gpus}")
    if not gpus and spec.train.precision == "float16":
        raise InputError("train.precision: float16 needs a GPU; write auto, float32 or bfloat16")
    return gpus > 0


def work(config: dict[str, Any]) -> dict[str, float]:
    """What Ray calls in every worker."""
    job: Job = config["job"]
    sees(job)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    workers = ray.train.get_context().get_world_size()
    try:
        if tasks.get(job.spec.task).modality == "tabular":
            return _fit(job)
        from train.loop import loop  # torch is the worker's: the driver and the controller do without

        return loop(job, RaySession())
    except ShoalError:
        raise
    except Exception as error:
        # With one worker there is no other whose death this could be the echo of: trying again would end the same.
        if workers > 1:
            raise
        logging.getLogger(__name__).exception("training failed")
        raise RunFailed(f"training: {type(error).__name__}: {error}") from error


def sees(job: Job) -> None:
    """Raises InputError where this worker is on a node that does not have the run's folders."""
    needed = [job.folder, job.data, *([job.model] if job.model != Path() else [])]
    if missing := [folder for folder in needed if not folder.is_dir()]:
        raise InputError(
            f"SHOAL_HOME: {missing[0]} is not on node {ray.util.get_node_ip_address()}, where a worker was started; "
            "set SHOAL_HOME to a folder of storage that all nodes of the cluster share, or train on one node"
        )


def _fit(job: Job) -> dict[str, float]:
    """An estimator learns in one go: no loop, no checkpoints."""
    from train.tasks import trainer

    part = job.folder / "model.part"
    shutil.rmtree(part, ignore_errors=True)
    metrics = trainer(job.spec.task).fit(job.spec, job.data, job.labels, part)
    shutil.rmtree(job.folder / "model", ignore_errors=True)
    part.rename(job.folder / "model")
    Events(job.folder).write(step=1, total=1, metrics=metrics)
    return metrics


class RaySession:
    """train.job.Session, by Ray Train."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.workers = context.get_world_size()
        self.local_workers = context.get_local_world_size()
        from ray.train.torch import get_device

        self.device = str(get_device())

    def report(self, metrics: dict[str, float], folder: Path | None) -> None:
        # The checkpoint already lies where Ray would copy it.
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder) if folder is not None else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def checkpoints(self) -> list[tuple[Path, dict[str, float]]]:
        found = ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        return [(Path(item.checkpoint.path), item.metrics) for item in found]


class _Trainer(DataParallelTrainer):
    """Ray's trainer, whose driver neither sleeps through Ctrl-C nor waits forever for a cluster that is gone."""

    watch: Callable[[], None]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        here = ray.get_runtime_context()
        actor = cast(Any, ray.remote)(Controller)
        # Without an environment of its own it moves into a process that Ray has ready: a second sooner, on two cores.
        place = {"num_cpus": 0, "label_selector": {"ray.io/node-id": here.get_node_id()}}
        controller = actor.options(**place).remote(**arguments)
        try:
            done = controller.run.remote()
            answered = time.monotonic()
            while not ray.wait([done], timeout=1.0)[0]:
                self.watch()
                if _answers(here.gcs_address):
                    answered = time.monotonic()
                elif time.monotonic() - answered > _GONE_SECONDS:
                    raise ClusterGone("the Ray cluster no longer answers; run the same again: it goes on")
            ray.get(done)
            self.watch()
            return ray.get(controller.get_result.remote())
        except ClusterGone:
            raise
        except BaseException:
            _abort(controller)
            raise

    def _create_default_callbacks(self) -> list[Any]:
        # Two processes less to start. There are no Ray Datasets here to hand out; and what the cleaner removes after a
        # controller that crashed goes with the driver as well.
        spare = (PlacementGroupCleanerCallback, DatasetsCallback)
        ours = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, spare)]
        return [*ours, NoDatasets()]


def _backend(spec: Spec) -> BackendConfig:
    if spec.model_ref().kind == "estimator":
        return BackendConfig()
    from train.network import Torch

    return Torch()


def _resources(gpu: bool) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}


def _forget_what_is_broken(folder: Path, run: RunConfig) -> None:
    """Ray refuses a run whose list of checkpoints is damaged, for good: begin again. What was being written when the
    last run was killed is in no list, and goes."""
    try:
        manager = CheckpointManager(cast(Any, run.checkpoint_config), run.storage_context)
        listed = {Path(cast(Any, result.checkpoint).path).name for result in manager._checkpoint_results}
    except Exception:
        logging.getLogger("shoal").warning("%s: its list of checkpoints is damaged; starting again", folder.name)
        (folder / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
        listed = set()
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.name not in listed:
            shutil.rmtree(checkpoint, ignore_errors=True)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _abort(controller: Any) -> None:
    """End controller and workers; returns when the controller is gone, and with it the workers it had."""
    try:
        ray.get(controller.abort.remote(), timeout=15)
    except (RayError, ConnectionError):
        pass  # it ends itself in the middle of the call: that is what was asked for
    finally:
        with contextlib.suppress(RayError, ConnectionError, ValueError):
            ray.kill(controller)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
