"""The metrics of text classification as an `evaluate.Metric` that needs no network."""

import datasets
import evaluate
import numpy as np

from runner.data.classification_scores import METRICS, OF_NUMBERS


class ClassifyMetric(evaluate.Metric):
    """Metrics of `classify_scores.METRICS`, of which `config_name` names one or, joined by "+", several; fractions, or
    correlations in [-1, 1].

    Raises:
        ValueError: a name is none of them, or metrics of classes and of numbers are mixed.
    """

    def _info(self) -> evaluate.MetricInfo:
        unknown = [name for name in self._names() if name not in METRICS]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(METRICS)}")
        kinds = {name in OF_NUMBERS for name in self._names()}
        if len(kinds) > 1:
            raise ValueError(f"{self.config_name} mixes metrics of classes and of numbers")
        value = datasets.Value("float64" if kinds == {True} else "int64")
        return evaluate.MetricInfo(
            description="Metrics of text classification",
            citation="Wang et al. 2019, arXiv 1804.07461",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _names(self) -> list[str]:
        return (self.config_name or "accuracy").replace("default", "accuracy").split("+")

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {name: METRICS[name](np.asarray(predictions), np.asarray(references)) for name in self._names()}
