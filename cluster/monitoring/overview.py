"""The page of the whole cluster: machines, every model that is served, every run that trains."""

from __future__ import annotations

from cluster.monitoring.names import (
    HELD,
    IN_FLIGHT,
    LATENCY,
    REPLICAS_UP,
    REQUESTS,
    TRAINING_LOSS,
    TRAINING_RUNNING,
)
from cluster.monitoring.panels import Page, Panel, Query, Row, quantile, rate
from cluster.monitoring.tenants import TENANTS
from cluster.monitoring.training import training

# Serve's own numbers for the states of an application.
STATES = (
    (0, "unknown", "gray"),
    (1, "failed", "red"),
    (2, "unhealthy", "red"),
    (3, "not started", "gray"),
    (4, "going", "yellow"),
    (5, "starting", "yellow"),
    (6, "running", "green"),
)
FAILED = '{code=~"5..|429"}'
_MODELS = '{application!="_gateway"}'
_ALL = rate(REQUESTS, "model")

CLUSTER = Row(
    "Cluster",
    (
        Panel(
            "Nodes",
            "Machines in the Ray cluster.",
            "short",
            (Query("count(ray_node_cpu_count)", "nodes"),),
            kind="number",
            width=4,
        ),
        Panel(
            "Training now",
            "Runs whose driver is up and has not ended them.",
            "short",
            (Query(f"count({TRAINING_RUNNING.series} == 1) or vector(0)", "runs"),),
            kind="number",
            width=4,
        ),
        Panel(
            "Models",
            "The state of each model that is served, as Ray Serve sees it.",
            "short",
            (Query(f"max by (application) (ray_serve_application_status{_MODELS})", "{{application}}"),),
            kind="number",
            width=8,
            words=STATES,
        ),
        Panel(
            "Actors",
            "Living Ray actors by class: replicas, Serve's own, the controllers and workers of training.",
            "short",
            (Query('sum by (Name) (ray_actors{Source="gcs", State="ALIVE"})', "{{Name}}"),),
        ),
        Panel(
            "CPU",
            "Share of a node's cores that are busy, with whatever else runs there.",
            "percent",
            (Query("ray_node_cpu_utilization", "{{ip}}"),),
            most=100,
        ),
        Panel(
            "Memory",
            "Share of a node's memory in use. From 95 % on Ray kills workers.",
            "percentunit",
            (Query("ray_node_mem_used / ray_node_mem_total", "{{ip}}"),),
            most=1,
        ),
        Panel(
            "Disk",
            "Share of the disk under Ray's temporary folder in use.",
            "percentunit",
            (Query("ray_node_disk_usage / (ray_node_disk_usage + ray_node_disk_free)", "{{ip}}"),),
            most=1,
        ),
        Panel(
            "Cores handed out",
            "What Ray has promised to tasks and actors, and what is left: new replicas wait where nothing is.",
            "short",
            (Query('sum by (State) (ray_resources{Name="CPU"})', "{{State}}"),),
        ),
        Panel(
            "GPU",
            "Share of time that each GPU computes.",
            "percent",
            (Query("ray_node_gpus_utilization", "{{ip}} {{GpuIndex}}"),),
            needs="gpu",
            most=100,
        ),
        Panel(
            "GPU memory",
            "Share of each GPU's memory in use.",
            "percentunit",
            (Query("ray_node_gram_used / (ray_node_gram_used + ray_node_gram_available)", "{{ip}} {{GpuIndex}}"),),
            needs="gpu",
            most=1,
        ),
    ),
)

SERVING = Row(
    "Serving",
    (
        Panel("Requests", "Answered at the gateway, by model.", "reqps", (Query(_ALL, "{{model}}"),)),
        Panel(
            "Failed",
            "Share of a model's requests answered with 5xx, or with 429: no replica was free, or none was up.",
            "percentunit",
            (Query(f"({rate(REQUESTS, 'model', FAILED)} or {_ALL} * 0) / {_ALL}", "{{model}}"),),
        ),
        Panel(
            "Answers by status",
            "Answered at the gateway, by HTTP status; 499 is a client that left.",
            "reqps",
            (Query(rate(REQUESTS, "code"), "{{code}}"),),
        ),
        Panel(
            "Latency, median",
            "Half of a model's requests are answered within this.",
            "s",
            (Query(quantile(0.5, LATENCY, "model"), "{{model}}"),),
        ),
        Panel(
            "Latency, p95",
            "95 % of a model's requests are answered within this.",
            "s",
            (Query(quantile(0.95, LATENCY, "model"), "{{model}}"),),
        ),
        Panel(
            "In flight",
            "Passed on to a model and not answered yet.",
            "short",
            (Query(f"sum by (model) ({IN_FLIGHT.series})", "{{model}}"),),
        ),
        Panel(
            "Replicas",
            "Replicas of each model that take requests.",
            "short",
            (Query(f"max by (model) ({REPLICAS_UP.series})", "{{model}}"),),
        ),
        Panel(
            "Waiting",
            "Requests that wait at the gateways until a replica can take them.",
            "short",
            (Query(f"max by (model) ({HELD.series})", "{{model}}"),),
        ),
        Panel(
            "Tokens",
            "Generated by each language model.",
            "short",
            (
                Query(
                    "sum by (model_name) (rate(ray_vllm_generation_tokens_total[$__rate_interval]))", "{{model_name}}"
                ),
            ),
            needs="llm",
        ),
    ),
)

TRAINING = training(
    "",
    "{{model}} {{run}}",
    Panel(
        "Loss",
        "Of the last step that was told of.",
        "short",
        (Query(TRAINING_LOSS.series, "{{model}} {{run}}"),),
        width=6,
    ),
)

PAGE = Page(
    uid="shoal-overview",
    title="Shoal: the cluster",
    about="Machines, models that are served, runs that train. Made by `shoal dashboards push`.",
    rows=(CLUSTER, SERVING, TENANTS, TRAINING),
)
