"""Table tasks: a replica's four steps from a request's bytes to its answer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import weights
from cluster.errors import InputError, TooLarge
from cluster.skops_file import load_skops
from cluster.tasks import TASKS
from serve.tasks.content import Reader

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 100_000


class TabularClassification:
    """A folder with model.skops (a scikit-learn pipeline) and config.json, whose `shoal` part has the labels and the
    features, each numeric or categorical."""

    wants = TASKS["tabular-classification"].request
    reader = Reader(wants, ("table", "inputs", "data"))
    pads = False

    def setup(self, folder: Path, device: str, dtype: str = "auto") -> None:
        """Load a model folder. Raises InputError where it is not whole, or holds types that are not trusted. scikit-
        learn's arithmetic is its own, whatever `dtype` says."""
        shoal = weights.read_config(folder).get("shoal")
        if not isinstance(shoal, dict) or not shoal.get("labels") or not isinstance(shoal.get("features"), dict):
            raise InputError(f"{folder / 'config.json'}: no shoal.labels and shoal.features; train the model anew")
        self.labels: list[str] = [str(label) for label in shoal["labels"]]
        self.features: dict[str, str] = shoal["features"]
        self.model = load_skops(folder / "model.skops")
        self.bytes = (folder / "model.skops").stat().st_size

    def decode_request(
        self, body: bytes, content_type: str, query: Mapping[str, str]
    ) -> tuple[list[pd.DataFrame], None]:
        """One frame with the model's columns in the model's order. Raises InputError, naming the columns at fault."""
        import pandas as pd

        content = self.reader.json(body, content_type, query)
        if isinstance(content.parameters, dict) and content.parameters:  # a list is a column of that name
            raise InputError(f"parameters: {', '.join(content.parameters)!s:.80}: this task has none")
        columns = _columns(content.value, self.wants)
        self._check_names(columns)
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"table: the columns differ in length: {lengths!r:.300}")
        rows = next(iter(lengths.values()))
        if rows == 0:
            raise InputError(f"table: no rows; this model takes {self.wants}")
        if rows > MAX_ROWS:
            raise TooLarge(f"table: {rows} rows; send {MAX_ROWS} at most in a request")
        typed = {name: _typed(name, columns[name], kind) for name, kind in self.features.items()}
        return [pd.DataFrame(typed)], None

    def length(self, one: pd.DataFrame) -> int:
        """Rows."""
        return len(one)

    def predict(self, batch: list[pd.DataFrame]) -> list[list[str]]:
        """The labels of each frame's rows."""
        import pandas as pd

        rows = batch[0] if len(batch) == 1 else pd.concat(batch, ignore_index=True)
        if hasattr(self.model, "predict_proba"):
            # As evaluation does it: some estimators' own predict() disagrees with their probabilities.
            indices = self.model.classes_[self.model.predict_proba(rows).argmax(axis=1)]
        else:
            indices = self.model.predict(rows)
        labels = [self.labels[int(index)] for index in indices]
        answers: list[list[str]] = []
        start = 0
        for frame in batch:
            answers.append(labels[start : start + len(frame)])
            start += len(frame)
        return answers

    def encode_response(self, outputs: list[list[str]], chosen: None) -> list[str]:
        """[label], one a row."""
        return outputs[0]

    def _check_names(self, columns: dict[str, list[Any]]) -> None:
        """Every feature must be there; more columns are left aside, so a table may be sent with its labels and ids."""
        missing = [name for name in self.features if name not in columns]
        if not missing:
            return
        faults = [f"missing columns: {', '.join(missing)}"]
        for name in columns.keys() - self.features.keys():
            if near := difflib.get_close_matches(name, missing, n=1, cutoff=0.6):
                faults.append(f"unknown column {name[:80]!r} (did you mean {near[0]}?)")
        raise InputError(f"table: {'; '.join(faults[:10])}; this model's columns are {', '.join(self.features)}")


def _columns(value: Any, wants: str) -> dict[str, list[Any]]:
    """The table of a request by column, in whichever of the clients' four forms it came."""
    table = value
    if isinstance(value, dict):
        for key in ("table", "inputs", "data"):
            if key in value:
                table = value[key]
                break
    if isinstance(table, dict) and isinstance(table.get("data"), dict | list) and table is not value:
        table = table["data"]
    if isinstance(table, list) and table and all(isinstance(row, dict) for row in table):
        names = dict.fromkeys(name for row in table for name in row)
        return {name: [row.get(name) for row in table] for name in names}
    if isinstance(table, dict) and table and all(isinstance(values, list) for values in table.values()):
        return table
    raise InputError(f"the request has no table; this model takes {wants}, or rows: [{{column: value}}]")


def _typed(name: str, values: list[Any], kind: str) -> Any:
    """A column as its model saw it in training: numbers (text that is a number counts), or text. null is missing."""
    import numpy as np

    if kind == "numeric":
        numbers = np.empty(len(values), dtype=np.float64)
        for row, value in enumerate(values):
            try:
                numbers[row] = np.nan if value is None or value == "" else float(value)
            except (TypeError, ValueError, OverflowError):
                raise InputError(f"table.{name}[{row}]: {value!r:.80} is no number") from None
            if np.isinf(numbers[row]):
                raise InputError(f"table.{name}[{row}]: {value!r:.80} is infinite or too large a number")
        return numbers
    for row, value in enumerate(values):
        if isinstance(value, dict | list):
            raise InputError(f"table.{name}[{row}]: {value!r:.80} is neither text nor a number")
    return np.array([None if value is None else str(value) for value in values], dtype=object)
