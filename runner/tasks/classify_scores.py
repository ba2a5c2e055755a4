"""Scores of classes and of numbers. (To be replaced by the branch of the metrics.)"""

import numpy as np


def _f1(p, r):
    tp = float(((p == 1) & (r == 1)).sum())
    return 2 * tp / max(1.0, (p == 1).sum() + (r == 1).sum())


METRICS = {
    "accuracy": lambda p, r: float((p == r).mean()),
    "f1": _f1,
    "macro_f1": _f1,
    "matthews_correlation": lambda p, r: float(np.corrcoef(p, r)[0, 1]),
    "pearson": lambda p, r: float(np.corrcoef(p, r)[0, 1]),
    "spearmanr": lambda p, r: float(np.corrcoef(p, r)[0, 1]),
}
OF_NUMBERS: frozenset[str] = frozenset({"pearson", "spearmanr"})
STATISTICS = {name: lambda p, r: np.stack([p, r], 1).astype(float) for name in METRICS}
NAMES_OF_STATISTICS = {name: name for name in METRICS}
