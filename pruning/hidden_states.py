"""Distillation of the hidden states and the attention weights of several layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.distillation import Distillation, EncoderShape, check_temperature, logits_loss, squared_error
from pruning.errors import PruningError
from pruning.prediction import Prediction

_SMALLEST = 1e-12  # a smaller attention weight has no logarithm, and a smaller variance no inverse, to learn from


def map_layers(layers: dict[int, int], student: int, teacher: int, owner: Distillation) -> dict[int, int]:
    """Layer of the student -> layer of the teacher.

    Args:
        layers: the mapping that was asked for; empty: all of the student's layers, spread evenly, and the embeddings.
        student, teacher: how many layers they have.
        owner: names the mapping in the message.

    Raises:
        PruningError: `layers` names a layer that does not exist.
    """
    if not layers:
        return {m: -(-m * teacher // student) for m in range(student + 1)}
    for who, named, most in (("student", layers, student), ("teacher", layers.values(), teacher)):
        wrong = [layer for layer in named if not 0 <= layer <= most]
        if wrong:
            raise PruningError(
                f"layers={layers}: the {who} has no layer {wrong[0]}; it has 1 to {most}, and 0 for the embeddings",
                owner,
            )
    return dict(sorted(layers.items()))


def _origins(imitating: Iterable[int], layers: Sequence[int]) -> dict[int, int]:
    """Layer of the student -> the teacher's that it comes from, counted from 1; the embeddings, 0, come from 0.

    Args:
        imitating: the student's layers that imitate one.
        layers: of the teacher, counted from 0, in the order of the student's.
    """
    return {layer: layers[layer - 1] + 1 if layer else 0 for layer in imitating}


def _linear(layers: Iterable[int], student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
    """A linear projection for each of the student's layers, where the widths differ."""
    if student.width == teacher.width:
        return {}
    return {layer: nn.Linear(student.width, teacher.width) for layer in layers}


@dataclass
class LogitsHidden(Distillation):
    """Logits and the hidden states of all layers in one loss: weight * the loss of `Logits` + hidden_weight * hidden.

    hidden: the mean over the mapped layers of the squared error of the hidden states, the mean over the width and the
    tokens that are not padding, divided by the variance of the teacher's states over the same: 1 is the error of a
    constant. So each layer counts alike, whatever the size of its states. Where the teacher has another width, a
    learned linear projection for each mapped layer takes the student's states to it; it is discarded in the end.
    """

    temperature: float = 2.0
    """Temperature of the logits' loss."""
    hidden_weight: float = 20.0
    """Weight of the hidden states' error in the total loss, independent of `weight`."""
    layers: dict[int, int] = field(default_factory=dict)
    """Layer of the student -> layer of the teacher, counted from 1; 0 is what the embeddings give. Such as {3: 6,
    6: 12}. Not given: all of the student's layers, spread evenly over the teacher's, layer m of M to m * N / M of N
    (rounded up), without the embeddings."""

    needs_hidden: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature, self)
        if self.hidden_weight <= 0:
            raise PruningError(f"hidden_weight={self.hidden_weight}: must be above 0; or use Logits()", self)
        if not self.weight:
            raise PruningError(f"weight={self.weight}: must be above 0, for the logits train the head", self)

    def mapped(self, student: int, teacher: int) -> dict[int, int]:
        """Layer of the student -> layer of the teacher, as `map_layers` says, but for the embeddings unless named."""
        mapped = map_layers(self.layers, student, teacher, self)
        return mapped if self.layers else {s: t for s, t in mapped.items() if s}

    def with_origins(self, layers: Sequence[int]) -> Self:
        return self if self.layers else replace(self, layers=_origins(self.mapped(len(layers), len(layers)), layers))

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        return _linear(self.mapped(student.layers, teacher.layers), student, teacher)

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        mapped = self.mapped(len(student.hidden) - 1, len(teacher.hidden) - 1).items()
        errors = [_relative_error(student.hidden[s], teacher.hidden[t], student.tokens) for s, t in mapped]
        share = self.hidden_weight / self.weight  # the total loss multiplies all by `weight`
        return logits_loss(student, teacher, self.temperature) + share * torch.stack(errors).mean()


def _relative_error(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """`squared_error` as a fraction of the variance of the teacher's hidden states at the real tokens."""
    variance = teacher[tokens].float().var(correction=0)
    return squared_error(student, teacher, tokens) / variance.clamp_min(_SMALLEST)


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
        check_temperature(self.temperature, self)
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
    def needs_logits(self) -> bool:
        return self.logits_weight > 0

    @property
    def needs_attention(self) -> bool:
        return self.attention_weight > 0

    def with_origins(self, layers: Sequence[int]) -> Self:
        return self if self.layers else replace(self, layers=_origins(self.mapped(len(layers), len(layers)), layers))

    def projections(self, student: EncoderShape, teacher: EncoderShape) -> dict[int, nn.Module]:
        if self.needs_attention and student.heads != teacher.heads:
            raise PruningError(
                f"attention_weight={self.attention_weight}: the student has {student.heads} attention heads in a layer "
                f"and the teacher {teacher.heads}, which cannot be compared; set attention_weight=0",
                self,
            )
        mapped = self.mapped(student.layers, teacher.layers)
        return _linear(mapped, student, teacher) if self.hidden_weight else {}

    def mapped(self, student: int, teacher: int) -> dict[int, int]:
        """Layer of the student -> layer of the teacher, as `map_layers` says."""
        return map_layers(self.layers, student, teacher, self)

    def loss(self, student: Prediction, teacher: Prediction) -> Tensor:
        mapped = self.mapped(len(student.hidden) - 1, len(teacher.hidden) - 1).items()
        loss = torch.zeros((), device=student.tokens.device)
        if self.hidden_weight:
            errors = [squared_error(student.hidden[s], teacher.hidden[t], student.tokens) for s, t in mapped]
            loss = loss + self.hidden_weight * torch.stack(errors).mean()
        if self.attention_weight:
            self._check_attentions(student, teacher)
            pairs = [(student.attentions[s - 1], teacher.attentions[t - 1]) for s, t in mapped if s and t]
            each = [_attention_kl(s, t, student.tokens) for s, t in pairs]
            loss = loss + self.attention_weight * torch.stack(each).mean()
        if self.logits_weight:
            loss = loss + self.logits_weight * logits_loss(student, teacher, self.temperature)
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
