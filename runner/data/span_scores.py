"""Scores of answers by the rule of the main metric: SQuAD's words, or characters where the script has no blanks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runner.data.squad_scores import (
    Normalize,
    best_of,
    best_of_v2,
    best_threshold,
    is_unspaced,
    means,
    normalize,
    normalize_characters,
)

log = logging.getLogger(__name__)

CHARACTER = "character_"
"""Begins the names of metrics that compare characters, not words."""
_SCORED = ("exact_match", "f1")  # the order of a question's scores
_ADVISED = 0.1  # the share of answers in scripts without blanks that calls for characters
Pairs = Mapping[str, Mapping[str, tuple[float, float]]]
"""Rule -> question id -> exact match and F1, in [0, 1]."""


@dataclass
class Scoring:
    """How the answers to some questions are scored."""

    metric: str
    """The main metric. Those of words are always reported, and those of characters if it is one of them."""
    unanswerable: bool
    """Questions may have no answer."""
    gold: Mapping[str, list[str]]
    """Question id -> its answers."""

    def scores(self, answers: Mapping[str, str]) -> Pairs:
        """Both scores of each answer, by each rule."""
        return {rule: {id: self._pair(rule, answers[id], id) for id in self.gold} for rule in self._rules()}

    def metrics(self, ids: Sequence[str], scores: Pairs) -> dict[str, float]:
        """The means over some questions, and separately over those with and without an answer."""
        groups = {"": ids}
        if self.unanswerable:
            groups["has_answer_"] = [id for id in ids if self.gold[id]]
            groups["no_answer_"] = [id for id in ids if not self.gold[id]]
        return {
            f"{group}{rule}{name}": value / 100
            for rule, pairs in scores.items()
            for group, members in groups.items()
            if members
            for name, value in means(pairs[id] for id in members).items()
        }

    def main(self, scores: Pairs, id: str) -> float:
        """The score of a question by the main metric."""
        return scores[self._rule][id][self._place]

    def choosing(
        self, ids: Sequence[str], no_answer: Mapping[str, float], spans: Mapping[str, str]
    ) -> dict[str, float]:
        """The threshold that is best on these very questions, and the score it gives.

        Args:
            no_answer: how sure the model is that a question has no answer.
            spans: the answers, if all questions are answered.
        """
        if_answered = [self._pair(self._rule, spans[id], id)[self._place] for id in ids]
        has_answer = [bool(self.gold[id]) for id in ids]
        best, threshold = best_threshold([no_answer[id] for id in ids], if_answered, has_answer)
        return {f"best_{self.metric}": best, f"best_{self.metric}_threshold": threshold}

    def _rules(self) -> dict[str, Normalize]:
        """Beginning of a metric's name -> how answers are normalised for it."""
        return {"": normalize} | ({CHARACTER: normalize_characters} if by_characters(self.metric) else {})

    @property
    def _rule(self) -> str:
        return CHARACTER if by_characters(self.metric) else ""

    @property
    def _place(self) -> int:
        return _SCORED.index(self.metric.removeprefix(CHARACTER))

    def _pair(self, rule: str, answer: str, id: str) -> tuple[float, float]:
        return (best_of_v2 if self.unanswerable else best_of)(answer, self.gold[id], self._rules()[rule])


def by_characters(metric: str) -> bool:
    """Whether a metric compares characters, not words."""
    return metric.startswith(CHARACTER)


def length_in_units(text: str, metric: str) -> int:
    """Number of words of a text, or of the units that a metric of characters compares."""
    return len((normalize_characters(text) if by_characters(metric) else text).split())


def advise(metric: str, answers: Iterable[list[str]]) -> None:
    """Warn if answers are in a script without blanks between words, and the metric compares words."""
    given = [texts[0] for texts in answers if texts]
    unspaced = list(filter(is_unspaced, given))
    if by_characters(metric) or len(unspaced) <= _ADVISED * len(given):
        return
    log.warning(
        "%d of %d answers are in a script without blanks between words, such as %r: dataset.metric=%s takes what "
        "stands between two blanks for a word, so an answer that lacks one character may score 0; to count characters, "
        "as MLQA's script does in Chinese, set dataset.metric=%s%s",
        len(unspaced), len(given), unspaced[0][:40], metric, CHARACTER, metric,
    )  # fmt: skip
