"""Allocation: exact counts, caps and ties, against a walk through the sorted units."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning import Global, PruningError, Uniform

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
NAMES = ["layer.10", "layer.2", "layer.1", "a", "Z"]  # sorted as text, not as numbers
VALUES = st.one_of(st.integers(0, 3).map(float), st.sampled_from([-math.inf, math.inf]), st.floats(0, 1, width=32))


@st.composite
def layers(draw, values=VALUES):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return {name: torch.tensor(draw(st.lists(values, min_size=1, max_size=12))) for name in names}


def walk(costs, count, caps):
    """All units from the cheapest to the dearest by (cost, name, index); one goes if its layer is below its cap."""
    chosen = {name: [False] * len(cost) for name, cost in costs.items()}
    units = sorted((value, name, index) for name, cost in costs.items() for index, value in enumerate(cost.tolist()))
    for _, name, index in units:
        if count and sum(chosen[name]) < caps[name]:
            chosen[name][index] = True
            count -= 1
    return chosen


def as_lists(chosen):
    return {name: mask.tolist() for name, mask in chosen.items()}


def sizes(costs):
    return {name: len(cost) for name, cost in costs.items()}


@PROPERTY
@given(costs=layers(), share=st.floats(0, 1), cap=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_global_is_the_walk_through_the_sorted_units(costs, share, cap):
    caps = Global(cap).caps(sizes(costs), 1.0)
    total = sum(sizes(costs).values())
    fraction = share * sum(caps.values()) / total  # the caps bind, the nearer the share is to 1
    assume(round(fraction * total) <= sum(caps.values()))
    chosen = Global(cap).select(costs, fraction, caps)
    assert sum(int(mask.sum()) for mask in chosen.values()) == round(fraction * total)
    assert all(int(mask.sum()) <= caps[name] for name, mask in chosen.items())
    assert as_lists(chosen) == walk(costs, round(fraction * total), caps)


@PROPERTY
@given(costs=layers(), share=st.floats(0, 1), random=st.randoms(use_true_random=False))
def test_global_does_not_care_in_which_order_layers_are_given(costs, share, random):
    caps = Global(0.7).caps(sizes(costs), 1.0)
    fraction = share * sum(caps.values()) / sum(sizes(costs).values())
    shuffled = dict(random.sample(list(costs.items()), len(costs)))
    first, second = Global(0.7).select(costs, fraction, caps), Global(0.7).select(shuffled, fraction, caps)
    assert as_lists(first) == as_lists(second)


@PROPERTY
@given(costs=layers(), fraction=st.floats(0, 1), cap=st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_uniform_gives_each_layer_the_target_or_its_cap(costs, fraction, cap):
    caps = Uniform(cap).caps(sizes(costs), 1.0)
    chosen = Uniform(cap).select(costs, fraction, caps)
    assert chosen.keys() == costs.keys()
    for name, cost in costs.items():
        count = min(round(fraction * len(cost)), caps[name])
        assert as_lists(chosen)[name] == walk({name: cost}, count, {name: count})[name]


@PROPERTY
@given(costs=layers(), fraction=st.floats(0, 1), kind=st.sampled_from([Global, Uniform]))
def test_selecting_leaves_the_costs_alone(costs, fraction, kind):
    before = {name: cost.clone() for name, cost in costs.items()}
    kind(0.5).select(costs, fraction, kind(0.5).caps(sizes(costs), 1.0))
    assert all(torch.equal(cost, before[name]) for name, cost in costs.items())


def test_ties_break_by_name_then_index():
    costs = {"b": torch.zeros(3), "a": torch.zeros(3)}
    chosen = Global(1.0).select(costs, 4 / 6, {"a": 3, "b": 3})
    assert as_lists(chosen) == {"a": [True] * 3, "b": [True, False, False]}


def test_what_a_cap_protects_is_taken_from_the_other_layers():
    costs = {"cheap": torch.arange(10.0), "dear": torch.arange(100.0, 110.0)}
    chosen = Global(0.6).select(costs, 0.5, {"cheap": 6, "dear": 6})
    assert as_lists(chosen) == {"cheap": [True] * 6 + [False] * 4, "dear": [True] * 4 + [False] * 6}


def test_a_layer_of_zero_saliency_is_not_wiped_out():
    costs = {"dead": torch.zeros(100), "alive": torch.rand(100) + 1}
    chosen = Global(0.98).select(costs, 0.8, Global(0.98).caps({"dead": 100, "alive": 100}, 1.0))
    assert int(chosen["dead"].sum()) == 98
    assert int(chosen["alive"].sum()) == 62


def test_caps_hold_even_where_every_cost_is_infinite():
    costs = {"a": torch.full((4,), math.inf), "b": torch.full((4,), math.inf)}
    chosen = Global().select(costs, 0.75, {"a": 3, "b": 3})
    assert as_lists(chosen) == {"a": [True, True, True, False], "b": [True, True, True, False]}


def test_costs_that_are_not_numbers_go_last():
    costs = {"a": torch.tensor([math.nan, 1.0, math.nan]), "b": torch.tensor([5.0, math.nan])}
    chosen = Global(1.0).select(costs, 3 / 5, {"a": 3, "b": 2})
    assert as_lists(chosen) == {"a": [True, True, False], "b": [True, False]}


@pytest.mark.parametrize(
    ("max_per_layer", "max_sparsity", "units", "cap"),
    [
        (0.98, 1.0, 100, 98),
        (0.98, 1.0, 10, 9),
        (1.0, 1.0, 10, 10),
        (0.9, 1.0, 10, 9),
        (0.29, 1.0, 100, 29),  # 0.29 * 100 is a little less than 29
        (0.98, 0.5, 100, 100),  # 2:4 never prunes more than half of a layer
        (0.25, 0.5, 100, 50),
    ],
)
def test_caps_are_in_units_of_the_layer(max_per_layer, max_sparsity, units, cap):
    assert Global(max_per_layer).caps({"layer": units}, max_sparsity) == {"layer": cap}


@pytest.mark.parametrize("kind", [Global, Uniform])
def test_check_refuses_a_target_above_the_caps_and_names_the_maximum(kind):
    units = {"a": 100, "b": 300}
    kind(0.5).check(units, 0.5, 1.0)
    with pytest.raises(PruningError, match=r"0\.6 is above .*max_per_layer=0\.5 .*at most 0\.5000"):
        kind(0.5).check(units, 0.6, 1.0)
    with pytest.raises(PruningError, match=r"0\.45 is above .*at most 0\.2500"):
        kind(0.25).check(units, 0.9, 0.5)


@pytest.mark.parametrize("max_per_layer", [0.0, -0.5, 1.01, 98])
def test_a_cap_is_a_fraction(max_per_layer):
    with pytest.raises(PruningError, match="max_per_layer"):
        Global(max_per_layer)
