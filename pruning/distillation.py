"""Distillation: losses that pull the student towards its dense teacher."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import PruningError
from pruning.prediction import Prediction


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of a student or teacher, known before it computes anything."""

    layers: int
    width: int
    """Width of the hidden states."""
    heads: int
    """Attention heads in each layer."""


def projected(student: Prediction, projections: Mapping[int, nn.Module]) -> Prediction:
    """The student with hidden states as wide as the teacher's.

    Args:
        projections: by the student's layer, as `Distillation.projections` makes them.
    """
    if not projections:
        return student
    hidden = (projections[i](states) if i in projections else states for i, states in enumerate(student.hidden))
    return replace(student, hidden=tuple(hidden))


def squared_error(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """Mean over the real tokens and the width of the squared error of hidden states, [batch, tokens, width]."""
    error = (student.float() - teacher.float()).square().mean(-1)  # [batch, tokens]
    return (error * tokens).sum() / tokens.sum()


@dataclass
class Distillation:
    """Base: total loss = weight * distillation loss + label_weight * label loss."""

    weight: float = 1.0
    """Weight of the distillation loss."""
    label_weight: float = 0.0
    """Weight of the loss against the labels."""

    needs_teacher: ClassVar[bool] = True
    needs_hidden: ClassVar[bool] = False
    shares_head: ClassVar[bool] = False
    """Whether the student takes over the teacher's head, frozen."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.label_weight < 0 or self.weight + self.label_weight == 0:
            raise PruningError(
                f"weight={self.weight}, label_weight={self.label_weight}: must not be negative, and not both zero", self
            )

    @property
    def needs_logits(self) -> bool:
        """Whether the loss reads the teacher's logits."""
        return True

    @property
    def needs_attention(self) -> bool:
        """Whether the loss reads attention weights."""
        return False

    def with_origins(self, layers: Sequence[int]) -> Self:
        """This loss for a student made of some of the teacher's layers: each imitates the one that it comes from.

        Args:
            layers: of the teacher, counted from 0, in the order of the student's.
        """
        return self

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        """New modules, to be trained with the student, that take its hidden states to the teacher's width: by the
        layer of the student, 0 for the embeddings. Empty where none is needed.

        Raises:
            PruningError: such a student cannot be compared with such a teacher.
        """
        return {}

    @abstractmethod
    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        """The scalar distillation loss, unweighted.

        Args:
            student: `projected`.
        """
        raise NotImplementedError


def averaged(teachers: Sequence[Prediction], temperature: float = 1.0) -> Prediction:
    """Several teachers as one: softened by the temperature, its probabilities are the means of theirs (Hinton et al.
    2015, arXiv 1503.02531, section 5; You et al. 2017); of numbers, the means. Hidden states and attention weights are
    those of the first.

    With K teachers' logits z_k: z = T * (logsumexp_k log_softmax(z_k / T) - log K) over the real choices, 0 elsewhere.

    Args:
        teachers: one at least, for the same batch.
    """
    first = teachers[0]
    if len(teachers) == 1:
        return first
    heads = [torch.stack(head).float() for head in zip(*(each.logits for each in teachers), strict=True)]
    if first.numbers:
        return replace(first, logits=tuple(head.mean(0) for head in heads))
    padding = ~first.choices if first.choices is not None and first.logits[0].dim() == 2 else None
    return replace(first, logits=tuple(_averaged(head, temperature, padding) for head in heads))


def _averaged(logits: Tensor, temperature: float, padding: Tensor | None) -> Tensor:
    """The mean over the first dimension of softened probabilities, as logits."""
    if padding is not None:
        logits = logits.masked_fill(padding, -math.inf)
    log_odds = (logits / temperature).log_softmax(-1)
    mean = temperature * (log_odds.logsumexp(0) - math.log(len(logits)))
    return mean if padding is None else mean.masked_fill(padding, 0.0)


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
        check_temperature(self.temperature, self)

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        return logits_loss(student, teacher, self.temperature)


def check_temperature(temperature: float, owner: Distillation) -> None:
    """Raise PruningError for a temperature that softens nothing."""
    if temperature <= 0:
        raise PruningError(f"temperature={temperature} must be above 0", owner)


def logits_loss(student: Prediction, teacher: Prediction, temperature: float) -> Tensor:
    """The loss of `Logits`."""
    pairs = zip(student.answers(), teacher.answers(), strict=True)
    if student.numbers:
        return torch.stack([F.mse_loss(s, t) for s, t in pairs]).mean()
    return torch.stack([_kl(s, t, temperature) for s, t in pairs]).mean() * temperature**2


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    of_student = (student / temperature).log_softmax(-1)
    of_teacher = (teacher / temperature).log_softmax(-1)
    return F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)


class Projector(StrEnum):
    """How the student's hidden states become as wide as the teacher's."""

    linear = "linear"
    mlp = "mlp"

    def between(self, student: int, teacher: int) -> nn.Module:
        """A new module from [..., student] to [..., teacher]."""
        first = nn.Linear(student, teacher)
        return first if self is Projector.linear else nn.Sequential(first, nn.GELU(), nn.Linear(teacher, teacher))


@dataclass
class SimKD(Distillation):
    """Reuse of the teacher's classifier (arXiv 2203.14001, eq. 3): the student's last hidden states are fitted to the
    teacher's by mean squared error over the tokens that are not padding; the head is the teacher's, frozen.

    Where the student is not as wide as the teacher, a projector between them is trained along and becomes part of the
    student's head: see `projector`. That needs heads of one linear layer (question answering, classes of tokens); for
    heads that pool or have several layers, both must be as wide and of one family.
    """

    projector: Projector = Projector.linear
    """Only where the widths differ. linear: folded into the head in the end, so the saved model is an ordinary one.
    mlp: two layers with a GELU between, that stay in the saved model and count as its parameters."""

    needs_hidden: ClassVar[bool] = True
    shares_head: ClassVar[bool] = True

    @property
    def needs_logits(self) -> bool:
        return False

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        if student.width == teacher.width:
            return {}
        return {student.layers: self.projector.between(student.width, teacher.width)}

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        return squared_error(student.hidden[-1], teacher.hidden[-1], student.tokens)


@dataclass
class NoDistillation(Distillation):
    """Training on the labels only."""

    weight: float = 0.0
    label_weight: float = 1.0

    needs_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight:
            raise PruningError(f"weight={self.weight}: NoDistillation() has no teacher; leave it out", self)
