"""The dashboards as Grafana gets them, and every expression in them."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from test_cluster_cli import shoal

from cluster.errors import NotFound
from cluster.monitoring import names
from cluster.monitoring.dashboards import PAGES, dashboard
from cluster.monitoring.live import plain
from cluster.monitoring.panels import Panel, Query

QUERIES = [(page, panel, query) for page in PAGES.values() for panel in page.panels for query in panel.queries]


def metrics_of(expr: str) -> set[str]:
    """The metrics that an expression asks for, by the parser's word."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(str(node.name))
        for field in ("expr", "lhs", "rhs", "vector_selector", "args"):
            child = getattr(node, field, None)
            for one in child if isinstance(child, list) else [child]:
                if isinstance(one, promql_parser.Expr):
                    walk(one)

    walk(promql_parser.parse(plain(expr, "reviews")))
    return found


def source(package: str, pattern: str) -> str:
    """The text of an installed package's modules, which are not imported for it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return "\n".join(file.read_text() for file in Path(spec.submodule_search_locations[0]).glob(pattern))


@pytest.mark.parametrize("name", PAGES)
def test_grafana_can_read_it(name: str):
    built = dashboard(name, datasource="Prometheus")
    assert built["uid"] == {"overview": "shoal-overview", "model": "shoal-model"}[name]
    assert built["schemaVersion"] >= 36
    numbers = [panel["id"] for panel in built["panels"]]
    assert len(set(numbers)) == len(numbers)
    places = [panel["gridPos"] for panel in built["panels"]]
    for a, b in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for panel in built["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"].endswith(".")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["legendFormat"]
            assert target["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"]: variable for variable in built["templating"]["list"]}
    assert list(variables) == (["datasource", "model"] if name == "model" else ["datasource"])
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"


def test_it_is_the_same_every_time():
    for name in PAGES:
        assert dashboard(name, datasource="P") == dashboard(name, datasource="P")
    assert dashboard("model", datasource="P") != dashboard("model", datasource="Q")


@pytest.mark.parametrize(("page", "panel", "query"), QUERIES, ids=lambda value: getattr(value, "title", ""))
def test_every_expression_parses_and_fits_its_legend(page: Any, panel: Panel, query: Query):
    promql_parser.parse(plain(query.expr, "reviews"))
    assert ("$model" in query.expr) == page.models
    # A sum keeps only the labels it is made by: a legend that names another would be empty.
    if (kept := re.match(r"(?:sum|max|histogram_quantile\([^,]*, sum) by \(([^)]*)\)", query.expr)) is not None:
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= set(kept[1].replace(" ", "").split(","))


def test_a_wrong_expression_would_be_noticed():
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (model (rate(x[1m]))")
    assert metrics_of("histogram_quantile(0.5, sum by (le) (rate(a_bucket[1m]))) + on () b{c='d'} * 2") == {
        "a_bucket",
        "b",
    }


def test_what_cannot_be_shown_on_cpus_without_an_llm_is_marked():
    needs = {
        kind: sum(panel.needs == kind for page in PAGES.values() for panel in page.panels)
        for kind in ("", "gpu", "llm", "rollout", "shared", "keys")
    }
    assert needs == {"": 41, "gpu": 2, "llm": 7, "rollout": 5, "shared": 2, "keys": 1}
    for _, panel, query in QUERIES:
        asked = " ".join(metrics_of(query.expr))
        assert ("ray_vllm_" in asked) == (panel.needs == "llm"), panel.title
        assert ("rollout" in asked or "roll_backs" in asked) == (panel.needs == "rollout"), panel.title
        assert ("model_load_" in asked or "let_go" in asked) == (panel.needs == "shared"), panel.title
        assert ("refused" in asked) == (panel.needs == "keys"), panel.title
        assert ("gpus" in asked or "gram" in asked) == (panel.needs == "gpu"), panel.title


def test_metrics_of_ours_are_all_shown_and_are_named_nowhere_else():
    ours = {metric.series for metric in names.METRICS}
    asked = {name for _, _, query in QUERIES for name in metrics_of(query.expr) if name.startswith("ray_shoal_")}
    assert asked - ours == {"ray_shoal_batch_size_count"}
    assert ours <= asked
    root = Path(names.__file__).parents[2]
    for folder in ("cluster", "serve", "train", "tune"):
        for file in (root / folder).rglob("*.py"):
            if file.name != "names.py":
                assert "shoal_request" not in file.read_text(), file
                assert "shoal_training" not in file.read_text(), file


def test_metrics_have_names_that_prometheus_and_ray_take():
    assert len({metric.name for metric in names.METRICS}) == len(names.METRICS)
    for metric in names.METRICS:
        assert re.fullmatch(r"shoal_[a-z_]+", metric.name)
        assert (metric.kind == "histogram") == bool(metric.boundaries)
        assert list(metric.boundaries) == sorted(set(metric.boundaries))
    assert names.REQUESTS.series == "ray_shoal_requests_total"
    assert names.LATENCY.series == "ray_shoal_request_seconds_bucket"
    assert names.IN_FLIGHT.series == "ray_shoal_requests_in_flight"


def test_vllm_has_the_metrics_that_are_asked_for():
    """Contract: vLLM's names, with `:` as `_` and Ray's prefix and suffix. Read in its source: importing it is slow."""
    text = source("vllm", "v1/metrics/loggers.py")
    named = {f"ray_{name.replace(':', '_')}" for name in re.findall(r'name="(vllm:\w+)"', text)}
    assert len(named) > 30
    asked = {name for _, _, query in QUERIES for name in metrics_of(query.expr) if name.startswith("ray_vllm_")}
    assert len(asked) >= 9
    for name in asked:
        assert re.sub("_(bucket|total)$", "", name) in named, name
    assert 'labelnames = ["model_name", "engine"]' in text


def test_ray_has_the_metrics_of_gpus_that_are_asked_for():
    """Contract: they cannot be scraped on a machine without a GPU."""
    text = source("ray", "dashboard/modules/reporter/reporter_agent.py")
    for name in ("node_gpus_utilization", "node_gram_used", "node_gram_available"):
        assert f'"{name}"' in text
    assert '"GpuIndex"' in text


def test_the_verb_prints_what_is_pushed(tmp_path: Path):
    (tmp_path / "cluster.yaml").write_text("grafana: {datasource: Mimir}\n")
    done = shoal("dashboards", "show", "model", home=tmp_path)
    assert json.loads(done.stdout) == dashboard("model", datasource="Mimir")
    done = shoal("dashboards", "show", "modle", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "modle: no such dashboard; these are: overview, model" in done.stderr
    with pytest.raises(NotFound):
        dashboard("x", datasource="y")
