"""Runs: what was tried, with which parameters, and what came of it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import NotFound
from cluster.registry import lineage
from cluster.registry.store import Store, local_path

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
MAX_PARAMETER = 6000  # MLflow's limit, in characters
MAX_BATCH = 100  # parameters MLflow takes in one call
MAX_METRICS = 1000


@dataclass(frozen=True)
class Run:
    """One run: `name` is the model's, `metrics` hold each metric's last value, `data` what it learned from as
    {split, name, sha256, rows}; times are in UTC, `ended` is None while it runs."""

    id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    started: datetime
    ended: datetime | None
    data: tuple[dict[str, Any], ...] = ()


class Runs(Store):
    """The runs of a store. A run may be written to from several processes, each with its own Runs(uri)."""

    def start_run(
        self,
        name: str,
        *,
        kind: Literal["train", "evaluate", "tune"],
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> str:
        """Begin a run of a model and return its id. Nested params become dotted keys. Code version, environment and
        user are noted with it."""
        flat = dict(_flat(params))
        cut = {
            key: value[: MAX_PARAMETER - 1] + "…" if len(value) > MAX_PARAMETER else value
            for key, value in flat.items()
        }
        about = {"shoal.kind": kind, "mlflow.user": lineage.user(), **lineage.code(), **lineage.environment()}
        with self.calls(f"starting a run of {name}") as client:
            from mlflow.entities import Param

            run_name = tags.get("mlflow.runName") or f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
            every_tag = about | {key: str(value) for key, value in tags.items()}
            run_id = client.create_run(self._experiment(client, name), tags=every_tag, run_name=run_name).info.run_id
            try:
                pairs = [Param(key, value) for key, value in cut.items()]
                for start in range(0, len(pairs), MAX_BATCH):
                    client.log_batch(run_id, params=pairs[start : start + MAX_BATCH])
                if cut != flat:
                    client.log_dict(run_id, flat, "parameters.json")
                client.log_dict(run_id, {**lineage.environment(), "packages": lineage.packages()}, "environment.json")
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell of
                    client.set_terminated(run_id, "FAILED")
                raise
        return run_id

    def log(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add a point to each metric. Characters that MLflow refuses in a name become underscores."""
        with self.calls("logging metrics") as client:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            points = [Metric(_metric_name(key), float(value), now, step) for key, value in metrics.items()]
            for start in range(0, len(points), MAX_METRICS):
                client.log_batch(run_id, metrics=points[start : start + MAX_METRICS])

    def log_data(self, run_id: str, sources: Mapping[str, Mapping[str, Any]], rows: Mapping[str, int]) -> None:
        """Note what a run learned from, as MLflow's datasets: `rows` counts each split, `sources` has the {name,
        sha256} of each split's file. A split without a file was split off the training rows."""
        with self.calls("logging data") as client:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            inputs = []
            for split, count in rows.items():
                source = sources.get(split) or sources["train"]
                about = {"name": source["name"], "sha256": source["sha256"]}
                # MLflow keeps one dataset of a name and digest, and one link of it to a run: so the split is in the
                # name, and the rows, which differ from run to run, are on the link.
                dataset = Dataset(f"{source['name']} ({split})", source["sha256"][:36], "local", json.dumps(about))
                tags = [InputTag("mlflow.data.context", split), InputTag("shoal.rows", str(count))]
                inputs.append(DatasetInput(dataset, tags))
            client.log_inputs(run_id, inputs)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        with self.calls("setting tags") as client:
            from mlflow.entities import RunTag

            pairs = [RunTag(key, str(value)) for key, value in tags.items()]
            for start in range(0, len(pairs), MAX_BATCH):
                client.log_batch(run_id, tags=pairs[start : start + MAX_BATCH])

    def log_artifacts(self, run_id: str, folder: Path, path: str) -> None:
        """Copy a folder's files under `path` of the run. Where that fails, nothing new is left there."""
        with self.calls(f"storing {folder}") as client:
            local = local_path(artifacts_of(client, run_id))
            place = local / path if local is not None else None
            fresh = place is not None and not place.exists()
            try:
                client.log_artifacts(run_id, str(folder), path)
            except BaseException:
                if place is not None and fresh:
                    shutil.rmtree(place, ignore_errors=True)
                raise

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        with self.calls("ending a run") as client:
            client.set_terminated(run_id, status)

    def run(self, run_id: str) -> Run:
        """A run by id. Raises NotFound."""
        with self.calls(f"reading run {run_id}") as client:
            found = client.get_run(run_id)
            return _run(found, client.get_experiment(found.info.experiment_id).name)

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """A metric's points, step to value, in the order of steps; none where the run has no such metric."""
        with self.calls(f"reading run {run_id}") as client:
            points = {point.step: point.value for point in client.get_metric_history(run_id, _metric_name(metric))}
        return dict(sorted(points.items()))

    def find_run(self, name: str, tags: Mapping[str, str]) -> Run | None:
        """The newest finished run of a model that has all these tags; None where there is none."""
        wanted = [f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items()]
        found = self.runs(name, limit=1, where=" and ".join(["attributes.status = 'FINISHED'", *wanted]))
        return found[0] if found else None

    def runs(self, name: str | None = None, *, limit: int = 100, where: str = "") -> list[Run]:
        """The newest runs, of one model or of all; `where` is a filter of MLflow's. At most `limit` (50,000)."""
        with self.calls("listing runs") as client:
            known = client.search_experiments() if name is None else [client.get_experiment_by_name(name)]
            experiments = {item.experiment_id: item.name for item in known if item is not None}
            if not experiments:
                return []
            order = ["attributes.start_time DESC"]
            found = client.search_runs(list(experiments), where, max_results=limit, order_by=order)
            return [_run(item, experiments[item.info.experiment_id]) for item in found]

    def run_folder(self, run_id: str, path: str = "model") -> Path:
        """A run's artifact folder as a local one. Raises NotFound."""
        with self.calls(f"reading run {run_id}") as client:
            uri = artifacts_of(client, run_id)
            if not client.list_artifacts(run_id, path):
                there = ", ".join(item.path for item in client.list_artifacts(run_id)) or "nothing"
                raise NotFound(f"run {run_id}: no folder {path!r} in it; it holds {there}")
        return self.fetch(f"{uri}/{path}")

    def _experiment(self, client: MlflowClient, name: str) -> str:
        """Id of the model's experiment; made where there is none, brought back where it was deleted."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name, artifact_location=self.artifact_root(name))
            except MlflowException as error:
                found = client.get_experiment_by_name(name)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id


def artifacts_of(client: MlflowClient, run_id: str) -> str:
    """URI of the folder of a run's artifacts."""
    return (client.get_run(run_id).info.artifact_uri or "").rstrip("/")


def _run(found: MlflowRun, name: str) -> Run:
    info, data = found.info, found.data
    sources = []
    for item in found.inputs.dataset_inputs if found.inputs else []:
        source, tags = _object(item.dataset.source), {tag.key: tag.value for tag in item.tags}
        count = tags.get("shoal.rows", "")
        sources.append(
            {
                "split": tags.get("mlflow.data.context", ""),
                "name": source.get("name", item.dataset.name),
                "sha256": source.get("sha256", item.dataset.digest),
                "rows": int(count) if count.isdigit() else None,
            }
        )
    order = {"train": 0, "validation": 1, "test": 2}
    return Run(
        id=info.run_id,
        name=name,
        status=info.status,
        params=dict(data.params),
        metrics=dict(data.metrics),
        tags=dict(data.tags),
        started=time_of(info.start_time),
        ended=time_of(info.end_time) if info.end_time else None,
        data=tuple(sorted(sources, key=lambda source: order.get(source["split"], 3))),
    )


def _object(text: str | None) -> dict[str, Any]:
    """JSON that others may have written: an empty object where it is none."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def time_of(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _quoted(value: str) -> str:
    return f"'{value}'" if "'" not in value else f'"{value}"'
