"""The figures of a sweep's report, as SVG text for inside a page: no font, script or address is asked for."""

from __future__ import annotations

import json
from typing import Any

from cluster.page import ACCENT, OTHER, PALE, axes, plain, svg
from cluster.spec.tune import Space
from tune.study import Row


def curves(rows: list[Row], points: dict[int, dict[float, float]], metric: str, best: int) -> str:
    """The swept metric at each validation over epochs; the best trial stands out, those ended early are pale."""
    figure, panels = axes(1)
    for row in reversed(rows):
        curve = points.get(row.number) or {}
        if not curve:
            continue
        colour = ACCENT if row.number == best else PALE if row.status == "pruned" else OTHER
        width = 2.4 if row.number == best else 1.1
        style = "--" if row.status == "pruned" else "-"
        marker = "o" if len(curve) < 12 else None
        panels[0].plot(*zip(*sorted(curve.items())), color=colour, lw=width, ls=style, marker=marker, ms=3.5)
        panels[0].annotate(
            str(row.number), max(curve.items()), xytext=(4, -3), textcoords="offset points", fontsize=7, color=colour
        )
    panels[0].set_xlabel("epochs")
    panels[0].set_ylabel(metric)
    return svg(figure)


def scatter(rows: list[Row], keys: list[str], space: Space, metric: str, best: int) -> str:
    """The swept metric of each trial over each key; trials ended early are hollow, failed ones are left out."""
    shown = [row for row in rows if row.value is not None and row.status in ("finished", "pruned")]
    figure, panels = axes(len(keys))
    for key, ax in zip(keys, panels):
        ((kind, choices),) = space[key].items()
        places = {json.dumps(value): place for place, value in enumerate(choices)}
        for row in shown:
            value: Any = row.values[key]
            x = places[json.dumps(value)] if kind == "choice" else value
            colour = ACCENT if row.number == best else OTHER
            hollow = row.status == "pruned"
            ax.scatter([x], [row.value], s=34, facecolors="none" if hollow else colour, edgecolors=colour)
        if kind == "choice":
            ax.set_xticks(range(len(choices)), [plain(_word(value)) for value in choices], fontsize=8)
            ax.set_xlim(-0.5, len(choices) - 0.5)
        elif kind in ("loguniform", "logint"):
            ax.set_xscale("log")
        ax.set_xlabel(plain(key.removeprefix("train.")))
    panels[0].set_ylabel(metric)
    return svg(figure)


def bars(importance: dict[str, float]) -> str:
    """Each key's share of the metric's variance, most important on top."""
    figure, panels = axes(1, height=0.6 + 0.35 * len(importance))
    names = [plain(key.removeprefix("train.")) for key in importance]
    panels[0].barh(names, list(importance.values()), color=OTHER)
    panels[0].invert_yaxis()
    panels[0].set_xlim(0, 1)
    panels[0].set_xlabel("share of the variance that the key explains (fANOVA)")
    return svg(figure)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
