"""The tables of keys and usage, for SQLite and Postgres alike. Times are seconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Double, Index, Integer, MetaData, String, Table

SCHEMA = 1
_metadata = MetaData()

# One row a fact: `schema`, and `revision`, which every change of a key counts up, so that a gateway reads the keys
# again only when there is something new to read.
facts = Table(
    "shoal_facts",
    _metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
keys = Table(
    "shoal_keys",
    _metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("tenant", String(63), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("models", JSON, nullable=False),
    Column("verbs", JSON, nullable=False),
    Column("origin", String(16), nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("replaced_by", String(16)),
    Column("overlap_until", Double),
    Column("revoked", Double),
)
usage = Table(
    "shoal_usage",
    _metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("tenant", String(63), primary_key=True),
    Column("key", String(16), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("verb", String(32), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("compute_seconds", Double, nullable=False),
    Index("shoal_usage_tenant", "tenant", "hour"),
)
# The last batch of each writer: one whose answer got lost is sent again, and must not count twice.
writers = Table(
    "shoal_writers",
    _metadata,
    Column("writer", String(64), primary_key=True),
    Column("batch", Integer, nullable=False),
    Column("at", Double, nullable=False),
)


def create(engine: object) -> None:
    """Make the tables that are not there."""
    _metadata.create_all(engine)  # pyright: ignore[reportArgumentType]
