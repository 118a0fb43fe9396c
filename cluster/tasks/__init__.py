"""The table of tasks: a row says what one needs of data, how it is judged, what a request and an answer look like."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from cluster.errors import InputError
from cluster.tasks.row import Task
from cluster.tasks.rows import ROWS

if TYPE_CHECKING:
    from cluster.spec import Spec  # every copy of a model reads this table, and none a file

TASKS: dict[str, Task] = {row.name: row for row in ROWS}


def task_of(spec: Spec) -> Task:
    """The row of a spec's task. Raises InputError, naming the nearest task."""
    return get(spec.task)


def get(name: str) -> Task:
    """A row by name. Raises InputError, naming the nearest task."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`shoal tasks` lists them"
    raise InputError(f"task: {name!r} is not a task; {hint}")


def trainable(spec: Spec) -> Task:
    """The row, where it can be trained. Raises InputError with those that can."""
    return _supported(task_of(spec), "trained", [row.name for row in ROWS if row.trainable], task_of(spec).trainable)


def servable(spec: Spec) -> Task:
    """The row, where it can be served. Raises InputError with those that can."""
    return _supported(task_of(spec), "served", [row.name for row in ROWS if row.servable], task_of(spec).servable)


def markdown() -> str:
    """The support matrix as a Markdown table: a row a task, what can be trained and served, request and answer."""
    lines = ["| task | modality | train | serve | request | answer |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        cells = (row.name, row.modality, "yes" if row.trainable else "", "yes" if row.servable else "")
        code = (f"`{text}`".replace("|", r"\|") for text in (row.request, row.response))
        lines.append(f"| {' | '.join((*cells, *code))} |")
    return "\n".join(lines) + "\n"


def _supported(row: Task, verb: str, able: list[str], yes: bool) -> Task:
    if not yes:
        raise InputError(f"task: {row.name} cannot be {verb} yet; these can: {', '.join(able)}")
    return row
