"""Cutting dead channels and heads: the cut model computes what the whole one does."""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PreTrainedModel,
    T5EncoderModel,
)

from pruning import PruningError
from pruning.runtime.cut import channels_in_use, cut, cut_evenly
from pruning.runtime.families import FAMILIES, LINEARS

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
OF_DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}


def network(kind: str, seed: int = 0, act: str = "gelu") -> PreTrainedModel:
    sizes = OF_DISTILBERT | {"activation": act} if kind == "distilbert" else SIZES | {"hidden_act": act}
    torch.manual_seed(seed)
    model = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def linear(model: PreTrainedModel, layer: int, name: str) -> torch.nn.Linear:
    path = FAMILIES[model.config.model_type].parameter(layer, name, "weight")
    module = model.base_model.get_submodule(path.removesuffix(".weight"))
    assert isinstance(module, torch.nn.Linear)
    return module


@torch.no_grad()
def kill(model: PreTrainedModel, layer: int, kind: str, number: int) -> None:
    """Make a channel or a head dead in one of the ways."""
    head = slice(8 * number, 8 * number + 8)
    if kind == "up":
        linear(model, layer, "up").weight[number] = 0
    elif kind == "down":
        linear(model, layer, "down").weight[:, number] = 0
    elif kind == "value":
        linear(model, layer, "value").weight[head] = 0
        linear(model, layer, "value").bias[head] = 0
    else:
        linear(model, layer, "output").weight[:, head] = 0


@torch.inference_mode()
def outputs(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.arange(5, 35).view(3, 10)
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    result = model(input_ids=tokens, attention_mask=mask)
    return torch.stack([result.start_logits, result.end_logits])


PARTS = st.one_of(
    st.tuples(st.integers(0, 1), st.sampled_from(["up", "down"]), st.integers(0, 23)),
    st.tuples(st.integers(0, 1), st.sampled_from(["value", "output"]), st.integers(0, 3)),
)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
@settings(max_examples=15, deadline=None)
@given(parts=st.sets(PARTS, max_size=30), act=st.sampled_from(["gelu", "relu"]), seed=st.integers(0, 9))
def test_the_cut_model_computes_what_the_whole_one_does(kind: str, parts: set, act: str, seed: int) -> None:
    whole = network(kind, seed, act)
    for part in parts:
        kill(whole, *part)
    smaller = copy.deepcopy(whole)
    report = cut(smaller)
    dead = {(layer, kind in ("value", "output"), number) for layer, kind, number in parts}
    counts = [[sum((layer, is_head, i) in dead for i in range(24)) for layer in (0, 1)] for is_head in (False, True)]
    assert report.channels == sum(min(count, 23) for count in counts[0])
    assert report.heads == sum(min(count, 3) for count in counts[1])
    assert (report.all_channels, report.all_heads, report.reason) == (48, 8, "")
    torch.testing.assert_close(outputs(smaller), outputs(whole), atol=2e-4, rtol=1e-4)


def test_all_parts_of_a_layer_but_one_are_cut() -> None:
    whole = network("bert")
    for number in range(24):
        kill(whole, 0, "up", number)
    for number in range(4):
        kill(whole, 0, "value", number)
    smaller = copy.deepcopy(whole)
    assert str(cut(smaller)) == "23 of 48 channels, 3 of 8 heads"
    shapes = {name: tuple(linear(smaller, 0, name).weight.shape) for name in LINEARS}
    assert shapes == {**dict.fromkeys(("query", "key", "value"), (8, 32)), "output": (32, 8), "up": (1, 32),
                      "down": (32, 1)}  # fmt: skip
    torch.testing.assert_close(outputs(smaller), outputs(whole), atol=2e-4, rtol=1e-4)


def test_the_bias_of_a_head_without_weights_moves() -> None:
    whole = network("bert")
    with torch.no_grad():
        linear(whole, 0, "value").weight[:8] = 0  # its bias reaches the output
    smaller = copy.deepcopy(whole)
    assert str(cut(smaller)) == "0 of 48 channels, 1 of 8 heads"
    assert not torch.equal(linear(smaller, 0, "output").bias, linear(whole, 0, "output").bias)
    torch.testing.assert_close(outputs(smaller), outputs(whole), atol=2e-4, rtol=1e-4)


def test_a_head_whose_features_are_dead_in_different_ways_is_cut() -> None:
    whole = network("bert")
    with torch.no_grad():
        linear(whole, 0, "value").weight[:5] = 0
        linear(whole, 0, "output").weight[:, 5:8] = 0
    smaller = copy.deepcopy(whole)
    assert cut(smaller).heads == 1
    torch.testing.assert_close(outputs(smaller), outputs(whole), atol=2e-4, rtol=1e-4)


def test_a_model_without_zeros_stays_whole() -> None:
    model = network("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = cut(model)
    assert (report.channels, report.heads) == (0, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_with_infinite_weights_stays_whole() -> None:
    model = network("bert")
    kill(model, 0, "down", 3)
    kill(model, 1, "down", 3)
    with torch.no_grad():
        linear(model, 0, "up").weight[3, 0] = torch.inf
    assert cut(model).channels == 1


def test_an_unknown_architecture_is_named() -> None:
    model = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model("ibert", vocab_size=50, **SIZES))
    assert str(cut(model)) == "nothing (no heads or channels of the architecture 'ibert' are known by their names)"
    with pytest.raises(PruningError, match="no heads or channels of the architecture 'ibert'"):
        cut_evenly(model)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
@settings(max_examples=10, deadline=None)
@given(parts=st.sets(PARTS, max_size=40), seed=st.integers(0, 9))
def test_layers_cut_evenly_have_one_size_that_the_configuration_names(kind: str, parts: set, seed: int) -> None:
    whole = network(kind, seed)
    for part in parts:
        kill(whole, *part)
    dead = [{number for at, way, number in parts if at == layer and way in ("up", "down")} for layer in (0, 1)]
    used = [max(1, 24 - len(numbers)) for numbers in dead]
    assert channels_in_use(whole) == used
    smaller = copy.deepcopy(whole)
    report = cut_evenly(smaller)
    assert (report.channels, report.heads) == (2 * (24 - max(used)), 0)
    name = "hidden_dim" if kind == "distilbert" else "intermediate_size"
    assert getattr(smaller.config, name) == max(used)
    again = AutoModelForQuestionAnswering.from_config(smaller.config).eval()
    again.load_state_dict(smaller.state_dict())  # an ordinary model of this configuration
    torch.testing.assert_close(outputs(again), outputs(whole), atol=2e-4, rtol=1e-4)


# --- every family whose names are known -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where the units of a family are, by hand."""

    layer: str
    """Name of a layer, with its number for {}."""
    up: list[str]
    down: str
    value: str
    output: str
    settings: dict[str, Any] = field(default_factory=dict)
    layers: int = 2
    """Layers with weights of their own."""
    kind: Any = AutoModelForTokenClassification
    name: str = "intermediate_size"
    """What the configuration calls the number of channels."""
    heads: int = 4
    """Heads with keys and values of their own; 0: they stay."""


BERT = ("attention.self.value", "attention.output.dense")
LAYOUTS = {
    "bert": Layout("encoder.layer.{}", ["intermediate.dense"], "output.dense", *BERT),
    "mpnet": Layout(
        "encoder.layer.{}", ["intermediate.dense"], "output.dense", "attention.attn.v", "attention.attn.o"
    ),
    "albert": Layout(
        "encoder.albert_layer_groups.0.albert_layers.{}", ["ffn"], "ffn_output", "attention.value", "attention.dense",
        {"embedding_size": 16, "hidden_dropout_prob": 0}, 1,
    ),
    "mobilebert": Layout(
        "encoder.layer.{}", ["intermediate.dense"], "output.dense", *BERT,
        {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32, "num_feedforward_networks": 1},
    ),
    "deberta-v2": Layout(
        "encoder.layer.{}", ["intermediate.dense"], "output.dense", "attention.self.value_proj", BERT[1],
        {"relative_attention": True, "position_buckets": 8, "pos_att_type": "p2c|c2p", "type_vocab_size": 0},
    ),
    "modernbert": Layout(
        "layers.{}", ["mlp.Wi"], "mlp.Wo", "attn.Wqkv", "attn.Wo",
        {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "eurobert": Layout(
        "layers.{}", ["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj", "self_attn.v_proj", "self_attn.o_proj",
        {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3},
        heads=2,
    ),
    "megatron-bert": Layout("encoder.layer.{}", ["intermediate.dense"], "output.dense", *BERT),
    "convbert": Layout("encoder.layer.{}", ["intermediate.dense"], "output.dense", *BERT, {"embedding_size": 16},
                       heads=0),
    "t5": Layout(
        "encoder.block.{}", ["layer.1.DenseReluDense.wi"], "layer.1.DenseReluDense.wo", "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o", {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 24},
        kind=T5EncoderModel, name="d_ff", heads=0,
    ),
}  # fmt: skip
WAYS = st.tuples(st.integers(0, 1), st.sampled_from(["up", "down", "value", "output"]), st.integers(0, 23))


def of_family(kind: str, seed: int) -> PreTrainedModel:
    layout = LAYOUTS[kind]
    config = AutoConfig.for_model(kind, **{"vocab_size": 50, **SIZES, **layout.settings})
    torch.manual_seed(seed)
    make = getattr(layout.kind, "from_config", layout.kind)
    model = make(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def take(model: PreTrainedModel, layout: Layout, layer: int, way: str, number: int) -> bool:
    """Set what makes a unit dead to zero; whether it is a head."""

    def module(name: str) -> torch.nn.Linear:
        return model.base_model.get_submodule(f"{layout.layer.format(layer)}.{name}")  # type: ignore[return-value]

    down, output, value = module(layout.down), module(layout.output), module(layout.value)
    number %= 24 if way in ("up", "down") else max(1, layout.heads)
    size = output.in_features // max(1, layout.heads)
    if way == "down":
        down.weight[:, number] = 0
    elif way == "up":
        gated = len(layout.up) > 1 or module(layout.up[0]).out_features > 24
        writer = module(layout.up[number % len(layout.up)])  # gate or up
        writer.weight[number::24] = 0
        if gated and writer.bias is not None:
            writer.bias[number::24] = 0
    elif layout.heads and way == "value":
        rows = len(value.weight) // (3 if value.out_features > output.in_features else 1)  # of values, the last ones
        size = rows // layout.heads
        value.weight[len(value.weight) - rows :][number * size : (number + 1) * size] = 0
    elif layout.heads:
        output.weight[:, number * size : (number + 1) * size] = 0
    return way in ("value", "output")


@torch.inference_mode()
def outputs_of(model: PreTrainedModel) -> torch.Tensor:
    tokens = torch.arange(5, 35).view(3, 10)
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    return model(input_ids=tokens, attention_mask=mask)[0][mask.bool()]


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=5, deadline=None)
@given(parts=st.sets(WAYS, max_size=40), seed=st.integers(0, 9))
def test_every_family_computes_the_same_once_cut_and_evenly_cut(kind: str, parts: set, seed: int) -> None:
    layout, whole = LAYOUTS[kind], of_family(kind, seed)
    size = {True: layout.heads, False: 24}
    dead = {
        (layer % layout.layers, is_head, number % size[is_head])
        for layer, way, number in parts
        for is_head in [take(whole, layout, layer % layout.layers, way, number)]
        if size[is_head]
    }
    counts = {
        is_head: [sum((layer, is_head, i) in dead for i in range(size[is_head])) for layer in range(layout.layers)]
        for is_head in (True, False)
    }
    smaller, even = copy.deepcopy(whole), copy.deepcopy(whole)
    report = cut(smaller)
    assert report.channels == sum(min(count, 23) for count in counts[False])
    assert report.heads == sum(min(count, layout.heads - 1) for count in counts[True] if layout.heads)
    assert report.idle_heads == sum(bool(layout.heads) and count == layout.heads for count in counts[True])
    torch.testing.assert_close(outputs_of(smaller), outputs_of(whole), atol=3e-4, rtol=1e-3)

    used = max(24 - min(count, 23) for count in counts[False])
    cut_evenly(even)
    assert getattr(even.config, layout.name) == used
    again = type(even)(even.config).eval()
    again.load_state_dict(even.state_dict())
    torch.testing.assert_close(outputs_of(again), outputs_of(whole), atol=3e-4, rtol=1e-3)


def test_a_configuration_that_cannot_name_the_number_is_refused() -> None:
    model = of_family("bert", 0)
    kill(model, 0, "down", 3)
    kill(model, 1, "down", 4)
    model.config.intermediate_size = 77
    with pytest.raises(PruningError, match="the configuration of bert cannot say that its layers have 23 feed-forward"):
        cut_evenly(model)


def test_no_bias_is_added_that_the_configuration_does_not_have() -> None:
    model = of_family("t5", 0)
    model.config.dense_act_fn = "sigmoid"  # 0.5 for a channel without weights
    take(model, LAYOUTS["t5"], 0, "up", 3)
    take(model, LAYOUTS["t5"], 1, "up", 3)
    with pytest.raises(PruningError, match="cannot say"):
        cut_evenly(model)
