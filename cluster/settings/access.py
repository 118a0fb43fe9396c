"""Who may ask the gateway, how much, and what is noted of it: keys, limits, CORS, the request log, prices."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cluster.errors import InputError
from cluster.spec.section import NAME, Section

Away = Literal["cached", "closed", "open"]
_LIMIT = re.compile(r"^\s*\d+\s*(/|per)\s*(\d+\s*)?(second|minute|hour|day|month|year)s?\s*$", re.IGNORECASE)
_ORIGIN = re.compile(r"^(\*|https?://[^/\s*?#]+)$")
_LOOPBACK = ("127.", "localhost", "::1")


def _limits(value: str | None) -> str | None:
    for part in (value or "1/day").split(";"):
        if not _LIMIT.match(part) or part.strip().startswith("0"):
            raise ValueError(f"{part.strip()!r} is no limit; write N/second, N/minute, N/hour or N/day, several with ;")
    return value


def _no_password(value: str | None, key: str, remedy: str) -> str | None:
    if value is not None and urlsplit(value).password:
        raise ValueError(f"a password does not belong in cluster.yaml; take it out of {key}, and {remedy}")
    return value


class Limit(Section):
    """What one key, or one tenant, may use, as the library `limits` writes it: 100/minute, or 5/second;10000/day."""

    requests: str | None = None
    """Requests. A request over it is refused before it runs; the count slides, it does not begin anew on the minute."""
    tokens: str | None = None
    """Input and output tokens of language models. Known when an answer ends: the request after the last is refused."""
    images: str | None = None
    """Pictures sent to or made by a model; counted when the answer ends."""
    compute_seconds: str | None = None
    """Seconds that requests spent at a model, queue and batch included; counted when the answer ends."""

    _written = field_validator("requests", "tokens", "images", "compute_seconds")(_limits)


class Limits(Section):
    """Rate limits and quotas."""

    store: str = "memory"
    """Where they are counted. memory: a file in $SHOAL_HOME that the gateways of one machine share, which outlives
    them; several machines count each for itself. redis://HOST:6379/0 (or rediss://): one count for all gateways."""
    password_file: str | None = None
    """File with Redis' password. Left out: the variable REDISCLI_AUTH, or no password."""
    away: Away = "cached"
    """While Redis does not answer. cached: each machine counts for itself, from nothing; closed: whatever has a limit
    is refused; open: nothing is counted."""
    key: Limit = Limit()
    """For each key; a key and what it was rotated into count as one."""
    tenant: Limit = Limit()
    """For all keys of a tenant together."""
    tenants: dict[Annotated[str, Field(pattern=NAME)], Limit] = {}
    """The same for tenants by name, instead of `tenant`."""

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value != "memory" and not re.match(r"^rediss?://[^/\s]+(/\d+)?$", value):
            raise ValueError("write memory, or redis://HOST:6379/0")
        _no_password(value, "access.limits.store", "give access.limits.password_file or REDISCLI_AUTH")
        return value


class Access(Section):
    """Keys, limits, quotas and usage at the gateway."""

    keys: Literal["auto", "required", "off"] = "auto"
    """required: every request to a model or to the list of models brings `Authorization: Bearer KEY` (`shoal keys`
    makes one). auto: no keys, and only http.host on the loopback is listened on. off: no keys, wherever it listens."""
    store: str | None = None
    """Where keys and usage are kept, e.g. postgresql://shoal@db.example.com/shoal. Left out: access.db in $SHOAL_HOME
    (SQLite), for the gateways of one machine."""
    password_file: str | None = None
    """File with the database's password. Left out: what libpq reads, PGPASSWORD or ~/.pgpass."""
    away: Away = "cached"
    """While the store does not answer, keys that were known go on. cached: for `cached_s`, and what is not known is
    refused (429); closed: every key is refused at once; open: what is not known is let through too, to models that are
    not private, as tenant _unknown. Usage waits in memory meanwhile."""
    cached_s: Annotated[float, Field(ge=0, le=86_400)] = 300
    """How long keys are known after the store went away, in seconds."""
    tenant: Annotated[str, Field(pattern=NAME)] = "local"
    """Whose the usage is that has no key: training and sweeps from here, and requests where no keys are asked for."""
    limits: Limits = Limits()
    cors: list[str] = []
    """Origins whose pages in a browser may ask, e.g. [https://app.example.com]; '*' is all. Left out: none."""

    @field_validator("keys", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads it so

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "sqlite:////")):
            raise ValueError("write postgresql://USER@HOST/DATABASE, or sqlite:////ABSOLUTE/FILE.db, or leave it out")
        return _no_password(value, "access.store", "give access.password_file, PGPASSWORD or ~/.pgpass")

    @field_validator("cors")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not _ORIGIN.match(origin):
                raise ValueError(f"{origin!r} is no origin; write https://HOST[:PORT] without a path, or '*'")
        return value


class RequestLog(Section):
    """A line of JSON a request, in `requests-*.jsonl`; what was sent is not in it unless asked for."""

    sample: Annotated[float, Field(ge=0, le=1)] = 1
    """Share of the requests that are written; 0 writes none. Refusals and faults are written whatever the share, unless
    it is 0."""
    inputs: bool = False
    """Write the first 2,000 characters of what was sent, too. Left out, only its size is written."""
    folder: str | None = None
    """Where. Left out: logs/ in $SHOAL_HOME."""
    max_mb: Annotated[float, Field(gt=0, le=100_000)] = 64
    """A file that grows beyond this is put aside, as .1, .2, ..."""
    files: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many are kept of each gateway, the one being written not counted."""


class Price(Section):
    """What a model's use costs."""

    requests_1k: Annotated[float, Field(ge=0)] = 0
    """A thousand requests that were answered."""
    input_tokens_1m: Annotated[float, Field(ge=0)] = 0
    """A million tokens sent."""
    output_tokens_1m: Annotated[float, Field(ge=0)] = 0
    """A million tokens made."""
    images_1k: Annotated[float, Field(ge=0)] = 0
    """A thousand pictures."""
    compute_hour: Annotated[float, Field(ge=0)] = 0
    """An hour of a worker that trains, or 3,600 compute seconds of requests."""


class Prices(Section):
    """What `shoal usage` makes of usage. Computed when it is asked: a new price is that of the past as well."""

    currency: Annotated[str, Field(pattern=r"^[A-Za-z]{1,10}$")] = "USD"
    """Printed behind the sums."""
    default: Price = Price()
    """For every model that has none of its own."""
    models: dict[Annotated[str, Field(pattern=NAME)], Price] = {}
    """By model; these stand alone, keys that are left out are 0 and not the default's."""


def checked(access: Access, *, http_host: str) -> Access:
    """The same, where the gateway may listen on `http_host` with it. Raises InputError where everyone could ask."""
    if access.keys == "auto" and not http_host.startswith(_LOOPBACK):
        raise InputError(
            f"http.host: {http_host} can be reached from other machines and access.keys is auto; write access: {{keys: "
            "required}} and make keys with `shoal keys create`, or access: {keys: off} where everyone may ask"
        )
    return access


def secret(file: str | None, variable: str, *, key: str) -> str | None:
    """A password: of a file, else of a variable, else None. Raises InputError where the file cannot be read."""
    if file is None:
        return os.environ.get(variable) or None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {file} cannot be read: {error}; write the file of a password") from None
