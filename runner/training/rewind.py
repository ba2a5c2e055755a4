"""A learning rate that begins anew with each mask update, so that the network recovers from it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable

from runner.config.training import SchedulerType


def rewound(
    course: SchedulerType, floor: float, warmup: int, updates: Iterable[int], steps: int
) -> Callable[[int], float]:
    """The learning rate of a step as a fraction of the highest one (Kurtic et al. 2022, arXiv 2203.07259, section 4).

    After the warm-up, each period from one mask update to the next falls from 1 to `floor`; the last one, from the last
    update to the end of the training, from 1 to 0. The first begins where the warm-up ends.

    Args:
        course: in a period, linear or cosine.
        warmup: optimizer steps of the linear warm-up.
        updates: optimizer steps taken before each mask update; those in the warm-up rewind nothing.
        steps: optimizer steps of the training.
    """
    starts = [warmup, *sorted(step for step in set(updates) if warmup < step < steps)]
    ends = [*starts[1:], steps]

    def rate(step: int) -> float:
        if step < warmup:
            return step / warmup
        period = bisect.bisect_right(starts, step) - 1
        part = min(1.0, (step - starts[period]) / max(1, ends[period] - starts[period]))
        left = 1 - part if course is SchedulerType.linear else (1 + math.cos(math.pi * part)) / 2
        lowest = floor if period < len(starts) - 1 else 0.0
        return lowest + (1 - lowest) * left

    return rate
