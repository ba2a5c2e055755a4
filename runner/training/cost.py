"""What a run costs: seconds by stage, tokens, memory. Beside the scores in result.json and MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from runner.system import ranks
from runner.system.device import peak_memory

if TYPE_CHECKING:
    from runner.training.loop import TrainingStats


@dataclass
class Cost:
    """Of this job, all its ranks: what an interrupted run did before, and what was found in the cache, is not in it."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage: prepare, finetune, evaluate_dense, teacher, train, update, save, evaluate."""
    steps: int = 0
    """Optimizer steps of the pruning."""
    ranks: int = field(default_factory=ranks.world_size)
    """Processes that shared each batch of the trainings."""
    tokens: int = 0
    """That the student computed in them on all ranks, padding included."""
    real_tokens: int = 0
    """The same without padding."""
    peak_memory_bytes: int | None = None
    """The most that a process held so far, on its GPU if it computes there; not given where nobody says."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that this context takes to a stage's."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def trained(self, work: TrainingStats) -> None:
        """Take a training's work in."""
        self.steps, self.tokens, self.real_tokens = work.steps, work.tokens, work.real_tokens
        self.seconds |= {"train": work.seconds, "update": work.update_seconds}

    @property
    def padding(self) -> float | None:
        """The part of the computed tokens that was padding."""
        return 1 - self.real_tokens / self.tokens if self.tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that are not padding, by the time of the training."""
        return self.real_tokens / self.seconds["train"] if self.seconds.get("train") and self.real_tokens else None

    def plain(self) -> dict[str, Any]:
        """As plain values, with what follows from them."""
        self.peak_memory_bytes = ranks.on_all_ranks(highest_peak_memory) or None
        return {**asdict(self), "padding": self.padding, "tokens_per_second": self.tokens_per_second}


def highest_peak_memory() -> int:
    """Bytes: the most that one of the ranks has held; 0 where nobody says."""
    return ranks.all_max(peak_memory() or 0)
