"""What an architecture consists of: the weights that may be pruned, the kinds of matrices, positions and shape."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from pruning import EncoderShape, other_matrices
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from runner.models.checkpoint import Checkpoint, Model

# Tables with a row for each position, by the names that transformers gives them.
POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")


def prunable_parameters(net: PreTrainedModel, model: Model) -> dict[str, nn.Parameter]:
    """The weights of the encoder's Linear and Conv layers that `model` selects for pruning, by parameter name.

    Raises:
        UserError: the encoder has no such layer, or a pattern in model.prunable or model.excluded matches none.
    """
    from pruning.transformers import encoder_weights  # imports transformers

    layers = {name.removesuffix(".weight"): weight for name, weight in encoder_weights(net).items()}
    if net.base_model is net or not layers:
        others = describe_left_out(left_out(net))
        raise UserError(
            f"the architecture {net.config.model_type} cannot be pruned here: {type(net).__name__} has "
            + ("no encoder apart from its head" if net.base_model is net else "no Linear or Conv layer in its encoder")
            + (f"; {others}" if others else "")
        )
    chosen = {name for pattern in model.prunable for name in _matching(pattern, layers, "model.prunable")}
    chosen -= {name for pattern in model.excluded for name in _matching(pattern, layers, "model.excluded")}
    if not chosen:
        raise UserError(
            f"model.prunable={model.prunable} without model.excluded={model.excluded} leaves nothing to prune"
        )
    return {f"{name}.weight": weight for name, weight in layers.items() if name in chosen}


def _matching(pattern: str, layers: Iterable[str], key: str) -> list[str]:
    matching = fnmatch.filter(layers, pattern)
    if not matching:
        known = ", ".join(sorted(layers)[:4])
        raise UserError(
            f"{key}: {pattern!r} matches none of the encoder's Linear and Conv layers "
            f"(such as {known}; * matches any text)"
        )
    return matching


def kind_of(name: str) -> str:
    """The kind of matrix that a weight is, such as attention.self.query: its name after the number of its layer."""
    return re.sub(r"^.*\.\d+\.", "", name).removesuffix(".weight")


def left_out(net: PreTrainedModel) -> dict[str, float]:
    """Matrices that are no weight of a Linear or Conv layer, by kind, as fractions of all weights."""
    counts: Counter[str] = Counter()
    for name, parameter in other_matrices(net).items():
        counts[kind_of(name)] += parameter.numel()
    everything = sum(parameter.numel() for parameter in net.parameters())
    return {kind: count / everything for kind, count in counts.items()}


def describe_left_out(kinds: Mapping[str, float]) -> str | None:
    """`left_out` in words; None if nothing is left out."""
    if not kinds:
        return None
    share, names = sum(kinds.values()), ", ".join(kinds)
    return f"{share:.2%} of all weights are in no Linear or Conv layer and are not pruned: {names}"


def positions(net: PreTrainedModel) -> int | None:
    """The number of tokens that the network has positions for; None if it uses relative or rotary positions."""
    counts: list[int] = []
    for module in net.base_model.modules():
        for name in POSITION_TABLES:
            table = getattr(module, name, None)
            if not isinstance(table, nn.Embedding):
                continue
            # RoBERTa and its kin count from the row after the padding's, BART from `offset`.
            skipped = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            counts.append(table.num_embeddings - skipped)
            ids = getattr(module, "position_ids", None)
            if isinstance(ids, torch.Tensor):
                counts.append(ids.shape[-1])
    return min(counts, default=None)


def check_positions(net: PreTrainedModel, checkpoint: Checkpoint, tokens: int) -> None:
    """Refuse texts that are longer than the network has positions for.

    Args:
        tokens: dataset.max_seq_length.

    Raises:
        UserError: the network has fewer positions.
    """
    most = positions(net)
    if most is not None and tokens > most:
        raise UserError(
            f"dataset.max_seq_length={tokens}: {checkpoint.path} ({checkpoint.key}) has positions for {most} tokens; "
            f"set dataset.max_seq_length to {most} or less, or choose a model for longer texts"
        )


def shape(config: PretrainedConfig) -> EncoderShape:
    """The dimensions of an encoder that distillation losses need."""
    return EncoderShape(config.num_hidden_layers, config.hidden_size, getattr(config, "num_attention_heads", 0))
