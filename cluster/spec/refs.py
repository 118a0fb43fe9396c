"""References: how a file names a model and data. Nothing is opened or fetched here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import InputError

MODEL_FORMS = (
    "a Hub id (org/name or org/name@revision), a local folder (./folder), models:/name@alias, models:/name/version, "
    "or a scikit-learn estimator (sklearn.ensemble.RandomForestClassifier)"
)
DATA_FORMS = (
    "a .csv, .tsv, .jsonl, .parquet or .txt file, a folder with one folder of pictures or sounds a class, or "
    "hf://name[:config], each with #N to take N rows"
)
FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
_HUB = re.compile(r"^[\w.-]+(/[\w.-]+)?$", re.ASCII)
_REGISTRY = re.compile(r"^models:/(?P<name>[\w.-]+)(@(?P<alias>[\w.-]+)|/(?P<version>\d+))$", re.ASCII)
_ESTIMATOR = re.compile(r"^sklearn(\.\w+)+$", re.ASCII)


@dataclass(frozen=True)
class ModelRef:
    """A model, by kind: hub (`name` is the id, with `revision`), local (`path`), registry (`name`, with `alias` or
    `version`) or estimator (`name` is the dotted path)."""

    text: str
    kind: Literal["hub", "local", "registry", "estimator"]
    name: str = ""
    revision: str | None = None
    alias: str | None = None
    version: str | None = None
    path: Path | None = None


@dataclass(frozen=True)
class DataRef:
    """Data, by kind: file (`path`, `format`), folder (`path`: one folder a class) or hub (`name`, `config`); `rows` is
    the N of `#N`."""

    text: str
    kind: Literal["file", "folder", "hub"]
    path: Path | None = None
    format: str | None = None
    name: str = ""
    config: str | None = None
    rows: int | None = None


def model_ref(text: str, *, base: Path) -> ModelRef:
    """Understand a model reference; relative folders start at `base`.

    A folder that exists wins over a Hub id of the same spelling, as in transformers.
    Raises InputError where the text can be neither.
    """
    if match := _REGISTRY.match(text):
        return ModelRef(text, "registry", match["name"], alias=match["alias"], version=match["version"])
    if text.startswith("models:"):
        raise InputError(f"model: {text!r} is no registry reference; write models:/name@alias or models:/name/version")
    if _ESTIMATOR.match(text):
        return ModelRef(text, "estimator", text)
    path = base / Path(text).expanduser()
    if text.startswith((".", "/", "~")) or path.is_dir():
        return ModelRef(text, "local", path=path.resolve())
    name, at, revision = text.partition("@")
    if not _HUB.match(name) or ".." in name or (at and not revision):
        raise InputError(f"model: {text!r} is no model reference; write {MODEL_FORMS}")
    return ModelRef(text, "hub", name, revision=revision or None)


def data_ref(text: str, *, base: Path, key: str) -> DataRef:
    """Understand a data reference; relative paths start at `base`, `key` is its place in the file for messages.

    Raises InputError where the text can be none.
    """
    body, mark, count = text.rpartition("#")
    if not mark:
        body, rows = text, None
    elif not count.isdigit() or int(count) == 0:
        raise InputError(f"{key}: {text!r}: after # stands the number of rows to take, e.g. {body}#1000")
    else:
        rows = int(count)
    if body.startswith("hf://"):
        name, _, config = body.removeprefix("hf://").partition(":")
        if not _HUB.match(name) or ".." in name:
            raise InputError(f"{key}: {text!r} names no dataset; write hf://org/name or hf://org/name:config")
        return DataRef(text, "hub", name=name, config=config or None, rows=rows)
    path = (base / Path(body).expanduser()).resolve()
    if path.is_dir():
        return DataRef(text, "folder", path, rows=rows)
    if not path.exists():
        raise InputError(f"{key}: {text!r}: no such file or folder ({path}); write {DATA_FORMS}")
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{key}: {text!r}: the ending {path.suffix!r} is not known; write {DATA_FORMS}")
    return DataRef(text, "file", path, form, rows=rows)
