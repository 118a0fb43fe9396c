"""The sections of a model's file: frozen pydantic models, unknown keys refused, a doc string under each field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from cluster.spec import scaling, space
from cluster.spec.llm import Llm
from cluster.spec.metrics import LOWER
from cluster.spec.parallel import DeepSpeed, Lora
from cluster.spec.refs import DataRef, ModelRef, data_ref, model_ref
from cluster.spec.rollout import Rollout
from cluster.spec.section import NAME, Fraction, Section
from cluster.spec.tune import Tune


class Data(Section):
    """Where the rows are, and which columns mean what."""

    train: str | None = None
    """Rows to learn from: a .csv, .tsv, .jsonl, .parquet or .txt file, a folder of pictures or sounds with one folder
    a class, or hf://name[:config]. `#N` at the end takes the first N rows. Paths are relative to this file."""
    validation: str | None = None
    """Rows to watch while training. Left out: `validation_split` of the training rows."""
    test: str | None = None
    """Rows that no training sees, for `shoal evaluate`. Left out: the validation rows."""
    columns: dict[str, str | list[str]] = {}
    """What a task calls a column, and the column's name in the data, e.g. {text: review, label: stars}."""
    validation_split: Fraction = 0.1
    """Share of the training rows held out where no `validation` is given; stratified by label."""
    drop_duplicates: bool = False
    """Drop exact duplicates within a split, and from training whatever stands in validation or test too. Otherwise
    they are only counted and reported."""


class Train(Section):
    """How the model learns."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] = 3
    """Passes over the training rows; a fraction is allowed."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-5
    """Peak learning rate of AdamW."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Rows an optimizer step, over all workers and accumulation steps together: the result does not depend on
    `workers`."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    """Into how many forward passes a worker cuts its share of a batch."""
    max_length: Annotated[int, Field(ge=4, le=1_048_576)] = 128
    """Tokens an input is cut to (text)."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """AdamW's weight decay; biases and normalisation weights are left alone."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    warmup_ratio: Fraction = 0.06
    """Share of the steps over which the learning rate rises from 0."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 leaves them as they are."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of forward and backward passes. auto: bfloat16 where a GPU has it, else float32."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class weighs by the inverse of its frequency in the training rows."""
    from_scratch: bool = False
    """Start from random weights by the model's configuration, not from its weights."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """End after so many validations without a better loss; the best checkpoint is the one kept."""
    checkpoints_per_epoch: Annotated[int, Field(ge=1, le=1000)] = 1
    """Validations and checkpoints an epoch."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seeds initial weights, the order of rows, drop-out and splits."""
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Processes that share each batch."""
    parallel: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """How workers share a model: ddp gives each the whole of it; fsdp and deepspeed a part of parameters, gradients
    and optimizer state. auto: ddp where a whole fits into a worker's memory, else fsdp; `shoal plan` says which."""
    deepspeed: DeepSpeed = DeepSpeed()
    """What parallel: deepspeed shards, and where."""
    lora: Lora | None = None
    """Train low-rank adapters (LoRA) beside frozen weights. Left out: all weights learn."""
    max_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    """How often lost workers are replaced, each time from the last checkpoint, before the run fails."""
    parameters: dict[str, Any] = {}
    """Constructor arguments of a scikit-learn estimator, e.g. {n_estimators: 300}."""
    node_pool: Annotated[str, Field(pattern=NAME)] | None = None
    """Node pool of cluster.yaml for the workers, on Kubernetes; each takes a GPU where the pool has some. Left out: the
    smallest pool without GPUs that has room."""

    @model_validator(mode="after")
    def _deepspeed_is_meant(self) -> Train:
        if self.parallel != "deepspeed" and self.deepspeed != DeepSpeed():
            raise ValueError(
                f"train.deepspeed: set, but train.parallel is {self.parallel}; write parallel: deepspeed, or leave it "
                "out"
            )
        return self


class Evaluate(Section):
    """How the trained model is judged, and what it must reach."""

    metrics: list[str] = []
    """Which metrics, by name; left out: the task's own."""
    gate: dict[str, float] = {}
    """What a metric must reach before the model becomes a version, e.g. {f1: 0.85}: the least of a score, the most of a
    metric of which less is better, e.g. {perplexity: 12}."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Rows a forward pass."""

    @field_validator("gate")
    @classmethod
    def _within_reach(cls, value: dict[str, float]) -> dict[str, float]:
        for metric, bound in value.items():
            key, best = f"evaluate.gate.{metric}: {bound:g}", LOWER.get(metric)
            if best is None and not 0 <= bound <= 1:
                way = "greater than or equal to 0" if bound < 0 else "less than or equal to 1"
                raise ValueError(f"{key}: input should be {way}")
            if best is not None and bound < best:
                raise ValueError(f"{key}: the best {metric} there is is {best:g}; write more")
        return value


class Serve(Section):
    """How the model answers."""

    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Copies that always run; 0 lets an idle model go, the first request then waits for it."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Copies at most."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 16
    """Requests a copy should have in hand; above it copies are added, below it taken away."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Requests a copy takes at a time."""
    max_queued_requests: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Requests that may wait; the next is answered 429 or 503 at once."""
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Inputs in one forward pass."""
    max_batch_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 16_384
    """Tokens in one forward pass, padding included: what its memory grows with. A picture counts a token for every 256
    pixels, a table one for every row."""
    batch_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 5
    """How long a forward pass waits for more requests, in milliseconds."""
    num_cpus: Annotated[float, Field(ge=0, le=4096)] = 1
    """CPU cores a copy."""
    num_gpus: Annotated[float, Field(ge=0, le=4096)] = 0
    """GPUs a copy; a fraction shares one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward passes. auto: float32 on CPUs; on a GPU the type that the weights are stored in."""
    request_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60
    """A request that takes longer is ended, in seconds."""
    idempotent: bool = True
    """Whether a request may be run a second time where its replica died before it answered: answering changes nothing.
    With false such a request is answered 502, and the client decides."""
    max_memory_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """A copy that has grown beyond this is replaced, one at a time and without a failed request; for models that leak.
    What its whole process tree has resident, in GiB."""
    private: bool = False
    """Only keys that name this model see it (`shoal keys create TENANT --model NAME`): it is in no list, and 404 for
    all others. Wants access.keys: required in cluster.yaml."""
    shared: Annotated[str, Field(pattern=NAME)] | None = None
    """Live beside other small models in the copies that cluster.yaml has under this name. Left out: copies of its own.
    """
    autoscale: scaling.Autoscale = scaling.Autoscale()
    """When copies are added and taken away."""
    llm: Llm = Llm()
    """The engine of text-generation."""
    rollout: Rollout | None = None
    """Try a new version beside the one that serves. Left out: it takes its place as soon as it answers."""
    node_pool: Annotated[str, Field(pattern=NAME)] | None = None
    """Node pool of cluster.yaml for the copies, on Kubernetes. Left out: the smallest that has a copy's cores and GPUs.
    """

    @model_validator(mode="after")
    def _ordered(self) -> Serve:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas: {self.min_replicas} is more than max_replicas: {self.max_replicas}")
        scaling.check(self.autoscale, min_replicas=self.min_replicas, max_replicas=self.max_replicas)
        return self

    @model_validator(mode="after")
    def _shared_copies_are_not_of_this_file(self) -> Serve:
        own = {"min_replicas", "max_replicas", "target_ongoing_requests", "num_cpus", "num_gpus", "node_pool"}
        own |= {"max_memory_gb"}
        if self.shared and self.rollout is not None:
            raise ValueError(
                f"serve.rollout: beside shared: {self.shared} there are no copies of one version alone; leave one of "
                "both out"
            )
        if self.shared and (set_here := sorted(own & self.model_fields_set)):
            raise ValueError(
                f"serve.shared: {self.shared}: how many copies there are and what they get stands in cluster.yaml, "
                f"shared.{self.shared}; leave out {', '.join(f'serve.{key}' for key in set_here)}"
            )
        return self


class Spec(Section):
    """One model's whole life."""

    name: Annotated[str, Field(pattern=NAME)]
    """What the model is called in the registry and in URLs: small letters, digits and hyphens, 63 at most."""
    task: str
    """One of `shoal tasks`."""
    model: str
    """Where learning starts: a Hub id (org/name[@revision]), a local folder, models:/name@alias, models:/name/version,
    or a scikit-learn estimator such as sklearn.ensemble.RandomForestClassifier."""
    data: Data = Data()
    train: Train = Train()
    tune: Tune = Tune()
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()

    _base: Path = PrivateAttr(default=Path("."))

    @model_validator(mode="after")
    def _scales_by_what_is_known(self) -> Spec:
        serve = self.serve
        scaling.check_task(serve.autoscale, task=self.task, num_cpus=serve.num_cpus, num_gpus=serve.num_gpus)
        return self

    @field_validator("model")
    @classmethod
    def _model_is_a_reference(cls, value: str) -> str:
        model_ref(value, base=Path("."))  # raises where the text can be no reference
        return value

    @field_validator("tune")
    @classmethod
    def _sweep_fits(cls, value: Tune, info: ValidationInfo) -> Tune:
        if "train" in info.data:  # else its own faults are told of
            space.check(value, info.data["train"])
        return value

    @field_validator("serve")
    @classmethod
    def _can_be_tried(cls, value: Serve, info: ValidationInfo) -> Serve:
        if value.rollout is not None and info.data.get("task") == "text-generation":
            raise ValueError(
                "serve.rollout: a language model is not split by weight (it would take a second engine); leave it out: "
                "an adapter changes on its engine without a pause, and `shoal models rollback` brings the old one back"
            )
        return value

    @property
    def base(self) -> Path:
        """Folder of the file; relative paths in it start there."""
        return self._base

    def at(self, base: Path) -> Spec:
        """The same spec, with relative paths starting at `base`."""
        copy = self.model_copy()
        copy._base = base
        return copy

    def model_ref(self) -> ModelRef:
        """`model`, understood. Raises InputError where it can be no reference."""
        return model_ref(self.model, base=self.base)

    def data_ref(self, split: Literal["train", "validation", "test"]) -> DataRef | None:
        """The data of a split, understood; None where the file gives none."""
        text = getattr(self.data, split)
        return data_ref(text, base=self.base, key=f"data.{split}") if text is not None else None
