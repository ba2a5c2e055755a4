"""Distillation: the loss that pulls the student towards its dense teacher."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.errors import PruningError


@dataclass
class Prediction:
    """What a model says about a batch, in the form that distillation needs."""

    logits: tuple[Tensor, ...]
    """One [batch, choices] tensor per head; for span extraction start and end, [batch, tokens] each."""
    choices: Tensor | None
    """Bool [batch, choices]: which choices are real. None if all are. For span extraction: not padding."""
    tokens: Tensor
    """Bool [batch, tokens]: which tokens are not padding."""
    hidden: Tensor | None = None
    """[batch, tokens, width]: the last hidden states, if asked for."""


def masked(logits: Tensor, choices: Tensor | None) -> Tensor:
    """float32 logits of which only the real choices count in a softmax.

    Filled with the lowest float, not -inf, for 0 * inf would be NaN: it too gives probability 0 exactly.
    """
    logits = logits.float()
    return logits if choices is None else logits.masked_fill(~choices, torch.finfo(torch.float32).min)


def label_loss(student: Prediction, labels: tuple[Tensor, ...]) -> Tensor:
    """Mean over the heads of the cross entropy with one [batch] tensor of labels each, over the real choices only."""
    heads = zip(student.logits, labels, strict=True)
    return torch.stack([F.cross_entropy(masked(logits, student.choices), label) for logits, label in heads]).mean()


@dataclass
class Distillation:
    """Base: total loss = weight * distillation loss + label_weight * label loss."""

    weight: float = 1.0
    """Weight of the distillation loss."""
    label_weight: float = 0.0
    """Weight of the loss against the labels."""
    teacher: str | None = None
    """A hub id or folder of a fine-tuned model with the same tokenizer. If not given: the dense model itself."""
    cache: bool = True
    """Run the teacher once over the training features and keep its logits (float16) for every epoch, seed and pattern,
    instead of running it beside the student. Never where hidden states are needed, nor for less than an epoch."""

    needs_teacher: ClassVar[bool] = True
    needs_hidden: ClassVar[bool] = False
    shares_head: ClassVar[bool] = False
    """Whether the student gets the teacher's head, frozen."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.label_weight < 0 or self.weight + self.label_weight == 0:
            raise PruningError(
                f"distill.weight={self.weight} distill.label_weight={self.label_weight}: none negative, not both zero"
            )

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        """The scalar distillation loss, unweighted."""
        raise NotImplementedError


@dataclass
class Logits(Distillation):
    """KL divergence to the teacher's softened outputs (Hinton et al. 2015, arXiv 1503.02531), times T^2.

    The mean over the heads; each softmax runs over the real choices only, so that the loss of an example does not
    depend on how far its batch was padded.
    """

    temperature: float = 2.0
    """Both distributions are softened by this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise PruningError(f"distill.temperature={self.temperature}: must be above 0")

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        heads = [self._kl(s, t, student.choices) for s, t in zip(student.logits, teacher.logits, strict=True)]
        return torch.stack(heads).mean() * self.temperature**2

    def _kl(self, student: Tensor, teacher: Tensor, choices: Tensor | None) -> Tensor:
        of_student = masked(student.float() / self.temperature, choices).log_softmax(-1)
        of_teacher = masked(teacher.float() / self.temperature, choices).log_softmax(-1)
        return F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)


@dataclass
class SimKD(Distillation):
    """The teacher's classifier reused (arXiv 2203.14001, eq. 3): the student's last hidden states are fitted to the
    teacher's by mean squared error over the tokens that are not padding; the head is the teacher's, frozen.

    The student must be as wide as the teacher: then no projector is needed and the saved model is an ordinary one.
    """

    needs_hidden: ClassVar[bool] = True
    shares_head: ClassVar[bool] = True

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        assert student.hidden is not None
        assert teacher.hidden is not None
        error = (student.hidden.float() - teacher.hidden.float()).square().mean(-1)  # [batch, tokens]
        return (error * student.tokens).sum() / student.tokens.sum()


@dataclass
class NoDistillation(Distillation):
    """Only the labels."""

    weight: float = 0.0
    label_weight: float = 1.0

    needs_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight or self.teacher:
            raise PruningError("distill=none has no teacher: leave distill.weight and distill.teacher alone")
