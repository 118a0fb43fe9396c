"""What of Ray the scaling stands on: how Serve's controller calls a policy, and what it does with the answer."""

import pytest

from cluster import scaling
from cluster.cli.scaling import words
from cluster.spec import parse
from serve.scaling.controller import WANTED, Wanted

BASE = "name: reviews\ntask: text-classification\nmodel: a/b\n"


def state(serve="serve: {min_replicas: 0, max_replicas: 5}", target=0):
    """Serve's own state of one deployment, with the options that Shoal writes."""
    from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.config import DeploymentConfig, ReplicaConfig
    from ray.serve._private.deployment_info import DeploymentInfo
    from ray.serve.config import AutoscalingConfig

    options = scaling.replicas(parse(BASE + serve), version="models:/reviews/1")
    config = AutoscalingConfig(**options["autoscaling_config"])
    info = DeploymentInfo(
        deployment_config=DeploymentConfig(autoscaling_config=config),
        replica_config=ReplicaConfig.create(object),
        start_time_ms=0,
        deployer_job_id="",
        version="1",
    )
    found = DeploymentAutoscalingState(DeploymentID("Model", app_name="reviews"))
    assert found.register(info, target) == max(target, config.min_replicas)
    return found, info


@pytest.fixture
def wanted(monkeypatch):
    """What the Keeper said, without a thread that asks it."""
    numbers = {}

    def of(self, application, keys, version, *, target, running):
        assert (keys["metric"], version) == ("ongoing", "models:/reviews/1")
        return numbers.get(application, target)

    monkeypatch.setattr(Wanted, "of", of)
    return numbers


def test_serve_takes_the_number_at_once_at_none_and_while_some_start(wanted):
    found, _ = state()
    assert found.get_decision_num_replicas(0) == 0
    wanted["reviews"] = 4
    assert found.get_decision_num_replicas(0) == 4, "from none"
    assert found.get_decision_num_replicas(4) == 4, "none of them is up yet"
    wanted["reviews"] = 1
    assert found.get_decision_num_replicas(4) == 1
    wanted["reviews"] = 0
    assert found.get_decision_num_replicas(1) == 0
    wanted["reviews"] = 100
    assert found.get_decision_num_replicas(1) == 5, "serve.max_replicas"


def test_a_changed_configuration_leaves_the_number_as_it_is(wanted):
    found, info = state(target=4)
    import copy

    changed = copy.deepcopy(info)
    changed.deployment_config.user_config = {"max_batch_size": 8}
    assert found._deployment_info is not None
    assert found._deployment_info.config_changed(changed)
    assert found.register(changed, 4) == 4


def test_a_policy_that_fails_keeps_what_serve_has(monkeypatch):
    found, _ = state(target=3)
    monkeypatch.setattr(Wanted, "of", lambda *_, **__: 1 / 0)
    assert found.get_decision_num_replicas(3) == 3
    assert isinstance(WANTED, Wanted)


def test_status_says_how_many_and_why():
    shown = {"wanted": 2, "up": 1, "held": 7, "why": "9.0 requests in hand, 2 a copy", "trouble": ""}
    assert words("reviews", shown) == (
        "scaling  reviews: 2 wanted, 1 up, 7 requests wait: 9.0 requests in hand, 2 a copy"
    )
    assert words("reviews", {**shown, "held": 0, "why": "as Serve has it", "trouble": "no library"}) == (
        "scaling  reviews: 2 wanted, 1 up: as Serve has it; its metric cannot be read: no library"
    )
