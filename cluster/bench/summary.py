"""From turns to figures: rates, percentiles, CPU time a request or token, and what to warn a reader of. All of it is
plain numbers, as they stand in results.json."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.bench import compare, machine, stream
from cluster.bench.compare import QUANTILES, Round
from cluster.bench.turns import Load, Side, Turn

FORMAT = 1
ERRORS_ALLOWED = 0.01  # of a side's requests; more fail the run
_GENERATOR = 0.8  # of a core: beyond it the load generator may be what limits


def rounds(turns: Sequence[Turn], side: Side) -> list[Round]:
    """A side's turns, its streams read."""
    return [_round(turn, streams=side.streams) for turn in turns if turn.side == side.name]


def _round(turn: Turn, *, streams: bool) -> Round:
    outcomes: Counter[str] = Counter()
    done, latencies, firsts, gaps, tokens, counted = [], [], [], [], 0, streams
    for shot in turn.shots:
        outcome = shot.outcome
        if streams and shot.ok:
            read = stream.read(shot)
            outcome = read.fault or outcome
            if not read.fault:
                tokens += read.tokens
                counted = counted and read.counted
                firsts.append(1000 * read.first_s)
                gaps += [1000 * gap for gap in read.gaps_s]
        outcomes[outcome] += 1
        if outcome == "ok":
            latencies.append(1000 * (shot.done - shot.due))
            done.append(shot.done - turn.began)
    return Round(
        turn.round,
        turn.wall_s,
        turn.cpu_s,
        turn.generator_s,
        turn.load,
        turn.began,
        np.array(done),
        np.array(latencies),
        np.array(firsts),
        np.array(gaps),
        np.array([1000 * (shot.sent - shot.due) for shot in turn.shots]),
        tokens,
        counted,
        outcomes,
    )


def figures(side: Side, found: Sequence[Round], *, open_loop: bool = False) -> dict[str, Any]:
    """All of one side's figures, over its rounds together and by round."""
    outcomes = sum((one.outcomes for one in found), Counter())
    requests, ok, wall = outcomes.total(), outcomes["ok"], sum(one.wall_s for one in found)
    tokens = sum(one.tokens for one in found)
    result: dict[str, Any] = {
        "name": side.name,
        "url": side.url,
        "processes": side.processes.about,
        "requests": requests,
        "ok": ok,
        "errors": {outcome: count for outcome, count in sorted(outcomes.items()) if outcome != "ok"},
        "wall_s": round(wall, 3),
        "requests_per_s": round(ok / wall, 3),
        "latency_ms": _times(found, "latency_ms"),
    }
    if side.streams:
        result |= {
            "tokens": tokens,
            "tokens_counted_by": "server" if all(one.counted for one in found if one.ok) else "events",
            "tokens_per_s": round(tokens / wall, 3),
            "ttft_ms": _times(found, "ttft_ms"),
            "gap_ms": _times(found, "gap_ms"),
        }
    unit, count = ("token", tokens) if side.streams else ("request", ok)
    by_part: Counter[str] | None = Counter()
    for one in found:
        by_part = None if by_part is None or one.cpu_s is None else by_part + Counter(one.cpu_s)
    if by_part is not None and count:
        parts = {name: round(1000 * seconds / count, 4) for name, seconds in by_part.most_common()}
        result |= {f"cpu_ms_per_{unit}": round(sum(parts.values()), 4), "cpu_ms_by_part": parts}
    if open_loop:
        result["sent_late_ms"] = _times(found, "late_ms")
    shares = [one.generator_s / one.wall_s for one in found]
    result["generator"] = {
        "cpu_ms_per_request": round(1000 * sum(one.generator_s for one in found) / max(requests, 1), 4),
        "core_share": round(max(shares), 3),
    }
    result["rounds"] = [_told(one, unit, streams=side.streams) for one in found]
    return result


def _told(one: Round, unit: str, *, streams: bool) -> dict[str, Any]:
    count = one.tokens if streams else one.ok
    told: dict[str, Any] = {
        "round": one.number,
        "wall_s": round(one.wall_s, 3),
        "ok": one.ok,
        "errors": one.outcomes.total() - one.ok,
        "requests_per_s": round(one.ok / one.wall_s, 3),
        "latency_ms": _times([one], "latency_ms"),
        "load": one.load,
    }
    if streams:
        told |= {"tokens_per_s": round(one.tokens / one.wall_s, 3), "ttft_ms": _times([one], "ttft_ms")}
    if one.cpu_s is not None and count:
        told[f"cpu_ms_per_{unit}"] = round(1000 * sum(one.cpu_s.values()) / count, 4)
    return told


def _times(found: Sequence[Round], which: str) -> dict[str, float]:
    values = np.concatenate([getattr(one, which) for one in found])
    if not len(values):
        return {}
    named = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
    named |= {"mean": float(values.mean()), "max": float(values.max())}
    return {key: round(value, 3) for key, value in named.items()}


def warnings(told: Sequence[dict[str, Any]], load_before: float) -> list[str]:
    """Sentences about what makes the figures worth less than they look."""
    found, cores = [], len(os.sched_getaffinity(0))
    if load_before > cores:
        found.append(f"the machine was busy before: load {load_before} on {cores} cores; trust CPU time, not wall time")
    for side in told:
        name, bad = side["name"], side["requests"] - side["ok"]
        if bad:
            kinds = ", ".join(f"{count} {outcome}" for outcome, count in side["errors"].items())
            found.append(f"{name}: {bad} of {side['requests']} requests failed: {kinds}")
        if side["generator"]["core_share"] > _GENERATOR:
            share = 100 * side["generator"]["core_share"]
            found.append(f"{name}: the load generator itself took {share:.0f} % of a core: it may be what limits")
        if "cpu_ms_by_part" not in side and side["ok"]:
            found.append(f"{name}: CPU time was not measured: {side['processes']}")
        if 0 < side["ok"] < 100:
            found.append(f"{name}: p99 of {side['ok']} answers is about their slowest; give it more --seconds")
        if side.get("tokens_counted_by") == "events":
            found.append(f"{name}: tells no usage, so each event with text counts as one token")
    lengths = [side["tokens"] / side["ok"] for side in told if side.get("tokens") and side["ok"]]
    if len(lengths) == 2 and max(lengths) > 1.02 * min(lengths):
        said = " and ".join(f"{length:.1f}" for length in lengths)
        found.append(f"the answers differ in length: {said} tokens; compare tokens, not requests")
    return found


def failed(told: Sequence[dict[str, Any]]) -> bool:
    """Whether a side had more errors than a run may have."""
    return any(side["requests"] - side["ok"] > ERRORS_ALLOWED * side["requests"] for side in told)


def result(
    name: str, task: str, sides: Sequence[Side], load: Load, turns: Sequence[Turn], load_before: float
) -> tuple[dict[str, Any], list[list[Round]]]:
    """results.json, which has everything that was asked for and found; and each side's rounds, for the figures."""
    by_side = [rounds(turns, side) for side in sides]
    told = [figures(side, found, open_loop=load.rate is not None) for side, found in zip(sides, by_side)]
    asked = {"loop": "closed", "concurrent": load.concurrent}
    if load.rate is not None:
        asked = {"loop": "open", "rate": load.rate}
    content = {
        "format": FORMAT,
        "name": name,
        "task": task,
        "load": {
            **asked,
            "seconds": load.seconds,
            "rounds": load.rounds,
            "timeout_s": load.timeout_s,
            "seed": load.seed,
            "different_requests": len(sides[0].requests),
        },
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "load_before": load_before,
            "load_after": machine.load(),
        },
        "sides": told,
        "ratios": compare.ratios(by_side[0], by_side[1], streams=sides[0].streams) if len(sides) == 2 else [],
        "warnings": warnings(told, load_before),
        "failed": failed(told),
    }
    return content, by_side
