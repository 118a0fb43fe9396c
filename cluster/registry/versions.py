"""Versions: which runs became models, and which of a model's versions is in force."""

from __future__ import annotations

import contextlib
import difflib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import NotFound, RunFailed
from cluster.registry.runs import Runs, artifacts_of, time_of
from cluster.registry.store import Store, shown, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
_METRIC = "shoal.metric."
# What a registration writes at most, with SQLite's journal: less free space is told of before anything is written.
_ROOM = 2 * 2**20


@dataclass(frozen=True)
class Version:
    """One version of a model: `uri` is models:/NAME/VERSION, `metrics` what it was accepted with, `created` in UTC."""

    name: str
    version: str
    uri: str
    aliases: tuple[str, ...]
    run_id: str
    created: datetime
    metrics: dict[str, float]
    tags: dict[str, str]
    tracking_uri: str = field(repr=False)

    @property
    def folder(self) -> Path:
        """The model's folder on this machine, downloaded first where it lies elsewhere. Raises NotFound."""
        store = Store(self.tracking_uri)
        with store.calls(f"reading {self.uri}") as client:
            where = client.get_model_version_download_uri(self.name, self.version)
        return store.fetch(where)


class Registry(Runs):
    """Runs and the versions made of them. The alias champion is the version in force, previous the one before it,
    candidate one that is tried beside the champion.

    Several processes may register at once: each gets a version of its own, and the aliases follow the last.
    """

    def register(
        self,
        name: str,
        run_id: str,
        *,
        path: str = "model",
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        candidate: bool = False,
    ) -> Version:
        """Make a run's model folder the newest version and the champion; the champion until now becomes previous. A
        `candidate` becomes that, where there is a champion, which stays.

        All or nothing: where it fails, there is no new version. Raises NotFound where the run or its folder is missing.
        """
        with self.calls(f"registering {name}") as client, self.lock():
            self._room()
            uri = artifacts_of(client, run_id)
            if not client.list_artifacts(run_id, path):
                raise NotFound(f"run {run_id}: no folder {path!r} in it to register; log_artifacts() stores one")
            fresh = self._model(client, name)
            before = dict(client.get_registered_model(name).aliases)
            labels = {key: str(value) for key, value in tags.items()}
            labels |= {_METRIC + key: repr(float(value)) for key, value in metrics.items()}
            made = None
            try:
                made = client.create_model_version(name, f"{uri}/{path}", run_id=run_id, tags=labels)
                if candidate and CHAMPION in before:
                    client.set_registered_model_alias(name, CANDIDATE, str(made.version))
                else:
                    self._crown(client, name, str(made.version), before)
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell of
                    self._undo(client, name, made and str(made.version), before, fresh)
                raise
        return self.version(name, version=str(made.version))

    def version(self, name: str, *, alias: str | None = None, version: str | None = None) -> Version:
        """One version, by number or by alias; the champion where neither is given. Raises NotFound with what there
        is."""
        with self.calls(f"reading model {name}") as client:
            aliases = self._aliases(client, name)
            if version is None:
                alias = alias or CHAMPION
                if alias not in aliases:
                    known = ", ".join(f"{key} (version {aliases[key]})" for key in sorted(aliases)) or "none"
                    raise NotFound(f"models:/{name}@{alias}: {name} has no such alias; its aliases: {known}")
                version = aliases[alias]
            every = self._every(client, name)
            found = every.get(version)
            if found is None:
                known = ", ".join(sorted(every, key=int)) or "none"
                raise NotFound(f"models:/{name}/{version}: {name} has no such version; its versions: {known}")
            return self._version(found, aliases)

    def versions(self, name: str | None = None) -> list[Version]:
        """Versions, newest first, of one model or of all; none where there is no such model."""
        with self.calls("listing models") as client:
            models = {model.name: model for model in _pages(client.search_registered_models)}
            listed = []
            for model in [name] if name is not None else list(models):
                if model in models:
                    aliases = {key: str(value) for key, value in models[model].aliases.items()}
                    listed += [self._version(item, aliases) for item in self._every(client, model).values()]
        return sorted(listed, key=lambda item: (item.created, int(item.version)), reverse=True)

    def promote(self, name: str, version: str) -> Version:
        """Make a version the champion; the champion until now becomes previous. Raises NotFound."""
        wanted = self.version(name, version=version)
        with self.calls(f"promoting {wanted.uri}") as client, self.lock():
            aliases = self._aliases(client, name)
            self._crown(client, name, wanted.version, aliases)
            if aliases.get(CANDIDATE) == version:
                client.delete_registered_model_alias(name, CANDIDATE)
        return self.version(name, version=version)

    def reject(self, name: str, version: str, reason: str, *, before: str = "") -> Version:
        """A version was tried and rolled back: it is no candidate any more, and says why. Where it is the champion, the
        one `before` is again. Raises NotFound."""
        wanted = self.version(name, version=version)
        with self.calls(f"rolling {wanted.uri} back") as client, self.lock():
            aliases = self._aliases(client, name)
            client.set_model_version_tag(name, version, "shoal.rolled_back", reason)
            if aliases.get(CANDIDATE) == version:
                client.delete_registered_model_alias(name, CANDIDATE)
            if aliases.get(CHAMPION) == version and before in self._every(client, name):
                self._crown(client, name, before, aliases)
        return self.version(name, version=version)

    def rollback(self, name: str) -> Version:
        """Champion and previous change places; returns the champion now. Raises NotFound where there is no previous."""
        with self.calls(f"rolling {name} back") as client, self.lock():
            aliases = self._aliases(client, name)
            if PREVIOUS not in aliases:
                now = (
                    f"version {aliases[CHAMPION]} is its only champion so far" if CHAMPION in aliases else "no champion"
                )
                raise NotFound(
                    f"{name}: nothing to roll back to, {now}; `shoal models promote {name} VERSION` sets one"
                )
            self._crown(client, name, aliases[PREVIOUS], aliases)
        return self.version(name, alias=CHAMPION)

    def _crown(self, client: MlflowClient, name: str, version: str, before: Mapping[str, str]) -> None:
        """Previous first: broken off in between, the champion is still the old one."""
        old = before.get(CHAMPION)
        if old is not None and str(old) == version:
            return
        if old is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(old))
        client.set_registered_model_alias(name, CHAMPION, version)

    def _undo(
        self, client: MlflowClient, name: str, version: str | None, before: Mapping[str, str], fresh: bool
    ) -> None:
        if fresh:
            client.delete_registered_model(name)
            return
        if version is not None:
            client.delete_model_version(name, version)
        for alias in (CHAMPION, PREVIOUS, CANDIDATE):
            if alias in before:
                client.set_registered_model_alias(name, alias, str(before[alias]))
            elif alias in client.get_registered_model(name).aliases:
                client.delete_registered_model_alias(name, alias)

    def _model(self, client: MlflowClient, name: str) -> bool:
        """Make the registered model; False where it was there."""
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return False
        return True

    def _aliases(self, client: MlflowClient, name: str) -> dict[str, str]:
        """Alias to version. Raises NotFound with the nearest name."""
        from mlflow.exceptions import MlflowException

        try:
            return {key: str(value) for key, value in client.get_registered_model(name).aliases.items()}
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        names = [model.name for model in _pages(client.search_registered_models)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(names)[:20])}"
        raise NotFound(f"{name}: no such model; {hint if names else 'there is none yet, `shoal up FILE` makes one'}")

    def _every(self, client: MlflowClient, name: str) -> dict[str, ModelVersion]:
        found = _pages(client.search_model_versions, f"name='{name}'")
        return {str(item.version): item for item in found}

    def _version(self, found: ModelVersion, aliases: Mapping[str, str]) -> Version:
        number, tags = str(found.version), dict(found.tags)
        return Version(
            name=found.name,
            version=number,
            uri=f"models:/{found.name}/{number}",
            aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
            run_id=found.run_id or "",
            created=time_of(found.creation_timestamp),
            metrics={key.removeprefix(_METRIC): float(tags.pop(key)) for key in list(tags) if key.startswith(_METRIC)},
            tags=tags,
            tracking_uri=self.uri,
        )

    def _room(self) -> None:
        database = sqlite_file(self.uri)
        if database is not None and database.exists() and shutil.disk_usage(database.parent).free < _ROOM:
            raise RunFailed(f"{shown(self.uri)}: no space left on the disk to register a model; free {_ROOM >> 20} MiB")


def number(uri: str, name: str) -> str:
    """The number in models:/NAME/NUMBER; empty where that is no version of this model."""
    rest = uri.removeprefix(f"models:/{name}/")
    return rest if rest != uri and rest.isdigit() else ""


def _pages(search: Callable[..., Any], *arguments: str) -> list[Any]:
    """Every item of one of MLflow's paged searches."""
    token: str | None = None
    items: list[Any] = []
    while True:
        page = search(*arguments, page_token=token)
        items += page
        token = page.token
        if not token:
            return items
