"""Keys as a team meets them: two gateways behind HAProxy, with the certificate of a private authority; `shoal keys`
beside them, unmodified clients."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import ssl
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import here
import httpx
import httpx2  # that of huggingface_hub and openai
import pytest
import serve_tiny as tiny
from certificates import Authority, make, pem
from huggingface_hub import InferenceClient, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from openai import OpenAI

from cluster import connect, embedded
from cluster.accounts import Keys, Usage
from cluster.errors import InputError
from cluster.serving import model_application
from cluster.settings import settings
from cluster.spec import parse
from serve import run
from serve.state import state

pytestmark = pytest.mark.slow
AUTHORITY = Authority()
TRUST = ssl.create_default_context(cadata=pem(AUTHORITY.certificate).decode())
# The certificate is not for 127.0.0.1, where the gateway listens.
YAML = """
http: {certificate: tls/cert.pem, key: tls/key.pem, name: localhost}
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
    make(home / "tls", "localhost", by=AUTHORITY)
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    with connect.session() as found:
        yield found
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("folders") / "a")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    file = folder.parent / "reviews.yaml"
    file.write_text(f"name: reviews\ntask: text-classification\nmodel: {folder}\nserve: {{num_cpus: 0.5}}\n")
    return file


@pytest.fixture(scope="module")
def up(cluster, file: Path) -> dict[str, Any]:
    """What `shoal up` says."""
    return here.told("up", str(file), folder=cluster.home, home=cluster.home)


@pytest.fixture(scope="module")
def urls(cluster, folder: Path, up: dict[str, Any]) -> dict[str, str]:
    return {"reviews": up["url"], "secret": deploy(cluster, folder, "secret", private=True).url}


@pytest.fixture(autouse=True)
def _hub_trusts_the_authority():
    set_client_factory(lambda: httpx2.Client(verify=TRUST))
    yield
    set_client_factory(httpx2.Client)


def ask(url: str, key: str | None, **headers: str) -> httpx.Response:
    given = headers | ({"authorization": f"Bearer {key}"} if key else {})
    return httpx.post(url, json={"inputs": "a fine day"}, headers=given, timeout=30, verify=TRUST)


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
    shoal = partial(here.told, folder=cluster.home, home=cluster.home)
    found = {row["tenant"]: row["requests"] for row in shoal("usage", "--by", "tenant")}
    assert found == {"acme": 14, "small": 10}
    [labels] = shoal("predict", "secret", "a fine day")  # the machine's own command needs no key
    assert {row["label"] for row in labels} == {"ham", "spam"}
    lines = [
        json.loads(line)
        for file in (cluster.home / "logs").glob("requests-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert [(line["tenant"], line["key"], line["status"]) for line in lines if line["id"] == "trace-me"] == [
        ("acme", key.prefix, 200)
    ]
    assert len(list((cluster.home / "logs").glob("requests-*.jsonl"))) == 2


def test_over_https_with_every_command_and_client(
    cluster: connect.Cluster, up: dict[str, Any], file: Path, monkeypatch
) -> None:
    port = cluster.listen["port"]
    assert up["url"] == f"https://localhost:{port}/models/reviews"
    assert cluster.http_url == f"https://127.0.0.1:{port}"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{port}/health")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{port}/health")

    shoal = partial(here.told, folder=cluster.home, home=cluster.home)
    assert {row["label"] for row in shoal("predict", "reviews", "a fine day")[0]} == {"ham", "spam"}
    assert [row["url"] for row in shoal("status")["endpoints"] if row["name"] == "reviews"] == [up["url"]]
    measured = shoal("bench", "serve", str(file), "--seconds", "0.5", "--rounds", "1", "--concurrent", "2")
    assert not measured["failed"]

    # The lines that `shoal up` shows, as they are pasted, with a key.
    secret = Keys().create("acme")[1]
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for line in (f"{up['curl']} -H 'authorization: Bearer {secret}'", f"HF_TOKEN={secret} {up['python']}"):
        found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert "spam" in found.stdout, (line, found.stdout, found.stderr)
    monkeypatch.setenv("SSL_CERT_FILE", str(cluster.home / "tls/cert.pem"))
    ways: list[dict[str, Any]] = [{}, {"http_client": httpx2.Client(verify=TRUST)}]
    for options in ways:
        listed = OpenAI(base_url=f"https://localhost:{port}/v1", api_key=secret, max_retries=0, **options).models.list()
        assert listed.data == []
    monkeypatch.delenv("SSL_CERT_FILE")

    # Where nothing here vouches for it, and where it is for another name, a command says what to write.
    for listen, words in (
        ({"name": "localhost"}, r"nobody who is trusted here vouches .* http\.certificate"),
        ({**cluster.listen, "name": "else.where"}, r"the certificate is not for else\.where; .* http\.name"),
    ):
        with pytest.raises(InputError, match=words):
            state(dataclasses.replace(cluster, listen={"host": "127.0.0.1", "port": port, **listen}))

    # A renewal that is no good changes nothing.
    before = ssl.get_server_certificate(("127.0.0.1", port))
    for names, days in ((("else.where",), 10), (("localhost",), -1)):
        make(cluster.home / "tls", *names, days=days, by=AUTHORITY)
        time.sleep(1.5)
        assert ssl.get_server_certificate(("127.0.0.1", port)) == before
    make(cluster.home / "tls", "localhost", by=AUTHORITY)
    end = time.monotonic() + 20
    while ssl.get_server_certificate(("127.0.0.1", port)) == before:
        assert time.monotonic() < end, "the renewed certificate is not shown"
        time.sleep(0.1)
    assert "label" in json.dumps(shoal("predict", "reviews", "a fine day"))


def test_a_certificate_that_clients_would_refuse_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text("http: {certificate: tls/cert.pem, key: tls/key.pem}\n")
    for names, days, words in (
        (("localhost",), 10, r"cert\.pem is for localhost, and not for 127\.0\.0\.1, .* write .* as http\.name"),
        (("127.0.0.1",), -1, r"cert\.pem: the certificate has expired; write a new one"),
    ):
        make(tmp_path / "tls", *names, days=days, by=AUTHORITY)
        with pytest.raises(InputError, match=words):
            embedded.start(tmp_path, settings(), keep=False)
        assert not (tmp_path / "cluster.json").exists()


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
