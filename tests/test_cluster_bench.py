"""The load generator and its figures, against a real server whose delays and faults are known."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import bench_server
import httpx
import psutil
import pytest

from cluster import ports
from cluster.bench import bodies, load, machine, report, sides, stream, summary, turns
from cluster.bench.connection import Address, Shot
from cluster.bench.turns import Load
from cluster.errors import InputError, RunFailed

NOBODY = machine.Processes(None, "not asked for")


@pytest.fixture(scope="module")
def server():
    with bench_server.running() as (url, child):
        yield url, child


def side(url, *, name="one", content=(b'{"inputs": "a"}',), processes=NOBODY, path=""):
    made = bodies.Bodies(list(content), bodies.JSON, path, "made by hand")
    return sides.side(name, url, made, processes, model="tiny", option="--against")


def measured(*asked, **how):
    wanted = Load(**{"concurrent": 8, "seconds": 0.3, "rounds": 1, "warm_s": 0.1, **how})
    seen = turns.run(asked, wanted)
    return summary.result("tiny", "text-classification", asked, wanted, seen, 0.0)


def test_a_closed_loop_measures_the_delay_that_is_there(server):
    result, _ = measured(side(f"{server[0]}/delay/20"), seconds=1)
    (one,) = result["sides"]
    assert 20 <= one["latency_ms"]["p50"] < 80
    # 8 clients, each of which gets an answer after 20 ms and something: never more than 400 a second.
    assert 80 < one["requests_per_s"] <= 400
    assert one["requests"] == one["ok"]
    assert one["errors"] == {}
    assert not result["failed"]


def test_requests_are_counted_as_the_server_counts_them(server):
    url = f"{server[0]}/delay/2"
    result, _ = measured(side(url), seconds=0.3)
    there = sum(path == "/delay/2" for path, _ in httpx.get(f"{server[0]}/seen").json())
    # What warmed the server up is no part of the figures.
    assert 0 < result["sides"][0]["requests"] < there


def test_errors_are_counted_by_status_and_fail_the_run(server):
    result, _ = measured(side(f"{server[0]}/fail/10"))
    (one,) = result["sides"]
    assert set(one["errors"]) == {"500"}
    assert one["errors"]["500"] == pytest.approx(one["requests"] / 10, abs=2)
    assert result["failed"]
    assert any("requests failed" in text and "500" in text for text in result["warnings"])
    rare, _ = measured(side(f"{server[0]}/fail/100000"))
    assert not rare["failed"]


def test_a_connection_that_is_closed_is_an_error_and_the_client_comes_back(server):
    result, _ = measured(side(f"{server[0]}/close"), concurrent=2, seconds=0.3)
    (one,) = result["sides"]
    assert one["ok"] == 0
    assert set(one["errors"]) <= {"closed without an answer", "closed in the middle"}
    assert 2 <= one["requests"] < 100  # with pauses, not as fast as it goes
    assert one["latency_ms"] == {}


def test_a_late_answer_is_an_error(server):
    result, _ = measured(side(f"{server[0]}/delay/2000"), concurrent=2, seconds=0.2, timeout_s=0.3)
    assert set(result["sides"][0]["errors"]) == {"no answer within 0.3 s"}


def test_a_stall_is_seen_by_the_open_loop_and_hidden_by_one_that_waits(server):
    """The server stands still for a second in the middle of a turn of 1.5: a third of what is due then waits long."""
    how = {"seconds": 1.5, "warm_s": 0.2}
    seen, _ = measured(side(f"{server[0]}/stall/0.9"), rate=60.0, **how)
    # The same with one client that waits for its answer, as a naive generator does: one slow request of hundreds.
    hidden, _ = measured(side(f"{server[0]}/stall/0.8"), concurrent=1, **how)
    assert seen["sides"][0]["latency_ms"]["p99"] > 700
    assert seen["sides"][0]["latency_ms"]["p95"] > 500
    assert hidden["sides"][0]["latency_ms"]["max"] > 900
    assert hidden["sides"][0]["latency_ms"]["p99"] < 300
    # Nobody waited for anybody: what was due was sent, and in time.
    assert seen["sides"][0]["sent_late_ms"]["p50"] < 100
    assert seen["sides"][0]["ok"] == len(load.arrivals(60, 1.5, 0))


def test_arrivals_are_a_poisson_process_and_the_same_each_time():
    due = load.arrivals(200, 50, seed=1)
    assert due == load.arrivals(200, 50, seed=1) != load.arrivals(200, 50, seed=2)
    assert due == sorted(due)
    assert len(due) == pytest.approx(10_000, abs=400)  # four standard deviations
    gaps = [after - before for before, after in zip(due, due[1:])]  # noqa: RUF007
    mean = sum(gaps) / len(gaps)
    # Exponential: as wide as it is long.
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)


def test_both_sides_get_the_same_in_turn_and_who_is_first_changes(server):
    content = [json.dumps({"inputs": f"row {number}"}).encode() for number in range(1000)]
    asked = [side(f"{server[0]}/delay/1?{name}", name=name, content=content) for name in ("left", "right")]
    before = len(httpx.get(f"{server[0]}/seen").json())
    result, _ = measured(*asked, concurrent=1, seconds=0.2, rounds=3)
    seen = httpx.get(f"{server[0]}/seen").json()[before:]
    turned: list[tuple[str, list[str]]] = []
    for path, body in seen:
        name = path.partition("?")[2]
        if not turned or turned[-1][0] != name:
            turned.append((name, []))
        turned[-1][1].append(json.loads(body)["inputs"])
    # Warm-up of both; then the rounds. Where one side ends a round and begins the next, its turns follow each other.
    assert [name for name, _ in turned] == ["left", "right", "left", "right", "left", "right"]
    left, right = ([bodies for name, bodies in turned if name == which] for which in ("left", "right"))
    # Every round of a side begins at another place of the list, and at the same one for both.
    starts = [0, 333, 666]
    assert left[1][0] == right[1][0] == "row 0"
    for turn in (left[1:], right[1:]):
        rows = [row for one in turn for row in one]
        assert [f"row {place}" for place in starts] == [rows[rows.index(f"row {place}")] for place in starts]
        for start in starts:
            at = rows.index(f"row {start}")
            assert rows[at : at + 5] == [f"row {start + step}" for step in range(5)]
    assert [one["round"] for one in result["sides"][0]["rounds"]] == [0, 1, 2]


def test_ratios_say_what_is_between_two_servers(server):
    result, _ = measured(
        side(f"{server[0]}/delay/80", name="slow"), side(f"{server[0]}/delay/40", name="quick"), rounds=3, seconds=0.6
    )
    found = {one["measure"]: one for one in result["ratios"]}
    assert found["latency_p50"]["ratio"] == pytest.approx(2, rel=0.2)
    assert found["requests_per_s"]["ratio"] == pytest.approx(0.5, rel=0.2)
    assert found["requests_per_s"]["low"] <= found["requests_per_s"]["ratio"] <= found["requests_per_s"]["high"]
    assert (found["latency_p50"]["better"], found["requests_per_s"]["better"]) == ("less", "more")
    assert "cpu_ms" not in found  # it was not measured
    # Two rounds are too few for an interval.
    few, _ = measured(side(f"{server[0]}/delay/1"), side(f"{server[0]}/delay/1", name="b"), rounds=2, seconds=0.1)
    assert all(one["low"] is None for one in few["ratios"])


def test_cpu_time_is_that_of_the_servers_processes(server):
    url, child = server
    found = machine.behind(f"{url}/work/5", None, name="it")
    assert found.listed is not None
    assert [process.pid for process in found.listed()] == [child.pid]
    result, _ = measured(side(f"{url}/work/5", processes=found), concurrent=2, seconds=1)
    (one,) = result["sides"]
    assert 4.5 <= one["cpu_ms_per_request"] < 25
    assert list(one["cpu_ms_by_part"]) == ["bench_server.py"]
    assert sum(one["cpu_ms_by_part"].values()) == pytest.approx(one["cpu_ms_per_request"])
    # The generator is light, and says how light.
    assert 0 < one["generator"]["cpu_ms_per_request"] < 3


def test_a_programs_tree_is_taken_from_its_top(tmp_path):
    """As of uvicorn with workers: a parent that does not listen, a child that does, another that computes."""
    number = ports.pick(1)[0]
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {bench_server.__file__!r}, '{number}'])\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while (found := machine.behind(f"http://localhost:{number}", None, name="it")).listed is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = {parent.pid, *(child.pid for child in psutil.Process(parent.pid).children())}
        assert len(family) == 3
        assert {process.pid for process in found.listed()} == family
    finally:
        for child in psutil.Process(parent.pid).children():
            child.kill()
        parent.kill()
        parent.wait()


def test_what_cannot_be_measured_is_said():
    assert "another machine" in machine.behind("http://192.0.2.7:80/x", None, name="it").about
    assert machine.behind("http://192.0.2.7:80/x", None, name="it").listed is None
    assert "--pid" in machine.behind(f"http://127.0.0.1:{ports.pick(1)[0]}", None, name="it").about
    with pytest.raises(InputError, match="--pid: 99999999 is no process"):
        machine.behind("http://127.0.0.1:1", 99_999_999, name="it")
    mine = machine.behind("http://127.0.0.1:1", os.getpid(), name="it")
    assert os.getpid() not in mine.seconds()  # the generator is no part of what it measures


def streamed(url, count=1, **asked):
    body = json.dumps({"prompt": "a", "max_tokens": 10, "gap_ms": 20, **asked}).encode()
    return measured(side(url, content=[body], path="/v1/completions"), concurrent=count, seconds=0.1)[0]


def test_tokens_of_a_stream_are_the_servers_count_and_times_those_of_its_events(server):
    result = streamed(server[0], count=4)
    (one,) = result["sides"]
    assert one["tokens"] == 20 * one["ok"]  # two tokens an event
    assert one["tokens_counted_by"] == "server"
    # The first event has no text: the first token is the second event, 20 ms later.
    assert 20 <= one["ttft_ms"]["p50"] < 150
    assert 19 <= one["gap_ms"]["p50"] < 100
    assert one["latency_ms"]["p50"] >= 200
    assert one["tokens_per_s"] == pytest.approx(20 * one["requests_per_s"], rel=0.01)


def test_without_usage_events_are_counted(server):
    (one,) = (result := streamed(server[0], fault="no usage"))["sides"]
    assert one["tokens"] == 10 * one["ok"]
    assert one["tokens_counted_by"] == "events"
    assert any("usage" in text for text in result["warnings"])


@pytest.mark.parametrize(("fault", "said"), [("cut", "a stream without its end"), ("error", "an error in the stream")])
def test_a_stream_that_breaks_is_an_error(server, fault, said):
    (one,) = streamed(server[0], fault=fault)["sides"]
    assert one["errors"] == {said: one["requests"]}
    assert one["tokens"] == 0


def test_a_stream_cut_anywhere_reads_the_same():
    data = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n: note\n'
    data += b'data: {"choices":[{"delta":{"content":"b"}}]}\r\n\r\n'
    data += b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]'
    for cut in range(1, len(data)):
        shot = Shot(0, 1.0)
        shot.pieces, shot.done = [(2.0, data[:cut]), (3.0, data[cut:])], 4.0
        read = stream.read(shot)
        assert (read.text, read.tokens, read.counted, read.fault) == ("ab", 2, True, "")
        assert read.first_s in (1.0, 2.0)


def test_the_first_answers_are_compared(server):
    url = server[0]
    same = [side(f"{url}/label/0.5"), side(f"{url}/label/0.501", name="b")]
    assert sides.check(same, 5) == []
    (remark,) = sides.check([same[0], side(f"{url}/label/0.7", name="b")], 5)
    assert "answers differ" in remark
    with pytest.raises(RunFailed, match=r"one: .*/fail/1: the first request failed: 500: .*as was asked for"):
        sides.check([side(f"{url}/fail/1")], 5)
    with pytest.raises(InputError, match="no connection"):
        sides.check([side(f"http://127.0.0.1:{ports.pick(1)[0]}/x")], 5)


def test_a_model_is_called_what_its_server_calls_it(server):
    assert sides.model_at(f"{server[0]}/v1/chat/completions", ("other",)) == "tiny"
    with pytest.raises(InputError, match=r"--against: .*no list of models"):
        sides.model_at(f"{server[0]}/delay/1", ("other",))
    for wrong in ("127.0.0.1:80", "ftp://a", "http://a:port"):
        with pytest.raises(InputError, match="--against"):
            Address.of(wrong, name="--against")


def test_a_request_is_what_it_should_be():
    address = Address.of("http://[::1]:81/a?b=1", name="url")
    head, _, body = address.request(b"{}", "application/json", {"authorization": "Bearer sk"}).partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.decode().split("\r\n") == [
        "POST /a?b=1 HTTP/1.1",
        "host: [::1]:81",
        "content-type: application/json",
        "content-length: 2",
        "authorization: Bearer sk",
    ]


def test_requests_of_rows():
    texts = bodies.of_rows("text-classification", [{"text": "a", "label": 1}], "x", tokens=8)
    assert (json.loads(texts.content[0]), texts.path) == ({"inputs": "a"}, "")
    pairs = bodies.of_rows("text-classification", [{"text": "a", "text_pair": "b", "label": 1}], "x", tokens=8)
    assert json.loads(pairs.content[0]) == {"inputs": {"text": "a", "text_pair": "b"}}
    tables = bodies.of_rows("tabular-classification", [{"f": 1.5, "g": None, "label": 0}], "x", tokens=8)
    assert json.loads(tables.content[0]) == {"table": {"f": [1.5], "g": [None]}}
    pictures = bodies.of_rows("image-classification", [{"image": b"PNG", "label": 0}], "x", tokens=8)
    assert (pictures.content, pictures.content_type) == ([b"PNG"], bodies.BYTES)
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    chat = bodies.of_rows("text-generation", [{"messages": said}], "x", tokens=8)
    asked = json.loads(bodies.named(chat.content[0], "tiny"))
    assert chat.path == "/v1/chat/completions"
    assert asked["messages"] == said[:1]
    assert (asked["model"], asked["max_tokens"], asked["stream_options"]) == ("tiny", 8, {"include_usage": True})
    assert bodies.of_rows("text-generation", [{"prompt": "a"}], "x", tokens=8).path == "/v1/completions"


def test_made_up_requests_are_the_same_each_time_and_differ_among_themselves():
    for task in ("text-classification", "image-classification", "text-generation"):
        made = bodies.made_up(task, tokens=4, seed=3)
        assert made == bodies.made_up(task, tokens=4, seed=3)
        assert len(set(made.content)) > 0.9 * len(made.content)
    with pytest.raises(InputError, match=r"data\.train: missing"):
        bodies.made_up("tabular-classification", tokens=4, seed=3)
    assert bodies.sampled(2000, 1) == bodies.sampled(2000, 1)
    assert len(set(bodies.sampled(2000, 1))) == bodies.COUNT
    assert sorted(bodies.sampled(5, 1)) == [0, 1, 2, 3, 4]


def test_a_file_of_requests(tmp_path):
    file = tmp_path / "asks.jsonl"
    file.write_text('{"inputs": "a"}\n\n{"inputs": "b", "parameters": {"top_k": 1}}\n')
    assert bodies.of_file(file, "text-classification").content[1] == b'{"inputs":"b","parameters":{"top_k":1}}'
    file.write_text('{"messages": [], "max_tokens": 3}\n')
    assert json.loads(bodies.of_file(file, "text-generation").content[0])["stream"] is True
    for text, said in [
        ("", "empty"),
        ('{"a": 1}\n{', "line 2: no JSON"),
        ("[1]", "line 1: .* is no object"),
        ('{"messages": []}\n{"prompt": "a"}', "each line needs"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=rf"--requests-file: .*asks\.jsonl.*{said}"):
            bodies.of_file(file, "text-generation")
    with pytest.raises(InputError, match="cannot be read"):
        bodies.of_file(tmp_path / "none", "text-generation")


def test_results_and_page(server, tmp_path):
    url, _ = server
    name = "<script>alert(1)</script>$x$"
    result, by_side = measured(
        side(f"{url}/delay/5", name=name, processes=machine.behind(url, None, name="it")),
        side(f"{url}/delay/5", name="b", processes=machine.behind(url, None, name="it")),
        rounds=3,
        seconds=0.2,
    )
    result["requests"] = "1 made by hand"
    page = report.write(result, by_side, tmp_path / "out")
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "results.json"]
    kept = json.loads((page.parent / "results.json").read_text())
    assert kept == result
    assert kept["format"] == 1
    assert kept["load"] == {
        "loop": "closed",
        "concurrent": 8,
        "seconds": 0.2,
        "rounds": 3,
        "timeout_s": 60.0,
        "seed": 0,
        "different_requests": 1,
    }
    assert set(kept["sides"][0]["latency_ms"]) == {"p50", "p95", "p99", "mean", "max"}
    assert len(kept["sides"][0]["rounds"]) == 3
    html = page.read_text()
    assert "<script" not in html
    assert html.count("<svg") == 4
    assert not re.search(r"(src|href)=\"?http", html)  # it asks for nothing
    labels = [label for label, _, _ in report.rows(result)]
    assert labels[:5] == ["requests/s", "latency p50, ms", "latency p95, ms", "latency p99, ms", "CPU-ms a request"]


def test_more_clients_than_files_are_refused(server):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("no limit here")
    with pytest.raises(InputError, match=rf"--concurrent: {hard}: this user may open {hard} files"):
        turns.run([side(f"{server[0]}/delay/1")], Load(concurrent=hard))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_warnings():
    one = {"name": "a", "requests": 500, "ok": 500, "errors": {}, "processes": "", "cpu_ms_by_part": {}}
    calm = {**one, "generator": {"core_share": 0.2}}
    assert summary.warnings([calm], 0.1) == []
    (busy,) = summary.warnings([{**one, "generator": {"core_share": 0.93}}], 0.1)
    assert "93 % of a core" in busy
    assert "load 99" in summary.warnings([calm], 99.0)[0]
    longer = {**calm, "name": "b", "tokens": 1100, "tokens_counted_by": "server"}
    (text,) = summary.warnings([{**calm, "tokens": 1000}, longer], 0.1)
    assert "2.0 and 2.2 tokens" in text
    edge = {"requests": 1000, "ok": 990}
    assert not summary.failed([edge])
    assert summary.failed([edge, {"requests": 1000, "ok": 989}])


def test_the_command_says_what_is_wrong(tmp_path):
    from test_cluster_cli import shoal

    (tmp_path / "a.yaml").write_text("name: a\ntask: text-classification\nmodel: ./nothing\n")
    file = str(tmp_path / "a.yaml")
    home = tmp_path / "home"
    for words, said in [
        (("--rate", "5", "--concurrent", "3"), "leave out --concurrent or --rate"),
        (("--against", f"http://127.0.0.1:{ports.pick(1)[0]}/x"), "no connection"),
        (("--requests-file", "no.jsonl"), "no.jsonl: cannot be read"),
        ((), "nothing: no such folder"),
    ]:
        done = shoal("bench", "serve", file, *words, home=home)
        assert done.returncode == 2, done.stderr
        assert re.search(said, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
    assert not (home / "bench").exists()
    assert Path(file).is_file()
