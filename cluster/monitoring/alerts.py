"""The two alerts that matter whatever is served or trained, as a rule file for Prometheus."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.monitoring.names import OTHER, REQUESTS, TRAINING_HEARD, TRAINING_RUNNING

FAILED_SHARE = 0.05
LEAST_REQUESTS = 20  # in 5 minutes: one failure of three is no trend
SILENT_S = 600
USUAL = 5  # times a run's own pause between two of its messages, so that slow steps and long validations are no alarm


def rules() -> dict[str, Any]:
    """The rule file, as plain data.

    ModelFails counts 429 as well: that is what the gateway says where every replica is busy, and where none is up.
    """
    requests, heard = REQUESTS.series, TRAINING_HEARD.series
    of_models = f'model!="{OTHER}"'
    all_of_it = f"sum by (model) (rate({requests}{{{of_models}}}[5m]))"
    failed = f'sum by (model) (rate({requests}{{{of_models}, code=~"5..|429"}}[5m]))'
    enough = f"sum by (model) (increase({requests}{{{of_models}}}[5m])) >= {LEAST_REQUESTS}"
    silent = f"max by (model, run) (time() - {heard} and {TRAINING_RUNNING.series} == 1)"
    # The mean pause so far. 0 / 0 before the second message is NaN, which excuses nothing.
    pause = f"(max_over_time({heard}[6h]) - min_over_time({heard}[6h])) / changes({heard}[6h])"
    return {
        "groups": [
            {
                "name": "shoal",
                "rules": [
                    {
                        "alert": "ModelFails",
                        "expr": f"{failed} / {all_of_it} > {FAILED_SHARE} and {enough}",
                        "for": "5m",
                        "labels": {"severity": "page"},
                        "annotations": {
                            "summary": "{{ $labels.model }}: {{ $value | humanizePercentage }} of requests fail",
                            "description": "Answered 5xx or 429 over 5 minutes. `shoal status` shows its replicas, "
                            "`shoal logs {{ $labels.model }}` why they fail; 429 alone: raise serve.max_replicas.",
                        },
                    },
                    {
                        "alert": "TrainingStalls",
                        "expr": f"{silent} > {SILENT_S} unless {silent} < {USUAL} * max by (model, run) ({pause})",
                        "for": "1m",
                        "labels": {"severity": "ticket"},
                        "annotations": {
                            "summary": "{{ $labels.model }}: no step for {{ $value | humanizeDuration }}",
                            "description": "Run {{ $labels.run }} is under way and has gone on by no step for 10 "
                            "minutes and 5 times its usual pause. `shoal logs {{ $labels.model }}` says more; ended "
                            "and run again, it goes on from its last checkpoint.",
                        },
                    },
                ],
            }
        ]
    }


def text() -> str:
    """The rule file."""
    return yaml.safe_dump(rules(), sort_keys=False, width=110)
