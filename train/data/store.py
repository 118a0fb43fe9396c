"""Prepared data on disk: a folder named by its digest, complete or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cluster.errors import RunFailed
from cluster.progress import Progress, silent
from train.data import pictures

FORMAT = 1  # what is written below; another number is another digest
SPLITS = ("train", "validation", "test")
_ROWS, _PICTURES = 8192, 64  # rows in a row group: what is in memory at a time


@dataclass(frozen=True)
class Prepared:
    """Rows ready for training: `folder` holds train.parquet, validation.parquet, maybe test.parquet, and data.json.

    Columns: text and text_pair (text), image (a picture file's bytes), or a table's features under their own names
    (float64, or text for categorical ones, null where missing); and `label`, an int64 index into `labels`. To learn to
    write from: text, prompt and completion, or messages (a list of {role, content}); no label, and `labels` is empty.
    `report` is the rest of data.json: task, columns, sources, skipped, classes (rows by split and label), duplicates,
    conflicting_labels, dropped, notes (sentences a person should read), and of a table features ({name: "numeric" or
    "categorical"}).
    """

    folder: Path
    digest: str
    labels: list[str]
    rows: dict[str, int]
    report: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Prepared | None:
        """What stands in a folder; None where nothing whole does."""
        try:
            content = json.loads((folder / "data.json").read_text(encoding="utf-8"))
            report = {key: value for key, value in content.items() if key not in ("format", "digest", "labels", "rows")}
            found = cls(folder, content["digest"], content["labels"], content["rows"], report)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if all(found.file(split).is_file() for split in found.rows) else None

    def file(self, split: str) -> Path:
        """The Parquet file of a split."""
        return self.folder / f"{split}.parquet"

    @property
    def judged(self) -> str:
        """The split a model is evaluated on: test where there is one, else validation."""
        return "test" if "test" in self.rows else "validation"


def digest(content: Mapping[str, Any]) -> str:
    """What names the folder: a digest of everything that decides its content, and of the format."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write(
    into: Path,
    *,
    digest: str,
    labels: list[str],
    tables: Mapping[str, pa.Table],
    places: Mapping[str, np.ndarray],
    report: dict[str, Any],
    progress: Progress = silent,
) -> Prepared:
    """Write `into`/`digest` by way of a folder beside it. The caller holds the lock of this digest.

    `tables` has a split's input columns (an image column of text holds paths), `places` its labels where there are any.
    """
    part, folder = into / f"{digest}.part", into / digest
    rows = {split: table.num_rows for split, table in tables.items()}
    shutil.rmtree(part, ignore_errors=True)  # left by one who was killed
    try:
        part.mkdir(parents=True)
        done = 0
        for split, table in tables.items():
            labelled = split in places
            whole = table.append_column("label", pa.array(places[split], pa.int64())) if labelled else table
            as_paths = "image" in table.column_names and pa.types.is_large_string(table["image"].type)
            step = _PICTURES if "image" in table.column_names else _ROWS
            schema = _read_pictures(whole.slice(0, 0)).schema if as_paths else whole.schema
            with parquet.ParquetWriter(part / f"{split}.parquet", schema) as writer:
                for start in range(0, len(whole), step):
                    portion = whole.slice(start, step)
                    writer.write_table(_read_pictures(portion) if as_paths else portion)
                    done += portion.num_rows
                    progress("write data", done, sum(rows.values()))
        content = {"format": FORMAT, "digest": digest, "labels": labels, "rows": rows, **report}
        (part / "data.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Prepared(folder, digest, labels, rows, report)


def _read_pictures(table: pa.Table) -> pa.Table:
    paths = table["image"].to_pylist()
    data = pa.array([pictures.read(Path(path), "data") for path in paths], pa.large_binary())
    return table.set_column(table.column_names.index("image"), "image", data)


@contextmanager
def room(into: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one message. Raises RunFailed."""
    try:
        yield
    except OSError as error:
        number = error.errno
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            free = shutil.disk_usage(into if into.exists() else into.parent).free
            raise RunFailed(
                f"{into}: the disk is full ({free / 2**20:.0f} MiB free); make room, or let SHOAL_HOME name a folder "
                "with more"
            ) from None
        raise RunFailed(f"{into}: cannot be written: {error.strerror or error}; let SHOAL_HOME name another") from None
