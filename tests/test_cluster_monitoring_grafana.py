"""Pushing dashboards, against an HTTP server that answers as Grafana's documented API does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_double import TOKEN, Grafana, grafana
from test_cluster_cli import shoal

from cluster.errors import InputError, RunFailed, ShoalError
from cluster.monitoring.grafana import contains, push, token
from cluster.settings import Grafana as Section

DENIED = {"message": "You'll need additional permissions: folders:create", "title": "Access denied"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grafana]:
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    with grafana() as found:
        yield found


def changes(server: Grafana, **keys: str) -> list[tuple[str, str]]:
    return [(one.name, one.change) for one in push(Section(url=server.url, **keys))]


def test_the_first_push_makes_the_folder_and_both_dashboards(server: Grafana):
    pushed = push(Section(url=f"{server.url}/"))
    assert [(one.name, one.change) for one in pushed] == [("overview", "new"), ("model", "new")]
    assert [one.url for one in pushed] == [f"{server.url}/d/shoal-overview", f"{server.url}/d/shoal-model"]
    assert server.writes == ["folder Shoal", "dashboard shoal-overview", "dashboard shoal-model"]
    stored = server.dashboards["shoal-model"]
    assert stored["meta"]["folderUid"] == "folder-1"
    source = stored["dashboard"]["templating"]["list"][0]
    assert source["current"] == {"text": "Prometheus", "value": "prom-1"}


def test_the_second_push_writes_nothing(server: Grafana):
    changes(server)
    before, server.writes = copy.deepcopy(server.dashboards), []
    assert changes(server) == [("overview", "unchanged"), ("model", "unchanged")]
    assert server.writes == []
    assert server.dashboards == before


def test_what_somebody_changed_is_put_right_and_nothing_else(server: Grafana):
    changes(server)
    stored = server.dashboards["shoal-model"]["dashboard"]
    stored["panels"][1]["title"], stored["version"], server.writes = "Mine", 7, []
    assert changes(server) == [("overview", "unchanged"), ("model", "changed")]
    assert server.writes == ["dashboard shoal-model"]
    now = server.dashboards["shoal-model"]["dashboard"]
    assert (now["panels"][1]["title"], now["version"], now["id"]) == ("State", 8, stored["id"])


def test_a_panel_that_was_added_or_removed_is_a_change(server: Grafana):
    changes(server)
    server.dashboards["shoal-overview"]["dashboard"]["panels"].append({"title": "more"})
    del server.dashboards["shoal-model"]["dashboard"]["panels"][3]
    assert changes(server) == [("overview", "changed"), ("model", "changed")]


def test_another_folder_moves_them(server: Grafana):
    changes(server)
    assert changes(server, folder="ML/Team A") == [("overview", "changed"), ("model", "changed")]
    assert [folder["title"] for folder in server.folders] == ["Shoal", "ML/Team A"]
    assert server.dashboards["shoal-model"]["meta"]["folderUid"] == "folder-2"


def test_a_save_in_between_is_not_overwritten(server: Grafana):
    changes(server)
    stored = server.dashboards["shoal-model"]["dashboard"]
    stored["title"] = "Renamed"

    def meanwhile(request: str) -> None:
        if request == "POST /api/dashboards/db":
            stored["version"] += 1

    server.before, server.writes = meanwhile, []
    with pytest.raises(RunFailed, match=r"dashboard model: somebody changed it at the same time .*run the same again"):
        changes(server)
    assert server.writes == []
    assert server.dashboards["shoal-model"]["dashboard"]["title"] == "Renamed"


def test_a_namesake_in_the_folder_is_named(server: Grafana):
    changes(server)
    server.dashboards["theirs"] = server.dashboards.pop("shoal-model")
    with pytest.raises(RunFailed, match="dashboard model: another one in folder 'Shoal' has its title; rename or del"):
        changes(server)


def test_under_a_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    with grafana("/tools/grafana") as server:
        assert changes(server) == [("overview", "new"), ("model", "new")]


@pytest.mark.parametrize(
    ("refuse", "kind", "message"),
    [
        ({"GET /api/folders": (403, DENIED)}, InputError, "the token may not do this .* the role Editor; nothing was"),
        ({"POST /api/folders": (403, DENIED)}, InputError, "the role Editor; nothing was written"),
        ({"POST /api/folders": (409, {"message": "same name"})}, RunFailed, "folder 'Shoal': somebody .*same name"),
        ({"POST /api/dashboards/db": (403, DENIED)}, InputError, "Editor; written before: folder Shoal$"),
        (
            {"POST /api/dashboards/db": (400, {"message": "Cannot save provisioned dashboard"})},
            RunFailed,
            "dashboard overview: Grafana refused it with 400: Cannot save provisioned dashboard; written before",
        ),
        (
            {"GET /api/folders": (500, {"message": "database is locked"})},
            RunFailed,
            "failed: database is locked; its log",
        ),
        ({"GET /api/folders": (404, "<html>")}, InputError, "has no such page .*write Grafana's own address"),
        ({"GET /api/folders": (200, "<html>")}, InputError, "answers, but not as a Grafana does"),
        (
            {"GET /api/folders": (302, "https://else.where/login")},
            InputError,
            "sends on to https://else.where/login; wr",
        ),
    ],
)
def test_a_refusal_is_one_message(server: Grafana, refuse: Any, kind: type[ShoalError], message: str):
    server.refuse = refuse
    with pytest.raises(kind, match=message):
        changes(server)
    assert server.dashboards == {}


def test_a_failure_half_way_says_what_stands(server: Grafana):
    def break_off(request: str) -> None:
        if "dashboard shoal-overview" in server.writes:
            server.refuse = {"POST /api/dashboards/db": (503, {"message": "away"})}

    server.before = break_off
    with pytest.raises(RunFailed, match=r"failed: away; its log says why; written before: folder Shoal, overview$"):
        changes(server)
    server.before, server.refuse = lambda request: None, {}
    assert changes(server) == [("overview", "unchanged"), ("model", "new")]


def test_the_data_source_is_looked_at_first(server: Grafana):
    with pytest.raises(
        InputError, match=r"'Prom' is no data source of this Grafana; of type Prometheus are: Prometheus$"
    ) as e:
        changes(server, datasource="Prom")
    assert server.writes == []
    assert e.value.exit_code == 2
    with pytest.raises(InputError, match="'Logs' is of type loki; name a Prometheus"):
        changes(server, datasource="Logs")
    server.refuse = {"GET /api/datasources/name/Prometheus": (403, DENIED)}
    changes(server)
    source = server.dashboards["shoal-model"]["dashboard"]["templating"]["list"][0]
    assert source["current"] == {"text": "Prometheus", "value": "Prometheus"}


def test_a_wrong_token_is_named_by_where_it_came_from(server: Grafana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAFANA_TOKEN", "glsa_wrong")
    with pytest.raises(InputError, match=r"^GRAFANA_TOKEN: Grafana at http.* does not know this token; make a new one"):
        changes(server)
    file = tmp_path / "token"
    file.write_text("glsa_old\n")
    with pytest.raises(InputError, match=f"^grafana.token_file: {file}: Grafana at"):
        changes(server, token_file=str(file))
    file.write_text(f"{TOKEN}\n")
    assert changes(server, token_file=str(file))[0] == ("overview", "new")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; write a service account's token into it"),
        (b"", "no token; make one in Grafana"),
        (b"one two", "holds more than one token"),
        (b"one\ntwo", "holds more than one token"),
        ("tök".encode(), "holds more than one token, or none"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_a_token_file_that_is_none(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match=message):
        token(Section(token_file=str(tmp_path / "t")))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, r"^grafana.url: not set; write grafana: \{url: .*shoal dashboards show overview"),
        ("grafana.example.com", "is no address; write e.g. https://grafana.example.com"),
        ("ftp://x", "is no address"),
        ("http://x:port", "is no address"),
        ("https://admin:secret@x", "no user or password belongs in it"),
    ],
)
def test_an_address_that_is_none(url: str | None, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    with pytest.raises(InputError, match=message) as error:
        push(Section(url=url))
    assert "secret" not in str(error.value)


def test_a_grafana_that_is_down_is_one_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    with grafana() as server:
        pass
    with pytest.raises(
        RunFailed, match=r"cannot be reached \(ConnectionError\); is Grafana up, .*; nothing was written"
    ):
        changes(server)


def test_no_token_at_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)
    with pytest.raises(InputError, match=r"^GRAFANA_TOKEN: no token; make one in Grafana"):
        push(Section(url="http://127.0.0.1:1"))


def test_contains_is_blind_to_what_was_added_only():
    assert contains({"a": [{"b": 1, "c": 2}], "d": 1}, {"a": [{"b": 1}]})
    assert not contains({"a": [{"b": 1}]}, {"a": [{"b": 2}]})
    assert not contains({"a": [{"b": 1}, {}]}, {"a": [{"b": 1}]})
    assert not contains({"a": 1}, {"a": 1, "b": 1})
    assert not contains({"a": 1}, {"a": [1]})


def test_the_verb_pushes_and_fails_without_a_traceback(server: Grafana, tmp_path: Path):
    (tmp_path / "cluster.yaml").write_text(f"grafana: {{url: '{server.url}'}}\n")
    done = shoal("dashboards", "push", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [one["change"] for one in json.loads(done.stdout.splitlines()[-1])] == ["new", "new"]
    done = shoal("dashboards", "push", home=tmp_path, env={"GRAFANA_TOKEN": "no"})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("shoal: GRAFANA_TOKEN: Grafana at")
    assert "Traceback" not in done.stderr
