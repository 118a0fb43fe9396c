"""The one file of a model, as frozen objects. Imports nothing heavier than pydantic and PyYAML."""

from cluster.spec.load import load, parse
from cluster.spec.refs import DataRef, ModelRef, data_ref, model_ref
from cluster.spec.rollout import Rollout
from cluster.spec.section import Section
from cluster.spec.sections import Data, DeepSpeed, Evaluate, Llm, Lora, Serve, Spec, Train, Tune

__all__ = [
    "Data",
    "DataRef",
    "DeepSpeed",
    "Evaluate",
    "Llm",
    "Lora",
    "ModelRef",
    "Rollout",
    "Section",
    "Serve",
    "Spec",
    "Train",
    "Tune",
    "data_ref",
    "load",
    "model_ref",
    "parse",
]
