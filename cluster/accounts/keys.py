"""Keys: made, listed, rotated, revoked. Only the SHA-256 of a key is kept, and its first letters to know it by.

A key is 256 random bits, so a plain hash hides it: there is nothing to guess, and a slow hash would cost each request.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from cluster.accounts.store import Store
from cluster.errors import InputError, NotFound

MARK = "shoal_"
SHOWN = len(MARK) + 6
VERBS = ("predict", "admin")
State = Literal["active", "replaced", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. Times are seconds since 1970. No `models` are all that are not private; `origin` is the
    id of the first key of a line of rotations, under which limits are counted."""

    id: str
    hash: str
    prefix: str
    tenant: str
    name: str
    models: tuple[str, ...]
    verbs: tuple[str, ...]
    origin: str
    created: float
    expires: float | None = None
    replaced_by: str | None = None
    overlap_until: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> State:
        """What it is worth at a time. A key that was replaced is good until its overlap ends."""
        if self.revoked is not None:
            return "revoked"
        if self.overlap_until is not None and now >= self.overlap_until:
            return "replaced"
        return "expired" if self.expires is not None and now >= self.expires else "active"

    def sees(self, model: str, *, private: bool) -> bool:
        """Whether there is such a model for this key. A private one is there for keys that name it, and for admins."""
        if "admin" in self.verbs:
            return True
        return model in self.models or not (private or self.models)


def digest(secret: str | bytes) -> str:
    """SHA-256 (hex) of a key as clients send it."""
    return hashlib.sha256(secret if isinstance(secret, bytes) else secret.encode()).hexdigest()


class Keys(Store):
    """The keys of a database."""

    clock: Callable[[], float] = time.time

    def create(
        self,
        tenant: str,
        *,
        name: str = "",
        models: Sequence[str] = (),
        verbs: Sequence[str] = ("predict",),
        expires_in: float | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is known to nobody afterwards. `expires_in` is in seconds."""
        if unknown := set(verbs) - set(VERBS):
            raise InputError(f"verb {min(unknown)!r} is none; write {' or '.join(VERBS)}")
        now = self.clock()
        secret = MARK + secrets.token_urlsafe(32)
        key_id = secrets.token_hex(4)
        key = Key(
            id=key_id,
            hash=digest(secret),
            prefix=secret[:SHOWN],
            tenant=tenant,
            name=name,
            models=tuple(models),
            verbs=tuple(verbs),
            origin=key_id,
            created=now,
            expires=None if expires_in is None else now + expires_in,
        )
        with self.transaction("making a key") as connection:
            self._add(connection, key)
        return key, secret

    def rotate(self, name: str, *, overlap_s: float) -> tuple[Key, str]:
        """A new key in the place of another, with its tenant, scopes and lifetime; the old one is good for `overlap_s`
        seconds more. Raises InputError where it is not in force."""
        from sqlalchemy import update

        from cluster.accounts.tables import keys

        now = self.clock()
        secret = MARK + secrets.token_urlsafe(32)
        with self.transaction("rotating a key") as connection:
            old = self._find(connection, name)
            state = old.state(now)
            if state != "active" or old.replaced_by is not None:
                if old.replaced_by is not None:
                    raise InputError(f"key {old.id} was replaced by {old.replaced_by}; rotate that one")
                raise InputError(f"key {old.id} is {state}; `shoal keys create` makes a new one")
            new = Key(
                id=secrets.token_hex(4),
                hash=digest(secret),
                prefix=secret[:SHOWN],
                tenant=old.tenant,
                name=old.name,
                models=old.models,
                verbs=old.verbs,
                origin=old.origin,
                created=now,
                expires=None if old.expires is None else now + old.expires - old.created,
            )
            self._add(connection, new)
            values = {"replaced_by": new.id, "overlap_until": now + overlap_s}
            connection.execute(update(keys).where(keys.c.id == old.id).values(values))
        return new, secret

    def revoke(self, name: str) -> Key:
        """End a key at once: gateways refuse it within seconds. One that was revoked stays as it was."""
        from sqlalchemy import update

        from cluster.accounts.tables import keys

        with self.transaction("revoking a key") as connection:
            key = self._find(connection, name)
            if key.revoked is None:
                connection.execute(update(keys).where(keys.c.id == key.id).values(revoked=self.clock()))
                self._changed(connection)
            return self._find(connection, key.id)

    def list(self) -> list[Key]:
        """Every key, oldest first."""
        return self.read()[1]

    def revision(self) -> int:
        """A number that every change of a key counts up."""
        from sqlalchemy import select

        from cluster.accounts.tables import facts

        with self.transaction("reading keys") as connection:
            return connection.execute(select(facts.c.value).where(facts.c.name == "revision")).scalar() or 0

    def read(self) -> tuple[int, list[Key]]:
        """The revision and every key, of the same moment."""
        from sqlalchemy import select

        from cluster.accounts.tables import facts, keys

        with self.transaction("reading keys") as connection:
            # The revision first: keys that change between the two reads are then read again.
            revision = connection.execute(select(facts.c.value).where(facts.c.name == "revision")).scalar() or 0
            rows = connection.execute(select(keys).order_by(keys.c.created, keys.c.id)).mappings()
            return revision, [_key(row) for row in rows]

    def _find(self, connection: Any, name: str) -> Key:
        """A key by its id or the letters that are shown. Raises NotFound; InputError where several have them."""
        from sqlalchemy import or_, select

        from cluster.accounts.tables import keys

        if name.startswith(MARK) and len(name) > SHOWN:
            raise InputError(f"that is a key itself: write its first {SHOWN} letters, {name[:SHOWN]}, or its id")
        found = connection.execute(select(keys).where(or_(keys.c.id == name, keys.c.prefix == name))).mappings().all()
        if not found:
            raise NotFound(f"key {name!r}: there is none; `shoal keys` lists them")
        if len(found) > 1:
            raise InputError(
                f"key {name!r}: {len(found)} keys begin so; write the id, one of {[k['id'] for k in found]}"
            )
        return _key(found[0])

    def _add(self, connection: Any, key: Key) -> None:
        from cluster.accounts.tables import keys

        values = {field.name: getattr(key, field.name) for field in fields(Key)}
        connection.execute(keys.insert().values(values | {"models": list(key.models), "verbs": list(key.verbs)}))
        self._changed(connection)

    def _changed(self, connection: Any) -> None:
        from cluster.accounts.tables import facts

        connection.execute(facts.update().where(facts.c.name == "revision").values(value=facts.c.value + 1))


def _key(row: Any) -> Key:
    return Key(**{**row, "models": tuple(row["models"]), "verbs": tuple(row["verbs"])})
