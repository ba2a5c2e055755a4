"""The group `distill`: a loss of the engine, and the teacher that a run takes for it.

Class names are data: they stand in YAML (`/schema/distill/Logits`) and in the identities of runs.
"""

from dataclasses import dataclass

import pruning
from runner.system.errors import UserError


@dataclass
class DistillationSettings(pruning.Distillation):
    """Base: total loss = weight * distillation loss + label_weight * label loss."""

    teacher: str | None = None
    """A fine-tuned model with the same tokenizer, of any width and family: a hub id, a folder, or a finished run with
    prune=false, by its folder or its id in MLflow. If not given: the dense model itself."""
    cache: bool = True
    """Run the teacher once over the training features and cache its logits (float16) for every epoch, seed and pattern,
    instead of running it at every step. Never where hidden states are needed, nor for less than an epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher and not self.needs_teacher:
            raise UserError(f"distill.teacher={self.teacher}: distill=none has no teacher; leave it out")


@dataclass
class Logits(pruning.Logits, DistillationSettings):
    __doc__ = pruning.Logits.__doc__


@dataclass
class HiddenStates(pruning.HiddenStates, DistillationSettings):
    __doc__ = pruning.HiddenStates.__doc__


@dataclass
class LogitsHidden(pruning.LogitsHidden, DistillationSettings):
    __doc__ = pruning.LogitsHidden.__doc__


@dataclass
class SimKD(pruning.SimKD, DistillationSettings):
    __doc__ = pruning.SimKD.__doc__


@dataclass
class NoDistillation(pruning.NoDistillation, DistillationSettings):
    __doc__ = pruning.NoDistillation.__doc__
