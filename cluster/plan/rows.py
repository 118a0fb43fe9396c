"""How many rows and bytes data has, counted without loading it: at most COUNT_BYTES are read, the rest is projected."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InputError
from cluster.spec import DataRef

COUNT_BYTES = 256 << 20
COUNT_FILES = 1_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Counted:
    """Rows (None: not known before the data is fetched or parsed), whether they are exact, and bytes on disk."""

    rows: int | None
    exact: bool
    bytes: int | None


def count(ref: DataRef, *, key: str) -> Counted:
    """Count what a reference names, its `#N` applied. Raises InputError, naming `key`, where it cannot be read."""
    if ref.path is None:
        return Counted(ref.rows, False, None)  # on the Hub; `#N` is the most it can be
    try:
        counted = _pictures(ref.path) if ref.kind == "folder" else _file(ref.path, ref.format)
    except OSError as error:
        raise InputError(f"{key}: {ref.text!r} cannot be read: {error.strerror or error}") from None
    if counted.rows == 0:
        raise InputError(f"{key}: {ref.text!r} has no rows")
    if ref.rows is not None and (counted.rows is None or ref.rows < counted.rows):
        return Counted(ref.rows, counted.rows is not None, counted.bytes)
    return counted


def _pictures(folder: Path) -> Counted:
    rows = size = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if Path(place) == folder:
            continue  # a class is a folder; what lies beside them is in none
        for name in files:
            if not name.startswith("."):
                rows += 1
                size += os.lstat(os.path.join(place, name)).st_size
        if rows >= COUNT_FILES:
            return Counted(rows, False, size)
    return Counted(rows, True, size)


def _file(path: Path, form: str | None) -> Counted:
    size = path.stat().st_size
    if form == "parquet":
        return Counted(_parquet(path), True, size)
    quoted, header = form in ("csv", "tsv"), form in ("csv", "tsv")
    lines = done = 0
    inside = False
    last = b"\n"
    with path.open("rb") as file:
        while done < COUNT_BYTES and (block := file.read(_BLOCK)):
            if done == 0 and form == "json" and block.lstrip()[:1] == b"[":
                return Counted(None, False, size)  # one list over the whole file: its rows are known once it is parsed
            done += len(block)
            last = block[-1:]
            if quoted:
                # A line break between quotation marks is part of a cell; every mark changes sides, doubled ones twice.
                parts = block.split(b'"')
                lines += sum(part.count(b"\n") for part in parts[1 if inside else 0 :: 2])
                inside ^= len(parts) % 2 == 0
            else:
                lines += block.count(b"\n")
    if done == size:
        rows = lines + (last != b"\n") - header
        return Counted(max(0, rows), True, size)
    return Counted(max(0, round(lines * size / done) - header), False, size)


def _parquet(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except pyarrow.ArrowException as error:
        raise InputError(f"data: {path}: no Parquet file that can be read: {' '.join(str(error).split())}") from None
