"""The alerts, by Prometheus' own test of rules: each fires when it should, and only then."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cluster_cli import shoal

from cluster.monitoring import alerts
from cluster.monitoring.names import REQUESTS, TRAINING_HEARD, TRAINING_RUNNING

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on PATH; apt-get install prometheus brings it"
)


def promtool(folder: Path, rules: str, *tests: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yml").write_text(rules)
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": list(tests)}
    (folder / "tests.yml").write_text(yaml.safe_dump(content))
    return subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True, check=False
    )


def requests(model: str, code: str, values: str) -> dict[str, str]:
    return {"series": f'{REQUESTS.series}{{model="{model}", code="{code}", WorkerId="w"}}', "values": values}


def at(minute: int, alert: str, *fired: tuple[dict[str, str], str]) -> dict[str, Any]:
    """At that minute exactly these alerts fire: labels, and how the summary begins."""
    expected = []
    for labels, summary in fired:
        rule = next(rule for rule in alerts.rules()["groups"][0]["rules"] if rule["alert"] == alert)
        described = rule["annotations"]["description"]
        for key, value in labels.items():
            described = described.replace(f"{{{{ $labels.{key} }}}}", value)
        annotations = {"summary": summary, "description": described}
        expected.append({"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": annotations})
    return {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}


FAILS = {
    "interval": "1m",
    "input_series": [
        # One in ten fails from minute 10 on: a replica that dies; and one that is too small for its load.
        requests("reviews", "200", "0+100x9 900+90x40"),
        requests("reviews", "500", "0+0x9 0+10x40"),
        requests("busy", "200", "0+90x49"),
        requests("busy", "429", "0+10x49"),
        # One in fifty; a client's own faults; one failure of three, ten times an hour; a stranger asking for no model.
        requests("fine", "200", "0+98x49"),
        requests("fine", "500", "0+2x49"),
        requests("asked-wrongly", "400", "0+100x49"),
        requests("rare", "200", "0+1x49"),
        requests("rare", "500", "0+1x49"),
        requests("_other", "500", "0+100x49"),
    ],
    "alert_rule_test": [
        at(4, "ModelFails"),
        at(12, "ModelFails", ({"model": "busy"}, "busy: 10% of requests fail")),
        at(
            30,
            "ModelFails",
            ({"model": "busy"}, "busy: 10% of requests fail"),
            ({"model": "reviews"}, "reviews: 10% of requests fail"),
        ),
    ],
}


def heard(model: str, run: str, values: str) -> list[dict[str, str]]:
    """A run that is under way and told of steps at these seconds."""
    labels = f'{{model="{model}", run="{run}", WorkerId="w"}}'
    return [
        {"series": f"{TRAINING_HEARD.series}{labels}", "values": values},
        {"series": f"{TRAINING_RUNNING.series}{labels}", "values": "1x90"},
    ]


STALLS = {
    "interval": "1m",
    "input_series": [
        # A step a minute, for ever; until minute 20; until minute 20, when it ended; never one.
        *heard("good", "a", "0+60x90"),
        *heard("stuck", "b", "0+60x20 1200x70"),
        heard("done", "c", "0+60x20 1200x70")[0],
        {
            "series": f'{TRAINING_RUNNING.series}{{model="done", run="c", WorkerId="w"}}',
            "values": "1x20 0x70",
        },
        *heard("silent", "d", "0x90"),
        # One message in 8 minutes is its pace, and it pauses for 24: not yet alarming.
        *heard("slow", "e", "0x7 480x7 960x7 1440x24 2880x40"),
        # Its driver was killed: nobody tells of it any more.
        *[{**one, "values": one["values"].split("x")[0] + "x20"} for one in heard("killed", "f", "0+60x20")],
    ],
    "alert_rule_test": [
        at(9, "TrainingStalls"),
        at(15, "TrainingStalls", ({"model": "silent", "run": "d"}, "silent: no step for 15m 0s")),
        at(28, "TrainingStalls", ({"model": "silent", "run": "d"}, "silent: no step for 28m 0s")),
        at(
            40,
            "TrainingStalls",
            ({"model": "silent", "run": "d"}, "silent: no step for 40m 0s"),
            ({"model": "stuck", "run": "b"}, "stuck: no step for 20m 0s"),
        ),
    ],
}


@pytest.mark.parametrize("test", [FAILS, STALLS], ids=["ModelFails", "TrainingStalls"])
def test_it_fires_when_it_should_and_only_then(tmp_path: Path, test: dict[str, Any]):
    done = promtool(tmp_path, alerts.text(), test)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mend", "test"),
    [
        (("> 0.05", "> 0.5"), FAILS),
        (("|429", ""), FAILS),
        ((">= 20", ">= 5"), FAILS),
        (('model!="_other"', 'model!="x"'), FAILS),
        (("> 600", "> 6000"), STALLS),
        (("== 1", ">= 0"), STALLS),
        (("< 5 *", "< 0 *"), STALLS),
    ],
)
def test_a_wrong_rule_would_be_noticed(tmp_path: Path, mend: tuple[str, str], test: dict[str, Any]):
    def edited(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: edited(value) for key, value in node.items()}
        if isinstance(node, list):
            return [edited(one) for one in node]
        return node.replace(*mend) if isinstance(node, str) else node

    wrong = yaml.safe_dump(edited(alerts.rules()))
    assert yaml.safe_load(wrong) != alerts.rules()
    done = promtool(tmp_path, wrong, test)
    assert done.returncode == 1, done.stdout


def test_the_verb_prints_rules_that_prometheus_takes(tmp_path: Path):
    done = shoal("monitor", "rules", home=tmp_path)
    (tmp_path / "rules.yml").write_text(done.stdout)
    checked = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", str(tmp_path / "rules.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, "2 rules found" in checked.stdout) == (0, True), checked
