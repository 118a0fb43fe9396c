"""From files to manifests: values, and what is refused. No cluster, no CRDs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from cluster.settings.kubernetes import Kubernetes
from cluster.spec import Spec, load, parse
from k8s.check import check
from k8s.documents import to_yaml
from k8s.names import MOST, resource_name
from k8s.render import render

ROOT = Path(__file__).parent.parent
POOLS = {
    "cpu": {"cpus": 8, "memory_gb": 31.5, "max_nodes": 3, "node_selector": {"pool": "cpu"}},
    "small": {"cpus": 4},
    "gpu": {"cpus": 16, "gpus": 2, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    "amd": {"cpus": 16, "gpus": 4, "gpu_resource": "amd.com/mi300"},
}
KUBE = Kubernetes.model_validate({"namespace": "ml", "model_cache": "cache", "node_pools": POOLS})
# Where an example names something on the machine, what its comment says to write instead.
REACHABLE = {
    "spam.yaml": ["model=sentence-transformers/all-MiniLM-L6-v2"],
    "digits.yaml": ["model=google/vit-base-patch16-224-in21k", "train.from_scratch=false"],
    "iris.yaml": [],
    "assistant.yaml": ["model=HuggingFaceTB/SmolLM2-135M-Instruct"],
}
SERVE = "name: tiny\ntask: text-classification\nmodel: org/tiny\n"
TRAIN = SERVE + "data: {train: hf://org/rows, test: hf://org/more}\n"


def examples() -> list[Path]:
    return sorted([*ROOT.glob("train/examples/*.yaml"), *ROOT.glob("serve/examples/*.yaml")])


def example(path: Path) -> Spec:
    """A shipped file, with data and model that pods can reach."""
    overrides = list(REACHABLE.get(path.name, [])) if load(path).data.train is not None else []
    spec = load(path)
    for split in ("train", "validation", "test"):
        if getattr(spec.data, split) is not None:
            overrides.append(f"data.{split}=/var/lib/shoal/samples/{spec.name}/{split}.csv")
    return load(path, overrides)


def one(manifests: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, [m["metadata"]["name"] for m in found]
    return found[0]


def serve_config(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"])


def groups(cluster: dict[str, Any]) -> dict[str, Any]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    return found


def refused(text: str, kube: Kubernetes = KUBE, verb: Any = "up", *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        render([parse(text, overrides)], kube, verb)
    return str(caught.value)


@pytest.mark.parametrize("path", examples(), ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_every_shipped_file_renders_and_passes_what_needs_no_crds(path: Path) -> None:
    spec = example(path)
    for kube in (KUBE, KUBE.model_copy(update={"node_pools": {}})):
        manifests = render([spec], kube)
        check(manifests, None)
        assert {m["kind"] for m in manifests} == ({"RayJob"} if spec.data.train else set()) | {
            "RayService",
            "Service",
            "ConfigMap",
        }
        text = to_yaml(manifests)
        assert list(yaml.safe_load_all(text)) == manifests
        assert render([spec], kube) == manifests


def test_a_training_is_a_rayjob() -> None:
    spec = parse(TRAIN + "train: {workers: 6}\n")
    manifests = render([spec], KUBE, "train")
    job = one(manifests, "RayJob")
    name = job["metadata"]["name"]
    assert name.startswith("tiny-train-")
    assert job["metadata"]["namespace"] == "ml"
    assert job["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "shoal"
    assert job["spec"]["entrypoint"] == "shoal train /etc/shoal/tiny.yaml"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert (job["spec"]["ttlSecondsAfterFinished"], job["spec"]["backoffLimit"]) == (300, 0)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    # The smallest pool without GPUs: two pods of four cores for six workers, there from the start.
    (group,) = cluster["workerGroupSpecs"]
    assert (group["groupName"], group["minReplicas"], group["replicas"], group["maxReplicas"]) == ("small", 2, 2, 2)
    assert container(group)["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}
    for part in (cluster["headGroupSpec"], group):
        pod = part["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container(part)["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"name": "home", "persistentVolumeClaim": {"claimName": "cache"}} in pod["volumes"]
        environment = {entry["name"]: entry["value"] for entry in container(part)["env"]}
        assert environment["SHOAL_HOME"] == "/var/lib/shoal"
        assert environment["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "0"
        assert "labels" not in part["template"].get("metadata", {})  # KubeRay's Services select pods by them
    # What the pod reads is the file, as it was written and overridden.
    files = one(manifests, "ConfigMap", name)["data"]
    assert parse(files["tiny.yaml"]) == spec


def test_up_judges_what_it_trained_in_one_command() -> None:
    entry = one(render([parse(TRAIN)], KUBE), "RayJob")["spec"]["entrypoint"]
    # A bare && would be taken by the shell of the submitting pod.
    assert entry == 'bash -c "shoal train /etc/shoal/tiny.yaml && shoal evaluate /etc/shoal/tiny.yaml"'


def test_a_changed_file_is_another_job_and_makes_the_service_look_again() -> None:
    first, same, other = (render([parse(TRAIN, more)], KUBE) for more in ([], [], ["train.epochs=7"]))
    assert first == same
    assert one(first, "RayJob")["metadata"]["name"] != one(other, "RayJob")["metadata"]["name"]
    attempts = [serve_config(manifests)["applications"][1]["args"]["attempt"] for manifests in (first, other)]
    assert attempts[0] != attempts[1]
    services = [one(manifests, "RayService")["spec"]["rayClusterConfig"] for manifests in (first, other)]
    assert services[0] == services[1]  # the Ray cluster stays


def test_a_sweep_comes_and_goes_with_its_trials() -> None:
    sweep = "tune: {trials: 5, space: {train.epochs: {choice: [1, 2]}}}\n"
    job = one(render([parse(f"{TRAIN}{sweep}train: {{node_pool: gpu, workers: 2}}\n")], KUBE, "tune"), "RayJob")
    assert job["spec"]["entrypoint"] == "shoal tune /etc/shoal/tiny.yaml"
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["groupName"], group["minReplicas"], group["maxReplicas"]) == ("gpu", 1, 10)


def test_without_a_model_cache_a_job_has_one_pod_that_does_it_all() -> None:
    alone = Kubernetes(tracking_uri="http://mlflow:5000")
    cluster = one(render([parse(TRAIN + "train: {workers: 4}\n")], alone, "train"), "RayJob")["spec"]["rayClusterSpec"]
    assert "workerGroupSpecs" not in cluster
    assert "num-cpus" not in cluster["headGroupSpec"]["rayStartParams"]
    said = refused(TRAIN + "train: {workers: 5}\n", alone, "train")
    assert said.startswith("kubernetes.model_cache: missing in cluster.yaml: tiny needs pods that share data")


def test_a_model_is_a_rayservice_with_the_gateway_in_front() -> None:
    spec = parse(SERVE + "serve: {min_replicas: 5, max_replicas: 9, num_cpus: 2}\n")
    manifests = render([spec], KUBE, "serve")
    service = one(manifests, "RayService", "tiny")["spec"]
    config = serve_config(manifests)
    gateway, model = config["applications"]
    assert config["proxy_location"] == "Disabled"
    assert gateway["deployments"][0]["num_replicas"] == 2
    known = gateway["deployments"][0]["user_config"]
    assert known["listen"] == {"host": "0.0.0.0", "port": 8000}
    assert known["public_url"] == "http://tiny-gateway.ml.svc:8000"
    assert known["models"]["tiny"]["version"] == "org/tiny"
    assert (model["args"]["folder"], model["args"]["device"]) == ("org/tiny", "cpu")
    assert model["deployments"][0]["autoscaling_config"]["max_replicas"] == 9
    found = groups(service["rayClusterConfig"])
    # Two replicas a pod of four cores: three pods for five, and room for twice nine while a new version starts.
    assert (found["small"]["minReplicas"], found["small"]["maxReplicas"]) == (3, 9)
    assert found["shoal-gateway"]["minReplicas"] == found["shoal-gateway"]["maxReplicas"] == 2
    for name, deployment in (("small", model), ("shoal-gateway", gateway)):
        # Replicas ask for the label that their pods have.
        assert deployment["deployments"][0]["ray_actor_options"]["label_selector"] == found[name]["labels"]
    ready = {name: container(found[name])["readinessProbe"]["httpGet"] for name in ("small", "shoal-gateway")}
    assert ready["shoal-gateway"] == {"path": "/-/ready", "port": 8000}
    assert ready["small"] == {"path": "/api/local_raylet_healthz", "port": 52365}
    entrance = one(manifests, "Service", "tiny-gateway")["spec"]
    assert entrance["selector"] == found["shoal-gateway"]["template"]["metadata"]["labels"]
    assert not found["small"]["template"]["metadata"].get("labels")
    assert "readinessProbe" not in container(service["rayClusterConfig"]["headGroupSpec"])


def with_redis(**redis: str) -> Kubernetes:
    return Kubernetes.model_validate({**KUBE.model_dump(), "head": {"redis": {"address": "redis:6379", **redis}}})


def test_what_serves_outlives_its_head_where_cluster_yaml_names_a_redis() -> None:
    def cluster(kube: Kubernetes, kind: str = "RayService") -> dict[str, Any]:
        spec = one(render([parse(TRAIN)], kube), kind)["spec"]
        return spec["rayClusterConfig" if kind == "RayService" else "rayClusterSpec"]

    key = "gcsFaultToleranceOptions"
    secret = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert key not in cluster(KUBE)
    assert cluster(with_redis())[key] == {"redisAddress": "redis:6379"}
    assert cluster(with_redis(password_secret="redis"))[key] == {"redisAddress": "redis:6379", "redisPassword": secret}
    # A job's driver is on its head and ends with it.
    assert key not in cluster(with_redis(), "RayJob")
    for address in ("redis", "http://redis:6379", "redis:6379/0", "redis://:word@redis:6379"):
        with pytest.raises(ValueError, match=r"head\.redis\.address"):
            with_redis(address=address)


def test_what_a_file_trains_is_served_as_its_champion() -> None:
    (_, model) = serve_config(render([parse(TRAIN)], KUBE, "serve"))["applications"]
    assert model["args"]["version"] == model["args"]["folder"] == "models:/tiny@champion"


def test_several_files_share_one_cluster_and_gateway_in_any_order() -> None:
    first = parse(SERVE + "serve: {num_gpus: 1, max_replicas: 3}\n")
    second = parse(SERVE, ["name=second", "model=models:/second/3"])
    manifests = render([first, second], KUBE)
    assert manifests == render([second, first], KUBE)
    assert one(manifests, "RayService")["metadata"]["name"] == "shoal"
    config = serve_config(manifests)
    assert [app["name"] for app in config["applications"]] == ["_gateway", "second", "tiny"]
    assert set(config["applications"][0]["deployments"][0]["user_config"]["models"]) == {"second", "tiny"}
    cluster = one(manifests, "RayService")["spec"]["rayClusterConfig"]
    assert list(groups(cluster)) == ["shoal-gateway", "gpu", "small"]
    with pytest.raises(InputError, match="name: tiny stands in two of the files"):
        render([first, first], KUBE)


def test_a_gpu_pool_has_its_gpus_tolerations_and_device() -> None:
    cluster = one(render([parse(SERVE, ["serve.num_gpus=0.5"])], KUBE), "RayService")["spec"]["rayClusterConfig"]
    group = groups(cluster)["gpu"]
    assert container(group)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert group["template"]["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert group["rayStartParams"] == {}
    amd = one(render([parse(SERVE, ["serve.num_gpus=3"])], KUBE), "RayService")["spec"]["rayClusterConfig"]
    # Ray counts resources that end in "gpu" by itself, and no others.
    assert groups(amd)["amd"]["rayStartParams"] == {"num-gpus": "4"}
    assert container(groups(amd)["amd"])["resources"]["limits"]["amd.com/mi300"] == "4"
    selected = one(render([parse(SERVE, ["serve.num_cpus=8"])], KUBE), "RayService")["spec"]["rayClusterConfig"]
    assert groups(selected)["cpu"]["template"]["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert container(groups(selected)["cpu"])["resources"]["requests"]["memory"] == "32256Mi"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SERVE + "serve: {node_pool: a100}\n",
            "serve.node_pool: 'a100' is no node pool of cluster.yaml; there are cpu (8 cores, 0 GPUs), small (4 cores, "
            "0 GPUs), gpu (16 cores, 2 GPUs), amd (16 cores, 4 GPUs)",
        ),
        (
            SERVE + "serve: {num_gpus: 5}\n",
            "serve.num_gpus: 5 GPUs for one copy, and no node pool of cluster.yaml has so many in a pod; there are cpu",
        ),
        (
            SERVE + "serve: {num_gpus: 1, node_pool: cpu}\n",
            "serve.num_gpus: 1 GPUs for one copy, and node pool cpu has not so many in a pod; there are cpu",
        ),
        (
            SERVE + "serve: {num_cpus: 17}\n",
            "serve.num_cpus: 17 cores for one copy, and no node pool that could take it",
        ),
        (
            SERVE + "serve: {node_pool: cpu, num_cpus: 8, min_replicas: 4, max_replicas: 4}\n",
            "serve.min_replicas: 4 need 4 pods of node pool cpu, which has 3 at most; lower it, or raise "
            "kubernetes.node_pools.cpu.max_nodes in cluster.yaml",
        ),
        (TRAIN + "train: {node_pool: tpu}\n", "train.node_pool: 'tpu' is no node pool of cluster.yaml; there are cpu"),
        (
            TRAIN + "train: {node_pool: cpu, workers: 25}\n",
            "train.workers: 25 need 4 pods of node pool cpu, which has 3",
        ),
        (
            SERVE.replace("org/tiny", "./models/tiny"),
            "model: './models/tiny' is on this machine, and no pod sees it; write a Hub id (org/name), "
            "models:/name@alias, or a path under /var/lib/shoal",
        ),
        (SERVE.replace("org/tiny", "/var/lib/shoal/../x"), "model: '/var/lib/shoal/../x' is on this machine"),
        (
            SERVE + "data: {train: rows.csv}\n",
            "data.train: 'rows.csv' is on this machine, and no pod sees it; write hf://org/name, or a path under",
        ),
        ("name: a\ntask: translation\nmodel: org/a\n", "task: translation cannot be served"),
    ],
)
def test_what_no_pod_can_do_is_refused_with_what_to_write(text: str, message: str) -> None:
    assert message in refused(text)


def test_no_pools_no_gpus() -> None:
    said = refused(SERVE + "serve: {num_gpus: 1}\n", Kubernetes())
    assert said.endswith("kubernetes.node_pools in cluster.yaml names none")


def test_nothing_is_trained_that_would_end_with_its_pod() -> None:
    assert refused(TRAIN, Kubernetes()).startswith("kubernetes.tracking_uri: missing in cluster.yaml: what tiny learns")
    said = refused(SERVE.replace("org/tiny", "models:/tiny/3"), Kubernetes())
    assert said.startswith("kubernetes.tracking_uri: missing in cluster.yaml: no pod can look up models:/tiny/3")
    said = refused(SERVE.replace("org/tiny", "/var/lib/shoal/tiny"), Kubernetes())
    assert said.endswith("is in the model cache, and cluster.yaml names none; set kubernetes.model_cache")
    assert refused(SERVE, KUBE, "train") == "data.train: missing; `shoal train` learns from rows"


def test_tracking_secrets_and_namespace_reach_the_pods() -> None:
    kube = Kubernetes(tracking_uri="http://mlflow.ml.svc:5000", secrets=["hub-token"])
    manifests = render([parse(SERVE)], kube)
    data = one(manifests, "ConfigMap", "tiny-files")["data"]
    assert yaml.safe_load(data["cluster.yaml"]) == {"tracking_uri": "http://mlflow.ml.svc:5000"}
    assert "namespace" not in one(manifests, "RayService")["metadata"]
    head = one(manifests, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert container(head)["envFrom"] == [{"secretRef": {"name": "hub-token"}}]
    assert {"name": "home", "emptyDir": {}} in head["template"]["spec"]["volumes"]
    # Pods read the ConfigMap when they start: another one is another cluster.
    other = render([parse(SERVE)], kube.model_copy(update={"tracking_uri": "http://other"}))
    assert (
        one(manifests, "RayService")["spec"]["rayClusterConfig"] != one(other, "RayService")["spec"]["rayClusterConfig"]
    )


@pytest.mark.parametrize("name", ["a", "1e3", "0", "x" * 63, "9" * 63, "a" * 35 + "-" * 12 + "b" * 16])
def test_names_fit_and_differ(name: str) -> None:
    from k8s import rules

    made = {resource_name(name, suffix) for suffix in ("", "-train-abcdef", "-tune-abcdef")}
    assert len(made) == 3
    assert all(len(one) <= MOST for one in made)
    for one in made:
        found = [where for where, _ in rules.faults({"kind": "RayService", "metadata": {"name": one}, "spec": {}})]
        assert "metadata.name" not in found
    assert resource_name("x" * 62 + "a") != resource_name("x" * 62 + "b")


@pytest.mark.parametrize(
    "text",
    ["1e3", "0o17", "1_000", "on", "yes", "null", "~", "0x1f", "1:30", "2020-01-01", ".5", "a\nb\n", " x", "#", "ä"],
)
def test_text_stays_text_for_every_reader_of_yaml(text: str) -> None:
    from cluster.spec.load import parse_yaml

    written = to_yaml([{"a": {"value": text}}])
    assert yaml.safe_load(written) == {"a": {"value": text}}
    assert parse_yaml(written, where="x")[0] == {"a": {"value": text}}
    # Go's reader takes 1e3 for a number where nothing says otherwise.
    if text[0].isdigit() or text[0] == ".":
        assert f"'{text}'" in written


def test_rendering_imports_nothing_heavy_and_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("kubernetes: {model_cache: cache}\n")
    code = (
        "import sys, time\nfrom cluster.cli import main\n"
        f"try: main(['k8s', 'render', {str(ROOT / 'serve/examples/spam.yaml')!r}])\n"
        "except SystemExit as ended: print(ended.code, time.process_time(), *sys.modules)"
    )
    environment = {**os.environ, "SHOAL_HOME": str(tmp_path)}
    environment.pop("SHOAL_KUBERAY_CRDS", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    *text, last = done.stdout.splitlines()
    code, seconds, *modules = last.split()
    assert code == "0"
    assert len(list(yaml.safe_load_all("\n".join(text)))) == 3
    assert float(seconds) < 3  # of CPU; 0.6 on a quiet machine
    assert "not checked: its CRDs (SHOAL_KUBERAY_CRDS names their folder)" in done.stderr
    for heavy in ("ray", "torch", "transformers", "mlflow", "kubernetes", "numpy", "pandas"):
        assert heavy not in modules, heavy


def test_a_language_model_is_its_base_with_the_champion_as_adapter() -> None:
    spec = parse(
        "name: chat\ntask: text-generation\nmodel: org/base\ndata: {train: hf://org/chats}\ntrain: {lora: {rank: 8}}\n"
    )
    gateway, model = serve_config(render([spec], KUBE, "serve"))["applications"]
    assert (model["import_path"], model["args"]["folder"], model["args"]["attempt"]) == (
        "serve.llm:build",
        "org/base",
        0,
    )
    entry = {"version": "models:/chat@champion", "folder": "models:/chat@champion", "tag": "champion"}
    assert model["deployments"][0]["user_config"]["adapters"] == {"chat": entry}
    known = gateway["deployments"][0]["user_config"]["models"]
    assert known.keys() == {"chat", "chat:base"}
    assert (known["chat"]["parent"], known["chat:base"]["application"]) == ("chat:base", "chat")
    # Another training loads another adapter into the engine that runs: its arguments stay as they are.
    first, second = (
        serve_config(render([spec.model_copy(update={"evaluate": spec.evaluate, "train": train}).at(spec.base)], KUBE))
        for train in (spec.train, spec.train.model_copy(update={"epochs": 2}))
    )
    assert first["applications"][1]["args"] == second["applications"][1]["args"]
    tags = [
        config["applications"][1]["deployments"][0]["user_config"]["adapters"]["chat"]["tag"]
        for config in (first, second)
    ]
    assert len(set(tags)) == 2
    said = refused("name: a\ntask: text-generation\nmodel: org/base\nserve: {llm: {onto: chat}}\n", KUBE, "serve")
    assert said.startswith("serve.llm.onto: chat: on Kubernetes every file has an engine of its own")
