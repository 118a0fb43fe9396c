"""`shoal bench`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from cluster.cli.options import as_json, file_and_overrides, on
from cluster.cli.output import Output, table
from cluster.errors import InputError, NotFound, RunFailed, ShoalError

if TYPE_CHECKING:
    from cluster.bench.bodies import Bodies
    from cluster.bench.machine import Processes
    from cluster.bench.turns import Side
    from cluster.connect import Cluster
    from cluster.spec import Spec
    from serve.run import Endpoint

AGAINST_KEY = "SHOAL_AGAINST_KEY"


@click.group()
def command() -> None:
    """Measure what is served, and compare it with any other server.

    \b
      shoal bench serve reviews.yaml
      shoal bench serve reviews.yaml --against http://127.0.0.1:8080/predict
      shoal bench serve chat.yaml --concurrent 16 --against http://127.0.0.1:8080
      shoal bench serve reviews.yaml --json | tail -n 1
    """


@command.command()
@file_and_overrides
@click.option("--concurrent", type=click.IntRange(1, 10_000), help="Clients, each with one request at a time.  [32]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="Instead: N requests a second.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5, show_default=True, help="Of a round.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Of a language model's answer.")
@click.option("--requests-file", type=Path, metavar="FILE", help="Ask this instead: a JSON body a line.")
@click.option("--against", metavar="URL", help="Another server of the same model, with the same shape of requests.")
@click.option("--pid", type=int, help="Its process, for CPU time.  [whoever listens on the port of URL]")
@click.option("--key-env", default="SHOAL_API_KEY", show_default=True, help="Variable that holds a key.")
@click.option("--output", type=Path, metavar="FOLDER", help="For the page and results.json.  [in $SHOAL_HOME/bench]")
@on
@as_json
@click.pass_context
def serve(
    context: click.Context, file: str, overrides: Sequence[str], as_json: bool, output: Path | None, **options: Any
) -> None:
    """Load the served model of FILE and measure: requests or tokens a second, p50, p95 and p99, time to the first
    token, CPU-milliseconds a request by process, errors. Writes a page of plots and results.json.

    A model that is served is asked where it is; another is served for the time of the run, as `shoal serve` would.
    Requests are rows of data.test, else data.validation, sampled by train.seed; without data they are made up.

    \b
      shoal bench serve reviews.yaml                                    32 clients, 5 rounds of 5 seconds
      shoal bench serve reviews.yaml --rate 200                         200 a second, whoever waits (open loop)
      shoal bench serve reviews.yaml --against http://127.0.0.1:8080/predict
      shoal bench serve chat.yaml --against http://127.0.0.1:8080       vLLM, TGI: /v1 is added
      shoal bench serve reviews.yaml --on prod

    With --against both sides get the same requests in the same order, in turn, round after round; ratios stand with
    their 95 % interval. CPU time is that of all processes of a side on this machine. The other server's key is read
    from SHOAL_AGAINST_KEY. The exit code is 1 where more than 1 % of a side's requests failed.
    """
    from cluster import tasks
    from cluster.bench import machine, report, sides, summary, turns
    from cluster.settings import home
    from cluster.spec import load as load_file

    if options["rate"] is not None and options["concurrent"] is not None:
        raise InputError("--rate: an open loop has no number of clients; leave out --concurrent or --rate")
    spec = load_file(file, overrides)
    tasks.servable(spec)
    if options["pid"] is not None and options["against"] is None:
        raise InputError("--pid: it is the process of the server that --against names; give both, or leave it out")
    load = turns.Load(
        options["concurrent"] or 32,
        options["rate"],
        options["seconds"],
        options["rounds"],
        spec.serve.request_timeout_s + 5,
        spec.train.seed,
    )
    before = machine.load()
    with Output(as_json=as_json) as out:
        bodies = _bodies(spec, options["requests_file"], options["tokens"], out)
        rival = _rival(spec, bodies, options["against"], options["pid"])
        with _served(spec, overrides, options["on"], out) as (cluster, endpoint, processes):
            # The cluster's own token opens its gateway as well, as in `shoal predict`.
            key = os.environ.get(options["key_env"]) or cluster.token
            ours = _ours(cluster, endpoint, bodies, processes, key)
            asked = [ours, *([rival] if rival else [])]
            remarks = sides.check(asked, load.timeout_s)
            seen = turns.run(asked, load, out.progress)
        result, by_side = summary.result(spec.name, spec.task, asked, load, seen, before)
        result |= {"requests": bodies.about, "version": endpoint.version}
        result["warnings"] = [*remarks, *result["warnings"]]
        folder = output or home() / "bench" / spec.name / time.strftime("%Y%m%d-%H%M%S")
        page = report.write(result, by_side, folder.resolve())
        out.result(result | {"page": str(page)}, _text(result, page))
    context.exit(1 if result["failed"] else 0)


def _text(result: dict[str, Any], page: Path) -> str:
    """The result, for a person."""
    from cluster.bench import report

    names = [side["name"] for side in result["sides"]]
    ratio = ["ratio (95 %)"] if result["ratios"] else []
    rows = [[label, *cells, *([said] if ratio else [])] for label, cells, said in report.rows(result)]
    return "\n".join(
        [
            f"{result['name']}: {report.about(result)}",
            "",
            table(["", *names, *ratio], rows),
            "",
            *report.parts(result),
            *(f"mind: {text}" for text in result["warnings"]),
            f"page: {page.as_uri()}",
        ]
    )


def _bodies(spec: Spec, file: Path | None, tokens: int, out: Output) -> Bodies:
    """What is asked: a file's lines, held-out rows of the model's own data, or what is made up."""
    from cluster.bench import bodies
    from cluster.cli import stages

    if file is not None:
        return bodies.fitted(bodies.of_file(file, spec.task))
    if spec.data.train is None:
        return bodies.fitted(bodies.made_up(spec.task, tokens=tokens, seed=spec.train.seed))
    from pyarrow import parquet

    prepared = stages.prepare(spec, out)
    chosen = bodies.sampled(prepared.rows[prepared.judged], spec.train.seed)
    rows = parquet.read_table(prepared.file(prepared.judged)).take(chosen).to_pylist()
    about = f"{len(rows)} rows of data.{prepared.judged}"
    return bodies.fitted(bodies.of_rows(spec.task, rows, about, tokens=tokens))


def _rival(spec: Spec, bodies: Bodies, url: str | None, pid: int | None) -> Side | None:
    """The other server, known to be there before anything is started."""
    from cluster.bench import machine, sides

    if url is None:
        return None
    key = os.environ.get(AGAINST_KEY, "")
    model = sides.model_at(url, (spec.model, spec.name), key) if bodies.path else ""
    processes = machine.behind(url, pid, name="the other server")
    found = sides.side(urlsplit(url).netloc, url, bodies, processes, model=model, key=key, option="--against")
    sides.check([found], spec.serve.request_timeout_s + 5)
    return found


def _ours(cluster: Cluster, endpoint: Endpoint, bodies: Bodies, processes: Processes, key: str) -> Side:
    from cluster import tls
    from cluster.bench import sides

    # OpenAI's routes stand at the root, and take the model by name.
    url = cluster.http_url if bodies.path else f"{cluster.http_url}/models/{endpoint.name}"
    trust = (tls.trusting(cluster.listen), tls.name(cluster.listen, url)) if url.startswith("https://") else None
    return sides.side("shoal", url, bodies, processes, option="url", model=endpoint.name, key=key, trust=trust)


@contextlib.contextmanager
def _served(
    spec: Spec, overrides: Sequence[str], on: str | None, out: Output
) -> Iterator[tuple[Cluster, Endpoint, Processes]]:
    """The endpoint that is there; else one for as long as this is open. Raises NotFound, where there is no champion."""
    from cluster import attached, connect
    from cluster.bench.machine import Processes
    from cluster.cli import jobs, stages
    from cluster.engine import served_name
    from cluster.registry import Registry
    from cluster.submit import target
    from serve.run import deploy, find, remove

    name = served_name(spec)
    if there := target.find(on):
        far = jobs.reached(there)
        yield far, _running(find(name, far)), Processes(None, f"it runs on the cluster {there.name}")
        return
    if (here := connect.running()) is not None and (endpoint := _found(name, here, overrides)) is not None:
        yield here, endpoint, _own(here)
        return
    if attached.address() is None:  # before a Ray is started in vain
        stages.served_model(spec, Registry())
    with connect.session(progress=out.progress) as cluster:
        if (endpoint := _found(name, cluster, overrides)) is not None:
            yield cluster, endpoint, _own(cluster)
            return
        uri, folder = stages.served_model(spec, Registry())
        out.say(f"{name} is not served: it will be, for the time of this run")
        with stages.only_one(spec.name):
            endpoint = deploy(spec, model_uri=uri, folder=folder, cluster=cluster, progress=out.progress)
        try:
            yield cluster, endpoint, _own(cluster)
        finally:
            with contextlib.suppress(ShoalError):  # gone by itself, or with its cluster
                remove(endpoint.name, cluster)


def _found(name: str, cluster: Cluster, overrides: Sequence[str]) -> Endpoint | None:
    """What is served already, as it is. Raises InputError where it is asked to be otherwise."""
    from serve.run import find

    with contextlib.suppress(NotFound):
        endpoint = _running(find(name, cluster))
        if changed := [word for word in overrides if word.startswith(("serve.", "model="))]:
            raise InputError(f"{changed[0]}: {name} is being served already, as it is; `shoal down {name}` first")
        return endpoint
    return None


def _running(endpoint: Endpoint) -> Endpoint:
    if endpoint.state != "RUNNING":
        raise RunFailed(f"{endpoint.name}: {endpoint.state}: {endpoint.message or 'not ready'}; see `shoal status`")
    return endpoint


def _own(cluster: Cluster) -> Processes:
    """All of the embedded Ray's processes, Ray's own daemons among them."""
    from cluster import connect, embedded, processes
    from cluster.bench.machine import Processes

    mine = connect.running()
    if mine is None or mine.address != cluster.address:
        return Processes(None, "the cluster is not this home's own")
    scratch = embedded.scratch_folder(cluster.home)
    return Processes(lambda: processes.members(scratch), "all of the embedded Ray, its daemons too")
