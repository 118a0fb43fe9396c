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
    BATCH_SIZE,
    INPUTS,
    TRAINING_RUNNING,
    TRAINING_STEP,
    TRAINING_TOTAL,
    TRAINING_HEARD,
    TRAINING_LOSS,
    VALIDATION_LOSS,
    TRAINING_ROWS,
)
