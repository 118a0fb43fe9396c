"""What is Ray's own and what is not of the actor that starts a run's workers."""

from __future__ import annotations

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision, create_scaling_policy

from cluster import processes
from train.controller import NobodyToAsk, policy


def test_an_autoscaler_is_asked_where_there_can_be_one(monkeypatch: pytest.MonkeyPatch):
    """On a cluster that was there before us; the embedded Ray, whose processes carry a mark, has none."""
    rays = create_scaling_policy(ScalingConfig(num_workers=3))
    monkeypatch.delenv(processes.MARKER, raising=False)
    assert policy(rays) is rays
    monkeypatch.setenv(processes.MARKER, "/tmp/shoal")
    ours = policy(rays)
    assert isinstance(ours, NobodyToAsk)
    assert isinstance(ours, type(rays))
    decided = ours.make_decision_for_non_running_worker_group()
    assert isinstance(decided, ResizeDecision)
    assert (decided.num_workers, decided.resources_per_worker) == (3, {"CPU": 1})
