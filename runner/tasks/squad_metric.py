"""SQuAD v1.1's F1 and exact match as an `evaluate.Metric` that needs no network.

Scores are 0 to 100, as the official script's; everything else in this project uses fractions.
"""

import datasets
import evaluate

from runner.tasks.squad_scores import mean_of_best


class SquadMetric(evaluate.Metric):
    """Mean over questions of the best score over each question's answers, 0 to 100."""

    def _info(self) -> evaluate.MetricInfo:
        answers = datasets.Features({"text": datasets.List(datasets.Value("string"))})
        return evaluate.MetricInfo(
            description="F1 and exact match of SQuAD v1.1",
            citation="Rajpurkar et al. 2016, arXiv 1606.05250",
            features=datasets.Features(
                {
                    "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
                    "references": {"id": datasets.Value("string"), "answers": answers},
                }
            ),
        )

    def _compute(self, predictions: list[dict], references: list[dict]) -> dict[str, float]:
        given = {p["id"]: p["prediction_text"] for p in predictions}
        # An unanswered question counts as wrong, as in the official script.
        return mean_of_best((given.get(r["id"], ""), r["answers"]["text"]) for r in references)
