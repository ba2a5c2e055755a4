"""Percentile bootstrap over questions and seeds, paired: what two models share is drawn for both alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from results import columns
from results.statistics import OF

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # the same rows have the same intervals whenever and with whatever others they are shown
_CHUNK = 100  # resamples at once: 8 MB for the 10,570 questions of SQuAD's dev set


@dataclass(frozen=True, eq=False)
class Sample:
    """What the models of one group of runs scored."""

    seeds: list[int]
    scores: Sequence[np.ndarray] | np.ndarray
    """By seed: float64[questions, k], of each question the numbers that the metric follows from (k may differ between
    seeds); or float64[questions], of which it is the mean."""
    statistic: str = "mean"
    """How it follows from their means: a name in `results.statistics.OF`."""

    @property
    def questions(self) -> int:
        """How many there are."""
        return len(self.scores[0])

    def metric(self) -> float:
        """The metric of all questions, its mean over the seeds."""
        return float(_metrics(self, np.full((1, self.questions), 1 / self.questions)).mean())


def interval(dense: Sample, sparse: Sample, resamples: int = RESAMPLES) -> list[float] | None:
    """The `LEVEL` interval of (mean sparse - mean dense) / mean dense, the means over seeds; None where a resampled
    dense score is not above 0.

    Questions are drawn with replacement, the same for all models. Seeds are drawn with replacement: the same for both
    samples if they have the same seeds, else for each by itself. With one seed nothing but the questions varies; with
    two or three the interval is on the narrow side, as a bootstrap over so few is.

    Args:
        dense: of the models that are compared against.
        sparse: scored on the same questions, in the same order.

    Returns:
        low and high, signed fractions.
    """
    if dense.questions != sparse.questions:
        raise ValueError(f"{dense.questions} and {sparse.questions} questions cannot be paired")
    paired = dense.seeds == sparse.seeds
    sparse_seeds = _seed_shares(len(sparse.seeds), resamples, stream=1)
    dense_seeds = sparse_seeds if paired else _seed_shares(len(dense.seeds), resamples, stream=2)
    drops, at = np.empty(resamples), 0
    for questions in _question_shares(dense.questions, resamples):
        here = slice(at, at := at + len(questions))
        below = (dense_seeds[here] * _metrics(dense, questions)).sum(axis=1)
        if not (below > columns.ZERO).all():
            return None
        drops[here] = ((sparse_seeds[here] * _metrics(sparse, questions)).sum(axis=1) - below) / below
    low, high = np.quantile(drops, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _metrics(sample: Sample, questions: np.ndarray) -> np.ndarray:
    """The metric of each seed in each resample: float64[resamples, seeds].

    Args:
        questions: float64[resamples, questions], their shares.
    """
    numbers = [each.reshape(sample.questions, -1).T for each in sample.scores]  # [k, questions] each
    ends = np.cumsum([len(each) for each in numbers])[:-1]
    means = questions @ np.ascontiguousarray(np.concatenate(numbers)).T
    return np.stack([OF[sample.statistic](part) for part in np.split(means, ends, axis=1)], axis=1)


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
