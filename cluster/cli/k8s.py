"""`shoal k8s`: a file's life on Kubernetes, by KubeRay."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.options import as_json
from cluster.cli.output import Output, table

if TYPE_CHECKING:
    from cluster.settings.kubernetes import Kubernetes


@click.group()
def command() -> None:
    """Run the same files on Kubernetes: manifests for KubeRay, written, applied, watched and deleted.

    \b
      shoal k8s render reviews.yaml | less         what would be applied
      shoal k8s apply reviews.yaml                 train, judge, register, then serve, as `shoal up` does
      shoal k8s apply --verb serve a.yaml b.yaml   two models on one Ray cluster behind one gateway
      shoal k8s status reviews.yaml                what has become of it; --json for machines
      shoal k8s delete reviews.yaml

    `kubernetes` in cluster.yaml (`shoal schema cluster`) says where: namespace, image, node pools, model cache and
    MLflow's address. Models and data must be within the pods' reach: a Hub id, models:/name@alias, hf://name, or a path
    in the model cache. KubeRay 1.7 must be installed for all but `render`.
    """


def _words(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--verb",
        type=click.Choice(["up", "train", "tune", "serve"]),
        default="up",
        show_default=True,
        help="Which verb of shoal is to be done there.",
    )(function)
    return click.argument("words", nargs=-1, required=True, metavar="FILE... [KEY=VALUE]...")(function)


def _rendered(words: Sequence[str], verb: Any) -> tuple[Kubernetes, list[dict[str, Any]]]:
    from cluster.settings import settings
    from cluster.spec import load
    from k8s.render import render

    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if not files:
        raise click.UsageError("name at least one FILE")
    kube = settings().kubernetes
    return kube, render([load(file, overrides) for file in files], kube, verb)


@command.command(short_help="Write the manifests to standard output, checked")
@_words
def render(words: Sequence[str], verb: str) -> None:
    """Write the manifests of FILEs to standard output, checked as far as can be without a cluster.

    A file that trains becomes a RayJob, a model that is served a RayService; several files share one RayService. What
    KubeRay's CRDs say is checked where SHOAL_KUBERAY_CRDS names a folder of them; `apply` takes them from the cluster.

    \b
      shoal k8s render reviews.yaml
      shoal k8s render --verb tune reviews.yaml tune.trials=50
      shoal k8s render reviews.yaml | kubectl diff --server-side -f -
    """
    from k8s.check import CRDS, check, read_crds
    from k8s.documents import to_yaml

    _, manifests = _rendered(words, verb)
    folder = os.environ.get(CRDS)
    check(manifests, read_crds(folder, (one["kind"] for one in manifests)) if folder else None)
    with Output() as out:
        if not folder:
            out.say(f"checked: Kubernetes' schemas, KubeRay's rules; not checked: its CRDs ({CRDS} names their folder)")
        out.result(None, to_yaml(manifests).rstrip("\n"))


@command.command(short_help="Apply them, wait, and say where it answers")
@_words
@as_json
def apply(words: Sequence[str], verb: str, as_json: bool) -> None:
    """Apply the manifests of FILEs, wait until all of it is done, and say where it answers.

    Server-side apply as the field manager `shoal`: the same again changes nothing, and fields that others set are
    theirs. A service is applied when the training before it has passed its gate. Ctrl-C ends only the waiting.

    \b
      shoal k8s apply reviews.yaml
      shoal k8s apply --verb train reviews.yaml train.epochs=1
    """
    from k8s import apply as k8s
    from k8s.api import connect
    from k8s.render import service_name, url

    kube, manifests = _rendered(words, verb)
    api = connect(kube)
    with Output(as_json=as_json) as out:
        made = k8s.apply(api, manifests, progress=out.progress)
        services = [one["metadata"]["name"] for one in made if one["kind"] == "RayService"]
        value = {
            "namespace": api.namespace,
            "applied": [
                {"kind": one["kind"], "name": one["metadata"]["name"], "version": one["metadata"]["resourceVersion"]}
                for one in made
            ],
            "services": [{"name": service_name(name), "url": url(name, api.namespace)} for name in services],
        }
        lines = [f"{row['kind']} {row['name']}" for row in value["applied"]]
        for service in value["services"]:
            forward = f"kubectl -n {api.namespace} port-forward svc/{service['name']} 8000"
            lines += ["", f"answers at {service['url']}/models within the cluster", f"from here: {forward}"]
        out.result(value, "\n".join(lines))


@command.command(short_help="What has become of them on the cluster")
@_words
@as_json
def status(words: Sequence[str], verb: str, as_json: bool) -> None:
    """What has become of FILEs on the cluster: jobs, services and their pods, as KubeRay tells.

    \b
      shoal k8s status reviews.yaml
      shoal k8s status --verb serve a.yaml b.yaml --json
    """
    from k8s import apply as k8s
    from k8s.api import connect

    kube, manifests = _rendered(words, verb)
    rows = k8s.status(connect(kube), manifests)
    cells = [[row["kind"], row["name"], row["state"], row["message"]] for row in rows]
    text = table(["kind", "name", "state", "message"], cells) if rows else "nothing of these files is on the cluster"
    pods = [[pod["name"], pod["phase"], pod["ready"], pod["message"]] for row in rows for pod in row["pods"]]
    if pods:
        text += f"\n\n{table(['pod', 'phase', 'ready', 'message'], pods)}"
    with Output(as_json=as_json) as out:
        out.result({"resources": rows}, text)


@command.command(short_help="Delete what was applied, and wait until it is gone")
@_words
@as_json
def delete(words: Sequence[str], verb: str, as_json: bool) -> None:
    """Delete what was applied for FILEs, and wait until it is gone; models and runs in the registry stay.

    \b
      shoal k8s delete reviews.yaml
      shoal k8s delete --verb train reviews.yaml     the jobs alone
    """
    from k8s import apply as k8s
    from k8s.api import connect

    kube, manifests = _rendered(words, verb)
    with Output(as_json=as_json) as out:
        removed = k8s.delete(connect(kube), manifests, progress=out.progress)
        text = "\n".join(f"deleted {kind} {name}" for kind, name in removed) or "nothing of these files was there"
        out.result({"deleted": [{"kind": kind, "name": name} for kind, name in removed]}, text)
