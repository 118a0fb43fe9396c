"""Data: from what a model's file names to Parquet that training, evaluation and anyone else can read."""

from train.data.prepare import prepare
from train.data.store import Prepared

__all__ = ["Prepared", "prepare"]
