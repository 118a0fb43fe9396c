"""The two servers of a comparison, from their URLs: the same requests in the form each wants, and whether they do the
same work."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster.bearer import bearer
from cluster.bench import bodies as made
from cluster.bench import machine, stream
from cluster.bench.bodies import Bodies
from cluster.bench.connection import Address, Shot
from cluster.bench.turns import Side, ask_once
from cluster.errors import InputError, RunFailed


def side(
    name: str,
    url: str,
    bodies: Bodies,
    processes: machine.Processes,
    *,
    option: str,
    model: str = "",
    key: str = "",
    trust: tuple[ssl.SSLContext, str] | None = None,
) -> Side:
    """A server with its requests as they go out. On OpenAI's routes `url` is where /v1 stands, and `model` what the
    server calls the model; else it is where requests are posted. `key` goes with each, as a bearer's token; `trust`
    says how its certificate is checked, and for which name. Raises InputError, naming `option`."""
    if bodies.path:
        url = _root(url) + bodies.path
    address = Address.of(url, name=option, trust=trust)
    return at(name, url, address, bodies, processes, model=model, headers=bearer(key))


def at(
    name: str,
    url: str,
    address: Address,
    bodies: Bodies,
    processes: machine.Processes,
    *,
    model: str = "",
    headers: Mapping[str, str],
) -> Side:
    """The same for an address that is known, and any headers."""
    content = [made.named(body, model) for body in bodies.content] if bodies.path else bodies.content
    requests = [address.request(body, bodies.content_type, headers) for body in content]
    return Side(name, url, address, requests, bool(bodies.path), processes)


def model_at(url: str, wanted: tuple[str, ...], key: str = "") -> str:
    """What a server of OpenAI's routes calls the model: one of `wanted`, or the only one it has. Raises InputError."""
    import httpx

    where = f"{_root(url)}/v1/models"
    try:
        answer = httpx.get(where, headers=bearer(key), timeout=30, trust_env=False)
        names = [str(row["id"]) for row in answer.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--against: {where}: no list of models ({error or type(error).__name__})") from None
    for name in wanted:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise InputError(f"--against: {where} has none of {', '.join(wanted)}; it has {', '.join(names) or 'none'}")


def check(sides: list[Side], timeout_s: float) -> list[str]:
    """Ask each side once. Returns what a reader should know of the answers. Raises RunFailed where one is refused."""
    answers = []
    for one in sides:
        shot = ask_once(one, timeout_s)
        fault = shot.fault or (stream.read(shot).fault if one.streams and shot.ok else "")
        if not shot.ok or fault:
            said = fault or f"{shot.status}: {shot.body[:300].decode('utf-8', 'replace')}"
            keys = "; keys are read from SHOAL_API_KEY, and SHOAL_AGAINST_KEY for the other server"
            remedy = keys if shot.status in (401, 403) else ""
            raise RunFailed(f"{one.name}: {one.url}: the first request failed: {said}{remedy}")
        answers.append(_answer(shot, streams=one.streams))
    if len(answers) == 2 and not _alike(*answers):
        first, second = (json.dumps(answer, ensure_ascii=False)[:120] for answer in answers)
        return [f"the first answers differ, so the servers may not do the same work: {first} and {second}"]
    return []


def _answer(shot: Shot, *, streams: bool) -> Any:
    """An answer as far as two servers of one model agree on it: the text; or labels and scores, however nested; or all
    of the JSON; else the number of bytes."""
    if streams:
        return stream.read(shot).text
    try:
        value = json.loads(shot.body)
    except ValueError:
        return shot.size
    found: list[list[Any]] = []
    _scores(value, found)
    return sorted(found) if found else value


def _scores(value: Any, found: list[list[Any]]) -> None:
    if isinstance(value, dict):
        if isinstance(value.get("score"), int | float):
            found.append([str(value.get("label", "")), float(value["score"])])
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _scores(one, found)


def _alike(first: Any, second: Any) -> bool:
    """Equal, but for what arithmetic in another precision makes of numbers."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=0.03, abs_tol=0.03)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_alike, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_alike(first[key], second[key]) for key in first)
    return first == second


def _root(url: str) -> str:
    """A URL up to where /v1 begins."""
    path = urlsplit(url).path
    return url[: url.index(path) + path.index("/v1")] if "/v1" in path else url.rstrip("/")
