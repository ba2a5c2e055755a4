"""Encoders that encoder.c computes: post-layer-norm Transformers, whatever their modules are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pruning.architectures import BERT_ATTENTION, BERT_FEED_FORWARD, DISTILBERT_ATTENTION, DISTILBERT_FEED_FORWARD
from pruning.errors import PruningError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

ACTIVATIONS = {
    "relu": 1, "gelu": 2, "gelu_python": 2, "gelu_new": 3, "gelu_fast": 3, "gelu_pytorch_tanh": 3, "gelu_accurate": 3,
    "quick_gelu": 4, "silu": 5, "swish": 5,
}  # fmt: skip
"""transformers' name of an activation -> enum activation of encoder.c."""

LINEARS = ("query", "key", "value", "output", "up", "down")
"""Linear modules of a layer, as encoder.c calls them."""
NORMS = ("attention_norm", "ffn_norm")
"""Layer norms of a layer."""


@dataclass(frozen=True)
class Family:
    """Names in the modules of an architecture."""

    layer: str
    """Class of a layer. A layer of another class may compute something else."""
    encoder: str
    """The encoder in the base model; its layers are in `layer`."""
    modules: tuple[str, ...]
    """Modules of a layer, in the order of LINEARS and NORMS."""
    activation: str = "hidden_act"
    """Name of the activation in the configuration."""
    epsilon: str = "layer_norm_eps"
    """Name of the epsilon of layer norms in the configuration; 1e-12 if it has none."""

    def parameter(self, layer: int, module: str, what: str) -> str:
        """Name of a parameter in the base model.

        Args:
            module: one of LINEARS or NORMS.
            what: weight or bias.
        """
        return f"{self.encoder}.layer.{layer}.{self.modules[(*LINEARS, *NORMS).index(module)]}.{what}"


_BERT = (*BERT_ATTENTION.all, *BERT_FEED_FORWARD.all, "attention.output.LayerNorm", "output.LayerNorm")
_DISTILBERT = (*DISTILBERT_ATTENTION.all, *DISTILBERT_FEED_FORWARD.all, "sa_layer_norm", "output_layer_norm")
FAMILIES = {
    "bert": Family("BertLayer", "encoder", _BERT),
    "roberta": Family("RobertaLayer", "encoder", _BERT),
    "xlm-roberta": Family("XLMRobertaLayer", "encoder", _BERT),
    "camembert": Family("CamembertLayer", "encoder", _BERT),
    "electra": Family("ElectraLayer", "encoder", _BERT),
    "distilbert": Family("TransformerBlock", "transformer", _DISTILBERT, "activation", ""),
}
"""Families by `model_type`."""


@dataclass(frozen=True)
class Structure:
    """The encoder of a model, from its configuration."""

    family: Family
    layers: int
    hidden: int
    heads: int
    activation: str
    """A key of ACTIVATIONS."""
    epsilon: float
    """Epsilon of the layer norms."""

    @property
    def function(self) -> Callable[[Tensor], Tensor]:
        """The activation, in torch."""
        from transformers.activations import ACT2FN

        return ACT2FN[self.activation]

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return self.hidden // self.heads


def structure_of(config: PretrainedConfig) -> Structure:
    """The structure of an encoder. Raises PruningError with the reason if encoder.c does not compute it."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise PruningError(f"no kernels for the architecture {config.model_type!r}, only for {', '.join(FAMILIES)}")
    activation = getattr(config, family.activation, None)
    if activation not in ACTIVATIONS:
        raise PruningError(f"no kernel for the activation {activation!r}, only for {', '.join(ACTIVATIONS)}")
    if getattr(config, "is_decoder", False):
        raise PruningError("no kernels for decoders (is_decoder=true)")
    for more in ("output_hidden_states", "output_attentions"):
        if getattr(config, more, False):
            raise PruningError(f"the configuration asks for {more}, which the kernels do not keep")
    return Structure(
        family, config.num_hidden_layers, config.hidden_size, config.num_attention_heads, activation,
        getattr(config, family.epsilon, 1e-12) if family.epsilon else 1e-12,
    )  # fmt: skip


def check_layers(model: PreTrainedModel, family: Family) -> None:
    """Raises PruningError if a layer of the model is not of the family's class, or a module in it is not a plain one
    whose weight is a parameter: an adapter or a parametrization computes something else.
    """
    layers = model.base_model.get_submodule(f"{family.encoder}.layer")
    other = {type(layer).__name__ for layer in layers.children()} - {family.layer}
    if other:
        raise PruningError(f"no kernels for layers of class {', '.join(sorted(other))}, only for {family.layer}")
    for number, layer in enumerate(layers.children()):
        for name in family.modules:
            module = layer.get_submodule(name)
            if type(module) not in (nn.Linear, nn.LayerNorm) or "weight" not in dict(module.named_parameters()):
                raise PruningError(
                    f"no kernels for layer {number}'s {name}, a {type(module).__name__} with the parameters "
                    f"{', '.join(name for name, _ in module.named_parameters()) or 'none'}: merge what was added to it"
                )
