"""Whether an export computes what the model does in PyTorch, on texts of several lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runner.exports.onnx import Inputs, Run
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.35}
"""The norm of the difference of an output to PyTorch's in float32, relative to the norm of that, that is allowed."""
LONGEST = 128
"""Tokens of the longest sentence."""
SENTENCES = (
    "The river rose slowly during the night.",
    "Who wrote the letter, and when was it sent to the office in the capital?",
    "No.",
    "A museum opened in 1927 near the old harbour; it shows ships, maps, tools and the daily life of the people who "
    "worked there, and more than a hundred thousand visitors come every year to see them.",
)


def sentences(tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Inputs]:
    """Built-in sentences: a batch with padding, the longest alone, and a long text.

    Args:
        longest: positions of the model.
    """
    most = min(LONGEST, longest)
    groups: list[list[str]] = [[*SENTENCES], [SENTENCES[3]], [" ".join(SENTENCES * 6), SENTENCES[0], SENTENCES[2]]]
    return [dict(tokenizer(g, padding=True, truncation=True, max_length=most, return_tensors="pt")) for g in groups]


def batches(tokenizer: PreTrainedTokenizerBase, features: Sequence[dict]) -> list[Inputs]:
    """Features in a batch with padding, the first alone, and all in one batch.

    Args:
        features: the inputs of at least one text each.
    """
    groups = (features[:3], features[:1], features)
    return [dict(tokenizer.pad(list(group), padding=True, return_tensors="pt")) for group in groups]


@torch.inference_mode()
def check(model: PreTrainedModel, run: Run, inputs: Sequence[Inputs], precision: str, name: str) -> float:
    """Compare an export with its model.

    Args:
        run: the export.
        inputs: batches.
        precision: a key of TOLERANCE.
        name: of the export, for messages.

    Returns:
        The largest relative difference.

    Raises:
        UserError: it is above the tolerance.
    """
    worst = 0.0
    for batch in inputs:
        expected = {key: value for key, value in model(**batch).items() if value is not None}
        for (output, value), got in zip(expected.items(), run(batch), strict=True):
            difference = _difference(value, got, batch["attention_mask"])
            worst = max(worst, difference)
            if not difference <= TOLERANCE[precision]:  # NaN, too
                size = " x ".join(map(str, batch["input_ids"].shape))
                raise UserError(
                    f"{name}: its {output} differ from PyTorch's by {difference:.2g}, relative to their norm, with a "
                    f"batch of {size} tokens; {TOLERANCE[precision]:g} is allowed in {precision}; the export is removed"
                )
    return worst


def _difference(expected: Tensor, got: Tensor, mask: Tensor) -> float:
    """The relative difference at tokens that are no padding."""
    if expected.shape != got.shape:
        return float("inf")
    if expected.shape[:2] == mask.shape:
        expected, got = expected[mask.bool()], got[mask.bool()]
    return float((expected - got).norm() / expected.norm().clamp(min=1e-12))
