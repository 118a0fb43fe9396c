"""Files of rows as Arrow tables: CSV, TSV, JSON lines, Parquet and text. One message where a file is broken.

CSV and TSV come back as text only; train.data.columns decides what is a number, once it knows what a column is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import csv, parquet

from cluster.errors import InputError
from cluster.progress import Progress, silent

# Told the names of the columns there are, answers those to read; raises InputError where a needed one is missing.
Choose = Callable[[list[str]], list[str]]

_CELL_BYTES = 16 << 20  # the largest row a CSV file may have: Arrow parses in blocks of this size
_TEXT_ONLY = "save it as UTF-8 text"


def read_file(
    path: Path, form: str, *, rows: int | None, where: str, choose: Choose, progress: Progress = silent
) -> pa.Table:
    """The first `rows` rows (None: all) of a file, columns as `choose` answers.

    `form` is a value of cluster.spec.refs.FORMATS; `where` begins every message ("data.train: mails.csv").
    Raises InputError: empty, binary, broken, ragged, not UTF-8, a column twice.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8192)
            if not start.strip():
                raise InputError(f"{where}: empty; it needs a row of data at least")
            if form != "parquet" and b"\0" in start:
                raise InputError(f"{where}: a binary file, not {form}; {_TEXT_ONLY}")
            file.seek(0)

            def step() -> None:
                progress(f"read {path.name}", min(file.tell(), size), size)

            match form:
                case "csv" | "tsv":
                    table = _csv(file, "," if form == "csv" else "\t", rows, where, choose, step)
                case "json":
                    table = _json(file, start, rows, where, choose, step)
                case "parquet":
                    table = _parquet(path, rows, where, choose)
                case _:
                    table = _text(file, rows, where, choose)
    except pa.ArrowException as error:
        raise InputError(f"{where}: {_arrow_says(error, path, form)}") from None
    except OSError as error:
        if error.errno is None:  # Arrow's, about what is in the file
            raise InputError(f"{where}: {_arrow_says(error, path, form)}") from None
        raise InputError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: a column's name is not UTF-8; {_TEXT_ONLY}") from None
    if table.num_rows == 0:
        raise InputError(f"{where}: no rows under the header; it needs a row of data at least")
    progress(f"read {path.name}", size, size, f"{table.num_rows} rows")
    return table


def _csv(
    file: BinaryIO, delimiter: str, rows: int | None, where: str, choose: Choose, step: Callable[[], None]
) -> pa.Table:
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    options = csv.ReadOptions(use_threads=False, block_size=_CELL_BYTES)
    names = csv.open_csv(file, read_options=options, parse_options=parse).schema.names
    wanted = choose(_once(names, where))
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(wanted, pa.large_string()), include_columns=wanted, strings_can_be_null=False
    )
    file.seek(0)
    reader = csv.open_csv(file, read_options=options, parse_options=parse, convert_options=convert)
    batches, count, last = [], 0, None
    for batch in reader:
        batches.append(batch)
        count += batch.num_rows
        last = batch if batch.num_rows else last
        step()
        if rows is not None and count >= rows:
            break
    else:
        # Arrow takes the end of the file for the end of a quoted cell, and would lose all rows after the quote.
        if last is not None and any("\n" in str(column[-1].as_py()) for column in last.columns):
            file.seek(0)
            if sum(block.count(b'"') for block in iter(lambda: file.read(1 << 20), b"")) % 2:
                raise InputError(f'{where}: a quote (") is opened and never closed; close it, or double it: ""')
    return pa.Table.from_batches(batches, schema=reader.schema).slice(0, rows)


def _json(
    file: BinaryIO, start: bytes, rows: int | None, where: str, choose: Choose, step: Callable[[], None]
) -> pa.Table:
    whole = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    records = []
    for line, record in _records(file, whole, where):
        if not isinstance(record, dict):
            place = f"{where}: {'record' if whole else 'line'} {line}"
            raise InputError(f"{place}: {_kind(record)}, not an object; write one object a line")
        records.append(record)
        if len(records) % 4096 == 0:
            step()
        if len(records) == rows:
            break
    columns = {}
    for name in choose(list(dict.fromkeys(name for record in records for name in record))):
        values = [record.get(name) for record in records]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise InputError(f"{where}: column {name!r}: {_odd_one(values)}") from None
    return pa.table(columns)


def _records(file: BinaryIO, whole: bool, where: str) -> Iterator[tuple[int, Any]]:
    """Line (from 1; of a list: the place in it) and value of every record."""
    line = 1
    try:
        if whole:
            for line, record in enumerate(json.loads(file.read().decode("utf-8-sig")), 1):
                yield line, record
            return
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, json.loads(text.decode("utf-8-sig" if line == 1 else "utf-8"))
    except json.JSONDecodeError as error:
        at = error.lineno if whole else line
        raise InputError(
            f"{where}: line {at}: not JSON ({error.msg}); write one object a line, or one list of objects"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: {'' if whole else f'line {line}: '}not UTF-8; {_TEXT_ONLY}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: line {line}: not JSON that can be read: {error}") from None


def _parquet(path: Path, rows: int | None, where: str, choose: Choose) -> pa.Table:
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        wanted = choose([name for name in _once(schema.names, where) if not name.startswith("__index_level_")])
        batches, count = [], 0
        for batch in file.iter_batches(columns=wanted):
            batches.append(batch)
            count += batch.num_rows
            if rows is not None and count >= rows:
                break
        plain = pa.schema([schema.field(name) for name in wanted], metadata=schema.metadata)
        table = pa.Table.from_batches(batches, schema=batches[0].schema if batches else plain).slice(0, rows)
    table.validate(full=True)  # text that is no UTF-8 would be met only where a value is used
    return name_classes(table.select(wanted).replace_schema_metadata(schema.metadata))


def name_classes(table: pa.Table) -> pa.Table:
    """Columns that `datasets` has marked as ClassLabel, from numbers to their names; -1, its "unlabelled", to null."""
    if b"huggingface" not in (table.schema.metadata or {}):
        return table
    from datasets import ClassLabel, Features

    for name, feature in Features.from_arrow_schema(table.schema).items():
        if isinstance(feature, ClassLabel) and pa.types.is_integer(table.schema.field(name).type):
            known = [feature.names[i] if i is not None and i >= 0 else None for i in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(known, pa.large_string()))
    return table.replace_schema_metadata(None)


def _text(file: BinaryIO, rows: int | None, where: str, choose: Choose) -> pa.Table:
    choose(["text"])
    lines = []
    for number, line in enumerate(file, 1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        except UnicodeDecodeError:
            raise InputError(f"{where}: line {number}: not UTF-8; {_TEXT_ONLY}") from None
        if len(lines) == rows:
            break
    return pa.table({"text": pa.array(lines, pa.large_string())})


def _once(names: list[str], where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where}: column {twice[0]!r} stands twice in the header; name each column once")
    return names


def _arrow_says(error: Exception, path: Path, form: str) -> str:
    """Arrow's own message, with the remedy; for bytes that are no UTF-8 the line as well."""
    text = str(error).removeprefix("CSV parse error: ")
    if "invalid UTF8" in text:
        with path.open("rb") as file:
            for line, content in enumerate(file, 1):
                try:
                    content.decode("utf-8")
                except UnicodeDecodeError as fault:
                    return f"line {line}: byte {content[fault.start]:#04x} is not UTF-8; {_TEXT_ONLY}"
    if "straddling object" in text:
        return f'a row is longer than {_CELL_BYTES >> 20} MiB; is a quote (") opened and never closed?'
    if "Empty CSV" in text:
        return "no header and rows in it; the first line names the columns"
    if "Expected" in text and "columns, got" in text:
        short = " ".join(text.split())
        short = short if len(short) <= 160 else f"{short[:157]}..."
        return (
            f'ragged ({short}; the header is row 1): quote a cell with the delimiter in it, and close every quote (")'
        )
    return f"not {form} that can be read: {text.splitlines()[0] if text else type(error).__name__}"


def _odd_one(values: list[Any]) -> str:
    """The first value whose type differs from the first one's."""
    filled = [(row, value) for row, value in enumerate(values, 1) if value is not None]
    first = filled[0][1]
    for row, value in filled:
        same = isinstance(value, int | float) and isinstance(first, int | float) and type(first) is not bool
        if type(value) is not type(first) and (not same or type(value) is bool):
            return f"row {row} has {_kind(value)} where row {filled[0][0]} has {_kind(first)}; write one type a column"
    return "holds a value too large or not representable; write plain text or numbers"


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "nothing")
