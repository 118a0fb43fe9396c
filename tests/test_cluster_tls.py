"""Whom we trust at the gateway, with real certificates and real handshakes; no Ray."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from certificates import Authority, make, pem

from cluster import asked, tls
from cluster.cli import ask as lines
from cluster.errors import InputError
from cluster.serving import listening
from cluster.settings import settings


def listen(folder: Path, **more: Any) -> dict[str, Any]:
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem"), **more}


@contextlib.contextmanager
def server(folder: Path):
    """An HTTPS server with this certificate on a port of 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def answer() -> None:
            while True:
                try:
                    made, _ = taken.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(made, server_side=True) as wire:
                    wire.recv(65_536)
                    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{taken.getsockname()[1]}"
        taken.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def asks(url: str, told: dict[str, Any]) -> int:
    cluster: Any = SimpleNamespace(http_url=url, listen=told, token="")
    return asked.ask(cluster, "GET", "/-/ping", timeout_s=10).status_code


def test_a_certificate_is_taken_where_the_file_or_the_systems_list_vouches_for_it(tmp_path, monkeypatch):
    authority = Authority()
    (tmp_path / "authority.pem").write_bytes(pem(authority.certificate))
    make(tmp_path / "own", "127.0.0.1")
    make(tmp_path / "whole", "127.0.0.1", by=authority)
    make(tmp_path / "alone", "127.0.0.1", by=authority, whole=False)
    make(tmp_path / "named", "models.example.com", by=authority, whole=False)
    for kind, more in (("own", {}), ("whole", {}), ("alone", {}), ("named", {"name": "models.example.com"})):
        told = listen(tmp_path / kind, **more)
        tls.check(told, "127.0.0.1")
        with server(tmp_path / kind) as url:
            assert asks(url, told) == 200, kind
            # Another machine has no such file, and is told what it may write.
            with pytest.raises(
                InputError, match=r"nobody who is trusted here vouches .*http\.certificate.*SSL_CERT_FI"
            ):
                asks(url, {**told, "certificate": "/nowhere/cert.pem"})
            if kind != "own":
                with monkeypatch.context() as patch:
                    patch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
                    assert asks(url, {**told, "certificate": "/nowhere/cert.pem"}) == 200, kind
                    assert tls.needed(told, url) == ""
            assert tls.needed(told, url) == told["certificate"]


def test_a_wrong_certificate_is_told_of_by_what_to_write(tmp_path):
    make(tmp_path / "other", "models.example.com", "10.0.0.7")
    make(tmp_path / "late", "127.0.0.1", days=-1)
    make(tmp_path / "good", "127.0.0.1")
    # Another one than the file has, though it says the same.
    with server(tmp_path / "good") as url, pytest.raises(InputError, match="nobody who is trusted here vouches"):
        asks(url, listen(tmp_path / "other"))
    for kind, words in (
        ("other", r"the certificate is not for 127\.0\.0\.1; in the cluster's cluster\.yaml write .* http\.name"),
        ("late", r"the certificate has expired; write a new one to the files of http\.certificate and http\.key"),
    ):
        with server(tmp_path / kind) as url, pytest.raises(InputError, match=words):
            asks(url, listen(tmp_path / kind))
    # The same before anything is started.
    told = listen(tmp_path / "other")
    names = r"cert\.pem is for models\.example\.com, 10\.0\.0\.7, and not for 127\.0\.0\.1, .* http\.name in cluster"
    with pytest.raises(InputError, match=names):
        tls.check(told, "127.0.0.1")
    with pytest.raises(InputError, match=r"and not for wrong\.example\.com"):
        tls.check({**told, "name": "wrong.example.com"}, "10.0.0.7")
    tls.check(told, "10.0.0.7")
    tls.check({**told, "name": "models.example.com"}, "127.0.0.1")
    tls.check(told)
    with pytest.raises(InputError, match=r"cert\.pem: the certificate has expired"):
        tls.check(listen(tmp_path / "late"), "127.0.0.1")
    for key in (str(tmp_path / "good/key.pem"), "/nowhere/key.pem"):
        with pytest.raises(InputError, match=r"cannot be read, or do not fit together"):
            tls.check({**told, "key": key})
    tls.check({"host": "127.0.0.1"}, "127.0.0.1")  # no TLS, nothing to check


def test_nobody_answering_is_no_fault_of_a_certificate(tmp_path):
    make(tmp_path, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        asks(f"https://127.0.0.1:{port}", listen(tmp_path))


def test_files_are_found_beside_cluster_yaml_and_the_name_goes_into_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    text = "http: {certificate: tls/cert.pem, key: /etc/key.pem, name: models.example.com}\n"
    (tmp_path / "cluster.yaml").write_text(text)
    told = listening(settings().http, "0.0.0.0", 8000)
    assert told["certificate"] == str(tmp_path / "tls/cert.pem")
    assert (told["key"], told["name"]) == ("/etc/key.pem", "models.example.com")


def test_the_lines_that_ask_name_the_file(tmp_path):
    curl, python = lines.lines("text-classification", "https://a:8000/models/r", "hi", "/my files/cert.pem")
    assert curl.startswith("curl -s --cacert '/my files/cert.pem' https://a:8000/models/r ")
    assert python.startswith("SSL_CERT_FILE='/my files/cert.pem' python -c ")
