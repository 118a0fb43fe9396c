"""The panels of training, which both dashboards have: of all models, or of the one that a page is about."""

from __future__ import annotations

from cluster.monitoring.names import (
    TRAINING_HEARD,
    TRAINING_ROWS,
    TRAINING_RUNNING,
    TRAINING_STEP,
    TRAINING_TOTAL,
)
from cluster.monitoring.panels import Panel, Query, Row


def training(where: str, legend: str, loss: Panel) -> Row:
    """The row, of the series that `where` selects, each called by `legend`; `loss` is the page's own panel of it."""
    return Row(
        "Training",
        (
            Panel(
                "Progress",
                "Steps done of those to do.",
                "percentunit",
                (Query(f"{TRAINING_STEP.series}{where} / {TRAINING_TOTAL.series}{where}", legend),),
                width=6,
                most=1,
            ),
            loss,
            Panel(
                "Rows a second",
                "Trained on, all workers of a run together.",
                "short",
                (Query(f"{TRAINING_ROWS.series}{where}", legend),),
                width=6,
            ),
            Panel(
                "Since the last step",
                "How long a run that is under way has told of no step.",
                "s",
                (Query(f"time() - {TRAINING_HEARD.series}{where} and {TRAINING_RUNNING.series}{where} == 1", legend),),
                width=6,
            ),
        ),
    )
