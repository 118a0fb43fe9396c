"""What came of a run, for people: a table, a page that stands alone, and results.json beside it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import page
from cluster.bench import figures
from cluster.bench.compare import Round
from cluster.page import escape

Row = tuple[str, list[str], str]  # what was measured, its figure for each side, the ratio
_TIMES = ("p50", "p95", "p99")


def write(result: dict[str, Any], by_side: Sequence[Sequence[Round]], folder: Path) -> Path:
    """Write results.json and index.html into a folder, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("results.json", json.dumps(result, indent=1)), ("index.html", html(result, by_side))):
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / name)
    return folder / "index.html"


def rows(result: dict[str, Any]) -> list[Row]:
    """The table, top to bottom."""
    sides, unit = result["sides"], _unit(result)
    ratios = {one["measure"]: _ratio(one) for one in result["ratios"]}
    made: list[Row] = []

    def add(label: str, measure: str, cell: Any) -> None:
        cells = [cell(side) for side in sides]
        if any(cells):
            made.append((label, [one or "-" for one in cells], ratios.get(measure, "")))

    add("tokens/s", "tokens_per_s", lambda side: _number(side.get("tokens_per_s")))
    add("requests/s", "requests_per_s", lambda side: _number(side["requests_per_s"]))
    for name in _TIMES:
        add(f"latency {name}, ms", f"latency_{name}", lambda side, name=name: _number(side["latency_ms"].get(name)))
    for name in ("p50", "p99"):
        add(f"first token {name}, ms", f"ttft_{name}", lambda side, name=name: _number(_of(side, "ttft_ms", name)))
    for name in ("p50", "p99"):
        add(f"between tokens {name}, ms", f"gap_{name}", lambda side, name=name: _number(_of(side, "gap_ms", name)))
    add(f"CPU-ms a {unit}", "cpu_ms", lambda side: _number(side.get(f"cpu_ms_per_{unit}")))
    add("sent late p99, ms", "", lambda side: _number(_of(side, "sent_late_ms", "p99")))
    add("answers", "", lambda side: str(side["ok"]))
    add("errors", "", lambda side: str(side["requests"] - side["ok"]))
    add("generator, CPU-ms a request", "", lambda side: _number(side["generator"]["cpu_ms_per_request"]))
    add("generator, share of a core", "", lambda side: f"{100 * side['generator']['core_share']:.0f} %")
    return made


def about(result: dict[str, Any]) -> str:
    """One line: what was asked, how, and where."""
    load, machine = result["load"], result["machine"]
    how = f"{load['concurrent']} concurrent" if load["loop"] == "closed" else f"{load['rate']:g} a second, open loop"
    turns = ", in turn" if len(result["sides"]) == 2 else ""
    return (
        f"{result['task']}; {how}; {load['rounds']} rounds of {load['seconds']:g} s{turns}; requests: "
        f"{result['requests']}; {machine['cores']} cores, load {machine['load_before']} before and "
        f"{machine['load_after']} after"
    )


def parts(result: dict[str, Any]) -> list[str]:
    """Where each side's CPU time went, a line a side."""
    unit, made = _unit(result), []
    for side in result["sides"]:
        shown = [f"{name} {value:.3g}" for name, value in side.get("cpu_ms_by_part", {}).items() if value >= 0.001]
        if shown:
            made.append(f"CPU-ms a {unit}, {side['name']}: {', '.join(shown)}")
    return made


def html(result: dict[str, Any], by_side: Sequence[Sequence[Round]]) -> str:
    """The page. Where matplotlib is missing it says so in the place of the figures."""
    names = [side["name"] for side in result["sides"]]
    ratio = ["ratio (95 % over rounds)"] if result["ratios"] else []
    table = [page.row(["", *names, *ratio], tag="th", numbers=1)]
    for label, cells, said in rows(result):
        table.append(page.row([label, *cells, *([said] if ratio else [])], numbers=1))
    warned = [f"<p>{escape(text)}</p>" for text in result["warnings"]]
    return page.document(
        f"{result['name']}: bench",
        [
            f"<h1>{escape(result['name'])}: {escape(' against '.join(names))}</h1>",
            f'<p class="about">{escape(about(result))}</p>',
            f"<table>{''.join(table)}</table>",
            *(["<h2>Mind</h2>", *warned] if warned else []),
            *(_figures(result, by_side, names)),
            "<h2>Processes</h2>",
            *(f"<p>{escape(side['name'])}, {escape(side['url'])}: {escape(side['processes'])}</p>"
              for side in result["sides"]),
            *(f"<p>{escape(line)}</p>" for line in parts(result)),
            "<h2>How it was measured</h2>",
            f"<p>{escape(_method(result))}</p>",
        ],
    )  # fmt: skip


def _figures(result: dict[str, Any], by_side: Sequence[Sequence[Round]], names: list[str]) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        return ["<p>matplotlib is not installed: no figures. results.json has every number.</p>"]
    if not any(side["ok"] for side in result["sides"]):
        return []
    streams, sides = "tokens" in result["sides"][0], list(zip(names, by_side))
    panels = [("latency_ms", "latency, ms")]
    if streams:
        panels += [("ttft_ms", "first token after, ms"), ("gap_ms", "between tokens, ms")]
    unit = _unit(result)
    made = [
        "<h2>Latency</h2>",
        page.figure(figures.percentiles(sides, panels)),
        "<h2>Rounds</h2>",
        page.figure(figures.by_round(result["sides"], "tokens_per_s" if streams else "requests_per_s", unit)),
        page.figure(figures.timeline(sides)),
    ]
    if any("cpu_ms_by_part" in side for side in result["sides"]):
        made += ["<h2>CPU time by process</h2>", page.figure(figures.parts(result["sides"], unit))]
    return made


def _method(result: dict[str, Any]) -> str:
    load = result["load"]
    said = (
        "Each client sends its next request when it has its answer, over a connection that is kept open. "
        if load["loop"] == "closed"
        else "Requests come as a Poisson process with a fixed seed, whether or not earlier ones are answered, and each "
        "latency begins when its request was due: a stall counts for all that came in it. "
    )
    if len(result["sides"]) == 2:
        said += "Both servers get the same requests in the same order, in turn, and who goes first changes each round. "
    return (
        f"{said}Warming up is not counted. A turn lasts until its last answer. CPU time is that of all of a server's "
        "processes, user and system; on a busy machine trust it before wall time. Latencies are of answers with a "
        "status below 300; the rest are errors. An interval is the middle 95 % of 500 bootstrap samples of the rounds."
    )


def _unit(result: dict[str, Any]) -> str:
    return "token" if "tokens" in result["sides"][0] else "request"


def _of(side: dict[str, Any], group: str, name: str) -> float | None:
    return side.get(group, {}).get(name)


def _ratio(one: dict[str, Any]) -> str:
    said = f"{one['ratio']:.2f}"
    return said if one["low"] is None else f"{said} ({one['low']:.2f} to {one['high']:.2f})"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.3g}"
