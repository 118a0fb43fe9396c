"""What is seen of a load, windows of the week, measured starts, and turns at the gateway: each alone."""

import asyncio
import http.server
import json
import threading
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from cluster.errors import InputError
from cluster.scaling import keys
from cluster.spec import parse
from serve.gateway.directory import Directory
from serve.gateway.holding import Load
from serve.scaling.parts import spans
from serve.scaling.prometheus import ask
from serve.scaling.signals import Gateways, Replicas
from serve.scaling.starts import UNKNOWN_S, Starts
from serve.scaling.windows import least

BERLIN = ZoneInfo("Europe/Berlin")
BASE = "name: reviews\ntask: text-classification\nmodel: a/b\nserve: "


def at(*when):
    return datetime(*when, tzinfo=BERLIN).timestamp()


def window(start, end, number=3, **more):
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    return {"days": days, "timezone": "Europe/Berlin", "start": start, "end": end, "min_replicas": number, **more}


def test_a_window_is_open_from_its_start_to_its_end_on_its_days():
    week = [window("08:00", "18:00", days=["tue"]), window("12:00", "13:00", 7)]
    # The 24th of November 2026 is a Tuesday.
    times = {(24, 7, 59): 0, (24, 8, 0): 3, (24, 12, 30): 7, (24, 17, 59): 3, (24, 18, 0): 0, (25, 9, 0): 0}
    assert {when: least(week, at(2026, 11, *when)) for when in times} == times


def test_a_window_over_midnight_belongs_to_the_day_it_starts_on():
    night = [window("22:00", "06:00", days=["fri"])]
    # The 27th is a Friday.
    times = {(27, 5, 0): 0, (27, 22, 0): 3, (28, 5, 59): 3, (28, 6, 0): 0, (28, 23, 0): 0}
    assert {when: least(night, at(2026, 11, *when)) for when in times} == times


def test_summer_time_comes_and_goes_by_the_clock_on_the_wall():
    spring = [window("02:30", "04:00")]
    begin = at(2026, 3, 29, 1, 59)  # the next minute is 03:00
    assert [least(spring, begin + 60 * minutes) for minutes in (0, 1, 60, 61)] == [0, 3, 3, 0]
    autumn = [window("02:00", "02:30")]
    begin = at(2026, 10, 25, 2, 0)  # the hour comes twice
    assert [least(autumn, begin + 60 * minutes) for minutes in (0, 29, 30, 60, 89, 90)] == [3, 3, 0, 3, 3, 0]


def test_the_mean_over_a_while_is_what_counts_not_a_moment():
    gateways = Gateways()

    def tell(gateway, t, **load):
        gateways.note(gateway, {"a": {"ongoing": 0, "held": 0, "arrived": 0, "at": t + 100, **load}}, t)

    tell("x", 0.0, request_s=50.0, arrived=9)
    # 12 seconds of requests in 2: six at a time, though none is there at this moment.
    tell("x", 2.0, request_s=62.0, arrived=39)
    tell("y", 2.0, request_s=0.0, arrived=5, ongoing=4)
    traffic = gateways.traffic("a", 2.0)
    assert (traffic.ongoing, traffic.held, traffic.arrived) == (6 + 4, 0, 30)
    # What a Keeper that is new is told first came at another time.
    tell("y", 3.0, request_s=1.0, arrived=6, held=8)
    assert (gateways.traffic("a", 3.0).held, gateways.traffic("a", 3.0).ongoing) == (8, 6 + 8)
    assert gateways.traffic("a", 7.5).ongoing == 8, "x is not heard of any more"


def test_loads_add_up_to_the_seconds_that_requests_spent(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("serve.gateway.holding.time.monotonic", lambda: now[0])
    load = Load()
    load.come()
    now[0] += 2
    load.come()
    now[0] += 1
    assert load.told()["request_s"] == 2 + 1 + 1
    load.gone()
    load.gone()
    now[0] += 50
    assert load.told()["request_s"] == 4


def test_cores_in_use_are_told_by_what_was_used_between():
    replicas = Replicas()
    for t in range(4):
        replicas.note("r", {"cpu_s": 10 + 0.9 * t}, float(t))
    assert replicas.value("cpu", [("r", {}), ("new", {})], 2) == pytest.approx(0.45)
    assert replicas.value("cpu", [("new", {})], 2) is None
    assert replicas.value("queue_time", [("r", {"queue_p50_s": 0.2}), ("s", {"queue_p50_s": 0.4})], 1) == pytest.approx(
        0.3
    )


def test_gpus_are_told_as_they_are_and_evened_out_and_an_old_number_does_not_stay():
    replicas = Replicas()

    def told(*keys):
        return replicas.value("gpu", [(key, {}) for key in keys], 1)

    replicas.note("r", {"gpu": 0.8}, 0.0)
    replicas.note("s", {"gpu": 0.2}, 0.0)
    assert told("r", "s", "new") == pytest.approx(0.5)
    replicas.note("r", {"gpu": 0.4}, 0.1)  # too near to the one before
    assert told("r") == 0.8
    replicas.note("r", {"gpu": 0.4}, 1.0)
    assert told("r") == pytest.approx(0.6)
    replicas.note("r", {"gpu_trouble": "gone"}, 2.0)
    assert told("r", "new") is None
    replicas.forget("s")
    assert told("s") is None


def test_who_waits_is_told_the_rest_of_the_usual_start():
    starts = Starts()
    assert starts.left(0) == UNKNOWN_S
    for seconds in (8.0, 12.0, 10.0):
        starts.measured(seconds)
    starts.since = 100.0
    assert [starts.left(100.0 + t) for t in (0, 4, 9.9, 13, 500)] == [10, 6, 1, 3, 60]


def test_the_parts_of_a_start_add_up_to_it():
    parts = {"process": 11.0, "begun": 13.0, "imports": 16.0, "weights": 16.5, "warm": 16.6, "ready": 17.0}
    found = spans(parts, 10.0)
    assert (found["scheduling"], found["process"], found["imports"], found["total"]) == (1.0, 2.0, 3.0, 7.0)
    assert sum(found.values()) == pytest.approx(2 * found["total"])
    # In a process that had waited there is none to start.
    waited = spans({**parts, "process": 2.0}, 10.0)
    assert "process" not in waited
    assert (waited["scheduling"], waited["total"]) == (3.0, 7.0)


def test_turns_come_in_order_and_as_many_as_there_is_room_for():
    async def main():
        directory = Directory()
        waiting = directory.waiting
        turns = [waiting.join("a") for _ in range(500)]
        entry = {"application": "a", "address": "/none", "state": "up", "beat": 1, "facts": {"takes": 4}}
        directory.update([{**entry, "id": "one"}])
        assert [turn.done() for turn in turns] == [True] * 4 + [False] * 496
        # Two use theirs; while they are at work, nothing changes; the third's client has gone, and one more may go.
        for _ in range(2):
            waiting.take("a")
            directory.replicas["a"]["one"].ongoing += 1
        waiting.leave("a", turns[2])
        assert sum(turn.done() for turn in turns) == 5
        directory.replicas["a"]["one"].ongoing -= 1
        waiting.admit("a")
        assert sum(turn.done() for turn in turns) == 6
        # A second replica takes as many again, and with two gateways each lets half of them go.
        directory.update([{**entry, "id": "one"}, {**entry, "id": "two"}])
        assert sum(turn.done() for turn in turns) == 10
        waiting.sharing = 2
        directory.update([{**entry, "id": name} for name in ("one", "two", "three")])
        assert sum(turn.done() for turn in turns) == 10, "what is out already is more than half"

    asyncio.run(main())


@pytest.fixture
def prometheus():
    answers = {
        "sum(x)": [{"metric": {}, "value": [0, "42.5"]}],
        "x": [{"value": [0, "1"]}, {"value": [0, "2"]}],
        "": [],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            query = self.path.partition("query=")[2].replace("%28", "(").replace("%29", ")")
            tree = {"status": "success", "data": {"resultType": "vector", "result": answers.get(query, [])}}
            body = json.dumps(tree).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_query_has_one_value_or_a_message(prometheus):
    assert ask(prometheus, "sum(x)") == 42.5
    with pytest.raises(InputError, match="x: has 2 values; write one that has one"):
        ask(prometheus, "x")
    with pytest.raises(InputError, match="has 0 values"):
        ask(prometheus, "nothing")
    with pytest.raises(OSError, match="refused"):
        ask("http://127.0.0.1:9", "sum(x)")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{autoscale: {idle_s: 5}}", "autoscale.idle_s: does nothing while min_replicas and max_replicas are both 1"),
        (
            "{max_replicas: 2, autoscale: {target: 3}}",
            "target: 3: metric ongoing aims at serve.target_ongoing_requests",
        ),
        ("{max_replicas: 2, autoscale: {metric: cpu, target: 70}}", "target: 70: metric cpu wants a share of 1"),
        ("{max_replicas: 2, autoscale: {metric: prometheus}}", "query: metric prometheus needs a query"),
        (
            "{max_replicas: 2, num_cpus: 0, autoscale: {metric: cpu}}",
            "serve.autoscale.metric: cpu: copies have no core",
        ),
        (
            "{max_replicas: 2, autoscale: {metric: gpu}}",
            "serve.autoscale.metric: gpu: copies have no GPU; write serve.num_gpus, or another metric",
        ),
        (
            "{max_replicas: 2, num_gpus: 1, autoscale: {metric: gpu, target: 70}}",
            "target: 70: metric gpu wants a share of 1",
        ),
        (
            "{max_replicas: 2, autoscale: {schedule: [{start: 08:00, end: 18:00, min_replicas: 3}]}}",
            "autoscale.schedule.0.min_replicas: 3 is more than max_replicas: 2",
        ),
        (
            "{max_replicas: 2, autoscale: {schedule: [{start: 08:00, end: 9:99, min_replicas: 1}]}}",
            "serve.autoscale.schedule.0.end: '9:99' does not fit",
        ),
        (
            "{max_replicas: 2, autoscale: {schedule: [{start: 08:00, end: 18:00, timezone: Mars, min_replicas: 1}]}}",
            "serve.autoscale.schedule.0.timezone: 'Mars' is no time zone",
        ),
    ],
)
def test_keys_that_cannot_be_meant_are_refused_with_one_line(keys, message):
    with pytest.raises(InputError) as caught:
        parse(BASE + keys)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_time_without_quotes_is_what_yaml_makes_of_it_and_meant():
    text = BASE + "{max_replicas: 2, autoscale: {schedule: [{start: 08:00, end: 18:30, min_replicas: 2}]}}"
    (found,) = parse(text).serve.autoscale.schedule
    assert (found.start, found.end) == ("08:00", "18:30")


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_gpu_is_a_metric_of_every_task(task):
    text = f"name: a\ntask: {task}\nmodel: a/b\nserve: {{max_replicas: 2, num_gpus: 0.5, autoscale: {{metric: gpu}}}}"
    found = keys(parse(text))
    assert (found["metric"], found["target"]) == ("gpu", 0.7)
