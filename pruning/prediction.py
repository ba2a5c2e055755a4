"""Predictions: what a model answers about a batch, and its loss against the labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The label of a token that has none."""
_NEVER = -1e30  # divided by a temperature it is still a float


@dataclass
class Prediction:
    """The outputs of a model for a batch, in the form that distillation needs."""

    logits: tuple[Tensor, ...]
    """One tensor per head: [batch, choices] where it answers once an example, such as a class, or the start of a span
    among the tokens; [batch, tokens, choices] where it answers at each token."""
    choices: Tensor | None
    """Bool [batch, choices]: which choices are real. None if all are. For span extraction: not padding."""
    tokens: Tensor
    """Bool [batch, tokens]: which tokens are not padding."""
    hidden: tuple[Tensor, ...] = ()
    """[batch, tokens, width] each, if requested: the output of the embeddings, then of each layer."""
    attentions: tuple[Tensor, ...] = ()
    """[batch, heads, tokens, tokens] each, if requested: the attention weights of each layer."""
    numbers: bool = False
    """Whether the heads give numbers, [batch, 1], instead of logits: regression."""

    @property
    def real(self) -> Tensor | None:
        """Bool in the shape of a head's logits: which of them are real. None if all are."""
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


def label_loss(student: Prediction, labels: tuple[Tensor, ...], labelled: Tensor | None = None) -> Tensor:
    """Mean over the heads of the loss against the labels: cross entropy over the real choices only, or the mean squared
    error of numbers.

    Args:
        labels: for each head [batch], or [batch, tokens] where it answers at each token, IGNORED where none is asked.
        labelled: bool [batch], which examples have labels; those without count with a loss of zero. None: all have.
    """
    heads = zip(student.answers(), labels, strict=True)
    return torch.stack([_label_loss(answers, label, student, labelled) for answers, label in heads]).mean()


def _label_loss(answers: Tensor, label: Tensor, student: Prediction, labelled: Tensor | None) -> Tensor:
    if labelled is not None and label.dim() == 1:
        answers, label = answers[labelled], label[labelled]
        loss = F.mse_loss(answers.squeeze(-1), label.float(), reduction="sum") if student.numbers else (
            F.cross_entropy(answers, label, reduction="sum")
        )  # fmt: skip
        return loss / len(labelled)
    if student.numbers:
        return F.mse_loss(answers.squeeze(-1), label.float())
    if label.dim() == 1:
        return F.cross_entropy(answers, label)
    label = label[student.tokens]
    total = F.cross_entropy(answers, label, ignore_index=IGNORED, reduction="sum")
    mean = total / (label != IGNORED).sum().clamp(min=1)  # a batch may have no label at all
    return mean if labelled is None else mean * labelled.float().mean()


def sampled_loss(prediction: Prediction, chance: torch.Generator) -> Tensor:
    """The loss on labels drawn from the prediction itself, a sum over answers and heads.

    Its squared gradients have the Fisher information as their mean (Kunstner et al. 2019, arXiv 1905.12558). Numbers
    are drawn around the prediction with variance 1.

    Args:
        chance: a source on the CPU.
    """
    losses = []
    for answers in prediction.answers():
        if prediction.numbers:
            noise = torch.randn(answers.shape, generator=chance).to(answers.device)
            losses.append((answers - (answers.detach() + noise)).square().sum() / 2)
        else:
            odds = answers.detach().softmax(-1).cpu()
            labels = torch.multinomial(odds, 1, generator=chance)[:, 0].to(answers.device)
            losses.append(F.cross_entropy(answers, labels, reduction="sum"))
    return torch.stack(losses).sum()
