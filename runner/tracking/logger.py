"""The receiver of a training's metrics, without MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class TrainingLogger(Protocol):
    """Receives the metrics of a training; may buffer them."""

    def begin(self, step: int) -> None:
        """Prepare for the steps after this one: 0, or that of the checkpoint from which the training resumes."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one optimizer step."""
        ...

    def flush(self) -> None:
        """Write all buffered metrics."""
        ...


class NullLogger:
    """Discards all metrics."""

    def begin(self, step: int) -> None:
        """Do nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""
