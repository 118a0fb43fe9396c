"""A confusion matrix as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_NUMBERS_UP_TO = 30  # classes; beyond it numbers in the cells cannot be read
_LONGEST = 24


def draw(counts: Sequence[Sequence[int]], labels: Sequence[str], file: Path, *, title: str) -> None:
    """Write a PNG. Rows are what is, columns what was said; a cell's colour is its share of its row.

    Up to 30 classes every cell has its number of rows; beyond that wrong cells are marked by colour alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matrix = np.asarray(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = len(labels)
    names = [_short(label) for label in labels]
    side = min(22.0, max(4.0, 0.42 * size))  # inches
    # The labels' own width, so that long ones do not squeeze the matrix.
    margin = 0.085 * max(len(name) for name in names)
    figure = Figure(figsize=(side + margin + 1.6, side + margin + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, label="share of the row")
    small = max(4.0, min(9.0, 0.6 * 72 * side / size))
    # A label is other people's text: $ would start mathematics.
    axes.set_xticks(range(size), names, rotation=0 if size <= 4 else 90, fontsize=small, parse_math=False)
    axes.set_yticks(range(size), names, fontsize=small, parse_math=False)
    axes.set_xlabel("said")
    axes.set_ylabel("is")
    axes.set_title(title, fontsize=11, parse_math=False)
    if size <= _NUMBERS_UP_TO:
        for row, column in np.ndindex(size, size):
            if matrix[row, column] or size <= 12:
                colour = "white" if shares[row, column] > 0.55 else "black"
                number = f"{int(matrix[row, column])}"
                axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=8 if size > 12 else 10)
    else:
        # A pale cell is lost among thousands: every confusion gets a dot, larger for a larger share.
        rows, columns = np.nonzero(matrix * (1 - np.eye(size)))
        axes.scatter(columns, rows, s=3 + 25 * shares[rows, columns], color="tab:red", linewidths=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label in a script the font has not is drawn as boxes
        figure.savefig(file, dpi=110)


def _short(label: str) -> str:
    """A label on one line; of a long one both ends, for either may tell it from the others."""
    line = " ".join(label.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 10]}…{line[-9:]}"
