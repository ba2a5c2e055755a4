"""Schedules: sparsity as a pure function of progress, and the optimizer steps at which masks are updated."""

import math
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from pruning.errors import PruningError

Decay = Callable[[float, float, float], float]
DECAYS: dict[str, Decay] = {}


def decay(course: Decay) -> Decay:
    """Make a function (progress in [0, 1], initial, target) -> sparsity available as `Gradual(decay=<its name>)`."""
    DECAYS[course.__name__] = course
    return course


@decay
def exp(progress: float, initial: float, target: float) -> float:
    """Each update prunes the same fraction of the remaining weights: fast, then slow."""
    return 1 - (1 - initial) * ((1 - target) / (1 - initial)) ** progress


@decay
def linear(progress: float, initial: float, target: float) -> float:
    """Each update prunes the same number of units: constant speed."""
    return initial + (target - initial) * progress


@decay
def cos(progress: float, initial: float, target: float) -> float:
    """A quarter of a cosine: slow, then fast."""
    return initial + (target - initial) * (1 - math.cos(math.pi * progress / 2))


@decay
def cubic(progress: float, initial: float, target: float) -> float:
    """Zhu and Gupta 2017 (arXiv 1710.01878, eq. 1): fast, then slow."""
    return target + (initial - target) * (1 - progress) ** 3


@decay
def slow_cubic(progress: float, initial: float, target: float) -> float:
    """(t/n)^3, slow then fast: what Intel Neural Compressor calls "cube", the opposite of the usual cubic."""
    return initial + (target - initial) * progress**3


@dataclass
class TrainingLength:
    """The length of a training, which turns epochs and fractions into optimizer steps."""

    steps: int
    """Total number of optimizer steps."""
    steps_per_epoch: int | None = None
    """Whole batches in the training examples, examples // batch. Needed if a schedule is given in epochs."""
    epochs: float | None = None
    """Passes over the training examples. Needed if a cool-down is given in epochs."""

    def __post_init__(self) -> None:
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise PruningError(
                f"steps={self.steps!r} must be a whole number of optimizer steps, 0 or more, such as 1000", self
            )
        self.steps = int(self.steps)  # one of numpy would stand in saved states


_SPAN = re.compile(r"(?P<value>\d+(\.\d*)?)\s*(?P<unit>steps?|ep|epochs?|%)?", re.ASCII)


_INITIAL = re.compile(r"(?P<value>\d+(\.\d*)?)\s*(?P<unit>%)?", re.ASCII)


@dataclass
class Schedule:
    """Base: when masks are updated, and how sparse they are then.

    Lengths of time are optimizer steps ("1000"), epochs ("5 epochs") or fractions of the training ("10%").
    """

    start: str = "10%"
    """The first update."""

    def __post_init__(self) -> None:
        self._check_lengths("start")

    def _check_lengths(self, *keys: str) -> None:
        anything = TrainingLength(steps=1, steps_per_epoch=1, epochs=1)  # only to check that the texts can be read
        for key in keys:
            if getattr(self, key) is not None:
                self.in_steps(key, anything)

    def in_steps(self, key: str, length: TrainingLength) -> int:
        """The field `key`, a length such as "1000", "5 epochs" or "10%" (of the training), in optimizer steps.

        Raises:
            PruningError: the text is no such length.
        """
        value, unit = self._read(key)
        if unit == "%":
            return round(value / 100 * length.steps)
        if unit == "epoch":
            if length.steps_per_epoch is None:
                raise self._not_in_epochs(key)
            return int(value * length.steps_per_epoch)
        return int(value)

    def _read(self, key: str) -> tuple[float, str]:
        """The field `key` as a number and its unit: "step", "epoch" or "%"."""
        text = getattr(self, key)
        match = _SPAN.fullmatch(text.strip()) if isinstance(text, str) else None
        unit = {"%": "%", "e": "epoch"}.get((match["unit"] or "s")[0], "step") if match else ""
        if match is None or (unit == "step" and not float(match["value"]).is_integer()):
            raise PruningError(
                f"{key}={text!r} is no length of time: "
                'write a whole number of optimizer steps ("1000"), "2.5 epochs" or "10%" of the training',
                self,
            )
        return float(match["value"]), unit

    def _not_in_epochs(self, key: str) -> PruningError:
        text = getattr(self, key)
        return PruningError(f"{key}={text!r}: the training is not counted in epochs; write optimizer steps", self)

    @abstractmethod
    def steps(self, length: TrainingLength) -> dict[int, float]:
        """Optimizer steps taken before an update -> progress, which ends at 1.

        Raises:
            PruningError: the schedule does not fit into the training.
        """
        raise NotImplementedError

    @abstractmethod
    def sparsity(self, progress: float, target: float) -> float:
        """Sparsity at `progress` in [0, 1] from the first to the last update; `target` at 1.

        Raises:
            PruningError: the schedule does not fit this target.
        """
        raise NotImplementedError


@dataclass
class OneShot(Schedule):
    """One update, at `start`, to the target: the baseline, and for 2:4 a recipe of its own (arXiv 2104.08378)."""

    def steps(self, length: TrainingLength) -> dict[int, float]:
        step = self.in_steps("start", length)
        if step > length.steps:
            raise PruningError(f"start={self.start}: step {step} is after the last of {length.steps} steps", self)
        return {step: 1.0}

    def sparsity(self, progress: float, target: float) -> float:
        return target


@dataclass
class Gradual(Schedule):
    """Updates t = 0..n before the forward pass of optimizer step start + t * frequency, n = (end - start) // frequency.

    The sparsity of update t is decay(t / n): `initial` at t = 0, the target at t = n, which always exists.
    """

    decay: str = "exp"
    """exp, linear, cos, cubic or slow_cubic."""
    initial: str = "0"
    """What the first update prunes at once: a sparsity ("0.7") or a part of the target ("85%")."""
    end: str | None = None
    """No update after this point. If not given: where the cool-down begins. Given, it overrides `cooldown`."""
    frequency: str = "2%"
    """Distance of two updates."""
    cooldown: str = "30%"
    """Training left after the last update, with the masks fixed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in DECAYS:
            raise PruningError(f"decay={self.decay!r} must be one of {', '.join(DECAYS)}", self)
        self._check_lengths("end", "frequency", "cooldown")
        if not 0 <= self._initial(1.0) < 1:
            raise PruningError(f"initial={self.initial!r} must be in [0, 1), or below 100%", self)

    def _initial(self, target: float) -> float:
        match = _INITIAL.fullmatch(self.initial.strip()) if isinstance(self.initial, str) else None
        if match is None:
            raise PruningError(
                f'initial={self.initial!r} is neither a sparsity ("0.7") nor a part of the target ("85%")', self
            )
        return float(match["value"]) * target / 100 if match["unit"] else float(match["value"])

    def sparsity(self, progress: float, target: float) -> float:
        if progress >= 1 or not target:
            return target
        initial = self._initial(target)
        if initial >= target:
            raise PruningError(
                f'initial={self.initial} is not below the target sparsity {target:g}; "85%" is a part of it', self
            )
        return DECAYS[self.decay](progress, initial, target)

    def last_step(self, length: TrainingLength) -> int:
        """The step after which no update comes, before rounding down to whole updates."""
        if self.end is not None:
            return self.in_steps("end", length)
        cooldown, unit = self._read("cooldown")
        if unit == "epoch":
            if length.steps_per_epoch is None or length.epochs is None:
                raise self._not_in_epochs("cooldown")
            # The published recipes count from the front, in whole batches: int(I * (epochs - cool-down)).
            return int(length.steps_per_epoch * (length.epochs - cooldown))
        return length.steps - self.in_steps("cooldown", length)

    def steps(self, length: TrainingLength) -> dict[int, float]:
        start = self.in_steps("start", length)
        frequency = max(1, self.in_steps("frequency", length))
        end = self.last_step(length)
        if end > length.steps:
            raise PruningError(
                f"the schedule is longer than the training: it ends at step {end} of {length.steps} (end={self.end}); "
                "shorten it, train longer, or use Gradual(), which fits any length",
                self,
            )
        count = (end - start) // frequency
        if count < 1:
            raise PruningError(
                f"the schedule does not fit into the training of {length.steps} steps: masks are updated from step "
                f"{start} to step {end} (start={self.start}, end={self.end}, cooldown={self.cooldown}) every "
                f"{frequency} steps; train longer, change these, or use Gradual(), which fits any length",
                self,
            )
        return {start + t * frequency: t / count for t in range(count + 1)}
