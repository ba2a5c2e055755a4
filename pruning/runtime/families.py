"""Encoders that encoder.c computes: post-layer-norm Transformers, whatever their modules are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACTIVATIONS = {
    "relu": 1, "gelu": 2, "gelu_python": 2, "gelu_new": 3, "gelu_fast": 3, "gelu_pytorch_tanh": 3, "gelu_accurate": 3,
    "quick_gelu": 4, "silu": 5, "swish": 5,
}  # fmt: skip
"""transformers' name of an activation -> enum activation of encoder.c."""

_BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
         "intermediate.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm")  # fmt: skip
_DISTILBERT = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2",
               "sa_layer_norm", "output_layer_norm")  # fmt: skip
FAMILIES = {
    ("bert", "BertLayer"): ("encoder", _BERT),
    ("roberta", "RobertaLayer"): ("encoder", _BERT),
    ("xlm-roberta", "XLMRobertaLayer"): ("encoder", _BERT),
    ("camembert", "CamembertLayer"): ("encoder", _BERT),
    ("electra", "ElectraLayer"): ("encoder", _BERT),
    ("distilbert", "TransformerBlock"): ("transformer", _DISTILBERT),
}
"""(model_type, class of a layer) -> name of the encoder in the base model, names of the layer's modules."""

NAMES = ("query", "key", "value", "output", "up", "down")
"""Linear layers of a layer, as encoder.c calls them."""


@dataclass(frozen=True)
class Layer:
    """The modules of one layer."""

    linears: dict[str, nn.Linear]
    """By the names of NAMES."""
    attention_norm: nn.LayerNorm
    ffn_norm: nn.LayerNorm


@dataclass(frozen=True)
class Structure:
    """Where the encoder of a model is, and its sizes."""

    name: str
    """Name of the encoder module in the base model."""
    layers: list[Layer]
    heads: int
    head_size: int
    activation: int


def find(model: PreTrainedModel) -> Structure | str:
    """The structure of a model's encoder, or the reason why encoder.c cannot compute it."""
    base, config = model.base_model, model.config
    for (kind, layer_class), (name, modules) in FAMILIES.items():
        blocks = getattr(getattr(base, name, None), "layer", None)
        if config.model_type != kind or not blocks or any(type(block).__name__ != layer_class for block in blocks):
            continue
        activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
        if activation not in ACTIVATIONS:
            return f"no kernel for the activation {activation!r}"
        if getattr(config, "is_decoder", False):
            return "the model is a decoder"
        layers = [_layer(block, modules) for block in blocks]
        heads = config.num_attention_heads
        return Structure(name, layers, heads, layers[0].linears["query"].out_features // heads, ACTIVATIONS[activation])
    kinds = ", ".join(dict.fromkeys(kind for kind, _ in FAMILIES))
    return f"no kernels for the architecture {config.model_type!r}, only for {kinds}"


def _layer(block: nn.Module, modules: tuple[str, ...]) -> Layer:
    *linears, attention_norm, ffn_norm = (block.get_submodule(name) for name in modules)
    return Layer(dict(zip(NAMES, linears, strict=True)), attention_norm, ffn_norm)  # pyright: ignore[reportArgumentType]
