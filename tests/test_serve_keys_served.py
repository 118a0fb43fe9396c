"""Keys as a team meets them: two gateways behind HAProxy, `shoal keys` beside them, unmodified clients."""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve_tiny as tiny
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from cluster import connect, embedded
from cluster.accounts import Keys, Usage
from cluster.cli import main
from cluster.errors import InputError
from cluster.serving import model_application
from cluster.settings import settings
from cluster.spec import parse
from serve import run

pytestmark = pytest.mark.slow
YAML = """
access:
  keys: required
  limits: {tenants: {small: {requests: 10/minute}}}
  cors: [https://app.example.com]
request_log: {sample: 1}
"""


def deploy(cluster: connect.Cluster, folder: Path, name: str, **serve: Any) -> run.Endpoint:
    keys = json.dumps({"num_cpus": 0.5, **serve})
    spec = parse(f"name: {name}\ntask: text-classification\nmodel: {folder}\nserve: {keys}")
    return run.deploy(spec, model_uri=f"models:/{name}/1", folder=folder, cluster=cluster)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("keys")
    (home / "cluster.yaml").write_text(YAML)
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    with connect.session() as found:
        yield found
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("folders") / "a")


@pytest.fixture(scope="module")
def urls(cluster, folder: Path) -> dict[str, str]:
    return {name: deploy(cluster, folder, name, private=name == "secret").url for name in ("reviews", "secret")}


def ask(url: str, key: str | None, **headers: str) -> httpx.Response:
    given = headers | ({"authorization": f"Bearer {key}"} if key else {})
    return httpx.post(url, json={"inputs": "a fine day"}, headers=given, timeout=30)


def test_keys_from_end_to_end(cluster, urls: dict[str, str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, secret = Keys().create("acme")
    assert ask(urls["reviews"], None).status_code == 401
    found = InferenceClient(model=urls["reviews"], token=secret).text_classification("a fine day")
    assert {row.label: round(row.score, 4) for row in found} == {
        label: round(score, 4) for label, score in tiny.bert_scores(folder, "a fine day").items()
    }
    with pytest.raises(HfHubHTTPError, match="not known here"):
        InferenceClient(model=urls["reviews"], token="shoal_wrong").text_classification("x")
    answer = ask(urls["reviews"], secret, **{"x-request-id": "trace-me"})
    assert answer.headers["x-request-id"] == "trace-me"
    assert ask(urls["reviews"], secret, origin="https://app.example.com").headers["access-control-allow-origin"]

    # Private models, and the two gateways say the same.
    named = Keys().create("acme", models=["secret"])[1]
    for _ in range(8):
        assert ask(urls["secret"], secret).status_code == 404
        assert ask(urls["secret"], named).status_code == 200

    # Rotated and revoked.
    secret_now = Keys().rotate(key.id, overlap_s=3600)[1]
    assert [ask(urls["reviews"], one).status_code for one in (secret, secret_now)] == [200, 200]
    Keys().revoke(key.id)
    time.sleep(2)
    assert {ask(urls["reviews"], secret).status_code for _ in range(6)} == {401}
    assert ask(urls["reviews"], secret_now).status_code == 200

    # One limit over both gateways, whichever a connection comes to.
    small = Keys().create("small")[1]
    codes = [ask(urls["reviews"], small).status_code for _ in range(14)]
    assert (codes.count(200), codes.count(429)) == (10, 4)

    # Usage, by whoever asks for it.
    time.sleep(4)
    told = collections.Counter[tuple[str, str]]()
    for slot, counts in Usage().rows():
        told[slot.tenant, slot.model] += counts.requests
    assert told == {("acme", "reviews"): 6, ("acme", "secret"): 8, ("small", "reviews"): 10}
    with pytest.raises(SystemExit):
        main(["usage", "--by", "tenant", "--json"])
    assert {row["tenant"]: row["requests"] for row in json.loads(capsys.readouterr().out)} == {"acme": 14, "small": 10}
    with pytest.raises(SystemExit):
        main(["predict", "secret", "a fine day", "--json"])
    assert "label" in capsys.readouterr().out, "the machine's own command needs no key"
    lines = [
        json.loads(line)
        for file in (cluster.home / "logs").glob("requests-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert [(line["tenant"], line["key"], line["status"]) for line in lines if line["id"] == "trace-me"] == [
        ("acme", key.prefix, 200)
    ]
    assert len(list((cluster.home / "logs").glob("requests-*.jsonl"))) == 2


def test_without_keys_no_model_is_private(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    spec = parse(f"name: it\ntask: text-classification\nmodel: {folder}\nserve: {{private: true}}")
    with pytest.raises(InputError, match=r"serve\.private: true: without keys nobody could ask it"):
        model_application(spec, model_uri="models:/it/1", folder=str(folder))


def test_no_open_door_without_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text("http: {host: 0.0.0.0}\n")
    with pytest.raises(InputError, match=r"http\.host: 0\.0\.0\.0 can be reached .* `shoal keys create`"):
        embedded.start(tmp_path, settings(), keep=False)
    assert not (tmp_path / "cluster.json").exists()
