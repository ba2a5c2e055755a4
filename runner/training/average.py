"""Average of a model's weights over the end of its training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from runner.system.errors import UserError
from runner.training.job import TrainingJob

log = logging.getLogger(__name__)

AVERAGE_FILE = "average.safetensors"
_STEPS = "_steps"  # no parameter has such a name: it would be an attribute that torch does not register


class WeightAverage(TrainerCallback):
    """Averages the trained weights after each optimizer step that follows the last mask update, when masks no longer
    change: a pruned weight is 0 in each of them, and so in their average.

    The average of n steps is a_n = a_{n-1} + (w_n - a_{n-1}) * max(1 - decay, 1 / n): the plain mean (SWA, Izmailov et
    al. 2018, arXiv 1803.05407) of the first 1 / (1 - decay) steps, then an exponential average (Polyak and Juditsky
    1992), which so never hangs on the weights it began with.

    Args:
        job: its settings have `average_weights`, the decay.
        resume_from: a checkpoint to go back to; None at the start.
    """

    def __init__(self, job: TrainingJob, resume_from: Path | None) -> None:
        assert job.settings.average_weights is not None
        self.job, self.resume_from, self.decay = job, resume_from, job.settings.average_weights
        self.average: dict[str, Tensor] = {}
        """float32 by name of the parameter, on its device; empty before the last mask update."""
        self.steps = 0
        """Optimizer steps in the average."""
        self._updates = 0  # of the masks, when the average began

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resume_from is None:
            return
        file = self.resume_from / AVERAGE_FILE
        if not file.is_file():
            raise UserError(
                f"{file} is missing: this checkpoint cannot be resumed; delete {file.parent} to start from the one "
                "before"
            )
        stored = load_file(file)
        self.steps = int(stored.pop(_STEPS))
        device = {name: p.device for name, p in self.job.student.named_parameters()}
        self.average = {name: tensor.to(device[name]) for name, tensor in stored.items()}
        self._updates = self._updates_made()

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        pruner = self.job.pruner
        if pruner is not None and pruner.steps_taken <= max(pruner.updates, default=0):
            return
        if self._updates_made() != self._updates:  # the last one came late, after gradients that were not finite
            self.steps, self._updates = 0, self._updates_made()
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)
        for name, p in self.job.student.named_parameters():
            if not p.requires_grad:
                continue
            if self.steps == 1:
                self.average[name] = p.detach().float().clone()
            else:
                self.average[name].lerp_(p.detach().float(), share)

    def _updates_made(self) -> int:
        return 0 if self.job.pruner is None else len(self.job.pruner.history)

    def save(self, checkpoint: Path) -> None:
        """Write the average so far into a checkpoint."""
        save_file(self.average | {_STEPS: torch.tensor(self.steps)}, checkpoint / AVERAGE_FILE)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the average as its weights."""
        if not self.average:
            log.warning("average_weights=%g: no step follows the last mask update; the last weights stay", self.decay)
        for name, tensor in self.average.items():
            self.job.student.get_parameter(name).copy_(tensor)
