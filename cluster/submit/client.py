"""The Jobs API of a Ray cluster's dashboard, over HTTP: the only module that knows its routes.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html; the routes of packages are those
that Ray's own client uses, and /api/v0/cluster_metadata is no public one (a contract test holds all three). Not Ray's
JobSubmissionClient: it imports Ray, two seconds, and takes its token from the environment of the whole process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from cluster.bearer import bearer
from cluster.errors import ClusterGone, InputError, NotFound, RunFailed, ShoalError
from cluster.progress import Progress, silent
from cluster.submit.target import Target

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
AWAY_S = 60.0  # so long a head that restarts is waited for, while a job is followed
_CHUNK = 1 << 20
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Job:
    """A job: `id` is what a person calls it by, `status` Ray's (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED);
    `exit_code` None where its command did not end by itself, `message` says what Ray has to say of the end."""

    id: str
    status: str
    metadata: dict[str, str]
    entrypoint: str
    message: str
    exit_code: int | None
    started: datetime | None
    ended: datetime | None

    @property
    def over(self) -> bool:
        return self.status in ENDED


class Jobs:
    """The jobs of one cluster. Every method raises InputError where the token is refused or the address is no Ray's,
    ClusterGone where nobody answers."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._headers = bearer(target.token)
        self._proxied = urlsplit(target.address).hostname not in _LOCAL

    def versions(self) -> dict[str, str]:
        """Versions of the cluster's `ray` and `python`."""
        answer = self._ask("GET", "/api/version")
        try:
            ray = str(answer.json()["ray_version"])
            python = self._ask("GET", "/api/v0/cluster_metadata").json()["data"]["pythonVersion"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.target.key}: {self.target.address} answers, but not as Ray's dashboard does; name that one, "
                "usually http://HEAD:8265"
            ) from None
        return {"ray": ray, "python": str(python)}

    def has(self, package: str) -> bool:
        """Whether a package is on the cluster; it then stays for some minutes at least."""
        return self._ask("GET", f"/api/packages/gcs/{package}", missing=True).status_code == 200

    def upload(self, package: str, file: Path, progress: Progress = silent) -> None:
        """Send a zip file."""
        size = file.stat().st_size

        def parts() -> Iterator[bytes]:
            done = 0
            with file.open("rb") as stream:
                while part := stream.read(_CHUNK):
                    yield part
                    done += len(part)
                    progress("send", done, size)

        headers = {"Content-Length": str(size)}
        self._ask("PUT", f"/api/packages/gcs/{package}", content=parts(), headers=headers, timeout=600)

    def submit(self, run: str, *, entrypoint: str, package: str, env: dict[str, str], metadata: dict[str, str]) -> None:
        """Start a job under this id, with a package as its working directory."""
        body = {
            "submission_id": run,
            "entrypoint": entrypoint,
            "runtime_env": {"working_dir": f"gcs://{package}", "env_vars": env},
            "metadata": metadata,
        }
        self._ask("POST", "/api/jobs/", json=body)

    def job(self, run: str) -> Job:
        """Raises NotFound, naming the newest runs."""
        answer = self._ask("GET", f"/api/jobs/{quote(run, safe='')}", missing=True)
        if answer.status_code == 404:
            newest = ", ".join(job.id for job in self.jobs()[:5])
            raise NotFound(f"{run}: no run on {self.target.name}; the newest are: {newest or 'none'}")
        return _job(answer.json())

    def jobs(self) -> list[Job]:
        """All that were submitted, whoever did it, the newest first."""
        found = [_job(each) for each in self._ask("GET", "/api/jobs/").json() if each.get("submission_id")]
        return sorted(found, key=lambda job: job.started or datetime.max.replace(tzinfo=UTC), reverse=True)

    def stop(self, run: str) -> None:
        """Ask a job to end; it has the time that it was submitted with."""
        self._ask("POST", f"/api/jobs/{quote(run, safe='')}/stop")

    def logs(self, run: str) -> str:
        """All that a job has printed so far."""
        return self._ask("GET", f"/api/jobs/{quote(run, safe='')}/logs").json()["logs"] or ""

    def follow(self, run: str, tell: Callable[[str], None], *, skip: int = 0) -> Job:
        """Give `tell` each line that a job prints as it comes, after the first `skip` characters; return when the job
        is over. A dashboard that goes away and comes back within a minute loses no line."""
        text = _Lines(tell)
        seen, last = 0, time.monotonic()
        while True:
            try:
                # A new connection begins at the log's start.
                at = 0

                async def read() -> None:
                    nonlocal at, seen, last
                    async for part in self._tail(run):
                        new = part[max(0, max(seen, skip) - at) :]
                        at += len(part)
                        seen, last = max(seen, at), time.monotonic()
                        text.add(new)

                asyncio.run(read())
                if (job := self.job(run)).over:
                    text.end()
                    return job
                last = time.monotonic()
            except ClusterGone as error:
                if time.monotonic() - last > AWAY_S:
                    raise ClusterGone(f"{error.message}; {run} may well go on") from None
            time.sleep(1)

    async def _tail(self, run: str) -> AsyncIterator[str]:
        """Pieces of a job's log from its start, until it is over or the connection ends."""
        import aiohttp

        url = f"{self.target.address}/api/jobs/{quote(run, safe='')}/logs/tail"
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, trust_env=self._proxied) as session,
                session.ws_connect(url, heartbeat=30, max_msg_size=0) as socket,
            ):
                async for message in socket:
                    if message.type != aiohttp.WSMsgType.TEXT:
                        return
                    yield message.data
        except (aiohttp.ClientError, OSError) as error:
            raise self._away(error) from None

    def _ask(self, method: str, path: str, *, missing: bool = False, **request: Any) -> httpx.Response:
        headers = {**self._headers, **request.pop("headers", {})}
        try:
            answer = httpx.request(
                method,
                self.target.address + path,
                headers=headers,
                timeout=request.pop("timeout", 60),
                trust_env=self._proxied,
                **request,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(error) from None
        if answer.status_code in (401, 403):
            raise self._refused(answer.status_code)
        if answer.is_success or (missing and answer.status_code == 404):
            return answer
        if answer.status_code == 404 and path == "/api/version":
            return answer  # of something else: versions() says so
        lines = answer.text.strip().splitlines() or ["no reason given"]
        raise RunFailed(f"{self.target.name}: Ray refuses {method} {path} ({answer.status_code}): {lines[-1][:500]}")

    def _away(self, error: Exception) -> ShoalError:
        why = str(error) or type(error).__name__
        return ClusterGone(
            f"{self.target.key}: {self.target.address} cannot be reached: {why[:300]}; is that the dashboard's URL, is "
            "the cluster up, and the way to it open (kubectl port-forward, VPN)?"
        )

    def _refused(self, status: int) -> ShoalError:
        key = f"clusters.{self.target.name}.token_file in cluster.yaml" if self.target.option else "RAY_AUTH_TOKEN_PATH"
        if self.target.token:
            what = f"refuses the token ({status}) that comes from {self.target.token_from}"
        else:
            what = f"wants a token ({status})"
        return InputError(
            f"{self.target.name}: {self.target.address} {what}; let {key} name a file with the cluster's own "
            "(`ray get-auth-token` on its head prints it)"
        )


class _Lines:
    """Whole lines out of pieces of text."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._rest = tell, ""

    def add(self, piece: str) -> None:
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._tell(line)

    def end(self) -> None:
        if self._rest:
            self._tell(self._rest)
            self._rest = ""


def _job(found: dict[str, Any]) -> Job:
    def time_of(milliseconds: int | None) -> datetime | None:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None

    return Job(
        id=found["submission_id"],
        status=found["status"],
        metadata=found.get("metadata") or {},
        entrypoint=found.get("entrypoint") or "",
        message=found.get("message") or "",
        exit_code=found.get("driver_exit_code"),
        started=time_of(found.get("start_time")),
        ended=time_of(found.get("end_time")),
    )
