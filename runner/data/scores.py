"""What a task makes of a model's outputs: scores, answers, and what each example contributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Scores:
    """A model's scores and predictions on the evaluation examples."""

    metrics: dict[str, float]
    """Name -> a fraction in [0, 1], or a correlation in [-1, 1]."""
    predictions: dict[str, Any] = field(default_factory=dict)
    """Example id -> the model's answer."""
    by_example: dict[str, float] = field(default_factory=dict)
    """Example id -> score in [0, 1], for the first evaluation split: the main metric if it is a mean over examples,
    else 1 for a right answer and 0 for a wrong one; empty if answers are neither, as in regression."""
    statistic: str = "mean"
    """The function that computes the main metric from means over examples: a name in `results.bootstrap.FROM_MEANS`."""
    statistics: dict[str, list[float]] = field(default_factory=dict)
    """Example id -> the numbers whose means that function takes; empty for the mean, which takes `by_example`."""
    choosing: dict[str, float] = field(default_factory=dict)
    """The value of a setting that is best on these very examples, and its score. Not a result, so it is not logged:
    `runner.evaluate` prints it for those who choose the setting on a hold-out."""
