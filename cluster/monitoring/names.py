"""The metrics of our own, each named once: whoever records one and whoever asks for it takes it from here.

Ray's agent on each node exports them; Prometheus sees `ray_` before the name, and `_total` behind a counter's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric as it is recorded. `labels` are ours: Ray adds its own (NodeAddress, WorkerId, SessionName, ...)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    unit: str
    help: str
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets. Its `_sum` is Ray's estimate from the buckets: take quantiles only."""

    @property
    def series(self) -> str:
        """The name to ask Prometheus for; of a histogram the buckets'."""
        suffix = {"counter": "_total", "gauge": "", "histogram": "_bucket"}[self.kind]
        return f"ray_{self.name}{suffix}"


# What has no model of ours to it (GET /models, an unknown name): one series, whatever is asked for. No model can have
# this name: names have no underscore.
OTHER = "_other"

# Serving. At the gateway, so that what never reached a replica is counted as well.
REQUESTS = Metric(
    "shoal_requests",
    "counter",
    ("model", "code"),
    "requests",
    "Requests answered by the gateway, by HTTP status; 499 where the client left before the answer began",
)
LATENCY = Metric(
    "shoal_request_seconds",
    "histogram",
    ("model",),
    "seconds",
    "From a request's arrival at the gateway to the last byte of its answer",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
IN_FLIGHT = Metric(
    "shoal_requests_in_flight",
    "gauge",
    ("model",),
    "requests",
    "Requests that the gateway has passed on to a model and not answered yet; 0 for every model that is served",
)
# By tenant, of the first 100 that a gateway sees; the others are one, `_other`.
TENANT_REQUESTS = Metric(
    "shoal_tenant_requests", "counter", ("tenant", "code"), "requests", "Requests that were let in, by 2xx, 4xx, 5xx"
)
TENANT_TOKENS = Metric("shoal_tenant_tokens", "counter", ("tenant",), "tokens", "Tokens sent and made, together")
TENANT_SECONDS = Metric("shoal_tenant_compute_seconds", "counter", ("tenant",), "s", "Seconds of requests at a model")
REFUSED = Metric(
    "shoal_refused",
    "counter",
    ("tenant", "why"),
    "requests",
    "Requests that were not let in, by Unauthorized, Forbidden, NotFound, Limited, Unknowable; tenant _other where the "
    "key is not known",
)
# Scaling, by the Keeper: one series a model, whatever its number of gateways.
REPLICAS_UP = Metric("shoal_replicas_up", "gauge", ("model",), "replicas", "Replicas that take requests")
REPLICAS_WANTED = Metric(
    "shoal_replicas_wanted",
    "gauge",
    ("model",),
    "replicas",
    "Replicas that there should be by load and schedule; where the number is fixed, those that are up",
)
HELD = Metric(
    "shoal_requests_held", "gauge", ("model",), "requests", "Requests that wait at the gateways for a replica"
)
START = Metric(
    "shoal_start_seconds",
    "histogram",
    ("model", "part"),
    "seconds",
    "How long a replica took to start, by part: scheduling, process, imports, weights, warm, ready, and their total",
    (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600),
)
# Of models that are being rolled out, by version.
_ROLLOUT = ("model", "version")
ROLLOUT_REQUESTS = Metric(
    "shoal_rollout_requests",
    "counter",
    (*_ROLLOUT, "kind", "failed"),
    "requests",
    "Requests during a roll-out by version; kind: old, canary (the new one answered), shadow (it was asked as well)",
)
ROLLOUT_LATENCY = Metric(
    "shoal_rollout_seconds",
    "histogram",
    _ROLLOUT,
    "seconds",
    "From the gateway to a version and back, during a roll-out",
    LATENCY.boundaries,
)
ROLLOUT_WEIGHT = Metric(
    "shoal_rollout_weight", "gauge", _ROLLOUT, "", "Share of the clients that a new version answers"
)
ROLLOUT_AGREEMENT = Metric(
    "shoal_rollout_agreement", "gauge", _ROLLOUT, "", "Share of the shadowed requests on which both versions agree"
)
ROLL_BACKS = Metric("shoal_roll_backs", "counter", ("model",), "roll-backs", "New versions that were rolled back")

# In a replica that batches by itself (all but LLMs: vLLM counts its own tokens).
BATCH_SIZE = Metric(
    "shoal_batch_size",
    "histogram",
    ("model",),
    "inputs",
    "Inputs that went through the model in one forward pass",
    (1, 2, 4, 8, 16, 32, 64, 128, 256),
)
INPUTS = Metric("shoal_inputs", "counter", ("model",), "inputs", "Inputs that went through the model")
QUEUE_SECONDS = Metric(
    "shoal_queue_seconds",
    "histogram",
    ("model",),
    "seconds",
    "From a request's arrival in the replica to the forward pass of each of its inputs",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
PASS_SECONDS = Metric(
    "shoal_pass_seconds",
    "histogram",
    ("model",),
    "seconds",
    "One forward pass",
    (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
TOKENS = Metric("shoal_pass_tokens", "counter", ("model",), "tokens", "Tokens that went through the model")
PADDING = Metric(
    "shoal_pass_padding", "counter", ("model",), "tokens", "Padding that went through the model beside its tokens"
)
# In copies that many models share.
LOAD_SECONDS = Metric(
    "shoal_model_load_seconds",
    "histogram",
    ("model",),
    "seconds",
    "From the request that asked for a model in shared copies until it was loaded, waiting for room included",
    (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120),
)
LET_GO = Metric(
    "shoal_models_let_go", "counter", ("model",), "models", "Models that left shared copies to make room for others"
)

# Training, by the driver that follows the run: gone about 20 s after the driver is, or the run.
_RUN = ("model", "run")
TRAINING_RUNNING = Metric("shoal_training_running", "gauge", _RUN, "", "1 while the run trains, 0 when it has ended")
TRAINING_STEP = Metric("shoal_training_step", "gauge", _RUN, "steps", "Optimizer steps done")
TRAINING_TOTAL = Metric("shoal_training_total_steps", "gauge", _RUN, "steps", "Optimizer steps to do")
TRAINING_HEARD = Metric(
    "shoal_training_heard_seconds", "gauge", _RUN, "seconds since 1970", "When the run last told of a step"
)
TRAINING_LOSS = Metric("shoal_training_loss", "gauge", _RUN, "", "Loss of the last step that was told of")
VALIDATION_LOSS = Metric("shoal_validation_loss", "gauge", _RUN, "", "Loss over the held-out rows")
TRAINING_ROWS = Metric("shoal_training_rows_per_second", "gauge", _RUN, "rows/s", "Rows trained on, all workers")

METRICS = (
    REQUESTS,
    LATENCY,
    IN_FLIGHT,
    TENANT_REQUESTS,
    TENANT_TOKENS,
    TENANT_SECONDS,
    REFUSED,
    REPLICAS_UP,
    REPLICAS_WANTED,
    HELD,
    START,
    ROLLOUT_REQUESTS,
    ROLLOUT_LATENCY,
    ROLLOUT_WEIGHT,
    ROLLOUT_AGREEMENT,
    ROLL_BACKS,
    BATCH_SIZE,
    INPUTS,
    QUEUE_SECONDS,
    PASS_SECONDS,
    TOKENS,
    PADDING,
    LOAD_SECONDS,
    LET_GO,
    TRAINING_RUNNING,
    TRAINING_STEP,
    TRAINING_TOTAL,
    TRAINING_HEARD,
    TRAINING_LOSS,
    VALIDATION_LOSS,
    TRAINING_ROWS,
)
