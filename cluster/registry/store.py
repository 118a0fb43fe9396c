"""The way to MLflow's store: a client, a lock, its errors as ours, and artifacts as local folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from cluster.errors import InputError, NotFound, RunFailed, ShoalError
from cluster.settings import home, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# What MLflow reads when it is imported. Someone who sets one of these keeps it.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it logs tracebacks of errors that it also raises
    # A server that is restarted is waited for, some 25 s; one that is away is told of within that.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
_FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_FORMS = "write http://HOST:5000 of an MLflow server, or leave the key out"


class Store:
    """One MLflow store. It pickles as its address alone, so that a worker opens the same one for itself.

    Raises RunFailed, naming tracking_uri, where the store is away, refuses or has no space left.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self.uri)!r})"

    @contextlib.contextmanager
    def calls(self, purpose: str) -> Iterator[MlflowClient]:
        """A client; what it raises becomes one message. `purpose` completes "cannot be reached for ..."."""
        try:
            yield open_client(self.uri)
        except ShoalError:
            raise
        except Exception as error:
            raise _as_ours(error, self.uri, purpose) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One at a time on this store, over all processes of this machine."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(lock_file(self.uri), timeout=120):
                yield
        except Timeout:
            raise RunFailed(f"{lock_file(self.uri)}: another process has held it for 120 s; end that one") from None

    def artifact_root(self, name: str) -> str | None:
        """Where a model's artifacts go, as a URI; None where an MLflow server decides."""
        if urlsplit(self.uri).scheme in ("http", "https"):
            return None
        database = sqlite_file(self.uri)
        return ((database.parent if database else home()) / "mlruns" / name).as_uri()

    def fetch(self, uri: str) -> Path:
        """An artifact folder as a local one, downloaded once where it lies elsewhere; it must not change any more.

        Raises NotFound where it is not there.
        """
        if (local := local_path(uri)) is not None:
            if not local.is_dir():
                raise NotFound(
                    f"{local}: the run's files are not there; was the folder moved or deleted? (An MLflow server "
                    "gives its files to others when it is started with --serve-artifacts)"
                )
            return local
        folder = home() / "cache" / "artifacts" / hashlib.sha256(f"{self.uri} {uri}".encode()).hexdigest()[:32]
        with self.calls(f"downloading {uri}"), self.lock():
            if folder.is_dir():
                return folder
            from mlflow.artifacts import download_artifacts

            # Downloaded beside its place and renamed: a download broken off is never taken for a whole one.
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            download_artifacts(artifact_uri=uri, dst_path=str(part), tracking_uri=self.uri)
            inner = part / uri.rstrip("/").rpartition("/")[2]
            (inner if inner.is_dir() else part).rename(folder)
            shutil.rmtree(part, ignore_errors=True)
        return folder


@cache
def open_client(uri: str) -> MlflowClient:
    """MLflow's client on a store, made ready. Takes seconds where the store is new: its tables are made then."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise InputError("MLflow is not installed here; pip install 'shoal[train]'") from None

    try:
        if urlsplit(uri).scheme.partition("+")[0] not in _DATABASES:
            return MlflowClient(uri, registry_uri=uri)
        return _open_database(uri, MlflowClient)
    except ImportError as error:
        raise InputError(f"tracking_uri: {shown(uri)} needs the Python module {error.name}; install it") from None
    except Exception as error:
        if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
            raise
        raise InputError(f"tracking_uri: {shown(uri)!r} is no store that MLflow knows; {_FORMS}") from None


def _open_database(uri: str, make: type[MlflowClient]) -> MlflowClient:
    import sqlalchemy
    from filelock import FileLock
    from sqlalchemy.exc import ArgumentError

    if database := sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    # Two processes must not make the tables at once, and alembic tells of each of its steps.
    logging.getLogger("alembic").setLevel(logging.ERROR)
    with FileLock(lock_file(uri), timeout=120):
        # MLflow tries a hundred seconds before it tells of a database that cannot be opened.
        try:
            engine = sqlalchemy.create_engine(uri)
        except ArgumentError:
            raise InputError(f"tracking_uri: {shown(uri)!r} is no database's address; {_FORMS}") from None
        sqlalchemy.inspect(engine)
        engine.dispose()
        client = make(uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
        return client


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    return Path(unquote(uri.removeprefix("sqlite:///"))).resolve() if uri.startswith("sqlite:///") else None


def lock_file(uri: str) -> Path:
    database = sqlite_file(uri)
    return database.with_name(database.name + ".lock") if database else home() / "registry.lock"


def local_path(uri: str) -> Path | None:
    """The path of a file: URI or a plain path; None for one that lies elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(uri) if parts.scheme == "" else None


def shown(uri: str) -> str:
    """A URI without its password."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


def _as_ours(error: Exception, uri: str, purpose: str) -> Exception:
    code = getattr(error, "error_code", "")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    first = first.replace(uri, shown(uri))
    if any(getattr(cause, "errno", None) == errno.ENOSPC or _says_full(cause) for cause in _causes(error)):
        return RunFailed(f"{shown(uri)}: no space left on the disk while {purpose}; free some and run it again")
    if code == "RESOURCE_DOES_NOT_EXIST":
        return NotFound(f"{first} (tracking_uri: {shown(uri)})")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or re.search(r"error code 40[13]\b", first):
        return RunFailed(
            f"tracking_uri: {shown(uri)} refuses {purpose}: {first}; set MLFLOW_TRACKING_TOKEN, or "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if code == "INVALID_PARAMETER_VALUE":
        return InputError(f"MLflow refuses {purpose}: {first}")
    if code or isinstance(error, OSError) or type(error).__module__.startswith("sqlalchemy"):
        return RunFailed(
            f"tracking_uri: {shown(uri)} cannot be used for {purpose}: {first}; is the server up, the file whole and "
            "writable?"
        )
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: Any = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _says_full(error: BaseException) -> bool:
    return any(words in str(error) for words in _FULL)
