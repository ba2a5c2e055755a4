"""F1 and exact match of SQuAD v1.1 (Rajpurkar et al. 2016, section 6.1), in plain Python.

The one implementation, behind `squad_metric.SquadMetric` and `Span.score`.
"""

import re
import string
from collections import Counter
from collections.abc import Collection, Iterable

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
    return _f1_of_words(normalize(prediction).split(), normalize(answer).split())


def _f1_of_words(predicted: list[str], expected: list[str]) -> float:
    if not set(predicted) & set(expected):  # true of most wrong answers, and far cheaper than two counters
        return 0.0
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))


def mean_of_best(questions: Iterable[tuple[str, Collection[str]]]) -> dict[str, float]:
    """`exact_match` and `f1`, 0 to 100: the mean over questions of the best over each question's answers.

    Args:
        questions: a prediction and its possible answers for each.
    """
    return means(best_of(prediction, answers) for prediction, answers in questions)


def means(questions: Iterable[tuple[float, float]]) -> dict[str, float]:
    """`exact_match` and `f1`, 0 to 100, of what `best_of` gives for each question."""
    count, exact, words = 0, 0.0, 0.0
    for exact_of_one, words_of_one in questions:
        count += 1
        exact += exact_of_one
        words += words_of_one
    return {"exact_match": 100 * exact / count, "f1": 100 * words / count}


def best_of(prediction: str, answers: Collection[str]) -> tuple[float, float]:
    """`exact_match` and `f1` of a question, in [0, 1]: the best over its answers."""
    predicted = normalize(prediction)
    expected = {normalize(answer) for answer in set(answers)}  # annotators agree often
    if predicted in expected:
        return 1.0, float(bool(predicted))
    bag = predicted.split()
    return 0.0, max(_f1_of_words(bag, answer.split()) for answer in expected)
