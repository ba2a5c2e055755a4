"""Intervals of drops by a paired percentile bootstrap over examples and seeds: pure mathematics.

A metric that is no mean over the examples is computed from the means of a few numbers of each example (`FROM_MEANS`),
which the runner logs with the scores. So the bootstrap draws examples without knowing their content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from results import columns

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0  # fixed, so that a row has the same interval every time and with any other rows
_CHUNK = 100  # resamples at once: 8 MB for the 10,570 examples of SQuAD's dev set
_REMEMBERED = 50_000_000  # counts, 100 MB: those of larger sets are drawn again for each 32 runs
_DIGITS = 12  # of a bound: the last bits of a product depend on the models that are resampled together
_SMALLEST = 1e-12  # a smaller denominator, or a smaller variance relative to the second moment, is rounding error


@dataclass(frozen=True, eq=False)
class Sample:
    """Scores by example of the models of one group of runs."""

    seeds: list[int]
    scores: Sequence[np.ndarray] | np.ndarray
    """For each seed float64[examples, k]: the numbers from whose means the metric is computed (k may differ between
    seeds); or float64[examples], if the metric is their mean."""
    statistic: str = "mean"
    """How the metric is computed from the means: a name in `FROM_MEANS`."""

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.scores[0])

    def metric(self) -> float:
        """The metric over all examples, averaged over the seeds."""
        return float(_metrics(self, np.ones((1, self.examples))).mean())


def interval(dense: Sample, sparse: Sample, resamples: int = RESAMPLES) -> list[float] | None:
    """The `LEVEL` interval of the relative drop alone: the first of `intervals`."""
    return intervals(dense, sparse, resamples)[0]


def intervals(dense: Sample, sparse: Sample, resamples: int = RESAMPLES) -> tuple[list[float] | None, list[float]]:
    """The intervals that `of_resamples` computes, from the scores by example.

    Args:
        dense: the models to compare against.
        sparse: scored on the same examples, in the same order.

    Raises:
        ValueError: the numbers of examples differ.
    """
    if dense.examples != sparse.examples:
        raise ValueError(f"{dense.examples} and {sparse.examples} examples cannot be paired")
    below, above = resample([dense, sparse], resamples)
    return of_resamples(dense.seeds, below, sparse.seeds, above)


def of_resamples(
    dense_seeds: list[int], dense: np.ndarray, sparse_seeds: list[int], sparse: np.ndarray
) -> tuple[list[float] | None, list[float]]:
    """The `LEVEL` intervals of (mean sparse - mean dense) / mean dense and of mean sparse - mean dense, the means over
    seeds, from the same resamples.

    Examples are drawn with replacement, the same for all models. Seeds are drawn with replacement: the same for both
    samples if their seeds are equal, else independently. With one seed only the examples vary; with two or three the
    interval is rather narrow, as a bootstrap over so few is.

    Args:
        dense: float64[resamples, seeds] by `resample`, of the models to compare against.
        sparse: the same of models scored on the same examples.

    Returns:
        low and high of each, signed. The first is None where a resampled dense score is not above 0.
    """
    above_shares = _seed_shares(sparse.shape[1], len(sparse), stream=1)
    paired = dense_seeds == sparse_seeds
    below_shares = above_shares if paired else _seed_shares(dense.shape[1], len(dense), stream=2)
    below, above = (below_shares * dense).sum(axis=1), (above_shares * sparse).sum(axis=1)
    change = above - below
    relative = _bounds(change / below) if (below > columns.ZERO).all() else None
    return relative, _bounds(change)


def resample(samples: Sequence[Sample], resamples: int = RESAMPLES) -> list[np.ndarray]:
    """The metric of each model in each resample of the examples: float64[resamples, seeds] for each sample.

    All samples have as many examples. The draws depend on this number alone, so models of many rows are resampled once,
    and together: one product of matrices is many times faster than one for each model.
    """
    models = _Models.of(samples)
    drawn = np.concatenate([models.metrics(times) for times in _example_counts(samples[0].examples, resamples)])
    return np.split(drawn, np.cumsum([len(sample.scores) for sample in samples])[:-1], axis=1)


def _bounds(values: np.ndarray) -> list[float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [round(float(low), _DIGITS), round(float(high), _DIGITS)]


@dataclass(frozen=True, eq=False)
class _Models:
    """The models of samples with as many examples, one after the other."""

    numbers: np.ndarray
    """float64[examples, sum of k]"""
    ends: np.ndarray
    """End of the columns of each model but the last."""
    statistics: list[str]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Models:
        numbers = [each.reshape(sample.examples, -1) for sample in samples for each in sample.scores]
        ends = np.cumsum([each.shape[1] for each in numbers])[:-1]
        return cls(np.concatenate(numbers, 1), ends, [each.statistic for each in samples for _ in each.scores])

    def metrics(self, times: np.ndarray) -> np.ndarray:
        """The metric of each model in each resample: float64[resamples, models].

        Args:
            times: float64[resamples, examples], how many times each example is in each resample, as whole numbers.
        """
        # Sums of whole numbers are exact and so is n / n, so a resample of one class has a share of exactly 1. Sums of
        # shares 1 / n give 1 - 2e-16 and a correlation of rounding errors, 1e-8, where it is undefined.
        means = np.split(times @ self.numbers / len(self.numbers), self.ends, axis=1)
        return np.stack([FROM_MEANS[name](part) for name, part in zip(self.statistics, means, strict=True)], axis=1)


def _metrics(sample: Sample, times: np.ndarray) -> np.ndarray:
    return _Models.of([sample]).metrics(times)


def _seed_shares(count: int, resamples: int, stream: int) -> np.ndarray:
    """The share of each seed in each resample: float64[resamples, seeds], rows sum to 1."""
    drawn = np.random.default_rng([SEED, stream]).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn / count


def _example_counts(count: int, resamples: int) -> Iterator[np.ndarray]:
    """How many times each example is in each resample: float64[resamples, examples], a chunk of resamples at a time."""
    if count * resamples > _REMEMBERED:
        yield from (chunk.astype(np.float64) for chunk in _draw(count, resamples))
        return
    drawn = _drawn(count, resamples)
    for start in range(0, resamples, _CHUNK):
        yield drawn[start : start + _CHUNK].astype(np.float64)


@lru_cache(maxsize=2)
def _drawn(count: int, resamples: int) -> np.ndarray:
    """All resamples, uint16[resamples, examples]: equal for all runs, and drawing them takes most of the time."""
    return np.concatenate(list(_draw(count, resamples)))


def _draw(count: int, resamples: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng([SEED, 0])
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        # The distribution of a multinomial, drawn by one integer each instead of one binomial: faster.
        drawn = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(size))
        yield np.stack(list(drawn)).astype(np.uint16)


# --- metrics from means: each function takes the means, [..., k], and returns the metric, [...]; 0 where undefined ----


def _mean(means: np.ndarray) -> np.ndarray:
    """The metric is the mean itself."""
    return means[..., 0]


def _f1(means: np.ndarray) -> np.ndarray:
    """2 tp / (2 tp + fp + fn); the means are of tp, fp, fn."""
    tp, fp, fn = np.moveaxis(means, -1, 0)
    return _over(2 * tp, 2 * tp + fp + fn)


def _macro_f1(means: np.ndarray) -> np.ndarray:
    """The mean of the F1 of the classes that occur; the means are of tp, fp, fn of each class."""
    by_class = means.reshape(*means.shape[:-1], -1, 3)
    occurs = by_class.sum(-1) > 0
    return _over((_f1(by_class) * occurs).sum(-1), occurs.sum(-1))


def _entity_f1(means: np.ndarray) -> np.ndarray:
    """2 correct / (predicted + gold); the means are of these counts of entities in each sentence."""
    correct, predicted, gold = np.moveaxis(means, -1, 0)
    return _over(2 * correct, predicted + gold)


def _recall(means: np.ndarray) -> np.ndarray:
    """correct / gold; the means are of correct, predicted and gold entities."""
    return _over(means[..., 0], means[..., 2])


def _ratio(means: np.ndarray) -> np.ndarray:
    """The first number over the second one, such as right words over words, or correct entities over predicted ones."""
    return _over(means[..., 0], means[..., 1])


def _matthews(means: np.ndarray) -> np.ndarray:
    """(c - sum_k p_k t_k) / sqrt((1 - sum_k p_k^2) (1 - sum_k t_k^2)): Matthews' coefficient, for any number of classes
    (Gorodkin 2004).

    The means are of indicators: the prediction is right (c), is each class (p); the label is each class (t).
    """
    classes = (means.shape[-1] - 1) // 2
    right, predicted, wanted = means[..., 0], means[..., 1 : 1 + classes], means[..., 1 + classes :]
    spread = (1 - (predicted**2).sum(-1)) * (1 - (wanted**2).sum(-1))
    return _over(right - (predicted * wanted).sum(-1), np.sqrt(np.maximum(spread, 0)))


def _pearson(means: np.ndarray) -> np.ndarray:
    """(E[xy] - E[x] E[y]) / sqrt(var x var y); the means are of x, y, xx, yy, xy."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    return _over(xy - x * y, np.sqrt(_variance(x, xx) * _variance(y, yy)))


def _variance(mean: np.ndarray, square: np.ndarray) -> np.ndarray:
    """E[xx] - E[x]^2, exactly 0 where it is rounding error: the numbers are equal."""
    variance = square - mean * mean
    return np.where(variance > _SMALLEST * square, variance, 0.0)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    defined = below > _SMALLEST
    return np.where(defined, above / np.where(defined, below, 1), 0.0)


FROM_MEANS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _mean,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "entity_f1": _entity_f1,
    "entity_precision": _ratio,
    "entity_recall": _recall,
    "ratio": _ratio,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
}
