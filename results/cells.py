"""Figures as the table writes them."""

from collections.abc import Mapping
from itertools import groupby

UNDEFINED = "-"


def fraction(value: float | None) -> str:
    """A score or sparsity with 4 decimals."""
    return UNDEFINED if value is None else f"{value:.4f}"


def mean_max(mean: float | None, maximum: float | None) -> str:
    """ "0.7662/0.7687", or one number where 4 decimals show no difference, as in the published table."""
    if mean is None:
        return fraction(maximum)
    return fraction(maximum) if fraction(mean) == fraction(maximum) else f"{fraction(mean)}/{fraction(maximum)}"


def percent(value: float | None) -> str:
    """A signed fraction as percent with 2 decimals: -0.0078 is "-0.78%"."""
    return UNDEFINED if value is None else f"{value:+z.2%}"


def between(interval: list[float] | None) -> str:
    """Low and high signed fractions as percent: "-1.20% to +0.03%"."""
    return UNDEFINED if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def with_interval(value: float | None, interval: list[float] | None) -> str:
    """ "-0.59% [-1.20, +0.03]"; with 1 decimal if any of the three is 10 % or more, so that the width stays."""
    if value is None or interval is None:
        return percent(value)
    decimals = 1 if max(abs(each) for each in (value, *interval)) >= 0.1 else 2
    low, high = (f"{100 * each:+z.{decimals}f}" for each in interval)
    return f"{value:+z.{decimals}%} [{low}, {high}]"


def megabytes(count: float | None) -> str:
    """Bytes in units of 10^6."""
    return UNDEFINED if count is None else f"{count / 1e6:.1f} MB"


def share(part: float | None, whole: float | None) -> str:
    """A part as percent of the whole, with 1 decimal."""
    return UNDEFINED if part is None or not whole else f"{part / whole:.1%}"


def times(ratio: float | None) -> str:
    """A ratio such as "2.61x"; empty where there is none."""
    return "" if ratio is None else f"{ratio:.2f}x"


def seeds(numbers: list[int]) -> str:
    """Their number and a list: "4 (0-2, 7)"."""
    if not numbers:
        return UNDEFINED
    # Consecutive numbers have a constant difference to their index.
    ranges = ([number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0]))
    listed = (f"{each[0]}-{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in ranges)
    return f"{len(numbers)} ({', '.join(listed)})"


def pairs(differs: Mapping[str, str]) -> str:
    """Params as "key=value, key=value"."""
    return ", ".join(f"{key}={value}" for key, value in differs.items())
