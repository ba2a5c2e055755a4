"""What a run costs: seconds by stage, tokens, memory; recorded in result.json and MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.system import ranks
from runner.system.device import peak_memory


@dataclass
class TrainingStats:
    """What a training did since its process began, on all ranks."""

    steps: int = 0
    """Optimizer steps."""
    tokens: int = 0
    """Tokens that the student computed, padding included."""
    real_tokens: int = 0
    """Tokens without padding."""
    seconds: float = 0.0
    """Seconds spent training, without mask updates."""
    update_seconds: float = 0.0
    """Seconds spent in mask updates."""
    validation: list[dict[str, float]] = field(default_factory=list)
    """Scores on the validation examples with step and sparsity, those before an interruption included."""


@dataclass
class Cost:
    """The cost of this process's part of a run, all ranks together. Work before an interruption, and what a cache
    provided, is not included."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage: prepare, finetune, evaluate_dense, teacher, train, update, save, evaluate."""
    steps: int = 0
    """Optimizer steps of the pruning."""
    ranks: int = field(default_factory=ranks.world_size)
    """Processes that share each batch."""
    tokens: int = 0
    """Tokens that the student computed on all ranks, padding included."""
    real_tokens: int = 0
    """Tokens without padding."""
    peak_memory_bytes: int | None = None
    """Largest memory of one rank so far, on its GPU if it computes there; None where the system does not report it."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in this context to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def add_training(self, stats: TrainingStats) -> None:
        """Record the pruning's training."""
        self.steps, self.tokens, self.real_tokens = stats.steps, stats.tokens, stats.real_tokens
        self.seconds |= {"train": stats.seconds, "update": stats.update_seconds}

    @property
    def padding(self) -> float | None:
        """The fraction of the computed tokens that is padding."""
        return 1 - self.real_tokens / self.tokens if self.tokens else None

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens per second of training."""
        return self.real_tokens / self.seconds["train"] if self.seconds.get("train") and self.real_tokens else None

    def plain(self) -> dict[str, Any]:
        """Plain values, with the derived ones."""
        self.peak_memory_bytes = ranks.on_all_ranks(max_peak_memory) or None
        return {**asdict(self), "padding": self.padding, "tokens_per_second": self.tokens_per_second}


def max_peak_memory() -> int:
    """Largest peak memory of any rank in bytes; 0 where the system does not report it."""
    return ranks.all_max(peak_memory() or 0)
