"""A replica that is given a reference in place of a folder, as on Kubernetes, fetches the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import serve_tiny as tiny

from cluster.errors import NotFound, RunFailed
from cluster.registry import Registry
from serve.app import Model
from serve.located import located

pytestmark = pytest.mark.slow  # MLflow and torch


def test_a_replica_looks_its_model_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    registry = Registry()
    folders = [tiny.bert(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    for folder in folders:
        run_id = registry.start_run("spam", kind="train", params={}, tags={})
        registry.log_artifacts(run_id, folder, "model")
        registry.end_run(run_id, "FINISHED")
        registry.register("spam", run_id, metrics={}, tags={})

    def scores(folder: str) -> dict[str, float]:
        args = {"name": "spam", "task": "text-classification", "version": "v", "folder": folder}
        model = Model({**args, "device": "cpu", "attempt": 0})
        inputs, parameters = model.handler.decode_request(b'{"inputs": "hello"}', "application/json", {})
        answer = model.handler.encode_response(model.handler.predict(inputs), parameters)
        return {row["label"]: row["score"] for row in answer[0]}

    direct = [tiny.bert_scores(folder, "hello") for folder in folders]
    assert direct[0] != pytest.approx(direct[1], abs=1e-3)
    assert scores("models:/spam@champion") == pytest.approx(direct[1], abs=1e-5)
    assert scores("models:/spam/1") == pytest.approx(direct[0], abs=1e-5)
    # A folder is taken as it is: on a laptop nothing is looked up.
    assert located(str(folders[0])) == folders[0]
    with pytest.raises(NotFound):
        located("models:/ham@champion")
    with pytest.raises(RunFailed, match="gone is not on this replica's node; set SHOAL_HOME to a folder of storage"):
        located(str(tmp_path / "gone"))
