"""The page of one model: its requests, its replicas, the engine of a language model, and its training."""

from __future__ import annotations

from cluster.monitoring.engine import ENGINE
from cluster.monitoring.names import (
    BATCH_SIZE,
    HELD,
    IN_FLIGHT,
    INPUTS,
    LATENCY,
    LET_GO,
    LOAD_SECONDS,
    PADDING,
    PASS_SECONDS,
    QUEUE_SECONDS,
    REPLICAS_UP,
    REPLICAS_WANTED,
    REQUESTS,
    ROLL_BACKS,
    ROLLOUT_AGREEMENT,
    ROLLOUT_LATENCY,
    ROLLOUT_REQUESTS,
    ROLLOUT_WEIGHT,
    START,
    TOKENS,
    TRAINING_LOSS,
    VALIDATION_LOSS,
)
from cluster.monitoring.overview import STATES
from cluster.monitoring.panels import MODEL, WINDOW, Page, Panel, Query, Row, quantile, quantiles, rate
from cluster.monitoring.training import training

_MINE = f'{{model="{MODEL}"}}'
_FAILED = f'{{model="{MODEL}", code=~"5..|429"}}'
_APPLICATION = f'{{application="{MODEL}"}}'
_ALL = rate(REQUESTS, "model", _MINE)


REQUEST = Row(
    "Requests",
    (
        Panel(
            "State",
            "As Ray Serve sees the application.",
            "short",
            (Query(f"max(ray_serve_application_status{_APPLICATION})", "state"),),
            kind="number",
            width=4,
            words=STATES,
        ),
        Panel(
            "Answers",
            "Answered at the gateway, by HTTP status; 429: no replica was free, or none was up; 499: the client left.",
            "reqps",
            (Query(rate(REQUESTS, "code", _MINE), "{{code}}"),),
            width=10,
        ),
        Panel(
            "Failed",
            "Share answered with 5xx or 429.",
            "percentunit",
            (Query(f"({rate(REQUESTS, 'model', _FAILED)} or {_ALL} * 0) / {_ALL}", "failed"),),
            width=10,
        ),
        Panel(
            "Latency",
            "From arrival at the gateway to the last byte of the answer; of a stream, that of its last token.",
            "s",
            quantiles(LATENCY, _MINE),
            width=12,
        ),
        Panel(
            "In flight and waiting",
            "Passed on and not answered yet; waiting are those of them that no replica can take yet.",
            "short",
            (
                Query(f"sum({IN_FLIGHT.series}{_MINE})", "in flight"),
                Query(f"max({HELD.series}{_MINE})", "waiting"),
            ),
            width=12,
        ),
    ),
)

REPLICAS = Row(
    "Replicas",
    (
        Panel(
            "Replicas",
            "Those that take requests, and how many there should be by load and schedule.",
            "short",
            (
                Query(f"max({REPLICAS_UP.series}{_MINE})", "up"),
                Query(f"max({REPLICAS_WANTED.series}{_MINE})", "wanted"),
            ),
        ),
        Panel(
            "Busy",
            "Requests that a replica has in hand, of serve.max_ongoing_requests.",
            "short",
            (Query(f"sum({IN_FLIGHT.series}{_MINE}) / max({REPLICAS_UP.series}{_MINE})", "a replica"),),
        ),
        Panel(
            "Memory",
            "Resident memory of the replicas on each node.",
            "bytes",
            (
                Query(
                    f'sum by (ip) (ray_component_rss_bytes{{Component=~"ray::ServeReplica:{MODEL}:.*"}})',
                    "{{ip}}",
                ),
            ),
        ),
        Panel(
            "Start of a replica",
            "Seconds of its parts, at the median: from the decision to the first request that it can take.",
            "s",
            (
                Query(
                    f"histogram_quantile(0.5, sum by (le, part) ({START.series}{_MINE}))",
                    "{{part}}",
                ),
            ),
        ),
        Panel(
            "Batch size",
            "Inputs in one forward pass. Language models batch by the token, in their engine.",
            "short",
            (
                *quantiles(BATCH_SIZE, _MINE)[:2],
                Query(
                    f"{rate(INPUTS, 'model', _MINE)} / sum by (model) "
                    f"(rate({BATCH_SIZE.series.removesuffix('_bucket')}_count{_MINE}[{WINDOW}]))",
                    "mean",
                ),
            ),
        ),
        Panel(
            "Inputs",
            "Through the model a second: one request may hold several.",
            "short",
            (Query(rate(INPUTS, "model", _MINE), "inputs"),),
        ),
        Panel(
            "Queue",
            "From arrival in the replica to the forward pass.",
            "s",
            quantiles(QUEUE_SECONDS, _MINE),
        ),
        Panel("Forward pass", "How long one takes.", "s", quantiles(PASS_SECONDS, _MINE)),
        Panel(
            "Padding",
            "Share of what the model computes that is padding: inputs of unlike length in one pass.",
            "percentunit",
            (
                Query(
                    f"({rate(PADDING, 'model', _MINE)} or {rate(TOKENS, 'model', _MINE)} * 0) / "
                    f"(({rate(PADDING, 'model', _MINE)} or {rate(TOKENS, 'model', _MINE)} * 0) + "
                    f"{rate(TOKENS, 'model', _MINE)})",
                    "padding",
                ),
            ),
            most=1,
        ),
        Panel(
            "Loads",
            "In shared copies: how long it took until the model was loaded, each time it was asked for and not there.",
            "s",
            quantiles(LOAD_SECONDS, _MINE)[:2],
            needs="shared",
        ),
        Panel(
            "Let go",
            "In shared copies: how often the model made room for others.",
            "short",
            (Query(f"sum(increase({LET_GO.series}{_MINE}[{WINDOW}]))", "let go"),),
            needs="shared",
        ),
    ),
)

ROLLOUT = Row(
    "Roll-out",
    (
        Panel(
            "Requests by version",
            "While a new version is tried: what the old one answers, the canary, and the shadow that no client sees.",
            "reqps",
            (Query(rate(ROLLOUT_REQUESTS, "version, kind", _MINE), "{{version}} {{kind}}"),),
            needs="rollout",
        ),
        Panel(
            "Failed by version",
            "A canary's clients get the old version's answer instead.",
            "reqps",
            (Query(rate(ROLLOUT_REQUESTS, "version, failed", _MINE), "{{version}} failed: {{failed}}"),),
            needs="rollout",
        ),
        Panel(
            "Latency by version",
            "The 95th percentile, which serve.rollout.max_latency_ratio is about.",
            "s",
            (Query(quantile(0.95, ROLLOUT_LATENCY, "version", _MINE), "{{version}}"),),
            needs="rollout",
        ),
        Panel(
            "Weight and agreement",
            "The share of the clients that the new version answers, and that of shadowed requests on which both agree.",
            "percentunit",
            (
                Query(f"max by (version) ({ROLLOUT_WEIGHT.series}{_MINE})", "weight of {{version}}"),
                Query(f"max by (version) ({ROLLOUT_AGREEMENT.series}{_MINE})", "agreement of {{version}}"),
            ),
            needs="rollout",
            most=1,
        ),
        Panel(
            "Roll-backs",
            "New versions that went back, since the cluster started.",
            "short",
            (Query(f"sum({ROLL_BACKS.series}{_MINE})", "roll-backs"),),
            kind="number",
            needs="rollout",
        ),
    ),
)

TRAINING = training(
    _MINE,
    "{{run}}",
    Panel(
        "Loss",
        "In training, and over the held-out rows.",
        "short",
        (
            Query(f"{TRAINING_LOSS.series}{_MINE}", "{{run}}"),
            Query(f"{VALIDATION_LOSS.series}{_MINE}", "{{run}}, held out"),
        ),
        width=6,
    ),
)

PAGE = Page(
    uid="shoal-model",
    title="Shoal: one model",
    about="Requests, replicas, engine and training of one model. Made by `shoal dashboards push`.",
    rows=(REQUEST, ROLLOUT, REPLICAS, ENGINE, TRAINING),
    models=True,
)
