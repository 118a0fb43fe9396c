"""The way to the database of keys and usage: an engine, its tables made ready, its errors as ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cluster.errors import InputError, RunFailed
from cluster.settings import home, settings
from cluster.settings.access import Access, secret

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# A gateway asks in a thread of its own, and goes on with what it knows: it need not wait long.
CONNECT_S, STATEMENT_MS, BUSY_MS = 3, 5000, 5000


class StoreAway(RunFailed):
    """The database of keys and usage does not answer, or refuses."""

    status = 503


class Store:
    """One database. Raises StoreAway, naming access.store, where it is away, refuses or has no space left."""

    def __init__(self, uri: str | None = None, password: str | None = None) -> None:
        if uri is None:
            found = settings().access
            uri, password = address(found), secret(found.password_file, "PGPASSWORD", key="access.password_file")
        self.uri, self._password = uri, password

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @contextlib.contextmanager
    def transaction(self, purpose: str) -> Iterator[Connection]:
        """A connection in a transaction, which is committed at the end; `purpose` completes "cannot be reached for"."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with _engine(self.uri, self._password).begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            first = str(getattr(error, "orig", None) or error).strip().partition("\n")[0][:200]
            remedy = (
                "is the server up and the password right?" if self._postgres() else "is the file whole, and writable?"
            )
            raise StoreAway(f"access.store: {self.uri} cannot be used for {purpose}: {first}; {remedy}") from error

    def insert(self, table: Any) -> Any:
        """INSERT of the database's own kind, which can update what is there."""
        from sqlalchemy.dialects import postgresql, sqlite

        return postgresql.insert(table) if self._postgres() else sqlite.insert(table)

    def close(self) -> None:
        """Give the connections back; the next call opens new ones."""
        _engine(self.uri, self._password).dispose()

    def _postgres(self) -> bool:
        return self.uri.startswith("postgresql")


def address(access: Access) -> str:
    """The database's URI in force: SHOAL_ACCESS_STORE, access.store, or a file in $SHOAL_HOME."""
    given = os.environ.get("SHOAL_ACCESS_STORE") or access.store
    # In a URI % and ? mean something else than in a path.
    return given or "sqlite:///" + str(home() / "access.db").replace("%", "%25").replace("?", "%3F")


@cache
def _engine(uri: str, password: str | None) -> Engine:
    """The engine of a database, one a process, with its tables made. Not kept where that fails."""
    from sqlalchemy import create_engine, event, make_url, select
    from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError

    from cluster.accounts import tables

    try:
        url = make_url(uri)
    except ArgumentError:
        raise InputError(f"access.store: {uri!r} is no database's address; write postgresql://USER@HOST/NAME") from None
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg", password=password or url.password)
        options = {"connect_timeout": CONNECT_S, "options": f"-c statement_timeout={STATEMENT_MS}"}
        # A server that was restarted costs a connection anew and no failure.
        engine = create_engine(url, connect_args=options, pool_size=2, max_overflow=2, pool_pre_ping=True)
    else:
        file = Path(unquote(uri.removeprefix("sqlite:///")))
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        engine = create_engine("sqlite://", creator=lambda: _sqlite(file))
        # SQLAlchemy's own BEGIN: sqlite3's comes late, and a write after a read then fails where another was quicker.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    found: dict[str, int] = {}
    for last in (False, True):
        # Two that make the same tables at the same time: one of them finds them made.
        try:
            tables.create(engine)
            with engine.begin() as connection:
                rows = connection.execute(select(tables.facts.c.name, tables.facts.c.value))
                found = {row.name: row.value for row in rows}
                for name, value in {"schema": tables.SCHEMA, "revision": 0}.items():
                    if name not in found:
                        connection.execute(tables.facts.insert().values(name=name, value=value))
            break
        except (IntegrityError, OperationalError, ProgrammingError):
            if last:
                raise
    if found.get("schema", tables.SCHEMA) > tables.SCHEMA:
        raise InputError(f"access.store: {uri} was written by a newer Shoal; use that one, or another database")
    return engine


def _sqlite(file: Path) -> Any:
    import sqlite3

    connection = sqlite3.connect(file, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    # A key that was revoked stays revoked when the power goes: writes are seconds apart, and may cost a sync.
    connection.execute("PRAGMA synchronous=FULL")
    return connection
