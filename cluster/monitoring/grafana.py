"""Dashboards into a Grafana server: looked at first, and written only where something differs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from cluster.errors import InputError, RunFailed
from cluster.monitoring.dashboards import PAGES, dashboard
from cluster.progress import Progress, silent
from cluster.settings import Grafana

if TYPE_CHECKING:
    from grafana_client import GrafanaApi
    from grafana_client.client import GrafanaClientError

TIMEOUT_S = 15.0
TOKEN = "GRAFANA_TOKEN"
# What Grafana itself sets on what it stores, or brings up to its own version.
_ITS_OWN = ("id", "version", "schemaVersion")


@dataclass(frozen=True)
class Pushed:
    """A dashboard as it stands in Grafana now."""

    name: str
    url: str
    change: Literal["new", "changed", "unchanged"]


def push(wanted: Grafana, *, progress: Progress = silent) -> list[Pushed]:
    """Bring every dashboard into Grafana's folder, and make that where it is missing.

    What is there already as it should be is not written again. Somebody's changes to a dashboard are replaced:
    Grafana's version history keeps them. Raises InputError where cluster.yaml, the token or its rights are wrong,
    RunFailed where Grafana is away, or refuses; the message says what had been written by then.
    """
    api = connect(wanted)
    url = (wanted.url or "").rstrip("/")
    pushed: list[Pushed] = []
    written: list[str] = []
    progress("grafana", 0, len(PAGES))

    # All that can be wrong with the address, the token and the names comes to light before anything is written.
    with explained(wanted, written):
        found, folders = api.health.check(), api.folder.get_all_folders()
        # A page of HTML comes back as text.
        if not isinstance(found, dict) or "database" not in found or not isinstance(folders, list):
            raise InputError(f"grafana.url: {url} answers, but not as a Grafana does; write Grafana's own address")
        source = _source(api, wanted)
        there = {name: _found(api, page.uid) for name, page in PAGES.items()}
        folder = next((one["uid"] for one in folders if one["title"] == wanted.folder), None)
        if folder is None:
            folder = api.folder.create_folder(wanted.folder)["uid"]
            written.append(f"folder {wanted.folder}")

    for name, stored in there.items():
        content = dashboard(name, datasource=wanted.datasource, uid=source)
        address = f"{url}/d/{content['uid']}"
        change: Literal["new", "changed", "unchanged"] = "new" if stored is None else "changed"
        if stored is not None:
            ours = {key: value for key, value in content.items() if key not in _ITS_OWN}
            if contains(stored["dashboard"], ours) and stored["meta"].get("folderUid") == folder:
                pushed.append(Pushed(name, address, "unchanged"))
                continue
            # With the version that was looked at: whoever saves in between is not overwritten, Grafana answers 412.
            content |= {"id": stored["dashboard"]["id"], "version": stored["dashboard"]["version"]}
        with explained(wanted, written, name):
            api.dashboard.update_dashboard(
                {"dashboard": content, "folderUid": folder, "overwrite": False, "message": "shoal dashboards push"}
            )
        pushed.append(Pushed(name, address, change))
        written.append(name)
        progress("grafana", len(pushed), len(PAGES))
    return pushed


def connect(wanted: Grafana) -> GrafanaApi:
    """A client for the Grafana of cluster.yaml; nothing is sent yet. Raises InputError."""
    if find_spec("grafana_client") is None:
        raise InputError("dashboards push: grafana-client is not installed; pip install 'shoal[monitoring]'")
    from grafana_client import GrafanaApi, TokenAuth

    if not wanted.url:
        raise InputError(
            "grafana.url: not set; write grafana: {url: https://...} in cluster.yaml, or let Grafana read files: "
            "`shoal dashboards show overview > overview.json`"
        )
    try:
        parts = urlsplit(wanted.url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, sound = urlsplit(""), False
    if not sound:
        raise InputError(f"grafana.url: {wanted.url!r} is no address; write e.g. https://grafana.example.com")
    if parts.username or parts.password:
        raise InputError(
            f"grafana.url: no user or password belongs in it; write a token to grafana.token_file or {TOKEN}"
        )
    api = GrafanaApi.from_url(wanted.url.rstrip("/") + "/", credential=TokenAuth(token(wanted)), timeout=TIMEOUT_S)
    # After a redirect a POST goes on as a GET, and looks as if all was well.
    api.client.s.max_redirects = 0
    return api


def token(wanted: Grafana) -> str:
    """The service account's token. Raises InputError."""
    if wanted.token_file:
        try:
            found = Path(wanted.token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "is no text"
            raise InputError(
                f"grafana.token_file: {wanted.token_file}: {why}; write a service account's token into it"
            ) from None
        where = f"grafana.token_file: {wanted.token_file}"
    else:
        found, where = os.environ.get(TOKEN, "").strip(), TOKEN
    if not found:
        raise InputError(
            f"{where}: no token; make one in Grafana (Administration, Service accounts, role Editor) and put it into "
            f"grafana.token_file of cluster.yaml or the variable {TOKEN}"
        )
    if not found.isascii() or not found.isprintable() or " " in found:
        raise InputError(f"{where}: holds more than one token, or none; write the token alone")
    return found


def contains(stored: Any, ours: Any) -> bool:
    """Whether all of ours is in what is stored. Grafana adds defaults of its own to it, which are no difference."""
    if isinstance(ours, dict):
        return isinstance(stored, dict) and all(key in stored and contains(stored[key], ours[key]) for key in ours)
    if isinstance(ours, list):
        return isinstance(stored, list) and len(stored) == len(ours) and all(map(contains, stored, ours))
    return stored == ours


def _found(api: GrafanaApi, uid: str) -> dict[str, Any] | None:
    from grafana_client.client import GrafanaClientError

    try:
        return api.dashboard.get_dashboard(uid)
    except GrafanaClientError as error:
        if error.status_code == 404:
            return None
        raise


def _source(api: GrafanaApi, wanted: Grafana) -> str | None:
    """The data source's uid; None where this token may not look, as an Editor's may not. Raises InputError."""
    from grafana_client.client import GrafanaClientError

    try:
        source = api.datasource.find_datasource(quote(wanted.datasource, safe=""))
    except GrafanaClientError as error:
        if error.status_code == 403:
            return None
        if error.status_code != 404:
            raise
        known = [one["name"] for one in api.datasource.list_datasources() if one["type"] == "prometheus"]
        raise InputError(
            f"grafana.datasource: {wanted.datasource!r} is no data source of this Grafana; "
            + (f"of type Prometheus are: {', '.join(known)}" if known else "add a Prometheus in Grafana first")
        ) from None
    if source["type"] != "prometheus":
        raise InputError(f"grafana.datasource: {wanted.datasource!r} is of type {source['type']}; name a Prometheus")
    return source["uid"]


@contextmanager
def explained(wanted: Grafana, written: list[str], name: str = "") -> Iterator[None]:
    """One message for whatever Grafana, or what stands there in its place, answers."""
    import requests
    from grafana_client.client import GrafanaClientError, GrafanaServerError

    so_far = f"; written before: {', '.join(written)}" if written else "; nothing was written"
    try:
        yield
    except GrafanaClientError as error:
        raise _refused(error, wanted, name, so_far) from None
    except GrafanaServerError as error:
        raise RunFailed(f"Grafana at {wanted.url} failed: {_said(error)}; its log says why{so_far}") from None
    except requests.exceptions.TooManyRedirects as error:
        target = error.response.headers.get("location", "elsewhere") if error.response is not None else "elsewhere"
        raise InputError(f"grafana.url: {wanted.url} sends on to {target}; write that address{so_far}") from None
    except requests.exceptions.JSONDecodeError:
        raise InputError(f"grafana.url: {wanted.url} answers, but not as a Grafana does{so_far}") from None
    except requests.exceptions.RequestException as error:
        raise RunFailed(
            f"grafana.url: {wanted.url} cannot be reached ({type(error).__name__}); is Grafana up, and is that its "
            f"address?{so_far}"
        ) from None


def _refused(error: GrafanaClientError, wanted: Grafana, name: str, so_far: str) -> Exception:
    status, said = error.status_code, _said(error)
    what = f"dashboard {name}" if name else f"folder {wanted.folder!r}"
    if status == 401:
        source = f"grafana.token_file: {wanted.token_file}" if wanted.token_file else TOKEN
        return InputError(f"{source}: Grafana at {wanted.url} does not know this token; make a new one{so_far}")
    if status == 403:
        return InputError(
            f"Grafana at {wanted.url}: the token may not do this ({said}); give its service account the role Editor"
            f"{so_far}"
        )
    if status == 404:
        return InputError(f"grafana.url: {wanted.url} has no such page ({said}); write Grafana's own address{so_far}")
    if isinstance(error.response, dict) and error.response.get("status") == "name-exists":
        return RunFailed(
            f"{what}: another one in folder {wanted.folder!r} has its title; rename or delete that{so_far}"
        )
    if status in (409, 412):
        return RunFailed(f"{what}: somebody changed it at the same time ({said}); run the same again{so_far}")
    return RunFailed(f"{what}: Grafana refused it with {status}: {said}{so_far}")


def _said(error: Any) -> str:
    response = error.response
    text = response.get("message") if isinstance(response, dict) else response
    return " ".join(str(text or error.message).split())[:200]
