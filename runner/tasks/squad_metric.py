"""SQuAD v1.1's F1 and exact match as an `evaluate.Metric` that needs no network (Rajpurkar et al. 2016, section 6.1).

Scores are 0 to 100, as the official script's; everything else in this project uses fractions.
"""

import re
import string
from collections import Counter

import datasets
import evaluate

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both are the same after `normalize`, else 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bags of words, in [0, 1]."""
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


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
        total = {"exact_match": 0.0, "f1": 0.0}
        for reference in references:
            text = given.get(reference["id"], "")  # an unanswered question counts as wrong, as in the official script
            answers = reference["answers"]["text"]
            total["exact_match"] += max(exact_match(text, answer) for answer in answers)
            total["f1"] += max(f1(text, answer) for answer in answers)
        return {name: 100 * value / len(references) for name, value in total.items()}
