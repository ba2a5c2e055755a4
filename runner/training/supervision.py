"""Who teaches the student, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning import Distillation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.training.teacher_logits import CachedLogits


@dataclass
class Supervision:
    """A loss, and the teachers that it needs: live models, or cached logits. Without a teacher the labels teach."""

    distillation: Distillation
    teacher: PreTrainedModel | None = None
    """Runs next to the student at every step."""
    logits: CachedLogits | None = None
    """The teachers' logits over the training features, computed once."""
    others: tuple[PreTrainedModel, ...] = ()
    """Further live teachers, whose softened answers are averaged with those of `teacher`."""

    @property
    def teachers(self) -> list[PreTrainedModel]:
        """All live teachers."""
        return [] if self.teacher is None else [self.teacher, *self.others]
