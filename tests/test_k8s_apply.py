"""Applied to a real API server, watched and deleted. KubeRay's operator is a stand-in that writes statuses."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube_server
import pytest
import yaml
from test_k8s_render import SERVE, TRAIN

from cluster.errors import ClusterGone, InputError, NotFound, RunFailed
from cluster.settings.kubernetes import Kubernetes
from cluster.spec import parse
from k8s.api import Api, connect, refusal
from k8s.apply import apply, delete, status
from k8s.render import render

POOLS = {"cpu": {"cpus": 8}, "gpu": {"cpus": 8, "gpus": 1}}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kube_server.Server]:
    with kube_server.running(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture
def namespace(server: kube_server.Server, request: pytest.FixtureRequest) -> str:
    name = request.node.name.removeprefix("test_").replace("_", "-")
    return server.namespace(name[:60].strip("-"))


def settings(namespace: str | None) -> Kubernetes:
    return Kubernetes.model_validate({"namespace": namespace, "model_cache": "cache", "node_pools": POOLS})


def api_of(
    server: kube_server.Server, namespace: str | None, monkeypatch: pytest.MonkeyPatch, user: str = "admin"
) -> Api:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfigs[user]))
    return connect(settings(namespace))


def names(server: kube_server.Server, namespace: str) -> set[str]:
    found = [
        one["metadata"]["name"]
        for plural in ("rayjobs", "rayservices", "configmaps", "services")
        for one in server.get(namespace, plural)["items"]
    ]
    return set(found) - {"kube-root-ca.crt"}


def versions(server: kube_server.Server, namespace: str) -> dict[str, tuple[str, int]]:
    return {
        f"{plural}/{one['metadata']['name']}": (
            one["metadata"]["resourceVersion"],
            one["metadata"].get("generation", 0),
        )
        for plural in ("rayjobs", "rayservices", "configmaps", "services")
        for one in server.get(namespace, plural)["items"]
    }


def lost(wanted: Any, stored: Any, path: str = "") -> Iterator[str]:
    """What the server has not stored as it was sent; it may have filled in defaults."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        for key, value in wanted.items():
            yield from lost(value, stored.get(key), f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(stored, list) and len(wanted) == len(stored):
        for index, value in enumerate(wanted):
            yield from lost(value, stored[index], f"{path}.{index}")
    elif wanted != stored:
        yield f"{path}: {wanted!r} is {stored!r}"


@slow
def test_a_create_goes_through_as_json(server: kube_server.Server, namespace: str, monkeypatch: Any) -> None:
    """A package that replaces urllib3 makes the client send text/plain, which an API server answers 415."""
    from importlib.metadata import packages_distributions

    from kubernetes.client import CoreV1Api, V1ConfigMap, V1ObjectMeta

    api = api_of(server, namespace, monkeypatch)
    body = V1ConfigMap(metadata=V1ObjectMeta(name="made"), data={"a": "b"})
    CoreV1Api(api.client).create_namespaced_config_map(namespace, body)
    assert server.get(namespace, "configmaps", "made")["data"] == {"a": "b"}
    assert set(packages_distributions()["urllib3"]) == {"urllib3"}


@slow
def test_up_trains_then_serves_and_again_changes_nothing(
    server: kube_server.Server, namespace: str, tmp_path: Path
) -> None:
    """The whole of it, by the command line."""
    (tmp_path / "a.yaml").write_text(TRAIN)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"kubernetes": settings(namespace).model_dump()}))
    words = ("k8s", "apply", str(tmp_path / "a.yaml"), "--json")
    with kube_server.operator(server, namespace):
        done = kube_server.shoal(*words, config=server.kubeconfigs["admin"], home=tmp_path)
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout.splitlines()[-1])
        before = versions(server, namespace)
        again = kube_server.shoal(*words, config=server.kubeconfigs["admin"], home=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["applied"][0] == value["applied"][0]
    assert versions(server, namespace) == before
    kinds = [one["kind"] for one in value["applied"]]
    assert kinds == ["ConfigMap", "RayJob", "ConfigMap", "Service", "RayService"]
    assert value["services"] == [{"name": "tiny-gateway", "url": f"http://tiny-gateway.{namespace}.svc:8000"}]
    job, service = (one for one in value["applied"] if one["kind"].startswith("Ray"))
    made = server.get(namespace, "rayjobs", job["name"])
    owners = {(one["manager"], one["operation"]) for one in made["metadata"]["managedFields"]}
    assert ("shoal", "Apply") in owners
    assert made["spec"]["entrypoint"].startswith("bash -c")
    stored = server.get(namespace, "rayservices", service["name"])["spec"]
    # The server kept every field: what its schema does not know would have been dropped.
    wanted = render([parse(TRAIN)], settings(namespace))[-1]["spec"]
    assert list(lost(wanted, stored)) == []


@slow
def test_a_training_that_fails_leaves_what_is_served(
    server: kube_server.Server, namespace: str, monkeypatch: Any
) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(TRAIN)], settings(namespace))
    with kube_server.operator(server, namespace, job="FAILED"), pytest.raises(RunFailed) as caught:
        apply(api, manifests, poll_s=0.1)
    said = str(caught.value)
    assert said.startswith("RayJob tiny-train-")
    assert "Failed (FAILED): AppFailed evaluate.gate: accuracy 0.5 is below 0.9; kubectl -n " in said
    assert server.get(namespace, "rayservices")["items"] == []


@slow
def test_a_service_that_does_not_start_says_why(server: kube_server.Server, namespace: str, monkeypatch: Any) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(SERVE)], settings(namespace))
    with pytest.raises(RunFailed, match=r"RayService tiny: not ready within 0.3 s: Pending: KubeRay has not looked"):
        apply(api, manifests, poll_s=0.1, ready_s=0.3)
    with kube_server.operator(server, namespace, application="DEPLOY_FAILED"), pytest.raises(RunFailed) as caught:
        apply(api, manifests, poll_s=0.1)
    assert "_gateway is DEPLOY_FAILED: as the stand-in says" in str(caught.value)
    assert "logs -l ray.io/cluster=tiny-abcde,ray.io/node-type=head says more" in str(caught.value)


@slow
def test_a_service_waits_for_every_application(server: kube_server.Server, namespace: str, monkeypatch: Any) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(SERVE)], settings(namespace))
    with kube_server.operator(server, namespace, application="DEPLOYING"), pytest.raises(RunFailed) as caught:
        apply(api, manifests, poll_s=0.1, ready_s=3)
    assert "not ready within 3 s: Ready: waiting for _gateway, tiny" in str(caught.value)


@slow
def test_a_field_of_someone_elses_is_theirs(server: kube_server.Server, namespace: str, monkeypatch: Any) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(SERVE)], settings(namespace))
    for manifest in manifests:
        api.apply(manifest)
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/tiny?fieldManager=kubectl-edit"
    theirs = {"spec": {"rayClusterConfig": {"rayVersion": "2.61.0"}}, "metadata": {"labels": {"team": "nlp"}}}
    server.call("PATCH", path, theirs, "application/merge-patch+json")
    before = versions(server, namespace)
    with pytest.raises(RunFailed) as caught:
        apply(api, manifests)
    said = str(caught.value)
    assert said.startswith(
        'apply RayService tiny: spec.rayClusterConfig.rayVersion belongs to "kubectl-edit". Change it'
    )
    assert "--force-conflicts --field-manager=shoal" in said
    assert versions(server, namespace) == before
    # What we never set stays theirs without a word.
    server.call("PATCH", path, {"spec": {"rayClusterConfig": {"rayVersion": "2.60.0"}}}, "application/merge-patch+json")
    api.apply(manifests[-1])
    assert server.get(namespace, "rayservices", "tiny")["metadata"]["labels"]["team"] == "nlp"


@slow
def test_nothing_is_applied_where_one_of_it_is_refused(
    server: kube_server.Server, namespace: str, monkeypatch: Any
) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(SERVE)], settings(namespace))
    typo = json.loads(json.dumps(manifests))
    typo[-1]["spec"]["serveConfig"] = "x"
    with pytest.raises(
        InputError, match=r"RayService tiny: spec: Additional properties .*'serveConfig' was unexpected"
    ):
        apply(api, typo)
    # What no schema says: the server's own dry run.
    large = json.loads(json.dumps(manifests))
    large.append({**large[0], "metadata": {**large[0]["metadata"], "name": "large"}, "data": {"a": "x" * 1_100_000}})
    with pytest.raises(InputError, match=r"apply ConfigMap large: refused by the API server: .*must have at most"):
        apply(api, large)
    assert names(server, namespace) == set()


@slow
def test_status_tells_of_jobs_services_and_pods(server: kube_server.Server, namespace: str, monkeypatch: Any) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(TRAIN)], settings(namespace))
    assert status(api, manifests) == []
    with kube_server.operator(server, namespace):
        apply(api, manifests, poll_s=0.1)
    pod = {
        "metadata": {"name": "tiny-abcde-head", "labels": {"ray.io/cluster": "tiny-abcde"}},
        "spec": {"containers": [{"name": "ray-head", "image": "shoal:0.1.0"}]},
    }
    server.call("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    waiting = {"name": "ray-head", "image": "", "imageID": "", "restartCount": 0, "ready": False}
    state = {**waiting, "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    server.set_status(namespace, "pods", "tiny-abcde-head", {"phase": "Pending", "containerStatuses": [state]})
    job, service = status(api, manifests)
    assert (job["kind"], job["state"], job["pods"]) == ("RayJob", "Complete (SUCCEEDED)", [])
    assert (service["kind"], service["name"], service["state"]) == ("RayService", "tiny", "Ready")
    assert service["pods"] == [
        {"name": "tiny-abcde-head", "phase": "Pending", "ready": "0/1", "message": "ImagePullBackOff"}
    ]


@slow
def test_delete_removes_what_was_applied_for_a_file_and_nothing_else(
    server: kube_server.Server, namespace: str, monkeypatch: Any
) -> None:
    api = api_of(server, namespace, monkeypatch)
    kube = settings(namespace)
    earlier = render([parse(TRAIN, ["train.epochs=9"])], kube, "train")
    now = render([parse(TRAIN)], kube)
    others = render([parse(SERVE, ["name=other"])], kube)
    for manifest in (*earlier, *now, *others):
        api.apply(manifest)
    server.call("POST", f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "tiny-notes"}})
    kept = {"tiny-notes", *(one["metadata"]["name"] for one in others)}
    removed = delete(api, now)
    assert names(server, namespace) == kept
    assert {name for _, name in removed} == {one["metadata"]["name"] for one in (*earlier, *now)}
    assert next(kind for kind, _ in removed) == "RayService"
    assert delete(api, now) == []


@slow
def test_what_stays_is_told_with_what_holds_it(server: kube_server.Server, namespace: str, monkeypatch: Any) -> None:
    api = api_of(server, namespace, monkeypatch)
    manifests = render([parse(SERVE)], settings(namespace))
    for manifest in manifests:
        api.apply(manifest)
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayservices/tiny"
    held = {"metadata": {"finalizers": ["ray.io/hold"]}}
    server.call("PATCH", path, held, "application/merge-patch+json")
    with pytest.raises(
        RunFailed, match=r"RayService tiny: still there after 0.5 s, held by ray.io/hold; does KubeRay's"
    ):
        delete(api, manifests, gone_s=0.5)
    server.call("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")


@slow
def test_refusals_are_one_message_each(
    server: kube_server.Server, namespace: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """By the command line: exit code, one line, no traceback."""
    (tmp_path / "a.yaml").write_text(SERVE)

    def says(user: str, kube: Kubernetes, code: int) -> str:
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"kubernetes": kube.model_dump()}))
        done = kube_server.shoal(
            "k8s", "apply", str(tmp_path / "a.yaml"), config=server.kubeconfigs[user], home=tmp_path
        )
        assert (done.returncode, done.stdout) == (code, ""), done
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    said = says("nobody", settings(namespace), 1)
    assert '403: configmaps "tiny-files" is forbidden: User "nobody" cannot patch resource "configmaps"' in said
    assert 'RBAC rule {apiGroups: [""], resources: ["configmaps"], verbs: [get, list, create, patch, delete]}' in said
    assert "401: the API server does not know who asks" in says("unknown", settings(namespace), 1)
    said = says("admin", settings("nowhere"), 2)
    assert "kubernetes.namespace: 'nowhere' does not exist; `kubectl create namespace nowhere` makes it" in said
    assert names(server, namespace) == set()


@slow
def test_the_namespace_is_the_contexts_where_none_is_set(
    server: kube_server.Server, tmp_path: Path, monkeypatch: Any
) -> None:
    config = tmp_path / "config"
    config.write_text(yaml.safe_dump(kube_server.kubeconfig(server.url, "x", server.folder, namespace="theirs")))
    monkeypatch.setenv("KUBECONFIG", str(config))
    assert connect(settings(None)).namespace == "theirs"
    assert connect(settings("ours")).namespace == "ours"
    with pytest.raises(
        InputError, match=r"kubeconfig: .* cannot be used: .*prod.*; set KUBECONFIG .* kubernetes.context"
    ):
        connect(settings(None).model_copy(update={"context": "prod"}))


@slow
def test_kubectl_takes_the_text(server: kube_server.Server, namespace: str, tmp_path: Path) -> None:
    from k8s.documents import to_yaml

    text = to_yaml(render([parse(TRAIN, ["name='1e3'"]), parse(SERVE)], settings(namespace)))
    kubectl = Path(sysconfig.get_path("scripts")) / "kubectl"
    command = [kubectl, "--kubeconfig", server.kubeconfigs["admin"], "apply", "--dry-run=server", "--validate=false"]
    done = subprocess.run([*command, "-f", "-"], input=text, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == 5
    assert "rayservice.ray.io/shoal" in done.stdout
    assert names(server, namespace) == set()


@slow
def test_without_kuberay_it_says_how_to_install_it(
    server: kube_server.Server, namespace: str, monkeypatch: Any
) -> None:
    """The last of this file: it takes a CRD away."""
    api = api_of(server, namespace, monkeypatch)
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayjobs.ray.io"
    server.call("DELETE", crd)
    kube_server.until(lambda: not kube_server.exists(server, crd), "the end of a CRD", server.folder)
    with pytest.raises(InputError) as caught:
        apply(api, render([parse(TRAIN)], settings(namespace)))
    assert "has no RayJob (ray.io/v1); install KubeRay first, e.g. helm install kuberay-operator" in str(caught.value)


def test_an_api_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "certificates").mkdir()
    config = kube_server.kubeconfig("http://127.0.0.1:1", "x", tmp_path)
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    api = connect(settings("ml"))
    with pytest.raises(ClusterGone) as caught:
        apply(api, render([parse(SERVE)], settings("ml")))
    said = str(caught.value)
    assert said.startswith("http://127.0.0.1:1: no answer from the API server (")
    assert "refused" in said
    assert "0x" not in said


@pytest.mark.parametrize("text", ["", "a: [", "[]", "5", "kind: Config\n", "current-context: x\ncontexts: 5\n", "\0"])
def test_a_kubeconfig_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(InputError, match=r"^kubeconfig: .*config cannot be used: .*; set KUBECONFIG to one that"):
        connect(settings("ml"))


def test_no_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InputError, match=r"^kubeconfig: .*none cannot be used"):
        connect(settings("ml"))


def test_what_an_api_server_says_in_other_words() -> None:
    """Answers that the server of the tests does not give: a kind that is not known, a proxy in between."""
    unknown = refusal(404, '{"kind": "Status", "details": {}}', "apply RayJob a", "https://h", "ml")
    assert isinstance(unknown, InputError)
    assert "nothing of ray.io/v1 is known there (to apply RayJob a); install KubeRay" in str(unknown)
    assert str(refusal(502, "<html>Bad\n\n gateway", "get RayJob a", "https://h", "ml")) == (
        "https://h: get RayJob a: 502: <html>Bad gateway"
    )
    missing = '{"message": "namespaces \\"ml\\" not found", "details": {"name": "ml", "kind": "namespaces"}}'
    assert isinstance(refusal(404, missing, "apply RayJob a", "https://h", "ml"), NotFound)
    assert "allows to list RayJobs" in str(refusal(403, "no", "list RayJobs", "https://h", "ml"))
