"""The one file of a model, as frozen objects. Imports nothing heavier than pydantic and PyYAML."""

from cluster.spec.load import load, parse
from cluster.spec.refs import DataRef, ModelRef, data_ref, model_ref
from cluster.spec.sections import Data, Evaluate, Section, Serve, Spec, Train

__all__ = [
    "Data",
    "DataRef",
    "Evaluate",
    "ModelRef",
    "Section",
    "Serve",
    "Spec",
    "Train",
    "data_ref",
    "load",
    "model_ref",
    "parse",
]
