"""SQuAD v1.1 and v2.0 as `evaluate.Metric`s that need no network, where `evaluate.load("squad")` needs the hub.

They put the scores of `squad_scores` behind the interface of `evaluate`: to score predictions of any origin, and to
compare with published predictions. A run computes the same scores by `Span.score`, which also needs those of each
question. Scores are 0 to 100, as in the official scripts; everything else in this project uses fractions.
"""

import datasets
import evaluate

from runner.data.squad_scores import best_of, best_of_v2, best_threshold, means


class SquadMetric(evaluate.Metric):
    """exact_match and f1, 0 to 100: the mean over questions of the best score over a question's answers."""

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
        return means(best_of(given.get(r["id"], ""), r["answers"]["text"]) for r in references)


class SquadV2Metric(evaluate.Metric):
    """The scores of the official `evaluate-v2.0.py`, under its names, 0 to 100: exact and f1 of all questions, of those
    with an answer (HasAns_...) and without (NoAns_...), and best_exact and best_f1 with their thresholds.

    A question is answered unless its no_answer_score is above `no_answer_threshold`. best_... use the threshold that is
    best on these very questions: an upper limit, not a result.
    """

    def _info(self) -> evaluate.MetricInfo:
        answers = datasets.Features({"text": datasets.List(datasets.Value("string"))})
        prediction = {
            "id": datasets.Value("string"),
            "prediction_text": datasets.Value("string"),
            "no_answer_score": datasets.Value("float64"),
        }
        return evaluate.MetricInfo(
            description="F1 and exact match of SQuAD v2.0",
            citation="Rajpurkar et al. 2018, arXiv 1806.03822",
            features=datasets.Features(
                {"predictions": prediction, "references": {"id": datasets.Value("string"), "answers": answers}}
            ),
        )

    def _compute(
        self, predictions: list[dict], references: list[dict], no_answer_threshold: float = 1.0
    ) -> dict[str, float]:
        given = {p["id"]: p for p in predictions}
        spans = [given[r["id"]] for r in references]
        answers = [r["answers"]["text"] for r in references]
        has_answer = [bool(texts) for texts in answers]
        no_answer = [span["no_answer_score"] for span in spans]
        if_answered = [best_of_v2(span["prediction_text"], of) for span, of in zip(spans, answers, strict=True)]
        scored = [
            pair if score <= no_answer_threshold else (float(not has), float(not has))
            for pair, score, has in zip(if_answered, no_answer, has_answer, strict=True)
        ]
        out = {"exact": means(scored)["exact_match"], "f1": means(scored)["f1"]}
        for prefix, wanted in (("HasAns", True), ("NoAns", False)):
            part = [pair for pair, has in zip(scored, has_answer, strict=True) if has is wanted]
            if part:
                out |= {f"{prefix}_exact": means(part)["exact_match"], f"{prefix}_f1": means(part)["f1"]}
        for at, name in enumerate(("exact", "f1")):
            best, threshold = best_threshold(no_answer, [pair[at] for pair in if_answered], has_answer)
            out |= {f"best_{name}": 100 * best, f"best_{name}_thresh": threshold}
        return out
