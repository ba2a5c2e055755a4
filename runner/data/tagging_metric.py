"""Entity-level F1 as an `evaluate.Metric` that needs no network."""

import datasets
import evaluate

from runner.data.tagging_scores import scores


class TagMetric(evaluate.Metric):
    """precision, recall and f1 of the entities and accuracy of the words, fractions, of lists of tags."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Precision, recall and F1 of entities, as conlleval counts them",
            citation="Tjong Kim Sang and De Meulder 2003",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        return scores(zip(predictions, references, strict=True))
