"""How metrics that are no means over the examples follow from means: of a few numbers of each example, which the runner
logs with the scores. So a bootstrap draws examples without knowing them.

All functions take means, [..., k], and give the metric, [...]; 0 where it is not defined.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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
    """2 correct / (predicted + gold), of entities; the means are of the three counts of each sentence."""
    correct, predicted, gold = np.moveaxis(means, -1, 0)
    return _over(2 * correct, predicted + gold)


def _matthews(means: np.ndarray) -> np.ndarray:
    """(c - sum_k p_k t_k) / sqrt((1 - sum_k p_k^2) (1 - sum_k t_k^2)): Matthews' coefficient, for any number of classes
    (Gorodkin 2004).

    The means are of whether the example is right (c), is predicted to be of each class (p), is of each class (t).
    """
    classes = (means.shape[-1] - 1) // 2
    right, predicted, wanted = means[..., 0], means[..., 1 : 1 + classes], means[..., 1 + classes :]
    spread = (1 - (predicted**2).sum(-1)) * (1 - (wanted**2).sum(-1))
    return _over(right - (predicted * wanted).sum(-1), np.sqrt(np.maximum(spread, 0)))


def _pearson(means: np.ndarray) -> np.ndarray:
    """(E[xy] - E[x] E[y]) / sqrt(var x var y); the means are of x, y, xx, yy, xy."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = np.maximum(xx - x * x, 0) * np.maximum(yy - y * y, 0)
    return _over(xy - x * y, np.sqrt(spread))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    defined = below > _SMALLEST
    return np.where(defined, above / np.where(defined, below, 1), 0.0)


_SMALLEST = 1e-12  # of what is rounding, if all is the same

OF: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": _mean,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "entity_f1": _entity_f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
}
