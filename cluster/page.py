"""Pages that stand alone: one HTML file with its style and figures inside, which asks for no font, script or address.

Figures are SVG text by matplotlib, without pyplot: that would keep them and choose a window system.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

# Of the figures: what a page is about, what it stands against, and what counts less.
ACCENT, OTHER, PALE = "#0a7d5c", "#5b7fa6", "#b9b9b9"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0a7d5c; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p.about { margin-top: .2rem; opacity: .75; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } tr.best td { font-weight: 600; background: var(--soft); }
td.why { max-width: 26rem; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; }
figure { margin: 0; background: #fff; padding: .5rem; border-radius: .3rem; } figure svg { width: 100%; height: auto; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of HTML parts, which the caller has escaped."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<style>{_STYLE}</style></head><body>",
            *parts,
            "</body></html>",
        ]
    )


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def row(cells: Sequence[Any], *, tag: str = "td", numbers: int | None = None) -> str:
    """A row of a table; the cells from the place `numbers` on are set to the right."""
    made = [
        f"<{tag}{' class=n' if numbers is not None and place >= numbers else ''}>{escape(cell)}</{tag}>"
        for place, cell in enumerate(cells)
    ]
    return f"<tr>{''.join(made)}</tr>"


def figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def axes(count: int, height: float = 3.4, *, shared: bool = True) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its axes side by side, which share what goes up if `shared`."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, height), layout="constrained")
    found = made.subplots(1, count, sharey=shared, squeeze=False)[0].tolist()
    for ax in found:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return made, found


def svg(made: Any) -> str:
    """A figure as one <svg> element, without the document type and metadata around it."""
    from matplotlib import rc_context

    out = io.StringIO()
    # Letters are drawn as shapes: what a file says becomes no markup. The salt makes the same figure the same text.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "shoal"}):
        made.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def plain(text: str) -> str:
    """A text for a figure: without matplotlib's formulas, and not too long."""
    return (text if len(text) <= 24 else f"{text[:23]}…").replace("$", r"\$")
