"""From the columns a source has to the canonical ones: text, text_pair, image, or a table's features.

Every message begins with the place: "data.train: mails.csv".
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute

from cluster.errors import InputError
from cluster.spec import Data
from cluster.tasks.row import Task

pc: Any = pyarrow.compute  # made at run time: no type checker sees its functions
Kind = Literal["numeric", "categorical"]
MISSING = ("", "na", "n/a", "nan", "null", "none")  # what a CSV writes where a number is missing, in small letters
_INPUTS = ("text", "text_pair", "image")
_LARGEST = 3.4028234e38  # scikit-learn's trees count in float32


def roles(task: Task, data: Data) -> dict[str, str]:
    """Role to column name, as the file maps them; a role that is not mapped is its own column. Without `features`.

    Raises InputError: a role the task has not, several columns where one is wanted.
    """
    for role, column in data.columns.items():
        if role not in task.columns:
            near = difflib.get_close_matches(role, task.columns, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{task.name} has {', '.join(task.columns)}"
            raise InputError(f"data.columns.{role}: {task.name} has no such role; {hint}")
        if role == "features" and isinstance(column, str):
            raise InputError(f"data.columns.features: {column!r} is text; write a list, [{column}]")
        if role != "features" and isinstance(column, list):
            raise InputError(f"data.columns.{role}: {column!r} is a list; name one column")
    return {role: str(data.columns.get(role, role)) for role in task.columns if role != "features"}


def choose(names: list[str], *, task: Task, data: Data, where: str, features: list[str] | None = None) -> list[str]:
    """Those of a source's columns that the task needs.

    `features` are the training rows' feature columns, where they are known already: other splits must have them.
    Raises InputError for a column that is missing, with those there are and the nearest name.
    """
    wanted = []
    for role, name in roles(task, data).items():
        if name in names:
            wanted.append(name)
        elif task.columns[role] or role in data.columns:
            raise InputError(_no_column(role, name, names, where))
    if "features" not in task.columns:
        return wanted
    listed = features if features is not None else data.columns.get("features")
    for name in listed or []:
        if name not in names:
            raise InputError(_no_column("features", name, names, where))
    others = list(listed) if listed else [name for name in names if name not in wanted]
    if not others:
        raise InputError(f"{where}: no column but {', '.join(wanted)}; there is nothing to learn from")
    for name in others:
        if not name.strip():
            raise InputError(f"{where}: a column without a name; name it, or list those to use: data.columns.features")
        if name in wanted or name == "label":
            raise InputError(f"{where}: column {name!r} is a feature and the label at once; rename or leave out one")
    return [*others, *wanted]


def _no_column(role: str, name: str, names: list[str], where: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    shown = ", ".join(repr(column) for column in names[:20]) + (", ..." if len(names) > 20 else "")
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{where}: no column {name!r}, needed as {role}; {hint}there are {shown}; name it by data.columns.{role}"


def feature_kinds(table: pa.Table, names: list[str], *, untyped: bool, where: str) -> dict[str, Kind]:
    """numeric or categorical, for every feature of the training rows.

    `untyped`: the source is text only (CSV), and a column that reads as numbers is one. Otherwise text is
    categorical, as are true and false; whole numbers are numeric however few they are.
    Raises InputError for a column that is empty or holds something else.
    """
    kinds: dict[str, Kind] = {}
    for name in names:
        column = _plain(table[name])
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
            kinds[name] = "numeric"
        elif _is_text(column.type):
            numeric = untyped and _numbers(column) is not None
            kinds[name] = "numeric" if numeric else "categorical"
        elif pa.types.is_boolean(column.type):
            kinds[name] = "categorical"
        elif not pa.types.is_null(column.type):
            raise InputError(
                f"{where}: column {name!r} holds {_said(column.type)}; turn it into numbers or text, or leave it out: "
                f"data.columns.features lists those to use"
            )
        if name not in kinds or feature(column, kinds[name], name=name, where=where).null_count == len(column):
            raise InputError(
                f"{where}: column {name!r} is empty; leave it out: data.columns.features lists those to use"
            )
    return kinds


def feature(column: pa.ChunkedArray, kind: Kind, *, name: str, where: str) -> pa.ChunkedArray:
    """A feature as float64 (numeric) or text (categorical; true and false as "true" and "false"), nulls where a value
    is missing. Raises InputError with the row of a value that is no finite number."""
    column = _plain(column)
    if kind == "categorical":
        text = column.cast(pa.large_string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)
    numbers = _numbers(column) if _is_text(column.type) else _floats(column)
    if numbers is None:
        row, value = _first_no_number(column)
        raise InputError(f"{where}: column {name!r}: row {row} has {value!r}, not a number as in the training rows")
    numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    beyond = pc.greater(pc.abs(numbers), _LARGEST)
    if pc.any(beyond).as_py():
        row = pc.index(beyond, True).as_py()
        raise InputError(f"{where}: column {name!r}: row {row + 1} has {numbers[row].as_py()}; write finite numbers")
    return numbers


def _floats(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        return pa.nulls(len(column), pa.float64()) if pa.types.is_null(column.type) else None
    return column.cast(pa.float64(), safe=False)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Text as float64, null where it says that a number is missing; None where any of it is something else."""
    text = pc.utf8_trim_whitespace(column)
    missing = pc.is_in(pc.utf8_lower(text), pa.array(MISSING, text.type))
    try:
        return pc.if_else(missing, pa.scalar(None, text.type), text).cast(pa.float64())
    except pa.ArrowInvalid:
        return None


def _first_no_number(column: pa.ChunkedArray) -> tuple[int, object]:
    for row, value in enumerate(column, 1):
        if value.as_py() is not None and (
            not _is_text(column.type) or _numbers(pa.chunked_array([[value.as_py()]])) is None
        ):
            return row, value.as_py()
    raise AssertionError("called for a column of numbers")


def inputs(table: pa.Table, names: dict[str, str], *, where: str) -> dict[str, pa.ChunkedArray]:
    """The canonical text, text_pair and image columns there are; `names` maps role to column.

    text is large_string; image is large_binary, or large_string paths where the source is a folder.
    Raises InputError with the row of a value that is missing, and for a column of another type.
    """
    found = {}
    for role in _INPUTS:
        if role not in names or names[role] not in table.column_names:
            continue
        column, place = _plain(table[names[role]]), f"{where}: column {names[role]!r}"
        if role == "image":
            found[role] = _pictures(column, place)
            continue
        if not _is_text(column.type):
            row = next((row for row, value in enumerate(column, 1) if value.is_valid), 1)
            example = repr(column[row - 1].as_py())[:60]
            raise InputError(
                f"{place} holds {_said(column.type)}, not text (row {row}: {example}); name a column of text"
            )
        found[role] = column.cast(pa.large_string())
        if found[role].null_count:
            row = pc.index(pc.is_null(found[role]), True).as_py() + 1
            raise InputError(
                f"{place}: row {row} has no text ({found[role].null_count} such rows); fill or remove them"
            )
    return found


def _pictures(column: pa.ChunkedArray, place: str) -> pa.ChunkedArray:
    if pa.types.is_struct(column.type) and "bytes" in [field.name for field in column.type]:
        column = pc.struct_field(column, "bytes")  # how `datasets` writes a picture
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise InputError(
            f"{place} holds {_said(column.type)}, not pictures; give a folder with one folder of pictures a class, or "
            "Parquet with the pictures' bytes"
        )
    return column.cast(pa.large_binary())


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # Large offsets throughout: a column of more than 2 GiB can be filtered and joined.
    return column.cast(pa.large_string()) if _is_text(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _said(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true and false"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numbers"
    if pa.types.is_temporal(kind):
        return "dates or times"
    if pa.types.is_null(kind):
        return "nothing"
    return "text" if _is_text(kind) else "bytes" if pa.types.is_binary(kind) else "lists or objects"
