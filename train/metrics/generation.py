"""Metrics of a language model."""

# A metric names its own options, where evaluate's base class takes any.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import evaluate
from datasets import Features, Value

from train.objective import perplexity


class Perplexity(evaluate.Metric):
    """exp of the mean negative log likelihood of a token, over all tokens: 1 is certainty, the vocabulary's size a
    guess. `predictions` are the rows' summed negative log likelihoods in nats, `references` how many tokens each has.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="Jelinek et al., Perplexity, a measure of the difficulty of speech recognition tasks, 1977",
            inputs_description="predictions: summed negative log likelihoods; references: numbers of tokens",
            features=Features({"predictions": Value("float64"), "references": Value("int64")}),
        )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        pass

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return {"perplexity": perplexity(sum(predictions) / sum(references))}
