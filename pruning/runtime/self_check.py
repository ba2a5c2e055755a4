"""The self-check of a sparse model: a few random tokens, through it and through the torch layers that it replaces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.5}
"""Largest difference from torch that a precision may cause. A wrong encoder differs by about 1."""
_TOKENS = 12


def tolerance(precisions: Iterable[str]) -> float:
    """Largest difference that these precisions may cause together."""
    return max(TOLERANCE[precision] for precision in precisions)


@dataclass(frozen=True)
class Sample:
    """A few texts of random tokens, and the last hidden states that torch computes of them."""

    ids: Tensor
    """(3, tokens) int64."""
    mask: Tensor
    """(3, tokens) int64: a whole text, and one with padding at each side."""
    hidden: Tensor
    """(3, tokens, hidden) float32."""

    @classmethod
    @torch.inference_mode()
    def of(cls, model: PreTrainedModel) -> Sample:
        """Run a dense model, without dropout. Random numbers of others are not touched."""
        words = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
        length = max(1, min(_TOKENS, getattr(model.config, "max_position_embeddings", _TOKENS) // 2))
        ids = torch.randint(words, (3, length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1, length - length // 3 :] = mask[2, : length // 3] = 0
        training = model.training
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        hidden = model.eval().base_model(**inputs).last_hidden_state
        model.train(training)
        return cls(ids, mask, hidden.float().cpu())

    @torch.inference_mode()
    def difference(self, model: nn.Module) -> float:
        """Largest mean difference of any token, and of any feature, relative to the mean size of hidden states: a
        wrong row of a weight shows in few features, and a wrong mask in few tokens. Infinite if only one of the two
        is finite.

        Args:
            model: sparse, with or without a head.
        """
        tokens = self.mask.bool()
        expected = self.hidden[tokens]
        base = getattr(model, "base_model", model)
        got = base(input_ids=self.ids, attention_mask=self.mask).last_hidden_state[tokens].float()
        same = (expected == got) | (expected.isnan() & got.isnan())
        error = torch.where(same, 0, (expected - got).abs()).nan_to_num(nan=torch.inf)
        size = expected.abs().nan_to_num(0, 0, 0)
        of_tokens = error.mean(dim=1) / size.mean().clamp(min=1e-9)
        of_features = error.mean(dim=0) / size.mean(dim=0).clamp(min=float(size.mean().clamp(min=1e-9)))
        return max(float(of_tokens.max()), float(of_features.max()))
