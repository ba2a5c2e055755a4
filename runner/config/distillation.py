"""The group `distill`: a loss of the engine, and the teacher that a run takes for it.

Class names are data: they stand in YAML (`/schema/distill/Logits`) and in the identities of runs.
"""

from dataclasses import dataclass
from typing import Any

import pruning
from runner.system.errors import UserError


@dataclass
class DistillationSettings(pruning.Distillation):
    """Base: total loss = weight * distillation loss + label_weight * label loss."""

    teacher: Any = None
    """A fine-tuned model with the same tokenizer, of any width and family: a hub id, a folder, or a finished run with
    prune=false, by its folder or its id in MLflow. Of a list, [A,B], the student learns the mean of the softened
    answers; hidden states are those of the first. If not given: the dense model itself."""
    cache: bool = True
    """Run the teacher once over the training features and cache its logits (float16) for every epoch, seed and pattern,
    instead of running it at every step. Never where hidden states are needed, nor for less than an epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = f"distill.teacher={_shown(self.teacher)}"
        if self.teacher is not None and not all(isinstance(name, str) for name in _listed(self.teacher)):
            raise UserError(
                f"{given}: a teacher is a text, or a list of texts; put a name that reads as a number in quotes"
            )
        if isinstance(self.teacher, list) and not all(self.teacher or [""]):
            raise UserError(f"{given}: an empty list, or an empty name in it, is no teacher; leave it out")
        if self.teacher and not self.needs_teacher:
            raise UserError(f"{given}: distill=none has no teacher; leave it out")
        if len(self.teachers) > 1 and not self.needs_logits:
            raise UserError(
                f"{given}: several teachers count by the mean of their logits, and this distillation reads none; name "
                "one teacher, or choose distill=logits, logits_hidden, or hidden with distill.logits_weight above 0"
            )

    @property
    def teachers(self) -> list[str]:
        """The teachers by name; empty: the dense model is the teacher."""
        return _listed(self.teacher) if self.teacher else []


def _listed(teacher: Any) -> list[Any]:
    return list(teacher) if isinstance(teacher, list) else [teacher]


def _shown(teacher: Any) -> str:
    """The value as it is typed."""
    return f"[{','.join(map(str, teacher))}]" if isinstance(teacher, list) else str(teacher)


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
