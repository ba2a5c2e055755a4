"""Selection: the lowest of many numbers, exactly as many as asked for, in linear time."""

import math

import torch
from torch import Tensor

_SAMPLE = 1 << 16  # numbers drawn at most to bracket a threshold
_SMALL = 1 << 13  # numbers that are sorted at once


def lowest(cost: Tensor, count: int, pruned: int | None = None) -> Tensor:
    """Bool mask of exactly the `count` lowest of a one-dimensional `cost`; among equals the first by index.

    Linear in time. NaN counts as +inf.

    Args:
        pruned: how many are -inf, if that is known: it saves looking.
    """
    if count <= 0:
        return torch.zeros_like(cost, dtype=torch.bool)
    if count >= cost.numel():
        return torch.ones_like(cost, dtype=torch.bool)
    low, high = torch.aminmax(cost)  # NaN if there is any
    if bool(high.isnan()):
        cost = cost.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # NaN equals nothing: no tie to fill up
        low = cost.min()
    if pruned is None:
        pruned = count_true(cost == -math.inf) if float(low) == -math.inf else 0
    threshold, spare = _threshold(cost, count, pruned)
    chosen = cost <= threshold
    chosen[spare] = False
    return chosen


def count_true(chosen: Tensor) -> int:
    """Number of True entries; many times faster than the sum of a bool."""
    return int(torch.count_nonzero(chosen))


def _threshold(values: Tensor, count: int, pruned: int) -> tuple[Tensor, Tensor]:
    """The count-th lowest value, and the places of those of its equals that are too many, the last by index.

    Sorting or quickselect on all values is several times slower than a few passes over them: a sorted sample brackets
    the threshold, all values are counted against the bracket, and only those inside are sorted. The counts decide, so
    that an unlucky sample, or a wrong number of `pruned` values (-inf), costs time and never the result.
    """
    size = values.numel()
    if size > _SMALL and pruned < count:
        sample = values[:: size // min(_SAMPLE, size // 8) | 1]  # odd, so as not to walk along one column
        sample = sample[sample > -math.inf].sort().values
        middle, margin = (count - pruned) * len(sample) // (size - pruned), 4 * math.isqrt(len(sample))
        low = float(sample[middle - margin]) if middle > margin else torch.finfo(values.dtype).min
        high = float(sample[middle + margin]) if middle + margin < len(sample) else math.inf
        under = values < low
        below = count_true(under)
        places = torch.nonzero((values <= high).logical_xor_(under)).flatten()
        if below < count <= below + len(places):
            inside = values[places]
            threshold = inside[0] if low == high else inside.sort().values[count - below - 1]
            below += count_true(inside < threshold)
            return threshold, places[inside == threshold][count - below :]
    threshold = values.sort().values[count - 1]
    ties = torch.nonzero(values == threshold).flatten()
    return threshold, ties[count - count_true(values < threshold) :]
