"""Units that span several matrices are found in each family. A model without them computes what one with zeros does."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering, PreTrainedModel, T5EncoderModel

from pruning import Coupled, CoupledWeights, FeedForward, Heads, PruningError, couple, matrix_weights
from tests.families import FAMILIES, INNER, LAYERS, WIDTH

SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": INNER}
OTHERS = {
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": INNER},
    "eurobert": {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "mask_token_id": 1, "bos_token_id": 2,
                 "eos_token_id": 3},
    "t5": {"d_model": WIDTH, "d_kv": 4, "d_ff": INNER, "num_layers": LAYERS, "num_heads": 4,
           "feed_forward_proj": "gated-gelu"},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": False,
                   "position_buckets": 8},
}  # fmt: skip
"""Further structures: other names, keys that queries share, heads that are not width / heads wide, more matrices."""
CASES = [*FAMILIES, *(f"{kind} alone" for kind in OTHERS)]


def network(case: str) -> PreTrainedModel:
    """A small random network of a family, biases and norms included."""
    family = FAMILIES.get(case)
    kind = family.kind if family is not None else case.removesuffix(" alone")
    sizes = {**SIZES, **family.sizes} if family is not None else OTHERS[kind]
    config = AutoConfig.for_model(kind, vocab_size=60, **sizes)
    torch.manual_seed(0)
    if kind == "t5":
        model: Any = T5EncoderModel(config)  # pyright: ignore[reportArgumentType]
    else:
        made = AutoModel if kind == "eurobert" else AutoModelForQuestionAnswering
        model = made.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.inference_mode()
def outputs(model: PreTrainedModel) -> Tensor:
    tokens = torch.arange(5, 35).view(3, 10)
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    result = model(input_ids=tokens, attention_mask=mask)
    return result[0] if "last_hidden_state" in result else torch.stack([result.start_logits, result.end_logits])


def units_of(model: PreTrainedModel, pattern: Coupled) -> dict[str, CoupledWeights]:
    candidates = couple(model, matrix_weights(model), pattern, model.config.num_attention_heads)
    return {name: weight for name, weight in candidates.items() if isinstance(weight, CoupledWeights)}


def dead_units(weight: CoupledWeights) -> Tensor:
    """bool [units]: every other unit."""
    return torch.arange(weight.units) % 2 == 0


@torch.no_grad()
def fill(weight: CoupledWeights, axis: int, value: float | None) -> None:
    """Give the dead units one value in all parts along an axis; None: random ones."""
    for part in weight.parts:
        if part.axis == axis:
            view = part.view(part.parameter.detach())
            dead = dead_units(weight)
            view[dead] = 10 * torch.randn(view[dead].shape) if value is None else value


def without(model: PreTrainedModel, units: dict[str, CoupledWeights]) -> None:
    """Let each second matrix read the features of the living units only, whatever the rows of the dead ones compute."""
    for weight in units.values():
        (part,) = (part for part in weight.parts if part.axis == 1)
        module = model.get_submodule(part.name.removesuffix(".weight"))
        features = part.parameter.shape[1] // weight.units
        alive = (~dead_units(weight)).repeat_interleave(features)

        def read(inputs: Tensor, module: Any = module, alive: Tensor = alive) -> Tensor:
            return nn.functional.linear(inputs[..., alive], module.weight[:, alive], module.bias)

        module.forward = read  # type: ignore[method-assign]


@pytest.mark.parametrize("pattern", [FeedForward(), Heads()], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_model_without_some_units_computes_what_one_with_their_zeros_does(case: str, pattern: Coupled) -> None:
    whole = network(case)
    zeroed, cut = copy.deepcopy(whole), copy.deepcopy(whole)
    for weight in units_of(zeroed, pattern).values():
        fill(weight, 0, 0.0)
        fill(weight, 1, 0.0)
    units = units_of(cut, pattern)
    for weight in units.values():
        fill(weight, 0, None)
    without(cut, units)
    torch.testing.assert_close(outputs(zeroed), outputs(cut), rtol=1e-4, atol=1e-4)
    assert float((outputs(zeroed) - outputs(whole)).abs().max()) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_channels_can_be_cut_out_of_the_matrices(case: str) -> None:
    zeroed = network(case)
    for weight in units_of(zeroed, FeedForward()).values():
        fill(weight, 0, 0.0)
        fill(weight, 1, 0.0)
    cut = copy.deepcopy(zeroed)
    for weight in units_of(cut, FeedForward()).values():
        for part in weight.parts:
            living = part.view(part.parameter.detach())[~dead_units(weight)].movedim(0, part.axis + 1)
            module, _, key = part.name.rpartition(".")
            smaller = living.flatten(part.axis, part.axis + 2)
            setattr(cut.get_submodule(module), key, nn.Parameter(smaller))
    assert cut.num_parameters() < zeroed.num_parameters()
    torch.testing.assert_close(outputs(zeroed), outputs(cut), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_all_heads_and_channels_of_all_layers_are_found(case: str) -> None:
    model = network(case)
    shared = 1 if case == "albert-base" else LAYERS
    in_each = 4 if case == "mobilebert" else 1  # feed-forward networks
    channels = units_of(model, FeedForward())
    assert [weight.units for weight in channels.values()] == [INNER] * shared * in_each
    heads = units_of(model, Heads())
    assert [weight.units for weight in heads.values()] == [2 if "eurobert" in case else 4] * shared
    assert all(name.endswith(".heads") for name in heads)
    assert all(name.endswith(".channels") for name in channels)
    linear = {name for name in matrix_weights(model) if any(f".{i}." in name for i in range(LAYERS))}
    rest = linear - {part.name for weight in (*heads.values(), *channels.values()) for part in weight.parts}
    assert all("bottleneck" in name for name in rest), rest
    for weight in (*heads.values(), *channels.values()):
        assert weight.numel() == sum(part.parameter.numel() for part in weight.parts)
        biases = {part.name for part in weight.parts if part.parameter.dim() == 1}
        writers = {part.name.removesuffix(".weight") for part in weight.parts if part.axis == 0}
        assert biases == {name for name, _ in model.named_parameters() if name.removesuffix(".bias") in writers}


def test_heads_that_share_a_key_are_one_unit() -> None:
    model = network("eurobert alone")
    weight = units_of(model, Heads())["layers.0.heads"]
    size = WIDTH // 4
    assert {part.name.split(".")[3]: (part.axis, str(part.block)) for part in weight.parts} == {
        "q_proj": (0, f"{2 * size}xall"), "k_proj": (0, f"{size}xall"), "v_proj": (0, f"{size}xall"),
        "o_proj": (1, f"allx{2 * size}"),
    }  # fmt: skip


def test_values_and_gates_in_one_matrix_go_together() -> None:
    weight = units_of(network("modernbert-base"), FeedForward())["model.layers.0.mlp.channels".replace(".mlp", "")]
    (gated,) = (part for part in weight.parts if part.axis == 0)
    marked = torch.arange(2 * INNER)[:, None].expand(2 * INNER, WIDTH)
    assert gated.view(marked)[5].flatten().unique().tolist() == [5, INNER + 5]


@pytest.mark.parametrize(("pattern", "heads"), [(Heads(), 3), (Heads(), 0), (Heads(), 5)])
def test_heads_that_do_not_fit_the_matrices_are_not_found(pattern: Coupled, heads: int) -> None:
    model = network("minilm-l6")
    with pytest.raises(PruningError, match=r"^no units of heads: .*such as bert\.encoder"):
        couple(model, matrix_weights(model), pattern, heads)


def test_a_network_of_other_names_has_no_units() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    with pytest.raises(PruningError, match=r"^no units of ffn: .* \(such as 0\.weight, 2\.weight\).* such as 4x1$"):
        couple(model, matrix_weights(model), FeedForward(), 1)


def test_units_with_a_matrix_that_must_stay_are_left_out() -> None:
    model = network("minilm-l6")
    weights = matrix_weights(model)
    del weights["bert.encoder.layer.0.output.dense.weight"]
    candidates = couple(model, weights, FeedForward(), 2)
    assert [name for name in candidates if name.endswith("channels")] == ["bert.encoder.layer.1.channels"]
    assert "bert.encoder.layer.0.intermediate.dense.weight" in candidates
    assert "bert.encoder.layer.1.intermediate.dense.weight" not in candidates
