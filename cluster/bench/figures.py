"""The figures of a run's page, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.bench.compare import Round
from cluster.page import ACCENT, OTHER, PALE, axes, plain, svg

_COLOURS = (ACCENT, OTHER)
_PARTS = ("#0a7d5c", "#5b7fa6", "#c08a3e", "#8e6bb0", "#b35f5f", "#7d8b3a", "#4f9aa8", "#9c7a62", "#2f5d50", "#d1a7a0")
_MOST_PARTS, _REST = 8, "others"
_BIN_S = 0.25


def by_round(told: Sequence[dict[str, Any]], rate: str, unit: str) -> str:
    """What each round gave: the rate, p99, and CPU time where it was measured."""
    panels: list[tuple[str, Any]] = [
        (rate.replace("_per_s", " a second"), lambda row: row[rate]),
        ("p99 ms", lambda row: row["latency_ms"].get("p99")),
    ]
    if any("cpu_ms_by_part" in side for side in told):
        panels.append((f"CPU-ms a {unit}", lambda row: row.get(f"cpu_ms_per_{unit}")))
    figure, found = axes(len(panels), 2.8, shared=False)
    for ax, (label, of) in zip(found, panels):
        for side, colour in zip(told, _COLOURS):
            points = [(row["round"] + 1, of(row)) for row in side["rounds"] if of(row) is not None]
            if points:
                ax.plot(*zip(*points), "o-", color=colour, ms=4, lw=1.4, label=plain(side["name"]))
        _from_zero(ax)
        ax.set_xticks(range(1, len(told[0]["rounds"]) + 1))
        ax.set_xlabel("round", fontsize=8)
        ax.set_title(label, fontsize=9)
    found[0].legend(fontsize=8, frameon=False)
    return svg(figure)


def percentiles(sides: Sequence[tuple[str, Sequence[Round]]], panels: Sequence[tuple[str, str]]) -> str:
    """Times over the share of answers that took no longer, the tail spread out; a panel for each of `panels`, which are
    a Round's array and its label."""
    figure, found = axes(len(panels), 3.2, shared=False)
    for ax, (which, label) in zip(found, panels):
        for (name, rows), colour in zip(sides, _COLOURS):
            values = np.sort(np.concatenate([getattr(row, which) for row in rows]))
            if not len(values):
                continue
            # One minus the share, on a logarithmic axis: as much room from 99 to 99.9 % as from 0 to 90.
            rest = 1 - np.arange(len(values)) / len(values)
            chosen = np.unique(np.geomspace(1, len(values), 300).astype(int))
            places = np.unique(np.concatenate([len(values) - chosen, chosen - 1]))
            ax.plot(rest[places], values[places], color=colour, lw=1.6, label=plain(name))
        ticks = [1, 0.5, 0.1, 0.01, 0.001]
        ax.set_xscale("log")
        ax.set_xticks(ticks, ["0", "p50", "p90", "p99", "p99.9"])
        ax.set_xticks([], minor=True)
        ax.set_xlim(1, max(1e-3, min(0.2, _smallest(sides, which))))
        _from_zero(ax)
        ax.set_title(label, fontsize=9)
    found[0].legend(fontsize=8, frameon=False)
    return svg(figure)


def parts(told: Sequence[dict[str, Any]], unit: str) -> str:
    """CPU time by process, a bar a side; the small ones are put together."""
    shown = [side for side in told if "cpu_ms_by_part" in side]
    bars = [_largest(side["cpu_ms_by_part"]) for side in shown]
    names = list(dict.fromkeys(name for bar in bars for name in bar))
    figure, (ax,) = axes(1, 1.2 + 0.45 * len(shown) + 0.18 * math.ceil(len(names) / 4))
    for row, bar in enumerate(bars):
        left = 0.0
        for name, value in bar.items():
            ax.barh(row, value, left=left, color=_colour(name, names), edgecolor="white", height=0.6)
            left += value
        ax.text(left, row, f"  {left:.3g}", va="center", fontsize=8)
    for name in names:
        ax.barh(0, 0, color=_colour(name, names), label=plain(name))
    ax.set_yticks(range(len(shown)), [plain(side["name"]) for side in shown])
    ax.invert_yaxis()
    ax.margins(x=0.08)
    ax.set_xlabel(f"CPU-ms a {unit}", fontsize=8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return svg(figure)


def _largest(by_part: Mapping[str, float]) -> dict[str, float]:
    named = sorted(by_part.items(), key=lambda item: -item[1])
    rest = sum(value for _, value in named[_MOST_PARTS:])
    return dict(named[:_MOST_PARTS]) | ({_REST: rest} if rest else {})


def _colour(part: str, names: Sequence[str]) -> str:
    return PALE if part == _REST else _PARTS[names.index(part) % len(_PARTS)]


def timeline(sides: Sequence[tuple[str, Sequence[Round]]]) -> str:
    """The slowest answer of each quarter of a second over the whole run: the turns, and what stalled in them."""
    figure, (ax,) = axes(1, 2.8)
    start = min(row.began for _, rows in sides for row in rows)
    for (name, rows), colour in zip(sides, _COLOURS):
        label: str | None = plain(name)
        for row in rows:
            if not len(row.done_s):
                continue
            bins = (row.done_s / _BIN_S).astype(int)
            slowest = np.zeros(bins.max() + 1)
            np.maximum.at(slowest, bins, row.latency_ms)
            at = row.began - start + (np.arange(len(slowest)) + 0.5) * _BIN_S
            ax.plot(at[slowest > 0], slowest[slowest > 0], color=colour, lw=1.2, label=label)
            label = None
    _from_zero(ax)
    ax.set_xlabel("seconds of the run", fontsize=8)
    ax.set_ylabel("slowest answer, ms", fontsize=8)
    ax.legend(fontsize=8, frameon=False)
    return svg(figure)


def _smallest(sides: Sequence[tuple[str, Sequence[Round]]], which: str) -> float:
    return 1 / max(1, *(sum(len(getattr(row, which)) for row in rows) for _, rows in sides))


def _from_zero(ax: Any) -> None:
    ax.set_ylim(0, 1.06 * ax.dataLim.y1 if ax.dataLim.y1 > 0 else 1)
