"""Every panel on a real Prometheus that scrapes a real cluster: two models that are asked, vLLM behind one of them,
and a run that trains beside them."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import llm_served_tiny
import pytest
import serve_tiny
import train_tiny
from test_cluster_monitoring_dashboards import QUERIES

from cluster import connect, embedded
from cluster.monitoring import names, server
from cluster.monitoring.dashboards import PAGES
from cluster.monitoring.live import plain, seen
from cluster.registry import Registry
from cluster.settings import Prometheus
from cluster.spec import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not on PATH; apt-get install prometheus brings it"
    ),
]
NAME, CHAT = "reviews", "chat"
WAIT_S = 90  # Ray tells every 10 s, Prometheus looks every 10 s, and a rate takes two samples


class Asker:
    """Asks a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expr: str) -> float:
        """Of an expression that gives one series; NaN where it gives none."""
        found = self("query", query=expr)["result"]
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else math.nan


def until(what: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    """What it gives, once that is true; what it gave at last otherwise."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(2)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus that was there first, a model that is asked 20 times a second, and its training, all at once."""
    from serve import run
    from train.run import train

    folder = tmp_path_factory.mktemp("live")
    home = folder / "home"
    home.mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    prometheus, _ = server.start(home, Prometheus())
    stop = threading.Event()
    session = ExitStack()
    try:
        cluster = session.enter_context(connect.session(keep=True))
        bert = serve_tiny.bert(folder / "bert")
        text = f"name: {NAME}\ntask: text-classification\nmodel: {bert}\nserve: {{num_cpus: 0.5, max_replicas: 2}}"
        endpoint = run.deploy(parse(text), model_uri=f"models:/{NAME}/1", folder=bert, cluster=cluster)
        since = time.time()
        sent = {"200": 0, "400": 0, "404": 0}

        def load() -> None:
            with httpx.Client() as client:
                while not stop.wait(0.05):
                    wrong, unknown = sum(sent.values()) % 10 == 3, sum(sent.values()) % 10 == 7
                    url = f"{cluster.http_url}/models/nobody-{sum(sent.values())}" if unknown else endpoint.url
                    answer = client.post(url, json={"inputs": ["good", "bad"]} if not wrong else {"input": 1})
                    sent[str(answer.status_code)] += 1

        tokens = {"prompt": 0, "completion": 0}

        def ask_chat() -> None:
            """Some tokens of the language model; a long prompt, so that its keys and values are found again."""
            body = {"model": CHAT, "prompt": "hello there " * 30, "max_tokens": 16, "ignore_eos": True}
            answer = httpx.post(f"{cluster.http_url}/v1/completions", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            for kind in tokens:
                tokens[kind] += answer.json()["usage"][f"{kind}_tokens"]

        loader = threading.Thread(target=load)
        loader.start()
        spec = train_tiny.spec(train_tiny.bert(folder / "model"), name=NAME, epochs=6, batch_size=8)

        llama = llm_served_tiny.llama(folder / "llama")
        keys = "num_cpus: 1, llm: {dtype: float32, kv_cache_gb: 0.25, max_num_seqs: 4}"
        chat = parse(f"name: {CHAT}\ntask: text-generation\nmodel: {llama}\nserve: {{{keys}}}")
        # vLLM takes longest to start: meanwhile the other model is asked, and learns.
        engine = threading.Thread(
            target=lambda: run.deploy(chat, model_uri=str(llama), folder=llama, cluster=cluster), daemon=True
        )
        engine.start()
        data = train_tiny.text_data(folder / "data", rows=2000, held_out=20)
        trained = train(spec, data, registry=Registry(f"sqlite:///{folder / 'mlflow.db'}"))
        engine.join()
        yield SimpleNamespace(
            home=home,
            cluster=cluster,
            ask=Asker(prometheus.url),
            since=since,
            sent=sent,
            trained=trained,
            prometheus=prometheus,
            chat=ask_chat,
            tokens=tokens,
            quiet=lambda: (stop.set(), loader.join()),
            leave=session.close,
        )
    finally:
        stop.set()
        session.close()
        server.stop(home)
        connect.down()
        patch.undo()


def test_every_panel_has_data(world: Any):
    # A language model's panels with one, the others with the model that batches by itself.
    asked = {"": NAME, "llm": CHAT}
    wanted = {
        (panel.title, plain(query.expr, asked[panel.needs])) for _, panel, query in QUERIES if panel.needs in asked
    }

    def missing() -> list[tuple[str, str]]:
        world.chat()
        return sorted((title, expr) for title, expr in wanted if not seen(world.ask.url, expr, since=world.since))

    assert until(lambda: not missing()), missing()
    panels = [panel for page in PAGES.values() for panel in page.panels]
    live = [panel for panel in panels if panel.needs in asked]
    print(f"panels with live data: {len(live)} of {len(panels)} ({len(live) / len(panels):.0%})")
    # And those that say they need a GPU do, here at least: a panel with data must not be excused.
    for _, panel, query in QUERIES:
        if panel.needs not in asked and not seen(world.ask.url, "ray_node_gpus_available", since=world.since):
            assert not seen(world.ask.url, plain(query.expr, NAME), since=world.since), panel.title


def test_tokens_are_counted_by_the_engine(world: Any):
    def counted(what: str) -> float:
        return world.ask.value(f'sum(ray_vllm_{what}_tokens_total{{model_name="{CHAT}"}})')

    def all_there() -> bool:
        return (counted("prompt"), counted("generation")) == (world.tokens["prompt"], world.tokens["completion"])

    assert min(world.tokens.values()) > 50
    assert until(all_there, 40), (world.tokens, counted("prompt"), counted("generation"))


def test_the_run_was_shown_while_it_trained_and_is_over(world: Any):
    of_run = f'{{model="{NAME}", run="{world.trained.run_id}"}}'

    def over_time(function: str, metric: names.Metric) -> float:
        return world.ask.value(f"{function}_over_time({metric.series}{of_run}[15m])")

    assert over_time("max", names.TRAINING_RUNNING) == 1
    # Its end is told for 20 s, then it is gone from the page.
    assert until(lambda: over_time("last", names.TRAINING_RUNNING) == 0, 30)
    assert over_time("last", names.TRAINING_STEP) == 6 * 250
    assert over_time("last", names.TRAINING_TOTAL) == 6 * 250
    assert 0 < over_time("last", names.VALIDATION_LOSS) < 20


def test_the_menu_of_models_has_the_model(world: Any):
    found = world.ask("series", **{"match[]": f'{{__name__=~"{names.IN_FLIGHT.series}|{names.TRAINING_STEP.series}"}}'})
    assert {one["model"] for one in found} == {NAME, CHAT}


def test_requests_are_counted_to_the_last_one(world: Any):
    world.quiet()
    sent = world.sent
    assert min(sent.values()) > 20

    def counted(model: str, code: str) -> float:
        return world.ask.value(f'sum({names.REQUESTS.series}{{model="{model}", code="{code}"}})')

    def all_there() -> bool:
        inputs = world.ask.value(f"sum({names.INPUTS.series})")
        return (counted(NAME, "200"), counted(NAME, "400"), inputs) == (sent["200"], sent["400"], 2 * sent["200"])

    assert until(all_there, 40), (sent, counted(NAME, "200"), counted(NAME, "400"))
    # Names that are not served are a client's choice: they make one series, not one each. A few are of `deploy`, which
    # asks the gateway until it knows the model.
    assert sent["404"] <= counted(names.OTHER, "404") <= sent["404"] + 20
    assert {one["metric"]["model"] for one in world.ask("query", query=names.REQUESTS.series)["result"]} == {
        NAME,
        CHAT,
        names.OTHER,
    }
    assert world.ask.value(f'sum({names.LATENCY.series}{{model="{NAME}", le="+Inf"}})') == sent["200"] + sent["400"]
    assert world.ask.value(f"sum({names.INPUTS.series})") == 2 * sent["200"]
    assert world.ask.value(f'sum({names.IN_FLIGHT.series}{{model="{NAME}"}})') == 0
    assert server.health(world.prometheus).firing == []


def test_prometheus_follows_the_cluster_through_a_restart(world: Any):
    def targets() -> dict[str, bool]:
        return server.health(world.prometheus).targets

    before = targets()
    assert len(before) == 2
    assert all(before.values())
    world.leave()
    connect.down()
    assert server.running(world.home) == world.prometheus
    assert until(lambda: not targets(), 30) or targets() == {}
    with connect.session():
        state = embedded.read(world.home)
        assert state is not None
        url = f"http://127.0.0.1:{state.metrics_port}/metrics"
        assert url not in before
        assert until(lambda: targets().get(url), 60), targets()
    assert Path(world.home, "prometheus", "data").is_dir()
