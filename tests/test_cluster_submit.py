"""What travels to a cluster and what does not, which cluster is meant, and what is said where one cannot be used."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cluster import attached
from cluster.cli import remote
from cluster.errors import ClusterGone, InputError, NotFound, RunFailed, TooLarge
from cluster.settings import home, settings, tracking_uri
from cluster.spec import load
from cluster.submit import package
from cluster.submit.client import Jobs
from cluster.submit.package import pack
from cluster.submit.target import Target, find
from cluster.submit.versions import check

SPEC = """
name: reviews
task: text-classification
model: ./base
data: {train: rows/train.csv#50, test: ../elsewhere/test.csv, columns: {label: "5e-5"}}
train: {epochs: 2}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `work` with a file, its data and model, data beside it, and things that are nobody's business."""
    work = tmp_path / "work"
    for folder in (work / "rows", work / "base", tmp_path / "elsewhere", work / "classes/a/.git", work / "classes/b"):
        folder.mkdir(parents=True)
    (work / "reviews.yaml").write_text(SPEC)
    (work / "rows/train.csv").write_text("text,label\ngood,1\n")
    (work / "rows/other.csv").write_text("not named")
    (tmp_path / "elsewhere/test.csv").write_text("text,label\nbad,0\n")
    (work / "base/config.json").write_text("{}")
    (work / "base/model.safetensors").write_bytes(b"weights")
    (work / "base/optimizer.pt").write_bytes(b"a pickle")
    (work / "base/.secret.json").write_text("{}")
    for name in ("a/1.png", "a/.git/config", "a/.hidden", "b/2.png"):
        (work / "classes" / name).write_text(name)
    (work / ".env").write_text("TOKEN=x")
    (work / "cluster.yaml").write_text("{}")
    monkeypatch.chdir(work)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "SHOAL_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return work


def sent(place: Path, *overrides: str, files: tuple[str, ...] = ("reviews.yaml",), **options: Any) -> dict[str, str]:
    """What a package holds, by name."""
    file = place.parent / "package.zip"
    pack(files, overrides, into=file, **options)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_only_what_the_file_names_travels(place: Path) -> None:
    names = set(sent(place))
    assert names == {
        "shoal_job.py",
        "files/reviews.yaml",
        "files/rows/train.csv",
        "files/outside/0/test.csv",
        "files/base/config.json",
        "files/base/model.safetensors",
    }


def test_the_file_means_the_same_where_it_is_unpacked(place: Path) -> None:
    sending = pack(["reviews.yaml"], ["train.epochs=7"], into=place.parent / "package.zip")
    there = place.parent / "there"
    with zipfile.ZipFile(sending.path) as archive:
        archive.extractall(there)
    spec = load(there / "files" / sending.files[0])
    train, test = spec.data_ref("train"), spec.data_ref("test")
    assert train is not None
    assert test is not None
    assert (train.path, train.rows) == (there / "files/rows/train.csv", 50)
    assert test.path is not None
    assert test.path.read_text() == "text,label\nbad,0\n"
    assert spec.model_ref().path == there / "files/base"
    assert spec.train.epochs == 7
    assert spec.data.columns == {"label": "5e-5"}, "a text that reads like a number stays a text"
    assert str(place.parent) not in (there / "files/reviews.yaml").read_text(), "no path of this machine"


def test_paths_that_overrides_name_travel_too(place: Path) -> None:
    absolute = place.parent / "elsewhere/test.csv"
    found = sent(place, f"data.train={absolute}", "data.test=rows/other.csv")
    assert found["files/outside/0/test.csv"].startswith("text,label\nbad")
    assert "files/rows/other.csv" in found
    assert yaml.safe_load(found["files/reviews.yaml"])["data"]["train"] == "outside/0/test.csv"


def test_a_folder_travels_without_what_is_hidden(place: Path) -> None:
    found = sent(place, "data={train: classes}", "task=image-classification")
    assert {name for name in found if "classes" in name} == {"files/classes/a/1.png", "files/classes/b/2.png"}


def test_serving_sends_the_model_and_no_data(place: Path) -> None:
    assert {name for name in sent(place, data=False) if name.endswith(".csv")} == set()


def test_two_files_do_not_mix(place: Path) -> None:
    (place.parent / "elsewhere/reviews.yaml").write_text("name: more\ntask: text-classification\nmodel: org/name\n")
    sending = pack(["reviews.yaml", "../elsewhere/reviews.yaml"], [], into=place.parent / "package.zip")
    assert sending.files == ["0/reviews.yaml", "1/reviews.yaml"]
    assert sending.names == ["reviews", "more"]


def test_a_folder_named_outside_keeps_its_content(place: Path) -> None:
    (place / "outside/0").mkdir(parents=True)
    (place / "outside/0/test.csv").write_text("mine")
    found = sent(place, "data.train=outside/0/test.csv")
    tree = yaml.safe_load(found["files/reviews.yaml"])
    assert found[f"files/{tree['data']['train']}"] == "mine"
    assert found[f"files/{tree['data']['test']}"] == "text,label\nbad,0\n"


def test_what_the_cluster_has_does_not_travel(place: Path) -> None:
    shared = place.parent / "elsewhere"
    sending = pack(
        ["reviews.yaml"],
        [f"data.test={shared}/test.csv", "data.validation=/mnt/no-such/v.csv", "data.train=hf://org/set:en"],
        into=place.parent / "package.zip",
        shared=[shared],
    )
    with zipfile.ZipFile(sending.path) as archive:
        data = yaml.safe_load(archive.read("files/reviews.yaml"))["data"]
        assert not [name for name in archive.namelist() if name.endswith(".csv")]
    assert data == {
        "train": "hf://org/set:en",
        "validation": "/mnt/no-such/v.csv",
        "test": f"{shared}/test.csv",
        "columns": {"label": "5e-5"},
    }
    assert sending.remarks == ["data.validation: /mnt/no-such/v.csv is not on this machine; taken to be on the cluster"]
    with pytest.raises(
        InputError, match=r"data.test: '\.\./elsewhere/test.csv' lies in a shared folder; write its abs"
    ):
        pack(["reviews.yaml"], [], into=place.parent / "package.zip", shared=[shared])


def test_the_same_content_has_the_same_name(place: Path) -> None:
    one = pack(["reviews.yaml"], [], into=place.parent / "1.zip").name
    os.utime(place / "rows/train.csv", (1, 1))
    assert pack(["reviews.yaml"], [], into=place.parent / "2.zip").name == one
    assert pack(["reviews.yaml"], ["train.epochs=3"], into=place.parent / "3.zip").name != one


def test_too_much_is_refused_with_what_to_do(place: Path) -> None:
    (place / "rows/train.csv").write_bytes(os.urandom(2**21))
    with pytest.raises(TooLarge, match=r"larger than the 1 MiB .* the largest .*rows/train\.csv\).*`shared` .*hf://"):
        pack(["reviews.yaml"], [], into=place.parent / "package.zip", limit_mb=1)


def test_what_is_missing_here_is_told_before_anything_is_sent(place: Path) -> None:
    with pytest.raises(InputError, match=r"data\.train: 'rows/trian\.csv': no such file"):
        pack(["reviews.yaml"], ["data.train=rows/trian.csv"], into=place.parent / "package.zip")
    with pytest.raises(InputError, match=r"model: '\./bse': no such folder"):
        pack(["reviews.yaml"], ["model=./bse"], into=place.parent / "package.zip")


def test_which_cluster_is_meant(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(None) is None
    (place / "token").write_text("secret\n")
    text = "clusters: {prod: {address: 'https://ray.example:8265/', token_file: token, shared: [/mnt/team]}}"
    (home() / "cluster.yaml").write_text(text)
    found = find("prod")
    assert found is not None
    assert (found.address, found.token, found.option) == ("https://ray.example:8265", "secret", " --on prod")
    assert found.shared == (Path("/mnt/team"),)
    assert "secret" not in repr(found)
    with pytest.raises(InputError, match=r"--on: 'prd' is no cluster of cluster\.yaml; did you mean prod\?"):
        find("prd")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    found = find(None)
    assert found is not None
    assert (found.address, found.token, found.option) == ("http://127.0.0.1:8265", "other", "")
    assert attached.address() is None, "a dashboard is no Ray to attach to"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find(None) is None
    assert attached.address() == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "ray://10.0.0.1:10001")
    with pytest.raises(InputError, match=r"RAY_ADDRESS: .* Ray Client is not supported"):
        attached.address()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("address: ray-head:8265", "clusters.prod.address: 'ray-head:8265' does not fit; The dashboard's URL"),
        ("addres: http://x", "clusters.prod.addres: unknown key; did you mean address?"),
        ("{address: http://x, token_file: no}", "clusters.prod.token_file: no cannot be read: No such file"),
        ("{address: http://x, token_file: empty}", "clusters.prod.token_file: empty holds no token"),
        ("{address: http://x, shared: [data]}", "clusters.prod.shared: 'data' is no absolute path"),
    ],
)
def test_a_wrong_cluster_is_told_of(place: Path, text: str, message: str) -> None:
    (place / "empty").write_text("\n")
    (place / "cluster.yaml").write_text("clusters: {prod: " + (text if text[0] == "{" else f"{{{text}}}") + "}\n")
    with pytest.raises(InputError) as caught:
        find("prod")
    assert message in str(caught.value)


def test_a_job_keeps_its_state_where_it_does_not_vanish(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("SHOAL_HOME")
    assert home() == place.parent / ".shoal"
    monkeypatch.setenv("SHOAL_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri() == "http://mlflow:5000"
    assert settings().tracking_uri is None


@contextmanager
def dashboard(answers: dict[str, tuple[int, Any]]) -> Iterator[Jobs]:
    """A server that answers as a dashboard would: path to status and JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, value = answers.get(self.path, (404, "nothing here"))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Jobs(Target("prod", f"http://127.0.0.1:{server.server_port}", "clusters.prod.address", " --on prod", "x"))
    finally:
        server.shutdown()
        server.server_close()


def versions(ray: str, python: str) -> dict[str, tuple[int, Any]]:
    metadata = {"result": True, "data": {"rayVersion": ray, "pythonVersion": python}}
    return {"/api/version": (200, {"ray_version": ray}), "/api/v0/cluster_metadata": (200, metadata)}


def test_other_versions_are_refused_naming_both() -> None:
    import platform

    ray, python = version("ray"), platform.python_version()
    with dashboard(versions(ray, python)) as jobs:
        check(jobs)
    with (
        dashboard(versions("2.48.0", python)) as jobs,
        pytest.raises(InputError, match=rf"prod: the cluster runs Ray 2\.48\.0 \(here {ray}\); install Ray 2\.48 here"),
    ):
        check(jobs)
    with (
        dashboard(versions(ray, "3.9.1")) as jobs,
        pytest.raises(InputError, match=rf"runs Python 3\.9\.1 \(here {python}\)"),
    ):
        check(jobs)


def test_what_is_no_cluster_is_told_of() -> None:
    with dashboard({}) as jobs, pytest.raises(InputError, match=r"clusters\.prod\.address: .* not as Ray's dashboard"):
        jobs.versions()
    with (
        dashboard({"/api/version": (401, "")}) as jobs,
        pytest.raises(InputError, match=r"refuses the token \(401\).*clusters\.prod\.token_file in cluster\.yaml"),
    ):
        jobs.versions()
    with pytest.raises(ClusterGone, match=r"clusters\.prod\.address: http://127\.0\.0\.1:9 cannot be reached: .*"):
        Jobs(Target("prod", "http://127.0.0.1:9", "clusters.prod.address")).versions()


def job(run: str, status: str, **metadata: str) -> dict[str, Any]:
    named = {f"shoal.{key}": value for key, value in metadata.items()}
    return {"submission_id": run, "status": status, "metadata": named, "start_time": 1_700_000_000_000, "message": "m"}


def test_one_run_a_model_and_the_same_one_again_is_followed() -> None:
    running = job("train-reviews-1", "RUNNING", name="reviews", command="train reviews.yaml", package="p1")
    over = job("train-other-1", "FAILED", name="other", command="train other.yaml", package="p2")
    mine = {"shoal.name": "reviews", "shoal.command": "train reviews.yaml", "shoal.package": "p1"}
    with dashboard({"/api/jobs/": (200, [running, over, {"submission_id": None}])}) as jobs:
        found = remote.at_work(jobs, mine)
        assert found is not None
        assert found.id == "train-reviews-1"
        assert remote.at_work(jobs, {**mine, "shoal.name": "other"}) is None
        with pytest.raises(RunFailed, match=r"train-reviews-1 is at work on this model on prod .*`shoal stop train-re"):
            remote.at_work(jobs, {**mine, "shoal.package": "p9"})
        with pytest.raises(NotFound, match="nothing: no run on prod; the newest are: train-reviews-1, train-other-1"):
            jobs.job("nothing")


def test_json_of_a_job_ends_with_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    printer = remote.Printer(as_json=True)
    for line in (
        "Running entrypoint for job x: python shoal_job.py",
        '{"event": "progress", "stage": "train"}',
        '{"name": "reviews"}',
        "a warning of somebody's",
        "[1, 2]",
    ):
        printer.line(line)
    printer.end({"run": "x"})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("event") for line in lines] == ["progress", "log", "log", None]
    assert lines[-1] == {"name": "reviews"}
    printer = remote.Printer(as_json=True)
    printer.line("in words")
    printer.end({"run": "x"})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"run": "x"}


def test_a_verbs_words_are_those_that_were_given() -> None:
    @click.command("tune")
    @click.argument("file")
    @click.argument("overrides", nargs=-1)
    @click.option("--resume/--no-resume", default=False)
    @click.option("--workers", type=int, default=1)
    @click.option("--json", "as_json", is_flag=True)
    def command(**_: Any) -> None: ...

    context = command.make_context("tune", ["a.yaml", "x=1", "--workers", "4", "--json"])
    assert remote.words_of(context, context.params) == (["a.yaml"], ["x=1"], ["--workers", "4"])
    context = command.make_context("tune", ["a.yaml", "--resume"])
    assert remote.words_of(context, context.params) == (["a.yaml"], [], ["--resume"])


STARTER = Path(package.__file__).with_name("starter.py")


def started(folder: Path, *words: str, isolated: bool = False) -> subprocess.CompletedProcess[str]:
    """The starter as a job runs it: the folder is the working directory that was sent."""
    command = [sys.executable, *(["-I", "-S"] if isolated else []), str(STARTER), *words]
    env = {**os.environ, "SHOAL_HOME": str(folder.parent / "cluster-home")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_a_cluster_without_this_shoal_says_so(place: Path) -> None:
    done = started(place, "0.0.9", "abc", "train", "reviews.yaml", "--json")
    assert done.returncode == 2
    message = f"the cluster has Shoal {version('shoal')}, and 0.0.9 sent this job; install the same version on both"
    assert json.loads(done.stdout) == {"error": message, "exit_code": 2}
    done = started(place, "0.0.9", "abc", "train", "reviews.yaml", isolated=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("shoal: Shoal is not installed on the cluster; install shoal 0.0.9")


def test_what_was_sent_is_moved_to_the_home_and_run_there(place: Path) -> None:
    there = place.parent / "there"
    with zipfile.ZipFile(pack(["reviews.yaml"], [], into=place.parent / "package.zip").path) as archive:
        archive.extractall(there)
    done = started(there, version("shoal"), "abc", "train", "reviews.yaml", "data.train=no.csv")
    assert done.returncode == 2
    assert f"no such file or folder ({place.parent}/cluster-home/sent/abc/files/no.csv)" in done.stderr


def test_a_node_without_the_runs_folder_says_what_to_set(place: Path) -> None:
    from train.job import Job
    from train.launch import sees

    spec = load("reviews.yaml")
    job = Job(spec=spec, data=place / "rows", labels=["a"], model=place / "base", folder=place)
    sees(job)
    with pytest.raises(InputError, match=r"^SHOAL_HOME: /nowhere is not on node .* storage that all nodes"):
        sees(replace(job, folder=Path("/nowhere")))


def test_the_applications_of_others_are_written_back_whole() -> None:
    from serve.applications import written

    others = {"name": "a", "import_path": "their.app:build", "runtime_env": {"pip": ["x"]}, "host": None, "args": {}}
    kept = {key: value for key, value in others.items() if value is not None}
    assert written(others) == kept
