"""The group `benchmark`: whether a run times its saved model, and with what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from runner.system.errors import UserError

PRECISIONS = ("float32", "bfloat16", "int8")
"""Precisions of the sparse runtime."""
LENGTHS = (128, 384)
"""Tokens of a text where benchmark.length gives none."""
AUTO = "auto"


@dataclass
class Benchmark:
    """Nothing is timed."""

    def lengths(self, longest: int) -> list[int]:
        """Lengths to time, in tokens; none here."""
        return []


@dataclass
class CpuBenchmark(Benchmark):
    """The saved model is timed on the CPU after it was scored, in the sparse runtime and in each dense runtime that is
    installed, by the code of `python -m runner.benchmark`. It changes nothing else of the run."""

    batch: list[int] = field(default_factory=lambda: [1])
    """Batch sizes."""
    length: list[int] | None = None
    """Tokens of a text, without padding. Default: 128 and 384, cut to `dataset.max_seq_length`."""
    threads: list[int] = field(default_factory=lambda: [1])
    """Numbers of threads."""
    precisions: list[str] = field(default_factory=lambda: [AUTO])
    """Precisions of the sparse runtime: float32, bfloat16, int8; auto: all that this CPU has."""
    seconds: float = 8.0
    """Seconds to spend for each combination of batch, length and threads; each runtime runs five times at least."""

    def __post_init__(self) -> None:
        for name, numbers in (("batch", self.batch), ("length", self.length), ("threads", self.threads)):
            if numbers is not None and (not numbers or min(numbers) < 1):
                raise UserError(f"benchmark.{name}={numbers}: give whole numbers above 0, such as [1,8]")
        unknown = [name for name in self.precisions if name not in (AUTO, *PRECISIONS)]
        if unknown or not self.precisions or (AUTO in self.precisions and len(self.precisions) > 1):
            raise UserError(
                f"benchmark.precisions={self.precisions}: give [{AUTO}], or some of {', '.join(PRECISIONS)}"
            )
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise UserError(f"benchmark.seconds={self.seconds:g}: give seconds from 0")

    def lengths(self, longest: int) -> list[int]:
        """Lengths to time, in tokens.

        Args:
            longest: dataset.max_seq_length, to which the default is cut.
        """
        return list(self.length) if self.length is not None else sorted({min(each, longest) for each in LENGTHS})

    def combinations(self, longest: int) -> int:
        """How many combinations of batch, length and threads are timed."""
        return len(self.batch) * len(self.lengths(longest)) * len(self.threads)
