from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.settings import Settings, home, settings, tracking_uri


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with the state in its folder `state`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "state"))
    return tmp_path


def test_without_a_file_all_is_default(place: Path) -> None:
    found = settings()
    assert found == Settings()
    assert (found.http.host, found.http.port, found.http.max_body_mb) == ("127.0.0.1", 0, 32)
    assert found.tracking_uri is None
    assert tracking_uri() == f"sqlite:///{place / 'state' / 'mlflow.db'}"


def test_home_is_made_and_absolute(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == place / "state"
    assert (place / "state").is_dir()
    monkeypatch.setenv("SHOAL_HOME", "deep/er")
    assert home() == place / "deep" / "er"
    monkeypatch.delenv("SHOAL_HOME")
    assert home() == place / ".shoal"
    monkeypatch.setenv("SHOAL_HOME", "")
    assert home() == place / ".shoal"


def test_home_that_cannot_be(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    for text in ("file", "file/inner", "~nosuchuser/x", "/dev/null/x"):
        monkeypatch.setenv("SHOAL_HOME", text)
        with pytest.raises(InputError, match=r"^SHOAL_HOME: .* cannot be made: .*; name a folder that can be written"):
            home()


def test_the_file_in_home_comes_first(place: Path) -> None:
    (place / "cluster.yaml").write_text("http: {port: 8001}\ntracking_uri: http://tracking:5000\n")
    assert settings().http.port == 8001
    assert tracking_uri() == "http://tracking:5000"
    (home() / "cluster.yaml").write_text("ray: {num_cpus: 3}\n")
    assert settings().http.port == 0
    assert settings().ray.num_cpus == 3


def test_a_file_of_comments_is_all_defaults(place: Path) -> None:
    (place / "cluster.yaml").write_text("# http: {port: 1}\n")
    assert settings() == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("htpp: {}\n", "cluster.yaml:1: htpp: unknown key; did you mean http?"),
        ("zzz: 1\n", "cluster.yaml:1: zzz: unknown key; the file has tracking_uri, http, ray"),
        ("http:\n  prot: 1\n", "cluster.yaml:2: http.prot: unknown key; did you mean port?"),
        ("http: {port: 70000}\n", "cluster.yaml:1: http.port: 70000: input should be less than or equal to 65535"),
        ("http: {port: true}\n", "cluster.yaml:1: http.port: True: true and false are no numbers"),
        ("http: {port: x}\n", "cluster.yaml:1: http.port: 'x': input should be a valid integer"),
        ("ray: {num_cpus: 0}\n", "cluster.yaml:1: ray.num_cpus: 0: input should be greater than or equal to 1"),
        ("ray: 5\n", "cluster.yaml:1: ray: 5: must be a mapping of keys: num_cpus, object_store_mb"),
        ("tracking_uri: 5\n", "cluster.yaml:1: tracking_uri: 5: input should be a valid string"),
        ("ray: {}\nray: {}\n", "cluster.yaml:2: ray stands twice; keep one"),
        ("[1]\n", "cluster.yaml: the file must be a mapping of keys, not a list"),
        ("false\n", "cluster.yaml: the file must be a mapping of keys, not False"),
        (" \n", "cluster.yaml: empty; remove it, or write what `shoal schema cluster` describes"),
        ("a\0b", "cluster.yaml: a binary file"),
    ],
)
def test_faults_are_told_with_their_place(place: Path, text: str, message: str) -> None:
    (place / "cluster.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        settings()
    assert str(caught.value).startswith(message)
