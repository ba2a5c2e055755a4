"""Cutting dead channels and heads: the cut model computes what the whole one does."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

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
    config = AutoConfig.for_model("albert", vocab_size=50, embedding_size=16, **SIZES)
    report = cut(AutoModelForQuestionAnswering.from_config(config))
    assert str(report).startswith("nothing (no kernels for the architecture 'albert'")


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
