"""Schedules: sparsity as a pure function of progress, and the optimizer steps at which masks are updated."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from pruning.errors import PruningError

Decay = Callable[[float, float], float]
DECAYS: dict[str, Decay] = {}


def decay(course: Decay) -> Decay:
    """Make a function (progress in [0, 1], target) -> sparsity available as `schedule.decay=<its name>`."""
    DECAYS[course.__name__] = course
    return course


@decay
def exp(progress: float, target: float) -> float:
    """The kept fraction shrinks by the same factor at each update: fast, then slow."""
    return 1 - (1 - target) ** progress


@decay
def linear(progress: float, target: float) -> float:
    """The same number of units at each update."""
    return target * progress


@decay
def cos(progress: float, target: float) -> float:
    """A quarter of a cosine: slow, then fast."""
    return target * (1 - math.cos(math.pi * progress / 2))


@decay
def cubic(progress: float, target: float) -> float:
    """Zhu and Gupta 2017 (arXiv 1710.01878, eq. 1): fast, then slow."""
    return target * (1 - (1 - progress) ** 3)


@dataclass
class TrainingLength:
    """How long a training is, so that epochs and fractions can be turned into optimizer steps."""

    steps: int
    """Optimizer steps in all."""
    steps_per_epoch: int
    """Whole batches in the training features, F // batch."""
    epochs: float
    """Passes over the training features."""


_SPAN = re.compile(r"(?P<value>\d+(\.\d*)?)\s*(?P<unit>steps?|ep|epochs?|%)?", re.ASCII)


def span_in_steps(text: str, length: TrainingLength, key: str) -> int:
    """A length of time such as "1000", "5 epochs" or "10%" (of the training) in optimizer steps.

    Raises:
        PruningError: the text is no such length.
    """
    found = _SPAN.fullmatch(text.strip())
    unit = found["unit"] if found else None
    if found is None or (unit in (None, "step", "steps") and not float(found["value"]).is_integer()):
        raise PruningError(
            f"schedule.{key}={text!r} is no length of time: "
            'write a whole number of optimizer steps ("1000"), "2.5 epochs" or "10%" of the training'
        )
    value = float(found["value"])
    if unit == "%":
        return round(value / 100 * length.steps)
    if unit in ("ep", "epoch", "epochs"):
        return int(value * length.steps_per_epoch)
    return int(value)


@dataclass
class Schedule:
    """When masks are updated, and how sparse they are then.

    Updates t = 0..n come before the forward pass of optimizer step start + t * frequency, n = (end - start) //
    frequency; the sparsity of update t is decay(t / n): 0 at t = 0, the target at t = n, which always exists.
    Lengths of time are optimizer steps ("1000"), epochs ("5 epochs") or fractions of the training ("10%").
    """

    decay: str = "exp"
    """exp, linear, cos or cubic."""
    start: str = "10%"
    """The first update; it prunes nothing."""
    end: str | None = None
    """No update after this point. If not given: where the cool-down begins. Given, it overrides `cooldown`."""
    frequency: str = "2%"
    """Distance of two updates."""
    cooldown: str = "30%"
    """Training left after the last update, with the masks fixed."""
    warmup_steps: float = 0.1
    """Learning-rate warm-up in optimizer steps, or a fraction of the training if below 1; `train` reads it here."""

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise PruningError(f"schedule.decay={self.decay!r} is unknown: one of {', '.join(DECAYS)}")
        anything = TrainingLength(steps=1, steps_per_epoch=1, epochs=1)  # only to see that the texts can be read
        for key in ("start", "end", "frequency", "cooldown"):
            if getattr(self, key) is not None:
                span_in_steps(getattr(self, key), anything, key)

    def sparsity(self, progress: float, target: float) -> float:
        """Sparsity at `progress` in [0, 1] between the first and the last update."""
        return target if progress >= 1 else DECAYS[self.decay](progress, target)

    def last_step(self, length: TrainingLength) -> int:
        """The step after which no update comes, before rounding down to whole updates."""
        if self.end is not None:
            return span_in_steps(self.end, length, "end")
        cooldown = span_in_steps(self.cooldown, length, "cooldown")
        if self.cooldown.strip().endswith(("ep", "epoch", "epochs")):
            # The published recipes count from the front, in whole batches: int(I * (epochs - cool-down)).
            return int(length.steps_per_epoch * length.epochs) - cooldown
        return length.steps - cooldown

    def updates(self, length: TrainingLength, target: float) -> dict[int, float]:
        """Optimizer steps taken before an update -> sparsity from then on.

        Raises:
            PruningError: the schedule does not fit into the training.
        """
        start = span_in_steps(self.start, length, "start")
        frequency = max(1, span_in_steps(self.frequency, length, "frequency"))
        end = self.last_step(length)
        if end > length.steps:
            raise PruningError(
                f"the schedule is longer than the training: it ends at step {end} of {length.steps} (schedule.end="
                f"{self.end}); shorten it, train longer, or take schedule=short, which fits any length"
            )
        count = (end - start) // frequency
        if count < 1:
            raise PruningError(
                f"the schedule does not fit into the training of {length.steps} steps: masks are updated from step "
                f"{start} to step {end} (schedule.start={self.start}, end={self.end}, cooldown={self.cooldown}) every "
                f"{frequency} steps; train longer, change these, or take schedule=short, which fits any length"
            )
        return {start + t * frequency: self.sparsity(t / count, target) for t in range(count + 1)}
