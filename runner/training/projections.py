"""Projections from the student's width to the teacher's: attached to the student during the training, so that
optimizer, checkpoints and ranks treat them as weights, and removed or folded at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning import Distillation
from runner import models
from runner.models import heads
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTACHED = "distillation_projections"
"""The student's submodule during the training."""


def check(how: Distillation, student: PreTrainedModel, teacher: PreTrainedModel) -> int:
    """Refuse a student and a teacher that this distillation cannot compare.

    Args:
        student, teacher: with or without weights.

    Returns:
        Number of parameters of the projections.

    Raises:
        UserError, PruningError: they cannot be compared.
    """
    dropout = models.attention_dropout(student.config)
    if how.needs_attention and dropout > 0:
        raise UserError(
            f"distill compares attention weights, and those of the student have dropout in them ({dropout:g}): set "
            "model.attention_dropout=0, or distill.attention_weight=0"
        )
    with torch.device("meta"):
        attached = made(how, student, teacher)
    if how.shares_head:
        heads.check(student, teacher, bool(attached))
    return sum(p.numel() for module in attached.values() for p in module.parameters())


def made(how: Distillation, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[int, nn.Module]:
    """The distillation's projections between these two; none where it reads logits only."""
    if not (how.needs_hidden or how.needs_attention):
        return {}
    return how.projections(models.shape(student.config), models.shape(teacher.config))


def attach(student: PreTrainedModel, how: Distillation, teacher: PreTrainedModel | None) -> dict[int, nn.Module]:
    """Attach the projections to the student, and the teacher's head if the distillation shares it.

    Args:
        teacher: None if its logits are cached, or if there is none.

    Returns:
        By layer of the student, what takes its hidden states to the teacher's width.
    """
    if teacher is None:
        return {}
    attached = made(how, student, teacher)
    for module in attached.values():
        module.to(student.device)
    if how.shares_head:  # its input are the last layer's states: there is one projector at most
        heads.share(student, teacher, next(iter(attached.values()), None))
    elif attached:
        student.add_module(ATTACHED, nn.ModuleDict({str(layer): module for layer, module in attached.items()}))
    return attached


def finish(student: PreTrainedModel) -> None:
    """Remove from the student what served the training only."""
    heads.finish(student)
    if hasattr(student, ATTACHED):
        delattr(student, ATTACHED)
