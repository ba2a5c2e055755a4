"""Scores of classes and of numbers, as the GLUE benchmark defines them (Wang et al. 2019, arXiv 1804.07461).

Computed by scikit-learn and SciPy. All take arrays of predictions and of references, [examples] each, of class numbers
or, for correlations, of any numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Metric = Callable[["np.ndarray", "np.ndarray"], float]


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """The fraction of right answers."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """2 tp / (2 tp + fp + fn) of class 1 against all others; 0 if there is none."""
    from sklearn.metrics import f1_score

    return float(f1_score(references == 1, predictions == 1, zero_division=0.0))  # type: ignore[arg-type]


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """The mean F1 of the classes that occur."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0.0))  # type: ignore[arg-type]


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation coefficient of the classes, in [-1, 1]; 0 if one side has a single class."""
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _is_constant(predictions, references) else float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation coefficient, in [-1, 1]; 0 if one side is constant."""
    from scipy.stats import pearsonr

    return 0.0 if _is_constant(predictions, references) else float(pearsonr(predictions, references).statistic)  # type: ignore[attr-defined]


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's coefficient of the ranks, with mean ranks for ties; 0 if one side is constant."""
    return pearson(_ranks(predictions), _ranks(references))


def _is_constant(*sides: np.ndarray) -> bool:
    return any(len(side) < 2 or bool((side == side[0]).all()) for side in sides)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearmanr": spearmanr,
}
OF_NUMBERS = frozenset({"pearson", "spearmanr"})
"""Metrics of numbers; the others compare classes."""


# --- statistics ---------------------------------------------------------------------------------------------
# A few numbers for each example, [examples, k], from whose means `results.bootstrap` computes the metric, so that a
# bootstrap does not need the examples.


def _correct(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _columns(predictions == references)


def _counts(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """tp, fp, fn of class 1."""
    given, wanted = predictions == 1, references == 1
    return _columns(given & wanted, given & ~wanted, ~given & wanted)


def _counts_of_all(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """tp, fp, fn of each class that occurs, one after the other."""
    import numpy as np

    columns = []
    for number in np.union1d(predictions, references):
        given, wanted = predictions == number, references == number
        columns += [given & wanted, given & ~wanted, ~given & wanted]
    return _columns(*columns)


def _indicators(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """1 if the example is right, then for each class 1 if it is predicted, then for each class 1 if it is the label."""
    import numpy as np

    numbers = np.union1d(predictions, references)
    predicted, wanted = ([side == number for number in numbers] for side in (predictions, references))
    return _columns(predictions == references, *predicted, *wanted)


def _moments(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """x, y, xx, yy, xy of the standardised numbers; standardising limits rounding errors."""
    import numpy as np

    x, y = (
        (side.astype(np.float64) - side.mean(dtype=np.float64)) / (side.std(dtype=np.float64) or 1.0)
        for side in (predictions, references)
    )
    return _columns(x, y, x * x, y * y, x * y)


def _moments_of_ranks(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """`_moments` of the ranks in the whole set, which approximate the ranks in a resample."""
    return _moments(_ranks(predictions), _ranks(references))


def _columns(*columns: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.stack(columns, axis=1).astype(np.float64)


STATISTICS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "accuracy": ("mean", _correct),
    "f1": ("f1", _counts),
    "macro_f1": ("macro_f1", _counts_of_all),
    "matthews_correlation": ("matthews_correlation", _indicators),
    "pearson": ("pearson", _moments),
    "spearmanr": ("pearson", _moments_of_ranks),
}
"""Metric -> (its name in `results.bootstrap.FROM_MEANS`, the function that gives the numbers of each example)."""
