"""The API server: one object with the few calls that are needed, and every refusal as one message.

The kubernetes client is imported when a connection is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from cluster.errors import ClusterGone, InputError, NotFound, RunFailed, ShoalError
from cluster.settings.kubernetes import Kubernetes
from k8s.names import CORE, MANAGER, PLURALS
from k8s.schema import Resource

RAY = ("ray.io", "v1")
TIMEOUT_S = (5.0, 60.0)  # to connect, and to be answered
_APPLY = "application/apply-patch+yaml"
INSTALL = (
    "install KubeRay first, e.g. helm install kuberay-operator kuberay-operator --version 1.7.0 "
    "--repo https://ray-project.github.io/kuberay-helm/"
)


class Api:
    """Calls to one API server, in one namespace."""

    def __init__(self, client: Any, namespace: str) -> None:
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self.client = client
        self.namespace = namespace
        self.host: str = client.configuration.host
        self._core = CoreV1Api(client)
        self._custom = CustomObjectsApi(client)

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Server-side apply: fields that are not in the manifest are left to others. Raises RunFailed where a field has
        another owner."""
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        options: dict[str, Any] = {
            "field_manager": MANAGER,
            "field_validation": "Strict",
            "_content_type": _APPLY,
            "_request_timeout": TIMEOUT_S,
        }
        if dry_run:
            options["dry_run"] = "All"
        with self._told(f"apply {kind} {name}"):
            if kind in CORE:
                made = self._of_core("patch", kind)(name, self.namespace, dict(manifest), **options)
                return self.client.sanitize_for_serialization(made)
            changed: Any = self._custom.patch_namespaced_custom_object(
                *RAY, self.namespace, PLURALS[kind], name, dict(manifest), **options
            )
        if changed is None and not dry_run:  # the client passes over the answer where something was made (201)
            changed = self.get(kind, name)
        return changed or dict(manifest)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """A resource as it stands, None where there is none."""
        with self._told(f"get {kind} {name}"):
            try:
                if kind in CORE:
                    found = self._of_core("read", kind)(name, self.namespace, _request_timeout=TIMEOUT_S)
                    return self.client.sanitize_for_serialization(found)
                one: Any = self._custom.get_namespaced_custom_object(
                    *RAY, self.namespace, PLURALS[kind], name, _request_timeout=TIMEOUT_S
                )
                return one
            except _api_exception() as error:
                if error.status != 404 or not _named(error, name):
                    raise
                return None

    def list(self, kind: str, selector: str) -> list[dict[str, Any]]:
        """Resources by labels, in the order of their names."""
        with self._told(f"list {kind}s"):
            options: dict[str, Any] = {"label_selector": selector, "_request_timeout": TIMEOUT_S}
            found: Any
            if kind not in CORE:
                found = self._custom.list_namespaced_custom_object(*RAY, self.namespace, PLURALS[kind], **options)
            else:
                listed = self._of_core("list", kind)(self.namespace, **options)
                found = self.client.sanitize_for_serialization(listed)
        return sorted(found["items"], key=lambda one: one["metadata"]["name"])

    def delete(self, kind: str, name: str) -> None:
        """Delete a resource; what KubeRay made for it goes with it. Nothing where it is gone already."""
        with self._told(f"delete {kind} {name}"):
            try:
                if kind in CORE:
                    # The answer is a Status from some servers and the object from others; the client fails on one.
                    options: dict[str, Any] = {"_request_timeout": TIMEOUT_S, "_preload_content": False}
                    self._of_core("delete", kind)(name, self.namespace, **options)
                else:
                    self._custom.delete_namespaced_custom_object(
                        *RAY, self.namespace, PLURALS[kind], name, _request_timeout=TIMEOUT_S
                    )
            except _api_exception() as error:
                if error.status != 404 or not _named(error, name):
                    raise

    def crds(self, kinds: Iterable[str]) -> dict[str, Resource] | None:
        """KubeRay's CRDs by kind, as this cluster has them; None where they may not be read here.

        Raises InputError where KubeRay is not installed.
        """
        found: dict[str, Resource] = {}
        for kind in sorted(set(kinds) - set(CORE)):
            name = f"{PLURALS[kind]}.ray.io"
            with self._told(f"get CustomResourceDefinition {name}"):
                try:
                    crd: Any = self._custom.get_cluster_custom_object(
                        "apiextensions.k8s.io", "v1", "customresourcedefinitions", name, _request_timeout=TIMEOUT_S
                    )
                    found[kind] = Resource(crd)
                except _api_exception() as error:
                    if error.status == 403:
                        return None
                    if error.status != 404:
                        raise
                    raise InputError(f"{self.host} has no {kind} (ray.io/v1); {INSTALL}") from None
        return found

    def _of_core(self, verb: str, kind: str) -> Any:
        """The client's call for a kind of Kubernetes' own."""
        word = {"ConfigMap": "config_map", "Service": "service", "Pod": "pod"}[kind]
        return getattr(self._core, f"{verb}_namespaced_{word}")

    @contextlib.contextmanager
    def _told(self, purpose: str) -> Iterator[None]:
        """What a call raises, as one message of ours. `purpose` is verb, kind and name."""
        from urllib3.exceptions import HTTPError, InsecureRequestWarning

        try:
            with warnings.catch_warnings():
                # A kubeconfig with insecure-skip-tls-verify says so itself; kubectl does not repeat it either.
                warnings.simplefilter("ignore", InsecureRequestWarning)
                yield
        except ShoalError:
            raise
        except _api_exception() as error:
            raise refusal(error.status, error.body, purpose, self.host, self.namespace) from None
        except (HTTPError, OSError) as error:
            raise ClusterGone(
                f"{self.host}: no answer from the API server ({_reason(error)}); is the cluster up, and the context "
                "right? `kubectl config current-context` tells, kubernetes.context in cluster.yaml names another"
            ) from None


def connect(kube: Kubernetes) -> Api:
    """The API server of the kubeconfig's context, or of the cluster around this pod. Raises InputError where neither
    is, or the kubeconfig cannot be used. Nothing is asked yet."""
    try:
        from kubernetes import client, config
    except ImportError:
        raise InputError("the Kubernetes client is not installed here; pip install 'shoal[k8s]'") from None
    import yaml

    place = os.environ.get("KUBECONFIG") or "~/.kube/config"
    configuration = client.Configuration()
    configuration.retries = 1
    try:
        there = any(os.path.exists(os.path.expanduser(one)) for one in place.split(os.pathsep))
        if not there and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
                namespace = file.read().strip()
        else:
            # The client itself reads KUBECONFIG once, when it is imported.
            config.load_kube_config(place, kube.context, configuration, persist_config=False)
            contexts, active = cast("tuple[Any, Any]", config.list_kube_config_contexts(place))
            chosen = next((one for one in contexts if one["name"] == kube.context), active)
            namespace = chosen["context"].get("namespace")
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"kubeconfig: {place} cannot be used: {why}; set KUBECONFIG to one that `kubectl get pods` works with, or "
            "kubernetes.context in cluster.yaml"
        ) from None
    return Api(client.ApiClient(configuration), kube.namespace or namespace or "default")


def refusal(status: int | None, body: Any, purpose: str, host: str, namespace: str) -> ShoalError:
    """What an API server answered, as an error that says what to do."""
    said = _status(body)
    message = " ".join(str(said.get("message") or body or "no reason given").split())[:600]
    details = said.get("details") or {}
    if status == 401:
        return RunFailed(
            f"{host}: 401: the API server does not know who asks to {purpose}; log in again, or name another context "
            "(kubernetes.context in cluster.yaml)"
        )
    if status == 403:
        return RunFailed(f"{host}: 403: {message}; missing is the RBAC rule {_rule(message, purpose)}")
    if status == 404 and details.get("kind") == "namespaces":
        return NotFound(
            f"kubernetes.namespace: {namespace!r} does not exist; `kubectl create namespace {namespace}` makes it"
        )
    if status == 404 and not details.get("name"):
        return InputError(f"{host}: nothing of ray.io/v1 is known there (to {purpose}); {INSTALL}")
    causes = details.get("causes") or []
    if status == 409 and any(cause.get("reason") == "FieldManagerConflict" for cause in causes):
        owners = "; ".join(f"{cause['field'].lstrip('.')} belongs to {_owner(cause['message'])}" for cause in causes)
        return RunFailed(
            f"{purpose}: {owners}. Change it there, or hand the field over: the same manifest by `kubectl apply "
            f"--server-side --force-conflicts --field-manager={MANAGER} -f -`"
        )
    if status in (400, 422):
        return InputError(f"{purpose}: refused by the API server: {message}")
    return RunFailed(f"{host}: {purpose}: {status}: {message}")


def _rule(message: str, purpose: str) -> str:
    """The rule of a Role that would allow what was forbidden, read off Kubernetes' own words."""
    match = re.search(r'cannot (?P<verb>\w+) resource "(?P<what>[^"]+)" in API group "(?P<group>[^"]*)"', message)
    if match is None:
        return f"that allows to {purpose}"
    # Applying makes what is not there, and waiting reads it.
    verbs = "get, list, create, patch, delete" if match["what"] != "pods" else "get, list"
    return f'{{apiGroups: ["{match["group"]}"], resources: ["{match["what"]}"], verbs: [{verbs}]}}'


def _owner(message: str) -> str:
    match = re.search(r'conflict with "([^"]+)"', message)
    return f'"{match[1]}"' if match else "someone else"


def _status(body: Any) -> dict[str, Any]:
    """The Status object of an answer; empty where it is none."""
    try:
        value = json.loads(body)
    except (ValueError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}


def _named(error: Any, name: str) -> bool:
    """Whether a 404 is about the resource itself, and not about its kind or namespace."""
    details = _status(error.body).get("details") or {}
    return details.get("name") == name and details.get("kind") != "namespaces"


def _reason(error: BaseException) -> str:
    """The innermost reason of a chain of urllib3's errors, without its objects' addresses."""
    inner = getattr(error, "reason", None)
    text = str(inner if inner is not None else error) or type(error).__name__
    return re.sub(r"<[^>]*>:? ?", "", text)[:200]


def _api_exception() -> Any:
    from kubernetes.client.exceptions import ApiException

    return ApiException
