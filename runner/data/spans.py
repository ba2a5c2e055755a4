"""The best span of a question from the logits of its windows.

The search follows the official BERT code for SQuAD v1.1 and v2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runner.data import arrow

if TYPE_CHECKING:
    import datasets
    import numpy as np

_PAIRS_AT_ONCE = 2**20  # start and end tokens that are combined at once: some 20 MB
_CERTAIN = 3.4e38  # in place of infinity, which JSON cannot hold: about the highest float32
Best = tuple[float, int, int]
"""A span: the sum of its logits, and its characters, from and to."""


def best_of_questions(
    features: datasets.Dataset, logits: list[np.ndarray], n_best: int, max_length: int
) -> dict[int, Best]:
    """Question's number -> the best span over all its windows; without questions that have no valid span.

    Args:
        features: with the columns example, start_character and end_character.
        logits: of start and end, [windows, tokens] each.
    """
    import numpy as np

    windows = arrow.table(features, "example", "start_character", "end_character")
    starts, lengths = arrow.ragged(windows["start_character"])
    ends, _ = arrow.ragged(windows["end_character"])
    score, first, last = best_spans(logits[0], logits[1], padded(starts >= 0, lengths), n_best, max_length)
    valid = score > -np.inf
    row = (np.cumsum(lengths) - lengths)[valid]  # where each window begins in `starts` and `ends`
    best: dict[int, Best] = {}
    example = windows["example"].to_numpy()[valid]
    begin, stop = starts[row + first[valid]], ends[row + last[valid]]
    spans = (column.tolist() for column in (example, score[valid], begin, stop))
    for i, value, *characters in zip(*spans, strict=True):
        if i not in best or value > best[i][0]:
            best[i] = (value, *characters)
    return best


def best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, n_best: int, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best span of each window: of the `n_best` start and end tokens the pair with the highest sum of logits.

    As in the official BERT code, a pair is refused if it leaves the paragraph, ends before it starts or is longer
    than `max_length` tokens. Of equals the first counts, both among tokens and among pairs.

    Args:
        start, end: [windows, tokens] logits.
        allowed: bool [windows, tokens], true for tokens of the paragraph.

    Returns:
        The sum of logits (-inf if no pair is valid), first and last token, [windows] each.
    """
    import numpy as np

    allowed = np.pad(allowed, ((0, 0), (0, start.shape[1] - allowed.shape[1])))
    at_once = max(1, _PAIRS_AT_ONCE // min(n_best, start.shape[1]) ** 2)
    parts = [
        _best_spans(start[i : i + at_once], end[i : i + at_once], allowed[i : i + at_once], n_best, max_length)
        for i in range(0, len(start), at_once)
    ]
    score, first, last = (np.concatenate(part) for part in zip(*parts, strict=True))
    return score, first, last


def _best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, n_best: int, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    first, last = highest(start, n_best), highest(end, n_best)
    row = np.arange(len(start))[:, None]
    total = start[row, first][:, :, None] + end[row, last][:, None, :]  # [windows, n_best, n_best]
    length = last[:, None, :] - first[:, :, None] + 1
    valid = (length >= 1) & (length <= max_length)
    valid &= allowed[row, first][:, :, None] & allowed[row, last][:, None, :]
    total = np.where(valid, total, -np.inf).reshape(len(start), -1)
    best = total.argmax(axis=1)
    i, j = np.divmod(best, last.shape[1])
    window = np.arange(len(start))
    return total[window, best], first[window, i], last[window, j]


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest of each row, the highest first, and of equals the one with the lowest index."""
    import numpy as np

    if count >= values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")
    # Sorting whole rows takes most of the time of scoring. Instead: all values above the last one that is taken, then
    # the first ones that equal it, as many as are missing.
    lowest = -np.partition(-values, count - 1, axis=1)[:, count - 1 : count]
    if np.isnan(lowest).any():  # a model that diverged
        return np.argsort(-values, axis=1, kind="stable")[:, :count]
    taken, equal = values > lowest, values == lowest
    taken |= equal & (equal.cumsum(axis=1) <= count - taken.sum(axis=1, keepdims=True))
    index = np.nonzero(taken)[1].reshape(len(values), count)
    order = np.argsort(-np.take_along_axis(values, index, axis=1), axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1)


def padded(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A matrix from rows of unequal lengths that are given one after the other, filled up with zeros or false."""
    import numpy as np

    inside = np.arange(lengths.max()) < lengths[:, None]
    out = np.zeros(inside.shape, values.dtype)
    out[inside] = values
    return out


def no_answer_scores(
    features: datasets.Dataset, logits: list[np.ndarray], best: Mapping[int, Best], questions: int
) -> list[float]:
    """For each question, the logits of no answer minus those of the best span.

    As in the official BERT code, the logits of no answer are the sum of the start and end logits at [CLS], in the
    window in which it is lowest: a question has no answer only if no window holds one. A question without a valid span,
    or with logits that are not numbers, certainly has none.
    """
    import numpy as np

    windows = arrow.table(features, "example", "null_token")
    token, example = (windows[name].to_numpy() for name in ("null_token", "example"))
    row = np.arange(len(token))
    null = logits[0][row, token] + logits[1][row, token]
    lowest = np.full(questions, np.inf, null.dtype)
    spans = np.array([best[i][0] if i in best else -np.inf for i in range(questions)])
    with np.errstate(invalid="ignore"):  # a model that diverged
        np.minimum.at(lowest, example, null)
        difference = lowest.astype(np.float64) - spans
    return np.nan_to_num(difference, nan=_CERTAIN, posinf=_CERTAIN, neginf=-_CERTAIN).tolist()
