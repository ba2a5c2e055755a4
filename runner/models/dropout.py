"""The dropout probabilities of a model: set in its configuration, or read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# The configuration keys of dropout: BERT and its kin, then Funnel, DistilBERT and ModernBERT, which has two, then T5,
# whose one rate is that of attention weights too.
_HIDDEN = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout", "embedding_dropout", "dropout_rate")
_ATTENTION = ("attention_probs_dropout_prob", "attention_dropout")


def set_dropout(
    config: PretrainedConfig, hidden: float | None, attention: float | None, path: str, section: str = "model"
) -> None:
    """Set dropout probabilities in a model's configuration; None leaves the checkpoint's own.

    Args:
        path: of the checkpoint, for the message.
        section: of the configuration, for the message.

    Raises:
        UserError: the architecture has no such setting.
    """
    for key, value, names in (("hidden_dropout", hidden, _HIDDEN), ("attention_dropout", attention, _ATTENTION)):
        if value is None:
            continue
        present = [name for name in names if hasattr(config, name)]
        if not present:
            raise UserError(
                f"{section}.{key}={value}: {path} ({config.model_type}) has no such setting; set it to null"
            )
        for name in present:
            setattr(config, name, value)


def hidden_dropout(config: PretrainedConfig) -> float:
    """The dropout probability of hidden states, the highest where there are several."""
    return _highest(config, _HIDDEN)


def attention_dropout(config: PretrainedConfig) -> float:
    """The dropout probability of attention weights."""
    return _highest(config, _ATTENTION)


def _highest(config: PretrainedConfig, names: Sequence[str]) -> float:
    return max((float(getattr(config, name)) for name in names if hasattr(config, name)), default=0.0)


def max_dropout(net: PreTrainedModel) -> float:
    """The highest dropout probability in the network. Its configuration alone may name one for the heads of other
    tasks."""
    inside = [module.p for module in net.modules() if isinstance(module, nn.Dropout)]
    return max(hidden_dropout(net.config), attention_dropout(net.config), *inside, 0.0)
