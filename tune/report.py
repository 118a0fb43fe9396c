"""What came of a sweep, for people: a table, and a page that stands alone."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import page
from cluster.page import escape
from cluster.spec import Spec
from tune import figures
from tune.space import told
from tune.study import Row

if TYPE_CHECKING:
    from cluster.registry import Registry
    from tune.run import Swept

# Finished trials below which importance is noise: fANOVA's trees need some to split.
ENOUGH = 8
_STATUS = {"finished": "finished", "pruned": "ended early", "failed": "failed", "running": "left open"}


def ranked(rows: list[Row], *, maximize: bool) -> list[Row]:
    """Finished trials from the best to the worst, then those ended early by their last value, then the failed."""
    order = {"finished": 0, "pruned": 1, "running": 2, "failed": 3}
    sign = -1 if maximize else 1
    return sorted(rows, key=lambda row: (order[row.status], sign * (row.value or 0.0), row.number))


def table(swept: Swept) -> str:
    """The trials as text, best first, columns aligned."""
    keys = list(swept.rows[0].values)
    head = ["trial", "status", *(key.removeprefix("train.") for key in keys), swept.spec.tune.metric, "seconds", ""]
    cells = [head]
    for row in ranked(swept.rows, maximize=swept.study.maximize):
        values = [_cell(row.values[key]) for key in keys]
        value = f"{row.value:.4f}" if row.value is not None and row.status != "failed" else "-"
        cells.append([str(row.number), _STATUS[row.status], *values, value, f"{row.seconds:.0f}", row.error[:100]])
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def keep(file: str, swept: Swept) -> str:
    """The command that trains, judges and serves the best trial's values: all of it is there already."""
    return f"shoal up {shlex.quote(file)} {' '.join(shlex.quote(word) for word in told(swept.best.values).split(' '))}"


def write(swept: Swept, registry: Registry, spec: Spec, *, scores: dict[str, float], version: str) -> Path:
    """Write report/index.html and report/trials.json in the sweep's folder, and return the page's path.

    `scores` are those of the best trial's evaluation, `version` what it became, or why it became none.
    """
    metric = f"validation/{spec.tune.metric}"
    curves = {row.number: registry.history(row.run_id, metric) if row.run_id else {} for row in swept.rows}
    shares = {number: _shares(curve, registry, swept.rows[i]) for i, (number, curve) in enumerate(curves.items())}
    importance = _importance(swept)

    folder = swept.folder / "report"
    folder.mkdir(exist_ok=True)
    about = {
        "name": spec.name,
        "sweep": swept.run_id,
        "metric": metric,
        "best": swept.best.number,
        "importance": importance if isinstance(importance, dict) else None,
        "trials": [vars(row) | {"curve": curves[row.number]} for row in swept.rows],
    }
    (folder / "trials.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    part = folder / "index.html.part"
    part.write_text(_page(swept, spec, metric, shares, importance, scores, version), encoding="utf-8")
    os.replace(part, folder / "index.html")
    return folder / "index.html"


def _shares(curve: dict[int, float], registry: Registry, row: Row) -> dict[float, float]:
    """A curve over epochs instead of steps: trials with other batch sizes have other steps for the same rows."""
    if not curve or not row.run_id:
        return {}
    run = registry.run(row.run_id)
    total = int(run.tags.get("shoal.total_steps", 0)) or max(curve)
    epochs = float(run.params.get("train.epochs", 1))
    return {step / total * epochs: value for step, value in curve.items()}


def _importance(swept: Swept) -> dict[str, float] | str:
    """Key to its share; or why it is not told."""
    finished, keys = swept.study.finished(), len(swept.rows[0].values)
    if keys < 2:
        return "One key was swept: there is nothing to compare it with."
    if len(finished) < ENOUGH:
        return (
            f"{len(finished)} trials ran to their end; importance needs {ENOUGH} at least to be more than noise. "
            "Raise tune.trials."
        )
    if len({trial.value for trial in finished}) < 2:
        return f"Every finished trial came to the same {swept.spec.tune.metric}: no key mattered."
    return swept.study.importance()


def _page(
    swept: Swept,
    spec: Spec,
    metric: str,
    curves: dict[int, dict[float, float]],
    importance: dict[str, float] | str,
    scores: dict[str, float],
    version: str,
) -> str:
    best, rows = swept.best, ranked(swept.rows, maximize=swept.study.maximize)
    keys = list(best.values)
    counts = [f"{n} {_STATUS[s]}" for s in ("finished", "pruned", "failed") if (n := sum(r.status == s for r in rows))]
    judged = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    head = [
        page.row(["trial", "status", *(key.removeprefix("train.") for key in keys), metric, "seconds", "run"], tag="th")
    ]
    body = [_trial(row, keys, best=row.number == best.number) for row in rows]
    said = escape(importance) if isinstance(importance, str) else page.figure(figures.bars(importance))
    per_key = page.figure(figures.scatter(rows, keys, spec.tune.space, metric, best.number))
    return page.document(
        f"{spec.name}: sweep",
        [
            f"<h1>{escape(spec.name)}: {len(rows)} trials</h1>",
            f'<p class="about">{escape(spec.task)} from {escape(spec.model)}; {escape(", ".join(counts))}; sampler '
            f"{escape(spec.tune.search)}, scheduler {escape(spec.tune.scheduler)}; sweep {escape(swept.run_id)}</p>",
            "<h2>Best</h2>",
            f"<p>{escape(f'Trial {best.number}: {metric} {best.value:.4f}; judged: {judged}. {version}')}</p>",
            f"<pre>{escape(told(best.values))}</pre>",
            "<h2>Trials</h2>",
            f"<table><thead>{''.join(head)}</thead><tbody>{''.join(body)}</tbody></table>",
            "<h2>Learning curves</h2>",
            page.figure(figures.curves(rows, curves, metric, best.number)),
            "<h2>Values</h2>",
            per_key,
            "<h2>Importance</h2>",
            f"<p>{said}</p>" if isinstance(importance, str) else said,
        ],
    )


def _trial(row: Row, keys: list[str], *, best: bool) -> str:
    value = f"{row.value:.4f}" if row.value is not None and row.status != "failed" else ""
    status = _STATUS[row.status] + (" (trained before)" if row.reused else "")
    cells = [str(row.number), status, *(_cell(row.values[key]) for key in keys), value, f"{row.seconds:.1f}"]
    last = f'<td class="why">{escape(row.error) if row.error else f"<code>{escape(row.run_id[:12])}</code>"}</td>'
    return f"<tr{' class=best' if best else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}{last}</tr>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) if isinstance(value, str) else json.dumps(value)
