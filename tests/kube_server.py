"""A real API server for the tests: etcd, kube-apiserver and kube-controller-manager of $KUBEBUILDER_ASSETS, KubeRay's
CRDs of $SHOAL_KUBERAY_CRDS, and a stand-in for KubeRay's operator, which only writes statuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import ports

ASSETS, CRDS = "KUBEBUILDER_ASSETS", "SHOAL_KUBERAY_CRDS"
ADMIN, NOBODY = "admin-token", "nobody-token"


@dataclass
class Server:
    """A running API server. `kubeconfigs` by user: admin, nobody (no rights), unknown (a wrong token)."""

    url: str
    folder: Path
    kubeconfigs: dict[str, Path] = field(default_factory=dict)

    def call(self, method: str, path: str, body: Any = None, media: str = "application/json") -> Any:
        """One request by the administrator; plain urllib, so that nothing under test is trusted."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": media},
        )
        with urllib.request.urlopen(request, context=_trusting(), timeout=30) as answer:
            return json.loads(answer.read())

    def namespace(self, name: str) -> str:
        """A namespace of a test's own."""
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def get(self, namespace: str, plural: str, name: str = "") -> Any:
        group = "/api/v1" if plural in ("configmaps", "pods", "services") else "/apis/ray.io/v1"
        return self.call("GET", f"{group}/namespaces/{namespace}/{plural}/{name}".rstrip("/"))

    def set_status(self, namespace: str, plural: str, name: str, status: dict[str, Any]) -> None:
        """What KubeRay's operator would write of a resource."""
        group = "/api/v1" if plural == "pods" else "/apis/ray.io/v1"
        path = f"{group}/namespaces/{namespace}/{plural}/{name}/status"
        self.call("PATCH", path, {"status": status}, "application/merge-patch+json")


def require() -> tuple[Path, Path]:
    """The folders of the binaries and of the CRDs; skips the test where one is not named."""
    folders = [os.environ.get(ASSETS, ""), os.environ.get(CRDS, "")]
    if not folders[0] or not (Path(folders[0]) / "kube-apiserver").is_file():
        pytest.skip(f"{ASSETS} names no folder with kube-apiserver and etcd (setup-envtest makes one)")
    if not folders[1]:
        pytest.skip(f"{CRDS} names no folder of KubeRay's CRDs")
    return Path(folders[0]), Path(folders[1])


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Start all three with their state in `folder`, install the CRDs, and end all three by their process ids."""
    assets, crds = require()
    etcd, peer, secure, controller = ports.pick(4)
    url = f"https://127.0.0.1:{secure}"
    server = Server(url, folder)
    for user, token in (("admin", ADMIN), ("nobody", NOBODY), ("unknown", "wrong")):
        server.kubeconfigs[user] = folder / f"{user}.kubeconfig"
        server.kubeconfigs[user].write_text(yaml.safe_dump(kubeconfig(url, token, folder)))
    (folder / "tokens.csv").write_text(f'{ADMIN},admin,1,"system:masters"\n{NOBODY},nobody,2\n')
    key = folder / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    commands = {
        "etcd": [
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={secure}",
            f"--cert-dir={folder / 'certificates'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--api-audiences=api",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.0.0.0/24",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={server.kubeconfigs['admin']}",
            "--controllers=garbagecollector,namespace",
            "--leader-elect=false",
            "--port=0",
            f"--secure-port={controller}",
            f"--cert-dir={folder / 'certificates'}",
        ],
    }
    with contextlib.ExitStack() as stack:
        for name, arguments in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen([assets / name, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.callback(_end, process)
            if name == "etcd":
                until(lambda: _answers(f"http://127.0.0.1:{etcd}/health"), "etcd", folder)
            elif name == "kube-apiserver":
                until(lambda: _answers(f"{url}/readyz"), name, folder)
        _install(server, crds)
        yield server


def kubeconfig(url: str, token: str, folder: Path, **context: str) -> dict[str, Any]:
    """A kubeconfig with one context, called test; the server's certificate, which it makes itself, is its own CA."""
    authority = str(folder / "certificates" / "apiserver.crt")
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": authority}}],
        "users": [{"name": "me", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me", **context}}],
    }


def old_server(crd: dict[str, Any]) -> dict[str, Any]:
    """A CRD as API servers before 1.25 take it: without CEL rules, and without defaults that are empty text."""

    def plain(tree: Any) -> Any:
        if isinstance(tree, dict):
            fields = tree.get("items", {}).get("properties", {}) if isinstance(tree.get("items"), dict) else {}
            if any(fields[key].get("default") == "" for key in tree.get("x-kubernetes-list-map-keys", ())):
                # A list is told apart by a key that each item must have.
                tree = {key: child for key, child in tree.items() if key != "x-kubernetes-list-map-keys"}
                tree["x-kubernetes-list-type"] = "atomic"
            return {
                key: plain(child)
                for key, child in tree.items()
                if key != "x-kubernetes-validations" and not (key == "default" and child == "")
            }
        return [plain(child) for child in tree] if isinstance(tree, list) else tree

    return plain(crd)


def _install(server: Server, folder: Path) -> None:
    version = re.match(r"\d+", server.call("GET", "/version")["minor"])
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    names = []
    for kind in ("rayjobs", "rayservices"):
        crd = yaml.load((folder / f"ray.io_{kind}.yaml").read_bytes(), Loader=loader)  # noqa: S506 - a safe one
        # The old version would only be served beside the new one, at twice the memory.
        crd["spec"]["versions"] = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
        if version and int(version[0]) < 25:
            crd = old_server(crd)
        server.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        names.append(kind)
    for kind in names:
        until(lambda kind=kind: bool(server.get("default", kind)), f"CRD {kind}", server.folder)


@contextlib.contextmanager
def operator(server: Server, namespace: str, *, job: str = "SUCCEEDED", application: str = "RUNNING") -> Iterator[None]:
    """A stand-in for KubeRay's operator: jobs run and end as `job`, services become ready with their applications as
    `application`. It writes statuses and does nothing else; no pod runs."""
    stop = threading.Event()
    thread = threading.Thread(target=_operate, args=(server, namespace, job, application, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=30)


def _operate(server: Server, namespace: str, job: str, application: str, stop: threading.Event) -> None:
    while not stop.wait(0.2):
        with contextlib.suppress(urllib.error.HTTPError):
            for one in server.get(namespace, "rayjobs")["items"]:
                name, status = one["metadata"]["name"], one.get("status", {})
                cluster = f"{name}-abcde"
                if not status:
                    new = {"jobDeploymentStatus": "Initializing", "rayClusterName": cluster}
                elif status["jobDeploymentStatus"] == "Initializing":
                    new = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
                elif status["jobDeploymentStatus"] == "Running":
                    failed = {"reason": "AppFailed", "message": "evaluate.gate: accuracy 0.5 is below 0.9"}
                    ended = {"jobDeploymentStatus": "Complete", "jobStatus": job}
                    new = ended if job == "SUCCEEDED" else {**ended, "jobDeploymentStatus": "Failed", **failed}
                else:
                    continue
                server.set_status(namespace, "rayjobs", name, new)
            for one in server.get(namespace, "rayservices")["items"]:
                metadata = one["metadata"]
                if one.get("status", {}).get("observedGeneration") == metadata["generation"]:
                    continue
                config = yaml.safe_load(one["spec"]["serveConfigV2"])
                said = {"status": application, "message": "as the stand-in says"}
                condition = {
                    "type": "Ready",
                    "status": "True",
                    "reason": "NonZeroServeEndpoints",
                    "message": "the stand-in has endpoints",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
                status = {
                    "observedGeneration": metadata["generation"],
                    "serviceStatus": "Running",
                    "conditions": [condition],
                    "activeServiceStatus": {
                        "rayClusterName": f"{metadata['name']}-abcde",
                        "applicationStatuses": {app["name"]: said for app in config["applications"]},
                    },
                }
                server.set_status(namespace, "rayservices", metadata["name"], status)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(holds: Any, what: str, folder: Path, longest_s: float = 90) -> None:
    end = time.monotonic() + longest_s
    while True:
        with contextlib.suppress(OSError, ValueError):
            if holds():
                return
        if time.monotonic() > end:
            tails = {log.name: log.read_text(errors="replace")[-1500:] for log in folder.glob("*.log")}
            raise RuntimeError(f"{what} did not come up within {longest_s} s: {tails}")
        time.sleep(0.1)


def exists(server: Server, path: str) -> bool:
    try:
        server.call("GET", path)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise
    return True


def _answers(url: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN}"})
    with urllib.request.urlopen(request, context=_trusting() if url.startswith("https") else None, timeout=5) as answer:
        return answer.status == 200


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def shoal(*words: str, config: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """The command line, with a kubeconfig."""
    environment = {**os.environ, "KUBECONFIG": str(config), "SHOAL_HOME": str(home)}
    command = [sys.executable, "-m", "cluster", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
