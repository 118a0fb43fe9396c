from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import samples
from cluster.cli.samples import command
from cluster.errors import InputError, RunFailed
from cluster.samples import Sample
from cluster.samples.package import Package, download


def write(source: Path | None, into: Path, progress: object) -> None:
    (into / "data" / "toy").mkdir(parents=True)
    (into / "data" / "toy" / "a.txt").write_text("hello")
    (into / "models" / "toy").mkdir(parents=True)
    (into / "models" / "toy" / "b.txt").write_text("there")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Sample:
    """The table of samples, with one row that needs no download."""
    row = Sample("toy", "a toy", ("data/toy", "models/toy"), write)
    monkeypatch.setattr(samples, "SAMPLES", {"toy": row})
    return row


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the PATH with an `npm` that packs what lies in FAKE_NPM, as the real one names it."""
    place = tmp_path / "bin"
    place.mkdir()
    script = place / "npm"
    script.write_text(
        f"#!{sys.executable}\nimport os, shutil, sys\n"
        "print('npm warn a warning', file=sys.stderr)\n"
        "if 'FAKE_NPM' not in os.environ:\n    sys.exit('npm error code E404\\nnpm error 404 Not Found')\n"
        "assert sys.argv[1:3] == ['pack', '@org/mails@1.0.0'], sys.argv\n"
        "shutil.copy(os.environ['FAKE_NPM'], sys.argv[sys.argv.index('--pack-destination') + 1])\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def package(content: bytes) -> Package:
    return Package(
        "npm", "@org/mails", "1.0.0", "org-mails-1.0.0.tgz", hashlib.sha256(content).hexdigest(), len(content)
    )


def test_a_sample_is_built_once(tmp_path: Path, toy: Sample) -> None:
    assert samples.ready("toy", into=tmp_path) is False
    assert samples.fetch(into=tmp_path) == {"toy": True}
    assert (tmp_path / "data" / "toy" / "a.txt").read_text() == "hello"
    assert samples.ready("toy", into=tmp_path) is True
    assert samples.fetch(["toy", "toy"], into=tmp_path) == {"toy": False}
    manifest = json.loads((tmp_path / ".manifests" / "toy.json").read_text())
    assert manifest["files"]["models/toy/b.txt"] == hashlib.sha256(b"there").hexdigest()


def test_a_damaged_sample_is_built_anew(tmp_path: Path, toy: Sample) -> None:
    file = tmp_path / "data" / "toy" / "a.txt"
    for damage in (lambda: file.write_text("hellp"), file.unlink):
        samples.fetch(into=tmp_path)
        damage()
        assert samples.ready("toy", into=tmp_path) is False
        assert samples.fetch(into=tmp_path) == {"toy": True}
        assert file.read_text() == "hello"


def test_without_its_manifest_a_folder_is_the_users(tmp_path: Path, toy: Sample) -> None:
    samples.fetch(into=tmp_path)
    (tmp_path / ".manifests" / "toy.json").write_text("{")
    assert samples.ready("toy", into=tmp_path) is False
    with pytest.raises(InputError, match="was not written by `shoal samples`"):
        samples.fetch(into=tmp_path)


def test_another_recipe_is_another_sample(tmp_path: Path, toy: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.fetch(into=tmp_path)
    monkeypatch.setattr(samples, "SAMPLES", {"toy": Sample("toy", "a toy", toy.outputs, write, recipe=2)})
    assert samples.fetch(into=tmp_path) == {"toy": True}


def test_a_break_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: Path | None, into: Path, progress: object) -> None:
        write(source, into, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "SAMPLES", {"toy": Sample("toy", "a toy", ("data/toy", "models/toy"), broken)})
    with pytest.raises(KeyboardInterrupt):
        samples.fetch(into=tmp_path)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / ".work" / "toy").exists()
    assert samples.ready("toy", into=tmp_path) is False


def test_a_break_between_moves_is_finished_by_the_next_call(
    tmp_path: Path, toy: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:  # the manifest and the first folder are in place
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        samples.fetch(into=tmp_path)
    monkeypatch.setattr(os, "replace", replace)
    assert (tmp_path / "data" / "toy").is_dir()
    assert not (tmp_path / "models" / "toy").exists()
    assert samples.ready("toy", into=tmp_path) is False
    assert samples.fetch(into=tmp_path) == {"toy": True}
    assert samples.ready("toy", into=tmp_path) is True


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, toy: Sample) -> None:
    (tmp_path / "data" / "toy").mkdir(parents=True)
    (tmp_path / "data" / "toy" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there and was not written by `shoal samples`; move it away, or --into"):
        samples.fetch(into=tmp_path)
    assert (tmp_path / "data" / "toy" / "mine.txt").read_text() == "mine"


def test_faults_of_the_call(tmp_path: Path, toy: Sample) -> None:
    with pytest.raises(InputError, match="samples: 'toi' is no sample; there are toy"):
        samples.fetch(["toi"], into=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: a file; name a folder"):
        samples.fetch(into=tmp_path / "file")
    with pytest.raises(RunFailed, match="Not a directory"):
        samples.fetch(into=tmp_path / "file" / "inner")


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RunFailed, match=r"iris needs sklearn\.datasets; install Shoal with its extra \[models\]"):
        samples.fetch(["iris"], into=tmp_path)


def test_npm_packs_what_is_pinned(tmp_path: Path, client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a tarball"
    (tmp_path / "org-mails-1.0.0.tgz").write_bytes(content)
    monkeypatch.setenv("FAKE_NPM", str(tmp_path / "org-mails-1.0.0.tgz"))
    told: list[tuple[str, float, float]] = []
    file = download(
        package(content), tmp_path / "d", progress=lambda stage, done, total, note="": told.append((stage, done, total))
    )
    assert file == tmp_path / "d" / "org-mails-1.0.0.tgz"
    assert file.read_bytes() == content
    assert os.listdir(tmp_path / "d") == ["org-mails-1.0.0.tgz"]
    assert told[0] == ("download @org/mails", 0, 9)
    assert told[-1] == ("download @org/mails", 9, 9)


def test_other_bytes_than_the_pinned_are_not_used(
    tmp_path: Path, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org-mails-1.0.0.tgz").write_bytes(b"altered")
    monkeypatch.setenv("FAKE_NPM", str(tmp_path / "org-mails-1.0.0.tgz"))
    with pytest.raises(RunFailed, match=r"(?s)npm gave org-mails-1.0.0.tgz .*; expected sha256 .*it was not used"):
        download(package(b"a tarball"), tmp_path / "d")
    assert os.listdir(tmp_path / "d") == []


def test_what_npm_says_is_passed_on(tmp_path: Path, client: Path) -> None:
    with pytest.raises(RunFailed) as caught:
        download(package(b"x"), tmp_path / "d")
    said = str(caught.value)
    assert "npm could not fetch @org/mails 1.0.0: npm error code E404; npm error 404 Not Found" in said
    assert "the index that npm is set up for on this machine; see `npm config list`" in said
    assert "a warning" not in said


def test_without_npm_the_remedy_is_told_and_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a tarball"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(
        RunFailed, match=r"comes by npm, which is not installed; install Node\.js, or put org-mails"
    ) as caught:
        download(package(content), tmp_path / "d")
    assert str(tmp_path / "d") in str(caught.value)
    (tmp_path / "d" / "org-mails-1.0.0.tgz").write_bytes(content)
    assert download(package(content), tmp_path / "d").read_bytes() == content


def test_a_damaged_download_is_fetched_anew(tmp_path: Path, client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a tarball"
    (tmp_path / "org-mails-1.0.0.tgz").write_bytes(content)
    monkeypatch.setenv("FAKE_NPM", str(tmp_path / "org-mails-1.0.0.tgz"))
    (tmp_path / "d" / "org-mails-1.0.0.tgz.part").mkdir(parents=True)
    (tmp_path / "d" / "org-mails-1.0.0.tgz").write_bytes(b"half")
    assert download(package(content), tmp_path / "d").read_bytes() == content


def test_pip_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wanted = Package("pip", "no-such-package-of-shoal", "1.0", "no_such-1.0-py3-none-any.whl", "0" * 64, 10)
    with pytest.raises(RunFailed) as caught:
        download(wanted, tmp_path)
    said = str(caught.value)
    assert "pip could not fetch no-such-package-of-shoal 1.0: ERROR: Could not find a version" in said
    assert "see `pip config list`" in said
    assert os.listdir(tmp_path) == []


def test_pip_takes_the_file_with_the_pinned_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in a folder that pip is told of; another digest is refused by pip itself."""
    file = tmp_path / "wheels" / "toy_of_shoal-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as wheel:
        info = "toy_of_shoal-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-of-shoal\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    wanted = Package("pip", "toy-of-shoal", "1.0", file.name, digest, file.stat().st_size)
    assert download(wanted, tmp_path / "d").read_bytes() == file.read_bytes()
    other = Package("pip", "toy-of-shoal", "1.0", file.name, "0" * 64, 1)
    with pytest.raises(RunFailed, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        download(other, tmp_path / "e")


def test_the_verb(tmp_path: Path, toy: Sample) -> None:
    def told(*arguments: str) -> list[dict[str, object]]:
        result = CliRunner().invoke(command, ["--into", str(tmp_path), "--json", *arguments])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])

    assert [(row["name"], row["ready"], row["built"]) for row in told("--list")] == [("toy", False, False)]
    assert not (tmp_path / "data").exists()
    assert [(row["name"], row["ready"], row["built"]) for row in told()] == [("toy", True, True)]
    assert [(row["name"], row["ready"], row["built"]) for row in told("toy")] == [("toy", True, False)]
    assert told("--list")[0]["folders"] == [str(tmp_path / "data/toy"), str(tmp_path / "models/toy")]
    text = CliRunner().invoke(command, ["--into", str(tmp_path), "--list"]).stdout
    assert text.splitlines()[1].split()[:2] == ["toy", "ready"]
    error = CliRunner().invoke(command, ["--list", "toi"]).exception
    assert isinstance(error, InputError)


def test_every_row_is_pinned() -> None:
    assert list(samples.SAMPLES) == ["minilm", "spam", "digits", "iris", "definitions", "smollm2"]
    stands_for = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    for row in samples.SAMPLES.values():
        if row.package is not None:
            assert len(row.package.sha256) == 64
            assert row.package.version[0].isdigit()
            assert stands_for.get(row.name, "") in row.about
