"""A verb as a job on a cluster: sent, followed, left, come back to."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cluster.cli.output import Output
from cluster.errors import Detached, RunFailed
from cluster.submit.client import Job, Jobs
from cluster.submit.package import STARTER, Package, pack
from cluster.submit.target import Target
from cluster.submit.versions import check

STOP_S = 30  # a verb that is stopped ends its workers and closes its run meanwhile; Ray's own 3 s are too few

# What Ray writes into a job's log before its command says anything.
_OF_RAY = re.compile(r"Running entrypoint for job |\S+ \S+\tINFO job_manager\.py:\d+ -- ")


def run(target: Target, context: click.Context, arguments: Mapping[str, Any], *, data: bool) -> int:
    """Run a verb there and return its exit code. The same verb on the same input that runs there already is followed
    instead; another one at work on the same model is refused (RunFailed)."""
    verb, as_json = context.info_name or "", bool(arguments.get("as_json"))
    files, overrides, words = words_of(context, arguments)
    jobs = Jobs(target)
    with Output(as_json=as_json) as out, tempfile.TemporaryDirectory(prefix="shoal-send-") as folder:
        package = pack(
            files, overrides, into=Path(folder) / "package.zip", data=data, shared=target.shared, progress=out.progress
        )
        for remark in package.remarks:
            out.say(remark)
        check(jobs)
        said = [verb, *package.files, *words]
        metadata = _metadata(verb, package, shlex.join([*said, *overrides]), words)
        job = at_work(jobs, metadata)
        if job is not None:
            out.say(f"{job.id} does just this on {target.name}: following it")
            name = job.id
        else:
            name = _submit(jobs, package, [*said, *(["--json"] if as_json else [])], metadata, out)
    return follow(jobs, name, as_json=as_json)


def follow(jobs: Jobs, run: str, *, as_json: bool, skip: int = 0) -> int:
    """Print what a job prints until it is over; its exit code. Ctrl-C leaves it running: raises Detached."""
    printer = Printer(as_json=as_json)
    try:
        job = jobs.follow(run, printer.line, skip=skip)
    except KeyboardInterrupt:
        on = jobs.target.option
        raise Detached(
            f"{run} goes on without you; `shoal logs {run} --follow{on}` comes back to it, `shoal stop {run}{on}` "
            "ends it"
        ) from None
    code = _exit_code(job)
    printer.end({"run": run, "status": job.status, "exit_code": code})
    return code


class Printer:
    """Lines of a job's log as our own output. With `as_json` each is an object, and the verb's result comes last,
    whatever else was printed after it."""

    def __init__(self, *, as_json: bool) -> None:
        self._json, self._result = as_json, ""

    def line(self, line: str) -> None:
        if _OF_RAY.match(line):
            return
        if not self._json:
            click.echo(line)
            return
        value = _object(line)
        if value is None:
            click.echo(json.dumps({"event": "log", "text": line}))
        elif "event" in value:
            click.echo(line)
        else:
            if self._result:
                click.echo(self._result)
            self._result = line

    def end(self, otherwise: dict[str, Any]) -> None:
        """The verb's result; `otherwise` where it gave none, as a verb that was started without --json."""
        if self._json:
            click.echo(self._result or json.dumps(otherwise))


def words_of(context: click.Context, arguments: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """A verb's files, its overrides, and its other words, from what click made of them."""
    given = [arguments["file"], *arguments["overrides"]] if "file" in arguments else list(arguments.get("words", ()))
    files = [word for word in given if "=" not in word]
    overrides = [word for word in given if "=" in word]
    words: list[str] = []
    for parameter in context.command.params:
        value = arguments.get(parameter.name or "")
        if parameter.name in ("file", "overrides", "words", "as_json", "on") or value in (None, False):
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif value is True:
            words.append(parameter.opts[-1])
        elif value != parameter.get_default(context):
            words += [parameter.opts[-1], str(value)]
    return files, overrides, words


def _metadata(verb: str, package: Package, said: str, words: Sequence[str]) -> dict[str, str]:
    from importlib import metadata

    return {
        "shoal.verb": verb,
        # A verb without a file names its model itself.
        "shoal.name": " ".join(package.names or words[:1]),
        "shoal.user": _user(),
        "shoal.version": metadata.version("shoal"),
        "shoal.command": said,
        "shoal.package": package.name,
    }


def at_work(jobs: Jobs, metadata: dict[str, str]) -> Job | None:
    """The running job of the same command on the same input. Raises RunFailed where another is at work on a model."""
    names = set(metadata["shoal.name"].split())
    for job in jobs.jobs():
        if job.over or not names & set(job.metadata.get("shoal.name", "").split()):
            continue
        if all(job.metadata.get(key) == metadata[key] for key in ("shoal.command", "shoal.package")):
            return job
        on = jobs.target.option
        raise RunFailed(
            f"{metadata['shoal.name']}: {job.id} is at work on this model on {jobs.target.name} "
            f"(shoal {job.metadata.get('shoal.command', '')}); wait for it (`shoal logs {job.id} --follow{on}`) or end "
            f"it (`shoal stop {job.id}{on}`)"
        )
    return None


def _submit(jobs: Jobs, package: Package, words: list[str], metadata: dict[str, str], out: Output) -> str:
    if not jobs.has(package.name):
        jobs.upload(package.name, package.path, out.progress)
    verb = metadata["shoal.verb"]
    subject = metadata["shoal.name"].replace(" ", "-")[:63]
    run = "-".join(filter(None, [verb, subject, f"{datetime.now(UTC):%Y%m%d-%H%M%S}", secrets.token_hex(2)]))
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
    if jobs.target.tracking_uri:
        environment["SHOAL_TRACKING_URI"] = jobs.target.tracking_uri
    identity = package.name.removeprefix("_ray_pkg_").removesuffix(".zip")
    entrypoint = shlex.join(["python", STARTER, metadata["shoal.version"], identity, *words])
    jobs.submit(run, entrypoint=entrypoint, package=package.name, env=environment, metadata=metadata)
    out.say(f"{run} on {jobs.target.name}; Ctrl-C leaves it running")
    return run


def _exit_code(job: Job) -> int:
    """The verb's exit code. Raises RunFailed where it has none: what happened is not in its log."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        raise RunFailed(f"{job.id} was stopped; the same command again goes on where it was")
    if job.exit_code == 127:
        raise RunFailed(f"{job.id}: the cluster's head has no `python` on its PATH; start Ray there with Shoal's in it")
    if job.exit_code is None:
        lines = job.message.strip().splitlines() or ["no reason given"]
        raise RunFailed(f"{job.id}: Ray ended the job: {lines[-1][:500]}")
    return job.exit_code if job.exit_code > 0 else 128 - job.exit_code


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
