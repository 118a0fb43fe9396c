"""What a data reference names: its bytes as a digest, then its rows as a table."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import InputError
from cluster.progress import Progress, silent
from cluster.spec import DataRef
from train.data import pictures, read

_BLOCK = 1 << 20


@dataclass
class Source:
    """One split's source, hashed. `where` begins every message about it."""

    ref: DataRef
    where: str
    sha256: str
    bytes: int
    skipped: int = 0
    _table: pa.Table | None = field(default=None, repr=False)  # a folder's list, a Hub data set's rows

    @property
    def untyped(self) -> bool:
        """Whether the source is text only, so that numbers must be told by how they read."""
        return self.ref.format in ("csv", "tsv", "text")

    def rows(self, choose: read.Choose, progress: Progress = silent) -> pa.Table:
        """The columns that `choose` answers. Raises InputError."""
        if self.ref.kind == "file":
            assert self.ref.path
            assert self.ref.format
            return read.read_file(
                self.ref.path, self.ref.format, rows=self.ref.rows, where=self.where, choose=choose, progress=progress
            )
        assert self._table is not None
        return self._table.select(choose(self._table.column_names))


def find(ref: DataRef, *, split: str, cache: Path, progress: Progress = silent) -> Source:
    """Hash what a reference names. Of a folder the pictures' names and bytes count, of a Hub data set its rows.

    `cache` is where `datasets` keeps what it fetches. Raises InputError.
    """
    where = f"data.{split}: {ref.text}"
    if ref.kind == "hub":
        progress(f"fetch {ref.name}", 0, 1)
        source = _hub(ref, split, where, cache)
        progress(f"fetch {ref.name}", 1, 1, f"{source.bytes / 2**20:.0f} MiB")
        return source
    assert ref.path
    table, skipped, files = None, 0, [ref.path]
    if ref.kind == "folder":
        table, skipped = pictures.list_folder(ref.path, rows=ref.rows, where=where)
        files = [Path(path) for path in table["image"].to_pylist()]
    total, done, whole = 0, 0, hashlib.sha256()
    try:
        total = sum(file.stat().st_size for file in files)
        for file in files:
            if ref.kind == "folder":
                whole.update(f"\0{file.relative_to(ref.path).as_posix()}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    whole.update(block)
                    done += len(block)
                    progress("hash data", done, max(total, done))
    except OSError as error:
        raise InputError(f"{where}: {error.filename or ref.path}: cannot be read: {error.strerror or error}") from None
    return Source(ref, where, whole.hexdigest(), done, skipped, table)


def _hub(ref: DataRef, split: str, where: str, cache: Path) -> Source:
    import datasets
    from datasets.table import embed_table_storage

    try:
        found: Any = datasets.load_dataset(ref.name, ref.config, cache_dir=str(cache))
        if split not in found:
            there = ", ".join(found)
            raise InputError(f"{where}: no split named {split}; it has {there}: save the rows you want as a file")
        rows = found[split]
        table = rows.data.table
        if any(isinstance(feature, datasets.Image) for feature in rows.features.values()):
            table = embed_table_storage(table)
    except InputError:
        raise
    except Exception as error:  # the library, the network and the data set's own files raise anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{where}: could not be loaded: {first[:300]}; check the name, the configuration (hf://name:config) and "
            "the network, or give a local file"
        ) from None
    whole, size = hashlib.sha256(), 0
    for file in rows.cache_files:
        with open(file["filename"], "rb") as stream:
            while block := stream.read(_BLOCK):
                whole.update(block)
                size += len(block)
    table = table.replace_schema_metadata(rows.features.arrow_schema.metadata).slice(0, ref.rows)
    return Source(ref, where, whole.hexdigest(), size, 0, read.name_classes(table))


def described(source: Source) -> dict[str, Any]:
    """For data.json: the name, not the path, for the same rows elsewhere are the same data."""
    ref = source.ref
    name = os.path.basename(ref.path) if ref.path else ref.text
    return {"name": name, "kind": ref.kind, "rows": ref.rows, "sha256": source.sha256, "bytes": source.bytes}
