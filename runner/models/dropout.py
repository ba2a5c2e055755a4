"""The dropout probabilities of a model: set in its configuration, or read from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from runner.system.errors import UserError
from runner.system.process import ONCE

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

# The configuration keys of dropout: BERT and its kin, then Funnel, DistilBERT and ModernBERT, which has two.
_HIDDEN = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout", "embedding_dropout")
_ATTENTION = ("attention_probs_dropout_prob", "attention_dropout")


def set_dropout(
    config: PretrainedConfig, hidden: float | None, attention: float | None, path: str, section: str = "model"
) -> None:
    """Set dropout probabilities in a model's configuration; None leaves the checkpoint's own. So does 0 where the
    architecture has no such setting, with a line in the log: defaults that say 0 are for all models.

    Args:
        path: of the checkpoint, for the message.
        section: of the configuration, for the message.

    Raises:
        UserError: the architecture has no such setting, and the value is above 0.
    """
    for key, value, names in (("hidden_dropout", hidden, _HIDDEN), ("attention_dropout", attention, _ATTENTION)):
        if value is None:
            continue
        present = [name for name in names if hasattr(config, name)]
        if not present and value:
            raise UserError(f"{section}.{key}={value}: {path} ({config.model_type}) has no such setting")
        if not present:
            log.info("%s.%s=0: %s (%s) has no such setting; its dropout stays as it is", section, key, path,
                     config.model_type, extra=ONCE)  # fmt: skip
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
