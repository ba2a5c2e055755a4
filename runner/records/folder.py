"""The folder of a run: every artifact goes into it and into MLflow under one name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.safe_text import without_secrets
from runner.system import files
from runner.tracking import Tracker


@dataclass
class RunFolder:
    """A run's folder and its MLflow run."""

    path: Path
    tracker: Tracker

    @property
    def model(self) -> Path:
        """The folder of the saved model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The folder of the pruning's checkpoints."""
        return self.path / "checkpoints"

    def save(self, name: str, value: Any) -> None:
        """Write a text, without credentials, or plain values of the data as JSON, to the folder (atomically) and to
        MLflow."""
        is_data = not isinstance(value, str)
        text = json.dumps(value, indent=1, default=str) + "\n" if is_data else without_secrets(value)
        files.atomic_write(self.path / name, text)
        self.tracker.text(text, name, is_data)
