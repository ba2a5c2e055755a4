"""F1 and exact match of SQuAD v1.1 (Rajpurkar et al. 2016, section 6.1) and v2.0 (2018, arXiv 1806.03822), and the same
by characters, for scripts without blanks between words.

The one implementation, used by `Span.score` and by the metrics of `squad_metric`.
"""

import itertools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"  # of South-East Asia and Tibet
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"  # Chinese characters
)
Normalize = Callable[[str], str]


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalize_characters(text: str) -> str:
    """Lower case, without punctuation of any script and repeated white space, and with a blank around each character of
    a script that writes none between words. Words of other scripts stay whole, articles too.

    On Chinese this is the rule of MLQA's official script (Lewis et al. 2020, arXiv 1910.07475, `mixed_segmentation`),
    extended to Japanese, Thai, Lao, Khmer, Burmese, Tibetan and rare Chinese characters. The script of CMRC 2018 (Cui
    et al. 2019), also used for DRCD, splits in this way too, but its F1 counts the longest common part instead of all
    common units. Published scores of XQuAD are mostly by SQuAD's script, which is `normalize`.
    """
    return " ".join(_UNSPACED.sub(r" \g<0> ", "".join(c for c in text.lower() if not _is_punctuation(c))).split())


@cache
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def is_unspaced(text: str) -> bool:
    """Whether most letters and digits are of a script that writes no blanks between words."""
    letters = [c for c in text if c.isalnum()]
    return 2 * sum(1 for c in letters if _UNSPACED.match(c)) > len(letters)


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both are the same after `normalize`, else 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the bags of words, in [0, 1]."""
    return _f1_of_words(normalize(prediction).split(), normalize(answer).split())


def _f1_of_words(predicted: list[str], expected: list[str]) -> float:
    if not set(predicted) & set(expected):  # most wrong answers; far cheaper than two counters
        return 0.0
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))


def means(questions: Iterable[tuple[float, float]]) -> dict[str, float]:
    """The means of `exact_match` and `f1` over questions, 0 to 100.

    Args:
        questions: what `best_of` gives for each question.
    """
    count, exact_sum, f1_sum = 0, 0.0, 0.0
    for exact, words in questions:
        count += 1
        exact_sum += exact
        f1_sum += words
    return {"exact_match": 100 * exact_sum / count, "f1": 100 * f1_sum / count}


def best_of(prediction: str, answers: Collection[str], normalize: Normalize = normalize) -> tuple[float, float]:
    """`exact_match` and `f1` of one question, in [0, 1]: the best over its answers.

    Args:
        normalize: gives the units that are compared, with a blank between them.
    """
    predicted = normalize(prediction)
    expected = {normalize(answer) for answer in set(answers)}  # annotators agree often
    if predicted in expected:
        return 1.0, float(bool(predicted))
    bag = predicted.split()
    return 0.0, max(_f1_of_words(bag, answer.split()) for answer in expected)


def best_of_v2(prediction: str, answers: Collection[str], normalize: Normalize = normalize) -> tuple[float, float]:
    """`exact_match` and `f1` of one SQuAD v2.0 question, in [0, 1]: without answers only an empty prediction is right.

    Answers that are empty after `normalize` do not count, as in the official script.
    """
    expected = [answer for answer in answers if normalize(answer)]
    if not expected:
        right = float(not normalize(prediction))
        return right, right
    return best_of(prediction, expected, normalize)


def best_threshold(
    no_answer: Sequence[float], if_answered: Sequence[float], has_answer: Sequence[bool]
) -> tuple[float, float]:
    """(mean score in [0, 1] with the best threshold, that threshold), as `find_best_thresh` of the official script.

    A question is answered unless its no-answer score is above the threshold. Among equally good thresholds the lowest
    is chosen. The score is not a result if the threshold was chosen on the same questions.

    Args:
        no_answer: how sure the model is that a question has no answer.
        if_answered: the question's score if it is answered by the best span.
        has_answer: if it is not answered, a question with an answer scores 0, one without scores 1.
    """
    current = best = sum(not has for has in has_answer)
    threshold = min(no_answer) - 1
    order = sorted(range(len(no_answer)), key=lambda i: no_answer[i])
    for value, group in itertools.groupby(order, key=lambda i: no_answer[i]):  # no threshold separates equals
        current += sum(if_answered[i] - (not has_answer[i]) for i in group)
        if current > best:
            best, threshold = current, value
    return best / len(no_answer), threshold
