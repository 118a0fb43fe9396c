"""`shoal bench serve` as a stranger runs it: a tiny model on the embedded Ray, against a plain FastAPI of the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import here
import httpx
import pytest
import serve_tiny as tiny
from test_cluster_cli import shoal

from cluster import ports

pytestmark = pytest.mark.slow
SHORT = ("--rounds", "3", "--seconds", "1", "--concurrent", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file with its model and no data, and the rival that serves the same model."""
    folder = tmp_path_factory.mktemp("bench")
    tiny.bert(folder / "bert")
    (folder / "reviews.yaml").write_text("name: reviews\ntask: text-classification\nmodel: ./bert\n")
    number = ports.pick(1)[0]
    rivals = Path(__file__).parent / "benchmarks" / "rivals.py"
    command = [sys.executable, str(rivals), "fastapi", str(folder / "bert"), str(number), "32", "0.005"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{number}/predict"
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.post(url, json={"inputs": "a"}).status_code == 200:
                    break
            except httpx.HTTPError:
                assert time.monotonic() < deadline
                assert child.poll() is None
                time.sleep(0.2)
        yield folder, url
    finally:
        child.kill()
        child.wait()
        shoal("down", home=folder / "home")


def test_a_model_that_is_not_served_is_served_for_the_run_and_compared(place):
    folder, url = place
    words = ("bench", "serve", str(folder / "reviews.yaml"), *SHORT, "--against", url, "--json")
    done = shoal(*words, home=folder / "home")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = result["sides"]
    assert (ours["name"], theirs["name"]) == ("shoal", url.split("/")[2])
    assert ours["errors"] == theirs["errors"] == {}
    assert min(ours["ok"], theirs["ok"]) > 100
    assert not any("answers differ" in text for text in result["warnings"])
    # The whole tree of each is measured, by part.
    assert list(theirs["cpu_ms_by_part"]) == ["rivals.py"]
    assert {"raylet", "gcs_server", "haproxy"} <= set(ours["cpu_ms_by_part"])
    assert {one["measure"] for one in result["ratios"]} == {
        "requests_per_s",
        "latency_p50",
        "latency_p95",
        "latency_p99",
        "cpu_ms",
    }
    page = Path(result["page"])
    assert page.parent.parent == folder / "home" / "bench" / "reviews"
    assert page.read_text().count("<svg") == 4
    kept = json.loads((page.parent / "results.json").read_text())
    assert {**kept, "page": str(page)} == result
    # Nothing is left.
    status = json.loads(shoal("status", "--json", home=folder / "home").stdout.splitlines()[-1])
    assert (status["cluster"], status["endpoints"]) == (None, [])


def test_a_served_model_is_asked_where_it_is_and_bad_requests_fail_the_run(place, monkeypatch):
    folder, _ = place

    def bench(*words):
        return here.shoal("bench", "serve", str(folder / "reviews.yaml"), *words, folder=folder, home=folder / "home")

    (folder / "home" / "cluster.yaml").write_text("access: {keys: required}\n")
    up = shoal("serve", str(folder / "reviews.yaml"), home=folder / "home")
    assert up.returncode == 0, up.stderr
    done = bench("--rounds", "1", "--seconds", "1", "--rate", "40", "--output", str(folder / "out"))
    assert done.returncode == 0, done.stderr
    assert "40 a second, open loop" in done.stdout
    assert "page: file://" in done.stdout
    assert json.loads((folder / "out" / "results.json").read_text())["load"]["loop"] == "open"

    # One in three is refused: told of, and the exit code says so.
    asks = folder / "asks.jsonl"
    asks.write_text('{"inputs": "a"}\n{"inputs": "b"}\n{"input": "c"}\n')
    failed = bench("--rounds", "1", "--seconds", "1", "--requests-file", str(asks), "--json")
    assert failed.returncode == 1, failed.stderr
    result = json.loads(failed.stdout.splitlines()[-1])
    (one,) = result["sides"]
    assert one["errors"]["400"] == pytest.approx(one["requests"] / 3, rel=0.1)
    assert result["failed"]

    # The cluster's own token opened the gateway until now; a key that is given is the one that is used.
    monkeypatch.setenv("SHOAL_API_KEY", "shoal_wrong")
    stranger = bench()
    monkeypatch.delenv("SHOAL_API_KEY")
    assert stranger.returncode == 1
    assert "the first request failed: 401" in stranger.stderr
    assert "keys are read from SHOAL_API_KEY" in stranger.stderr

    # What would change what is served is not done behind one's back; and it is still there.
    changed = bench("serve.max_batch_size=4")
    assert changed.returncode == 2
    assert "being served already" in changed.stderr
    asks.write_text('{"input": "c"}\n')
    refused = bench("--requests-file", str(asks))
    assert refused.returncode == 1
    assert "the first request failed: 400" in refused.stderr
    assert "has no `inputs`" in refused.stderr
    status = json.loads(shoal("status", "--json", home=folder / "home").stdout.splitlines()[-1])
    assert [endpoint["name"] for endpoint in status["endpoints"]] == ["reviews"]
