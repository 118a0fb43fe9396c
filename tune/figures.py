"""The figures of a sweep's report, as SVG text for inside a page: no font, script or address is asked for."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from cluster.spec.tune import Space
from tune.study import Row

_BEST, _OTHER, _PRUNED = "#0a7d5c", "#5b7fa6", "#b9b9b9"


def curves(rows: list[Row], points: dict[int, dict[float, float]], metric: str, best: int) -> str:
    """The swept metric at each validation over epochs; the best trial stands out, those ended early are pale."""
    figure, axes = _axes(1)
    for row in reversed(rows):
        curve = points.get(row.number) or {}
        if not curve:
            continue
        colour = _BEST if row.number == best else _PRUNED if row.status == "pruned" else _OTHER
        width = 2.4 if row.number == best else 1.1
        style = "--" if row.status == "pruned" else "-"
        marker = "o" if len(curve) < 12 else None
        axes[0].plot(*zip(*sorted(curve.items())), color=colour, lw=width, ls=style, marker=marker, ms=3.5)
        axes[0].annotate(
            str(row.number), max(curve.items()), xytext=(4, -3), textcoords="offset points", fontsize=7, color=colour
        )
    axes[0].set_xlabel("epochs")
    axes[0].set_ylabel(metric)
    return _svg(figure)


def scatter(rows: list[Row], keys: list[str], space: Space, metric: str, best: int) -> str:
    """The swept metric of each trial over each key; trials ended early are hollow, failed ones are left out."""
    shown = [row for row in rows if row.value is not None and row.status in ("finished", "pruned")]
    figure, axes = _axes(len(keys))
    for key, ax in zip(keys, axes):
        ((kind, choices),) = space[key].items()
        places = {json.dumps(value): place for place, value in enumerate(choices)}
        for row in shown:
            value: Any = row.values[key]
            x = places[json.dumps(value)] if kind == "choice" else value
            colour = _BEST if row.number == best else _OTHER
            hollow = row.status == "pruned"
            ax.scatter([x], [row.value], s=34, facecolors="none" if hollow else colour, edgecolors=colour)
        if kind == "choice":
            ax.set_xticks(range(len(choices)), [_plain(_word(value)) for value in choices], fontsize=8)
            ax.set_xlim(-0.5, len(choices) - 0.5)
        elif kind in ("loguniform", "logint"):
            ax.set_xscale("log")
        ax.set_xlabel(_plain(key.removeprefix("train.")))
    axes[0].set_ylabel(metric)
    return _svg(figure)


def bars(importance: dict[str, float]) -> str:
    """Each key's share of the metric's variance, most important on top."""
    figure, axes = _axes(1, height=0.6 + 0.35 * len(importance))
    names = [_plain(key.removeprefix("train.")) for key in importance]
    axes[0].barh(names, list(importance.values()), color=_OTHER)
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, 1)
    axes[0].set_xlabel("share of the variance that the key explains (fANOVA)")
    return _svg(figure)


def _axes(count: int, height: float = 3.4) -> tuple[Any, list[Any]]:
    # Not pyplot: it would keep the figures and choose a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0].tolist()
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def _svg(figure: Any) -> str:
    """The figure as one <svg> element, without the document type and metadata around it."""
    from matplotlib import rc_context

    out = io.StringIO()
    # Letters are drawn as shapes: what a file says becomes no markup. The salt makes the same figure the same text.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "shoal"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(text: str) -> str:
    """Without matplotlib's formulas, and not too long."""
    return (text if len(text) <= 24 else f"{text[:23]}…").replace("$", r"\$")
