"""Distillation: losses that pull the student towards its dense teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import PruningError
from pruning.prediction import Prediction

_SMALLEST = 1e-12  # an attention weight below it has no logarithm to learn from


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


def _squared_error(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
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
    def needs_attention(self) -> bool:
        """Whether the loss reads attention weights."""
        return False

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        """New modules, to be trained with the student, that take its hidden states to the teacher's width: by the
        layer of the student, 0 for the embeddings. Empty where none is needed.

        Raises:
            PruningError: such a student cannot be compared with such a teacher.
        """
        return {}

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        """The scalar distillation loss, unweighted.

        Args:
            student: `projected`.
        """
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
        _check_temperature(self)

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        return _of_logits(student, teacher, self.temperature)


def _check_temperature(distillation: "Logits | HiddenStates") -> None:
    if distillation.temperature <= 0:
        raise PruningError(f"temperature={distillation.temperature} must be above 0", distillation)


def _of_logits(student: Prediction, teacher: Prediction, temperature: float) -> Tensor:
    """The loss of `Logits`."""
    pairs = zip(student.answers(), teacher.answers(), strict=True)
    if student.numbers:
        return torch.stack([F.mse_loss(s, t) for s, t in pairs]).mean()
    return torch.stack([_kl(s, t, temperature) for s, t in pairs]).mean() * temperature**2


def _kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    of_student = (student / temperature).log_softmax(-1)
    of_teacher = (teacher / temperature).log_softmax(-1)
    return F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)


@dataclass
class HiddenStates(Distillation):
    """Imitation of the teacher's layers and logits: hidden_weight * hidden + attention_weight * attention +
    logits_weight * the loss of `Logits`.

    hidden (TinyBERT, arXiv 1909.10351, eq. 8; PKD, arXiv 1908.09355): the squared error of the hidden states, the mean
    over the mapped layers, the tokens that are not padding, and the width. Where the teacher has another width, a
    learned linear projection for each mapped layer takes the student's states to it; it is discarded in the end.

    attention (MiniLM, arXiv 2002.10957, eq. 6): the KL divergence from the teacher's attention weights, the mean over
    the mapped layers, the attention heads and the tokens that are not padding.
    """

    hidden_weight: float = 1.0
    """Weight of the hidden states' squared error."""
    attention_weight: float = 0.0
    """Weight of the attention's divergence; 0: none. Both models then compute attention eagerly and store
    [batch, heads, tokens, tokens] numbers for each layer. The student must have no dropout of attention weights, which
    the comparison would include."""
    logits_weight: float = 1.0
    """Weight of the logits' loss, which trains the head."""
    temperature: float = 2.0
    """Temperature of the logits' loss."""
    layers: dict[int, int] = field(default_factory=dict)
    """Layer of the student -> layer of the teacher, counted from 1; 0 is what the embeddings give, which has no
    attention. Such as {3: 6, 6: 12}. Not given: all of the student's layers, spread evenly over the teacher's, layer m
    of M to m * N / M of N (rounded up), and the embeddings to the embeddings."""

    needs_hidden: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_temperature(self)
        weights = {key: getattr(self, key) for key in ("hidden_weight", "attention_weight", "logits_weight")}
        values = ", ".join(f"{key}={value}" for key, value in weights.items())
        if min(weights.values()) < 0:
            raise PruningError(f"{values}: none may be negative", self)
        if not self.hidden_weight and not self.attention_weight:
            raise PruningError(f"{values}: no layer is imitated; use Logits()", self)
        if not self.logits_weight and not self.label_weight:
            raise PruningError(
                f"{values}, label_weight={self.label_weight}: nothing trains the head; set one of the last two", self
            )
        if self.layers and self.attention_weight and not any(s and t for s, t in self.layers.items()):
            raise PruningError(
                f"layers={self.layers}: the output of the embeddings has no attention; name layers, or set "
                "attention_weight=0",
                self,
            )

    @property
    def needs_attention(self) -> bool:
        return self.attention_weight > 0

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        mapped = self.mapped(student.layers, teacher.layers)
        if self.needs_attention and student.heads != teacher.heads:
            raise PruningError(
                f"attention_weight={self.attention_weight}: the student has {student.heads} attention heads in a layer "
                f"and the teacher {teacher.heads}, which cannot be compared; set attention_weight=0",
                self,
            )
        if not self.hidden_weight or student.width == teacher.width:
            return {}
        return {layer: nn.Linear(student.width, teacher.width) for layer in mapped}

    def mapped(self, student: int, teacher: int) -> dict[int, int]:
        """Layer of the student -> layer of the teacher.

        Args:
            student, teacher: how many layers they have.

        Raises:
            PruningError: `layers` names a layer that does not exist.
        """
        if not self.layers:
            return {m: -(-m * teacher // student) for m in range(student + 1)}
        for who, layers, most in (("student", self.layers, student), ("teacher", self.layers.values(), teacher)):
            wrong = [layer for layer in layers if not 0 <= layer <= most]
            if wrong:
                raise PruningError(
                    f"layers={self.layers}: the {who} has no layer {wrong[0]}; it has 1 to {most}, and 0 for the "
                    "embeddings",
                    self,
                )
        return dict(sorted(self.layers.items()))

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        mapped = self.mapped(len(student.hidden) - 1, len(teacher.hidden) - 1).items()
        loss = torch.zeros((), device=student.tokens.device)
        if self.hidden_weight:
            errors = [_squared_error(student.hidden[s], teacher.hidden[t], student.tokens) for s, t in mapped]
            loss = loss + self.hidden_weight * torch.stack(errors).mean()
        if self.attention_weight:
            self._check_attentions(student, teacher)
            pairs = [(student.attentions[s - 1], teacher.attentions[t - 1]) for s, t in mapped if s and t]
            each = [_attention_kl(s, t, student.tokens) for s, t in pairs]
            loss = loss + self.attention_weight * torch.stack(each).mean()
        if self.logits_weight:
            loss = loss + self.logits_weight * _of_logits(student, teacher, self.temperature)
        return loss

    def _check_attentions(self, student: Prediction, teacher: Prediction) -> None:
        for who, output in (("student", student), ("teacher", teacher)):
            if len(output.attentions) != len(output.hidden) - 1 or any(each is None for each in output.attentions):
                raise PruningError(
                    f"the {who} does not give the attention weights of each of its layers; set attention_weight=0", self
                )


def _attention_kl(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """Mean over heads and real tokens of the KL divergence over the real tokens that they attend to.

    Args:
        student, teacher: [batch, heads, tokens, tokens], probabilities along the last dimension.
    """
    target = teacher.float().masked_fill(~tokens[:, None, None, :], 0.0)  # 0 * log 0 counts as 0
    each = F.kl_div(student.float().clamp_min(_SMALLEST).log(), target, reduction="none").sum(-1)
    return (each.mean(1) * tokens).sum() / tokens.sum()


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

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        if student.width == teacher.width:
            return {}
        return {student.layers: self.projector.between(student.width, teacher.width)}

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        return _squared_error(student.hidden[-1], teacher.hidden[-1], student.tokens)


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
