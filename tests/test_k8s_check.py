"""Strict checks: what is refused before anything is sent, by Kubernetes' schemas, KubeRay's CRDs and its operator."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from test_k8s_render import KUBE, SERVE, TRAIN, example, examples, with_redis

from cluster.errors import InputError
from cluster.spec import parse
from k8s.check import CRDS, check, faults, read_crds
from k8s.render import render

MANIFESTS = render([parse(TRAIN)], KUBE)
CONFIG, JOB, _, _, SERVICE = range(5)


@pytest.fixture(scope="module")
def crds() -> dict[str, Any]:
    folder = os.environ.get(CRDS)
    if not folder:
        pytest.skip(f"{CRDS} names no folder of KubeRay's CRDs")
    return read_crds(folder, ["RayJob", "RayService"])


def changed(index: int, change: Callable[[Any], None]) -> dict[str, Any]:
    manifest = copy.deepcopy(MANIFESTS[index])
    change(manifest)
    return manifest


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change that writes a value at a dotted path."""

    def change(tree: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            tree = tree[int(part)] if isinstance(tree, list) else tree.setdefault(part, {})
        tree[last] = value

    return change


POD = "spec.rayClusterSpec.workerGroupSpecs.0.template.spec"


@pytest.mark.parametrize(
    ("index", "path", "value", "where", "what"),
    [
        (CONFIG, "dat", {}, "", "'dat' was unexpected"),
        (CONFIG, "data.x", 5, "data.x", "5 is not of type"),
        (CONFIG, "metadata.lables", {}, "metadata", "'lables' was unexpected"),
        (JOB, "metadata.labels.x", 1, "metadata.labels.x", "1 is not of type"),
        (JOB, f"{POD}.containers.0.imag", "x", f"{POD}.containers.0", "'imag' was unexpected"),
        (JOB, f"{POD}.containers.0.ports.0.containerPort", "a", f"{POD}.containers.0.ports.0.containerPort", "'a' is"),
        (JOB, f"{POD}.nodeSelectors", {}, POD, "'nodeSelectors' was unexpected"),
        (SERVICE, "spec.rayClusterConfig.headGroupSpec.template.spec.restart", "x", "", "'restart' was unexpected"),
    ],
)
def test_cores_schemas_are_strict_inside_kuberays_pods_too(
    index: int, path: str, value: Any, where: str, what: str
) -> None:
    found = list(faults(changed(index, put(path, value)), None))
    assert any(place.endswith(where) and what in said for place, said in found), found


RULES = [
    (SERVICE, {"spec.upgradeStrategy.type": "BlueGreen"}, "spec.upgradeStrategy.type", "'BlueGreen' is none of"),
    (
        SERVICE,
        {"spec.upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}},
        "spec.upgradeStrategy.clusterUpgradeOptions",
        "missing",
    ),
    (
        SERVICE,
        {
            "spec.upgradeStrategy": {
                "type": "NewClusterWithIncrementalUpgrade",
                "clusterUpgradeOptions": {
                    "gatewayClassName": "istio",
                    "intervalSeconds": 10,
                    "stepSizePercent": 50,
                    "maxSurgePercent": 20,
                },
            }
        },
        "spec.upgradeStrategy.clusterUpgradeOptions.stepSizePercent",
        "50 is more than maxSurgePercent 20",
    ),
    (SERVICE, {"metadata.name": "x" * 48}, "metadata.name", "47 at most"),
    (SERVICE, {"metadata.name": "1up"}, "metadata.name", "a letter first"),
    (SERVICE, {"spec.rayClusterConfig.rayVersion": "2.51.0"}, "spec.rayClusterConfig.rayVersion", "2.52 or newer"),
    (
        SERVICE,
        {"spec.rayClusterConfig.workerGroupSpecs.1.template.spec.restartPolicy": "Always"},
        "spec.rayClusterConfig.workerGroupSpecs.1.template.spec.restartPolicy",
        "must be Never",
    ),
    (
        SERVICE,
        {"spec.rayClusterConfig.workerGroupSpecs.1.groupName": "shoal-gateway"},
        "spec.rayClusterConfig.workerGroupSpecs",
        "'shoal-gateway' stands twice",
    ),
    (
        SERVICE,
        {"spec.rayClusterConfig.workerGroupSpecs.1.minReplicas": 99},
        "spec.rayClusterConfig.workerGroupSpecs.1.minReplicas",
        "more than maxReplicas",
    ),
    (JOB, {"spec.shutdownAfterJobFinishes": False}, "spec.ttlSecondsAfterFinished", "means nothing without"),
    (JOB, {"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "must be more than 0"),
    (JOB, {"spec.submissionMode": "SidecarMode"}, "spec.submitterPodTemplate", "no submitting pod"),
    (
        JOB,
        {"spec.deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}},
        "spec.deletionStrategy.deletionRules",
        "excludes shutdownAfterJobFinishes",
    ),
    (
        JOB,
        {
            "spec.shutdownAfterJobFinishes": False,
            "spec.ttlSecondsAfterFinished": 0,
            "spec.deletionStrategy": {
                "deletionRules": [
                    {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 100}},
                    {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 50}},
                ]
            },
        },
        "spec.deletionStrategy.deletionRules",
        "workers go first",
    ),
]


@pytest.mark.parametrize(("index", "changes", "where", "what"), RULES)
def test_what_the_operator_refuses_is_refused_here(index: int, changes: Any, where: str, what: str) -> None:
    manifest = copy.deepcopy(MANIFESTS[index])
    for path, value in changes.items():
        put(path, value)(manifest)
    found = [(place, said) for place, said in faults(manifest, None) if place == where and what in said]
    assert len(found) == 1, list(faults(manifest, None))


@pytest.mark.parametrize(("index", "changes", "where", "what"), RULES)
def test_the_crds_let_these_through(crds: Any, index: int, changes: Any, where: str, what: str) -> None:
    """Were it not so, the rule would have to go: the CRDs are the authority on what they say."""
    manifest = copy.deepcopy(MANIFESTS[index])
    for path, value in changes.items():
        put(path, value)(manifest)
    assert list(crds[manifest["kind"]].faults(manifest)) == []


def test_every_shipped_file_passes_the_crds(crds: Any) -> None:
    for path in examples():
        spec = example(path)
        check(render([spec], KUBE), crds)
        if spec.data.train:
            check(render([spec], KUBE, "tune"), crds)
    check(render([example(path) for path in examples() if path.parent.parent.name == "serve"], KUBE), crds)
    check(render([parse(TRAIN)], KUBE.model_copy(update={"model_cache": None, "tracking_uri": "http://m"})), crds)
    check(render([parse(TRAIN)], with_redis(password_secret="redis")), crds)


@pytest.mark.parametrize(
    ("index", "path", "value", "where", "what"),
    [
        (JOB, "spec.entrypont", "x", "spec", "'entrypont' was unexpected"),
        (
            JOB,
            "spec.rayClusterSpec.enableInTreeAutoscaling",
            "yes",
            "spec.rayClusterSpec.enableInTreeAutoscaling",
            "'yes'",
        ),
        (
            JOB,
            "spec.rayClusterSpec.autoscalerOptions.version",
            "v3",
            "spec.rayClusterSpec.autoscalerOptions.version",
            "v3",
        ),
        (JOB, "spec.rayClusterSpec.autoscalerOptions.idle", 1, "spec.rayClusterSpec.autoscalerOptions", "'idle'"),
        (JOB, "spec.rayClusterSpec.headGroupSpec", {}, "spec.rayClusterSpec.headGroupSpec", "'template' is a required"),
        (JOB, "spec.deletionStrategy", {}, "spec.deletionStrategy", "requires either BOTH onSuccess and onFailure"),
        (JOB, "spec.managedBy", "me", "spec.managedBy", "must be either 'ray.io/kuberay-operator'"),
        (JOB, "spec.backoffLimit", "2", "spec.backoffLimit", "'2' is not of type 'integer'"),
        (SERVICE, "spec.serveConfigV2", {"a": 1}, "spec.serveConfigV2", "is not of type 'string'"),
        (SERVICE, "spec.rayClusterConfig.authOptions.mode", "none", "spec.rayClusterConfig.authOptions.mode", "'none'"),
        (SERVICE, "spec.rayClusterConfig.workerGroupSpecs.0.groupname", "x", "spec.rayClusterConfig", "'groupname'"),
        (SERVICE, "statuz", {}, "", "'statuz' was unexpected"),
    ],
)
def test_kuberays_crds_are_strict(crds: Any, index: int, path: str, value: Any, where: str, what: str) -> None:
    found = list(faults(changed(index, put(path, value)), crds))
    assert any(place.startswith(where) and what in said for place, said in found), found


def test_defaults_need_not_be_given_and_quantities_may_be_numbers(crds: Any) -> None:
    job = changed(JOB, put(f"{POD}.containers.0.resources.limits.cpu", 4))
    del job["spec"]["submissionMode"], job["spec"]["backoffLimit"]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas")
    assert list(faults(job, crds)) == []


def test_all_faults_are_one_message_with_kind_name_and_place() -> None:
    broken = changed(SERVICE, put("spec.upgradeStrategy.type", "x"))
    put("spec.rayClusterConfig.rayVersion", "2.1")(broken)
    with pytest.raises(InputError) as caught:
        check([broken], None)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "RayService tiny: spec.upgradeStrategy.type: 'x' is none of" in str(caught.value)


def test_a_kind_that_the_cluster_has_not(crds: Any) -> None:
    only = {"RayService": crds["RayService"]}
    assert ("kind", "KubeRay has no RayJob; it has RayService") in list(faults(MANIFESTS[JOB], only))


def test_a_folder_of_crds_that_is_none(tmp_path: Any) -> None:
    with pytest.raises(
        InputError, match=r"SHOAL_KUBERAY_CRDS: .*rayjobs\.yaml: No such file or directory; name the fold"
    ):
        read_crds(str(tmp_path), ["RayJob", "ConfigMap"])
    for text in ("a: [", "a", "[]", "spec: {versions: [{name: v2}]}"):
        (tmp_path / "ray.io_rayjobs.yaml").write_text(text)
        with pytest.raises(InputError, match=r"rayjobs\.yaml: no CustomResourceDefinition"):
            read_crds(str(tmp_path), ["RayJob"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray's own
def test_serve_itself_takes_the_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    specs = [parse(SERVE, ["serve.min_replicas=2", "serve.max_replicas=2"]), parse(TRAIN, ["name=other"])]
    config = yaml.safe_load(render(specs, KUBE, "serve")[-1]["spec"]["serveConfigV2"])
    taken = ServeDeploySchema.model_validate(config)
    assert [app.name for app in taken.applications] == ["_gateway", "other", "tiny"]
    options = {app.name: app.deployments[0] for app in taken.applications}
    assert options["tiny"].num_replicas == 2
    assert options["tiny"].ray_actor_options.label_selector == {"shoal.dev/pool": "small"}
