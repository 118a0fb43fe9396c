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
_PART = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
_HUB = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_REGISTRY = re.compile(rf"models:/(?P<name>{_PART})(?:@(?P<alias>{_PART})|/(?P<version>[0-9]{{1,9}}))", re.ASCII)
_ESTIMATOR = re.compile(r"sklearn(?:\.\w+)+", re.ASCII)
_ROWS = re.compile(r"0*[1-9][0-9]{0,14}", re.ASCII)


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
    if not text.strip():
        raise InputError(f"model: {text!r} is no model reference; write {MODEL_FORMS}")
    if match := _REGISTRY.fullmatch(text):
        return ModelRef(text, "registry", match["name"], alias=match["alias"], version=match["version"])
    if text.startswith("models:"):
        raise InputError(f"model: {text!r} is no registry reference; write models:/name@alias or models:/name/version")
    if _ESTIMATOR.fullmatch(text):
        return ModelRef(text, "estimator", text)
    path = _path(text, base, "model")
    if text.startswith((".", "/", "~")) or path.is_dir():
        return ModelRef(text, "local", path=path)
    name, at, revision = text.partition("@")
    if not _hub(name) or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise InputError(f"model: {text!r} is no model reference; write {MODEL_FORMS}")
    return ModelRef(text, "hub", name, revision=revision or None)


def _hub(name: str) -> bool:
    """Whether the Hub would take it for an id (huggingface_hub.utils.validate_repo_id)."""
    return len(name) <= 96 and "--" not in name and ".." not in name and _HUB.fullmatch(name) is not None


def _path(text: str, base: Path, key: str) -> Path:
    """An absolute path. Raises InputError where the text can be none: NUL, too long, a loop of links, no such user."""
    try:
        path = (base / Path(text).expanduser()).resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{key}: {text[:200]!r} is no path: {getattr(error, 'strerror', None) or error}") from None
    return path


def data_ref(text: str, *, base: Path, key: str) -> DataRef:
    """Understand a data reference; relative paths start at `base`, `key` is its place in the file for messages.

    Raises InputError where the text can be none.
    """
    body, mark, count = text.rpartition("#")
    if not mark:
        body, rows = text, None
    elif not _ROWS.fullmatch(count):
        raise InputError(f"{key}: {text!r}: after # stands the number of rows to take, e.g. {body}#1000")
    else:
        rows = int(count)
    if not body.strip():
        raise InputError(f"{key}: {text!r} names no data; write {DATA_FORMS}")
    if body.startswith("hf://"):
        name, colon, config = body.removeprefix("hf://").partition(":")
        if not _hub(name) or (colon and not _REVISION.fullmatch(config)):
            raise InputError(f"{key}: {text!r} names no dataset; write hf://org/name or hf://org/name:config")
        return DataRef(text, "hub", name=name, config=config or None, rows=rows)
    path = _path(body, base, key)
    if path.is_dir():
        return DataRef(text, "folder", path, rows=rows)
    if not path.exists():
        raise InputError(f"{key}: {text!r}: no such file or folder ({path}); write {DATA_FORMS}")
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{key}: {text!r}: the ending {path.suffix!r} is not known; write {DATA_FORMS}")
    if not path.is_file():
        raise InputError(f"{key}: {text!r}: neither a file nor a folder; write {DATA_FORMS}")
    return DataRef(text, "file", path, form, rows=rows)
