"""Percentile bootstrap over questions and seeds, paired: what two models share is drawn for both alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # the same rows have the same intervals whenever and with whatever others they are shown
_CHUNK = 100  # resamples at once: 8 MB for the 10,570 questions of SQuAD's dev set


@dataclass(frozen=True, eq=False)
class Sample:
    """What the models of one group of runs scored."""

    seeds: list[int]
    scores: np.ndarray
    """float64[seeds, questions]"""


def interval(dense: Sample, sparse: Sample, resamples: int = RESAMPLES) -> list[float] | None:
    """The `LEVEL` interval of (mean sparse - mean dense) / mean dense; None where a resampled dense score is 0.

    Questions are drawn with replacement, the same for all models. Seeds are drawn with replacement: the same for both
    samples if they have the same seeds, else for each by itself. With one seed nothing but the questions varies; with
    two or three the interval is on the narrow side, as a bootstrap over so few is.

    Args:
        dense: of the models that are compared against.
        sparse: scored on the same questions, in the same order.

    Returns:
        low and high, signed fractions.
    """
    if dense.scores.shape[1] != sparse.scores.shape[1]:
        raise ValueError(f"{dense.scores.shape[1]} and {sparse.scores.shape[1]} questions cannot be paired")
    paired = dense.seeds == sparse.seeds
    sparse_seeds = _seed_shares(len(sparse.seeds), resamples, stream=1)
    dense_seeds = sparse_seeds if paired else _seed_shares(len(dense.seeds), resamples, stream=2)
    drops, at = np.empty(resamples), 0
    for questions in _question_shares(dense.scores.shape[1], resamples):
        here = slice(at, at := at + len(questions))
        below = _means(dense, dense_seeds[here], questions)
        if not below.all():
            return None
        drops[here] = (_means(sparse, sparse_seeds[here], questions) - below) / below
    low, high = np.quantile(drops, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _means(sample: Sample, seeds: np.ndarray, questions: np.ndarray) -> np.ndarray:
    """The mean score in each resample: float64[resamples]."""
    return (seeds * (questions @ sample.scores.T)).sum(axis=1)


def _seed_shares(count: int, resamples: int, stream: int) -> np.ndarray:
    """What share each seed has in each resample: float64[resamples, seeds], rows sum to 1."""
    drawn = np.random.default_rng([SEED, stream]).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn / count


def _question_shares(count: int, resamples: int) -> Iterator[np.ndarray]:
    """The same of the questions, a chunk of resamples at a time."""
    generator = np.random.default_rng([SEED, 0])
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        # As a multinomial would draw them, but one integer each instead of one binomial.
        drawn = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(size))
        yield np.stack(list(drawn)) / count
