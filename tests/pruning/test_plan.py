"""The plan: which weights are pruned, by which pattern and to which target, and why the others are not."""

import logging
import math

import pytest
import torch
from torch import nn

from pruning import (
    Block,
    Dense,
    Global,
    LayerOverride,
    Locked,
    NofM,
    Plan,
    PruningError,
    Uniform,
    as_matrix,
    matrix_weights,
    other_matrices,
)
from pruning.matrices import from_matrix, matrix_shape


def parameters(**shapes):
    """Parameters by name, `__` for a dot: encoder__0=(8, 8) is encoder.0.weight."""
    return {f"{name.replace('__', '.')}.weight": nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


FOUR = {"encoder__0__query": (8, 8), "encoder__0__out": (8, 16), "encoder__1__query": (8, 8), "head": (2, 8)}


def plan(pattern=None, shapes=None, kind=Global, cap=1.0, floor=0.0, **layers):
    """`__` for a dot and `_all` for a *."""
    names = {name.replace("__", ".").replace("_all", "*"): override for name, override in layers.items()}
    return Plan(parameters(**(shapes or FOUR)), pattern or Block(2, 1), kind(cap, floor, layers=names))


def grouped(found):
    """Of each group the name of the pattern, its target, and the layers."""
    return [
        (str(group.pattern), group.pattern.target, [name.removesuffix(".weight") for name in group.shapes])
        for group in found.groups
    ]


ALL = ["encoder.0.out", "encoder.0.query", "encoder.1.query", "head"]

# --- groups and overrides --------------------------------------------------------------------------------------------


def test_without_overrides_there_is_one_group_in_the_order_of_names():
    found = plan()
    assert grouped(found) == [("2x1", 0.8, ALL)]
    assert found.groups[0].units == {f"{name}.weight": units for name, units in zip(ALL, [64, 32, 32, 8], strict=True)}
    assert found.left == {}
    assert found.frozen == []
    assert found.prunes
    assert {str(pattern) for pattern in found.patterns.values()} == {"2x1"}
    assert list(found.candidates) == sorted(found.candidates)


def test_the_order_in_which_parameters_come_does_not_matter():
    first = Plan(parameters(**FOUR), Block(2, 1), Global())
    second = Plan(parameters(**dict(reversed(FOUR.items()))), Block(2, 1), Global())
    assert grouped(first) == grouped(second)
    assert list(first.candidates) == list(second.candidates)


def test_another_pattern_is_another_group_with_the_target_of_the_main_one():
    found = plan(Block(2, 1, target_sparsity=0.7), head=LayerOverride(pattern="1x4"))
    assert grouped(found) == [("2x1", 0.7, ALL[:3]), ("1x4", 0.7, ["head"])]
    assert str(found.patterns["head.weight"]) == "1x4"


def test_another_pattern_with_a_target_of_its_own():
    found = plan(head=LayerOverride(pattern="1x4", target=0.25))
    assert grouped(found) == [("2x1", 0.8, ALL[:3]), ("1x4", 0.25, ["head"])]


def test_n_of_m_beside_blocks_has_the_target_that_follows_from_it():
    found = plan(head=LayerOverride(pattern="2:4"))
    assert grouped(found) == [("2x1", 0.8, ALL[:3]), ("2:4", 0.5, ["head"])]
    assert found.groups[1].units == {"head.weight": 4}


def test_a_mix_takes_over_a_target_that_it_can_reach():
    found = plan(Block(2, 1, target_sparsity=0.3), head=LayerOverride(pattern="2:4 mix"))
    assert grouped(found) == [("2x1", 0.3, ALL[:3]), ("2:4 mix", 0.3, ["head"])]


def test_a_pattern_beside_the_dense_one_has_its_usual_target():
    found = plan(Dense(), head=LayerOverride(pattern="2x1"))
    assert grouped(found) == [("dense", 0.0, ALL[:3]), ("2x1", 0.8, ["head"])]
    assert found.prunes


@pytest.mark.parametrize("pattern", ["dense", "locked"])
def test_layers_that_are_dense_or_locked_are_in_the_plan(pattern):
    found = plan(head=LayerOverride(pattern=pattern))
    assert grouped(found) == [("2x1", 0.8, ALL[:3]), (pattern, 0.0, ["head"])]
    assert found.left == {}


@pytest.mark.parametrize("pattern", [Dense(), Locked()])
def test_nothing_is_pruned_by_a_dense_or_locked_plan(pattern):
    found = plan(pattern, {"a": (7,), "b": (3, 5), "c": (3, 5, 2)})
    assert not found.prunes
    assert found.left == {}
    assert [len(group.shapes) for group in found.groups] == [3]
    assert found.groups[0].units == {"a.weight": 7, "b.weight": 15, "c.weight": 30}


def test_a_target_of_its_own_is_another_group_of_the_same_pattern():
    found = plan(encoder__0_all=LayerOverride(target=0.5))
    assert grouped(found) == [("2x1", 0.5, ALL[:2]), ("2x1", 0.8, ALL[2:])]


def test_layers_with_the_same_exception_share_a_budget():
    override = LayerOverride(pattern="1x4", target=0.25)
    found = plan(head=override, encoder__0__out=override)
    assert grouped(found) == [("1x4", 0.25, ["encoder.0.out", "head"]), ("2x1", 0.8, ALL[1:3])]


def test_an_exception_that_says_the_same_makes_no_group():
    assert grouped(plan(head=LayerOverride(pattern="2x1", target=0.8))) == [("2x1", 0.8, ALL)]


def test_frozen_and_excluded_layers_are_left_with_the_reason():
    found = plan(head=LayerOverride(excluded=True), encoder__0_all=LayerOverride(frozen=True))
    assert grouped(found) == [("2x1", 0.8, ["encoder.1.query"])]
    assert found.left == {
        "encoder.0.out.weight": "allocation.layers freezes it",
        "encoder.0.query.weight": "allocation.layers freezes it",
        "head.weight": "allocation.layers excludes it",
    }
    assert found.frozen == ["encoder.0.out.weight", "encoder.0.query.weight"]


@pytest.mark.parametrize("name", ["head", "head.weight", "he*", "*head*", "h?ad", "[gh]ead", "*d.weight"])
def test_names_are_of_parameters_or_layers_and_may_be_shell_patterns(name):
    found = Plan(
        parameters(head=(2, 8), tail__first=(2, 8)), Dense(), Global(layers={name: LayerOverride(excluded=True)})
    )
    assert found.left == {"head.weight": "allocation.layers excludes it"}


def test_a_star_matches_dots_and_names_tell_upper_from_lower_case():
    found = Plan(parameters(**FOUR), Block(2, 1), Global(layers={"enc*out": LayerOverride(excluded=True)}))
    assert found.left.keys() == {"encoder.0.out.weight"}
    with pytest.raises(PruningError, match="matches no layer"):
        Plan(parameters(**FOUR), Block(2, 1), Global(layers={"ENC*out": LayerOverride(excluded=True)}))


@pytest.mark.parametrize("name", ["hea", "Head", "encoder.0", "encoder.?", "weight", "", "head.bias", "head.*.weight"])
def test_names_that_match_nothing_are_refused_and_some_that_do_are_shown(name):
    with pytest.raises(PruningError, match=r"layers\['.*'\] matches no layer \(such as encoder\.0\.out, "):
        Plan(parameters(**FOUR), Block(2, 1), Global(layers={name: LayerOverride(excluded=True)}))


def test_of_several_overrides_the_later_wins_field_by_field():
    layers = {
        "encoder.*": LayerOverride(pattern="1x4", target=0.5),
        "*query": LayerOverride(target=0.25),
        "encoder.1.query": LayerOverride(pattern="2x2"),
    }
    found = Plan(parameters(**FOUR), Block(2, 1), Global(1.0, layers=layers))
    assert sorted(grouped(found)) == [
        ("1x4", 0.25, ["encoder.0.query"]),
        ("1x4", 0.5, ["encoder.0.out"]),
        ("2x1", 0.8, ["head"]),
        ("2x2", 0.25, ["encoder.1.query"]),
    ]
    turned = Plan(parameters(**FOUR), Block(2, 1), Global(1.0, layers=dict(reversed(layers.items()))))
    assert sorted(grouped(turned)) == [
        ("1x4", 0.5, ["encoder.0.out", "encoder.0.query", "encoder.1.query"]),
        ("2x1", 0.8, ["head"]),
    ]


def test_what_an_earlier_override_excludes_or_freezes_stays_so_whatever_a_later_one_says_of_its_pattern():
    found = plan(encoder_all=LayerOverride(excluded=True), encoder__0_all=LayerOverride(frozen=True, pattern="1x4"))
    assert grouped(found) == [("2x1", 0.8, ["head"])]
    assert found.frozen == ["encoder.0.out.weight", "encoder.0.query.weight"]


# --- what is left as it is -------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_left_with_the_reason_and_said_once(caplog):
    found = plan(Block(4, 1), {"fits": (8, 8), "odd": (130, 3), "vector": (8,)})
    assert grouped(found) == [("4x1", 0.8, ["fits"])]
    assert found.left == {
        "odd.weight": "[130, 3] does not divide into blocks of 4 rows by 1 columns",
        "vector.weight": "4x1 needs a matrix, not a weight of shape (8,)",
    }
    with caplog.at_level(logging.WARNING):
        found.warn()
    assert [record.message for record in caplog.records] == [
        f"{name} is left dense: {reason}" for name, reason in found.left.items()
    ]


def test_groups_that_do_not_divide_the_inputs_are_left():
    found = plan(NofM(2, 4), {"fits": (3, 8), "odd": (8, 130)})
    assert found.left == {"odd.weight": "[8, 130] does not divide into groups of 4 along the input axis"}


def test_whole_rows_and_columns_fit_every_matrix():
    found = plan(Block(1, 0), {"a": (3, 7), "b": (1, 1), "c": (5, 2, 3)}, b=LayerOverride(pattern="columns"))
    assert grouped(found) == [("rows", 0.8, ["a", "c"]), ("columns", 0.8, ["b"])]
    assert found.groups[0].units == {"a.weight": 3, "c.weight": 5}
    quotas = found.groups[0].quotas(Global())
    assert {name: quota.zeros for name, quota in quotas.items()} == {"a.weight": 7, "c.weight": 6}


def test_a_frozen_parameter_is_left():
    given = parameters(a=(4, 4), b=(4, 4))
    given["b.weight"].requires_grad_(False)
    assert Plan(given, Block(2, 1), Global()).left == {"b.weight": "it is frozen"}


@pytest.mark.parametrize("pattern", [Block(2, 1), Block(0, 1), Block(1, 0), NofM(2, 4), Locked()])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_parameter_is_left(pattern, shape):
    found = plan(pattern, {"a": (4, 4), "nothing": shape})
    assert found.left == {"nothing.weight": "it is empty"}
    assert [list(group.shapes) for group in found.groups] == [["a.weight"]]


def test_a_tensor_of_two_names_is_pruned_once_by_the_first():
    given = parameters(a=(4, 4), b=(4, 4), c=(4, 4))
    given["c.weight"] = given["a.weight"]
    found = Plan(given, Block(2, 1), Global())
    assert grouped(found) == [("2x1", 0.8, ["a", "b"])]
    assert found.left == {"c.weight": "it is the same tensor as a.weight, which decides"}


@pytest.mark.parametrize("name", ["a", "c", "c.weight"])
def test_an_exception_for_either_name_of_a_tensor_holds(name):
    given = parameters(a=(4, 4), b=(4, 4), c=(4, 4))
    given["c.weight"] = given["a.weight"]
    excluded = Plan(given, Block(2, 1), Global(layers={name: LayerOverride(excluded=True)}))
    assert grouped(excluded) == [("2x1", 0.8, ["b"])]
    assert excluded.left.keys() == {"a.weight", "c.weight"}
    other = Plan(given, Block(2, 1), Global(layers={name: LayerOverride(target=0.5)}))
    assert grouped(other) == [("2x1", 0.5, ["a"]), ("2x1", 0.8, ["b"])]


def test_a_plan_for_nothing_is_refused():
    with pytest.raises(PruningError, match=r"no layer can be pruned with pattern 2x1$"):
        Plan({}, Block(2, 1), Global())


def test_a_plan_in_which_nothing_fits_is_refused_with_the_reasons():
    with pytest.raises(
        PruningError,
        match=r"no layer can be pruned with pattern 4x1 \(a\.weight: \[3, 3\] does not .*; b\.weight: it is",
    ):
        plan(Block(4, 1), {"a": (3, 3), "b": (0, 4)})


# --- convolutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [((8, 4, 3, 3), (8, 36)), ((8, 4, 3), (8, 12)), ((8, 4), (8, 4)), ((8,), (8,)), ((2, 1, 1, 1, 1), (2, 1))],
)
def test_a_convolution_is_a_matrix_of_all_its_taps_and_inputs(shape, matrix):
    assert matrix_shape(torch.Size(shape)) == torch.Size(matrix)
    tensor = torch.arange(float(math.prod(shape))).reshape(shape)
    assert as_matrix(tensor).shape == torch.Size(matrix)
    inputs = shape[1] if len(shape) > 1 else 1
    for column, values in enumerate(as_matrix(tensor).reshape(shape[0], -1).T):  # the inputs of each tap in turn
        tap, i = divmod(column, inputs)
        assert torch.equal(values, tensor.reshape(shape[0], inputs, -1)[:, i, tap])
    assert torch.equal(from_matrix(as_matrix(tensor), torch.Size(shape)), tensor)
    if math.prod(shape[2:]) == 1:
        assert as_matrix(tensor).data_ptr() == tensor.data_ptr()


def test_the_plan_of_a_convolution_has_the_shape_of_its_matrix():
    found = plan(Block(4, 1), {"conv": (8, 3, 3, 3)})
    assert found.groups[0].shapes == {"conv.weight": torch.Size((8, 27))}
    assert found.groups[0].units == {"conv.weight": 54}
    assert {name: p.shape for name, p in found.candidates.items()} == {"conv.weight": torch.Size((8, 3, 3, 3))}
    with pytest.raises(PruningError, match=r"\[8, 3\] does not divide into groups of 4"):
        plan(NofM(2, 4), {"conv": (8, 3, 3, 3)})


def test_weights_of_linear_and_convolutional_modules_are_found_once():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.Linear(4, 4))
    model[4].weight = model[3].weight
    found = matrix_weights(model)
    assert list(found) == ["0.weight", "2.weight", "3.weight"]
    assert all(found[name] is model.get_parameter(name) for name in found)
    assert list(matrix_weights(nn.Linear(2, 2))) == ["weight"]
    assert matrix_weights(nn.LayerNorm(4)) == {}


class Strange(nn.Module):
    """Matrices that are no Linear or Conv weight, next to biases and embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.bilinear = nn.Bilinear(4, 4, 4)
        self.transposed = nn.ConvTranspose1d(4, 4, 3)
        self.q = nn.Parameter(torch.ones(8, 2, 4))
        self.head_bias = nn.Parameter(torch.ones(2, 4))
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.seg_embed = nn.Parameter(torch.ones(2, 2, 4))
        self.words, self.bags = nn.Embedding(9, 8), nn.EmbeddingBag(9, 8)
        self.embedder = nn.ModuleDict({"inner": nn.ParameterDict({"k": torch.ones(8, 8)})})
        self.conv = nn.Conv3d(4, 4, 3)
        self.head = nn.Linear(8, 9)
        self.head.weight = self.words.weight  # tied
        self.rotated = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))


@pytest.mark.bad_input(
    "A8", "in_proj_weight, Bilinear, ConvTranspose, a bare q", before="not mentioned", after="named by `other_matrices`"
)
def test_matrices_that_are_no_layers_weight_are_listed():
    model = Strange()
    others = other_matrices(model)
    assert sorted(others) == [
        "attention.in_proj_weight", "bilinear.weight", "embedder.inner.k", "q",
        "rotated.parametrizations.weight.original", "transposed.weight",
    ]  # fmt: skip
    assert all(others[name] is model.get_parameter(name) for name in others)
    assert sorted(matrix_weights(model)) == ["attention.out_proj.weight", "conv.weight", "head.weight"]


def test_subclasses_of_linear_layers_are_pruned():
    class Scaled(nn.Linear):
        pass

    assert list(matrix_weights(nn.Sequential(Scaled(4, 4)))) == ["0.weight"]
    assert other_matrices(nn.Sequential(Scaled(4, 4), nn.Conv1d(4, 4, 3), nn.LayerNorm(4))) == {}


def test_a_model_of_one_layer_has_a_plan():
    found = Plan(matrix_weights(nn.Linear(4, 4)), Block(2, 1), Global())
    assert list(found.groups[0].shapes) == ["weight"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Global, Uniform])
def test_a_target_above_the_caps_is_refused_naming_the_bound(kind):
    assert plan(kind=kind, cap=0.9).prunes
    with pytest.raises(PruningError, match=r"0\.8 is above what max_per_layer=0\.5 allows.*at most 0\.5000"):
        plan(kind=kind, cap=0.5)


@pytest.mark.parametrize("kind", [Global, Uniform])
def test_a_target_below_the_floors_is_refused_naming_the_bound(kind):
    low = Block(2, 1, target_sparsity=0.25)
    assert plan(low, kind=kind, floor=0.25).prunes
    with pytest.raises(PruningError, match=r"0\.25 is below what min_per_layer=0\.5 demands.*at least 0\.5"):
        plan(low, kind=kind, floor=0.5)


def test_the_bounds_are_checked_for_each_group():
    with pytest.raises(PruningError, match=r"0\.95 is above what max_per_layer=0\.9 allows"):
        plan(cap=0.9, head=LayerOverride(target=0.95))
    with pytest.raises(PruningError, match=r"0\.125 is below what min_per_layer=0\.5 demands"):
        plan(floor=0.5, head=LayerOverride(target=0.125))


def test_n_of_m_at_all_its_groups_is_no_matter_of_the_cap():
    assert plan(NofM(2, 4), cap=0.98).groups[0].quotas(Global(0.98))["head.weight"].most == 4
    with pytest.raises(PruningError, match=r"0\.5 is above what max_per_layer=0\.25"):
        plan(NofM(2, 4), cap=0.25)


@pytest.mark.parametrize("target", [0.0, 1.0, 1.5, -0.25])
def test_an_override_with_a_target_out_of_range_is_refused_naming_the_layer(target):
    with pytest.raises(PruningError, match=r"layers\['head'\]\.target=.* must be in \(0, 1\)"):
        plan(head=LayerOverride(target=target))


@pytest.mark.parametrize(
    ("main", "override", "why"),
    [
        (NofM(2, 4), LayerOverride(target=0.7), "is impossible for 2:4"),
        (NofM(2, 4, mix=True, target_sparsity=0.3), LayerOverride(target=0.7), "is impossible for 2:4 mix"),
        (Block(2, 1), LayerOverride(pattern="2:4 mix"), "is impossible for 2:4 mix"),
        (Dense(), LayerOverride(target=0.5), "prunes nothing"),
        (Block(2, 1), LayerOverride(pattern="124"), "there is no pattern '124'"),
        (Block(2, 1), LayerOverride(pattern="4:4"), "N:M needs 0 < n < m"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused_naming_the_layer(main, override, why):
    with pytest.raises(PruningError, match=rf"allocation\.layers, for head\.weight: .*{why}"):
        plan(main, head=override)


@pytest.mark.parametrize("pattern", ["2:4", "dense", "locked"])
def test_a_target_for_a_pattern_that_has_its_own_is_not_dropped_silently(pattern):
    with pytest.raises(PruningError, match=r"allocation\.layers, for head\.weight"):
        plan(head=LayerOverride(pattern=pattern, target=0.3))


def test_the_target_that_follows_from_n_and_m_may_be_written_out():
    found = plan(head=LayerOverride(pattern="2:4", target=0.5))
    assert grouped(found) == [("2x1", 0.8, ALL[:3]), ("2:4", 0.5, ["head"])]


def test_an_override_that_no_longer_fits_leaves_the_layer_with_the_reason():
    found = plan(head=LayerOverride(pattern="4x1"))
    assert found.left == {"head.weight": "[2, 8] does not divide into blocks of 4 rows by 1 columns"}
    assert grouped(found) == [("2x1", 0.8, ALL[:3])]
