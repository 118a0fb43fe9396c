"""Opening a Hugging Face folder safely: safetensors only, none of its code run, nothing fetched.

transformers is imported inside the functions: a worker pays for it once, a reader of `train.tasks` never.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from cluster import weights
from cluster.errors import InputError

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def auto(name: str) -> Any:
    """An Auto class of transformers."""
    _quiet()
    return getattr(import_module("transformers"), name)


def config(folder: Path, labels: list[str] | None, *, model: Any, task: str) -> Any:
    """The folder's configuration, for `labels` where the task has classes. Raises InputError where its model has no
    head for the task."""
    names = dict(enumerate(labels or []))
    classes = {"id2label": names, "label2id": {label: index for index, label in names.items()}}
    try:
        found = auto("AutoConfig").from_pretrained(folder, **(classes if labels is not None else {}), **_LOCAL)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model: {folder}: {_first_line(error)}") from None
    if type(found) not in model._model_mapping:
        raise InputError(f"model: {folder}: a {found.model_type} model cannot do {task}; take one that can")
    if labels is not None and hasattr(found, "problem_type"):
        found.problem_type = "single_label_classification"
    return found


def processor(name: str, folder: Path) -> Any:
    """The folder's tokenizer or image processor, by the name of its Auto class. Raises InputError where it has none."""
    try:
        return auto(name).from_pretrained(folder, **_LOCAL)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "tokenizer" if name == "AutoTokenizer" else "image processor (preprocessor_config.json)"
        raise InputError(f"model: {folder}: no {what} that can be read: {_first_line(error)}") from None


def model(auto: Any, folder: Path, config: Any, *, from_scratch: bool, seed: int) -> Any:
    """The model to train, float32. What the folder's weights do not cover (a head for other labels; everything, from
    scratch) is random by the seed.

    Raises InputError where there are no weights, or most of the model is not in them.
    """
    import torch

    torch.manual_seed(seed)
    if from_scratch:
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    try:
        weights.inspect(folder)
    except InputError as error:
        if any(folder.glob("*.safetensors")):
            raise
        raise InputError(f"model: {error.message}; or start from random weights: train.from_scratch: true") from None
    try:
        net, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_LOCAL,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model: {folder}: {_first_line(error)}") from None
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    missing = sum(sizes.get(name, 0) for name in info["missing_keys"])
    if missing > sum(sizes.values()) / 2:
        raise InputError(
            f"model: {folder}: its weights cover only {1 - missing / sum(sizes.values()):.0%} of a "
            f"{config.model_type} model; they are of another model, or write train.from_scratch: true"
        )
    return net


def finished(auto: Any, folder: Path) -> Any:
    """A trained model, in evaluation mode. Raises InputError where the folder holds none."""
    import torch

    weights.inspect(folder)
    try:
        return auto.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **_LOCAL).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"model: {folder}: {_first_line(error)}") from None


def _quiet() -> None:
    """No bars and reports of transformers, for a run has one voice; and a quarter of the time it takes to import."""
    import transformers.utils
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # All models import this module, and it scikit-learn and SciPy, for one way of generating text: 2 CPU seconds.
    if "transformers.generation.candidate_generator" not in sys.modules:
        with mock.patch.object(transformers.utils, "is_sklearn_available", return_value=False):
            import_module("transformers.generation.candidate_generator")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
