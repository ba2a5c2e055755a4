"""Distillation: the loss that pulls the student towards its dense teacher."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.errors import PruningError

IGNORED = -100
"""The label of a token that has none."""
_NEVER = -1e30  # divided by a temperature it is still a float


@dataclass
class Prediction:
    """What a model says about a batch, in the form that distillation needs."""

    logits: tuple[Tensor, ...]
    """One tensor per head: [batch, choices] where it answers once an example, such as a class, or the start of a span
    among the tokens; [batch, tokens, choices] where it answers at each token."""
    choices: Tensor | None
    """Bool [batch, choices]: which choices are real. None if all are. For span extraction: not padding."""
    tokens: Tensor
    """Bool [batch, tokens]: which tokens are not padding."""
    hidden: tuple[Tensor, ...] = ()
    """[batch, tokens, width] each, if asked for: what the embeddings give, then what each layer gives."""
    attentions: tuple[Tensor, ...] = ()
    """[batch, heads, tokens, tokens] each, if asked for: the attention weights of each layer."""
    numbers: bool = False
    """The heads give numbers, [batch, 1], and no logits: regression."""

    @property
    def real(self) -> Tensor | None:
        """Bool, which of a head's logits are real, in their shape; None if all are."""
        if self.logits[0].dim() == 3:
            return self.tokens[..., None].expand_as(self.logits[0])
        return self.choices

    def answers(self) -> tuple[Tensor, ...]:
        """Per head float32 [answers, choices], an answer for each example or for each token that is not padding.

        Choices that are not real are _NEVER, not -inf, for 0 * inf would be NaN: it too gives probability 0 exactly.
        """
        return tuple(self._answers(logits.float()) for logits in self.logits)

    def _answers(self, logits: Tensor) -> Tensor:
        if logits.dim() == 3:
            return logits[self.tokens]
        return logits if self.choices is None else logits.masked_fill(~self.choices, _NEVER)


def label_loss(student: Prediction, labels: tuple[Tensor, ...]) -> Tensor:
    """Mean over the heads of the loss against the labels: cross entropy over the real choices only, or the mean squared
    error of numbers.

    Args:
        labels: for each head [batch], or [batch, tokens] where it answers at each token, IGNORED where none is asked.
    """
    heads = zip(student.answers(), labels, strict=True)
    return torch.stack([_label_loss(answers, label, student) for answers, label in heads]).mean()


def _label_loss(answers: Tensor, label: Tensor, student: Prediction) -> Tensor:
    if student.numbers:
        return F.mse_loss(answers.squeeze(-1), label.float())
    if label.dim() == 2:
        label = label[student.tokens]
    return F.cross_entropy(answers, label, ignore_index=IGNORED)


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
    """KL divergence to the teacher's softened outputs (Hinton et al. 2015, arXiv 1503.02531), times T^2; of numbers
    (regression), which are no distribution, the mean squared error.

    The mean over the heads; each softmax runs over the real choices only, so that the loss of an example does not
    depend on how far its batch was padded. Where a head answers at each token: over all tokens but padding.
    """

    temperature: float = 2.0
    """Both distributions are softened by this; without effect on numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise PruningError(f"distill.temperature={self.temperature}: must be above 0")

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        pairs = zip(student.answers(), teacher.answers(), strict=True)
        if student.numbers:
            return torch.stack([F.mse_loss(s, t) for s, t in pairs]).mean()
        return torch.stack([self._kl(s, t) for s, t in pairs]).mean() * self.temperature**2

    def _kl(self, student: Tensor, teacher: Tensor) -> Tensor:
        of_student = (student / self.temperature).log_softmax(-1)
        of_teacher = (teacher / self.temperature).log_softmax(-1)
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
        error = (student.hidden[-1].float() - teacher.hidden[-1].float()).square().mean(-1)  # [batch, tokens]
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
