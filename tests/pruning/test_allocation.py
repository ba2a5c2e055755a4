"""Allocation: exact counts, caps, floors and ties, against a walk through the sorted units; patterns and criteria on
several layers; and the selection of the lowest against a sort.
"""

import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning import (
    Allocation,
    Block,
    DiagonalFisher,
    Global,
    Gradient,
    LayerOverride,
    Magnitude,
    Movement,
    NofM,
    Pattern,
    Platon,
    PruningError,
    Random,
    Snip,
    SnipMomentum,
    Uniform,
)
from pruning.allocation import Quota
from pruning.criteria import Layer
from pruning.plan import Group
from pruning.selection import lowest
from tests.pruning.test_patterns import KINDS, nonzero_weight, patterns, saliencies, shapes_of

PROPERTY = settings(deadline=None, derandomize=True, max_examples=150)
FEWER = settings(PROPERTY, max_examples=60)
NAMES = ["layer.10", "layer.2", "layer.1", "a", "Z"]  # sorted as text, not as numbers
VALUES = st.one_of(
    st.integers(-1, 3).map(float), st.sampled_from([math.inf, 3e38, math.nan]), st.floats(-1, 1, width=32)
)
CAPS = st.sampled_from([0.3, 0.5, 0.9, 1.0])


@st.composite
def layers(draw, values=VALUES):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return {name: torch.tensor(draw(st.lists(values, min_size=1, max_size=12))) for name in names}


def as_rank(value: float) -> float:
    """NaN is dearer than any number."""
    return math.inf if math.isnan(value) else value


def walk(costs, count, caps, floors=None):
    """All units from the cheapest to the dearest by (cost, name, index); one goes if its layer is below its cap.

    The cheapest units of a layer, as many as its floor, go before those of others, unless others went before.
    """
    chosen = {name: [False] * len(cost) for name, cost in costs.items()}
    units = []
    for name, cost in costs.items():
        own = sorted((as_rank(value), index) for index, value in enumerate(cost.tolist()))
        for place, (value, index) in enumerate(own):
            due = place < (floors or {}).get(name, 0) and value > -math.inf
            units.append((-3e39 if due else value, name, index))
    for _, name, index in sorted(units):
        if count and sum(chosen[name]) < caps[name]:
            chosen[name][index] = True
            count -= 1
    return chosen


def as_lists(chosen):
    return {name: mask.tolist() for name, mask in chosen.items()}


def sizes(costs):
    return {name: len(cost) for name, cost in costs.items()}


def quotas_of(allocation, costs, progress=1.0):
    """For units of one weight each."""
    return allocation.quotas(sizes(costs), dict.fromkeys(costs, 1), 1.0, progress)


def caps_of(quotas):
    return {name: quota.most for name, quota in quotas.items()}


def floors_of(quotas):
    return {name: quota.floor for name, quota in quotas.items()}


def next_update(allocation, costs, fraction, quotas, gone):
    """What the pruner asks for where units have gone before: never for less, and their costs are -inf."""
    for name, mask in gone.items():
        quotas[name].gone = int(mask.sum())
    total = sum(quota.units * quota.zeros for quota in quotas.values())
    fraction = max(fraction, sum(quota.gone * quota.zeros for quota in quotas.values()) / total)
    costs = {name: cost.masked_fill(gone[name], -math.inf) for name, cost in costs.items()}
    return allocation.select(costs, fraction, quotas)


def nothing_gone(costs):
    return {name: torch.zeros(len(cost), dtype=torch.bool) for name, cost in costs.items()}


def come_back(before, after):
    return sum(int((mask & ~after[name]).sum()) for name, mask in before.items())


# --- units of one size -----------------------------------------------------------------------------------------------


@PROPERTY
@given(costs=layers(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), cap=CAPS)
def test_global_is_the_walk_through_the_sorted_units(costs, shares, cap):
    quotas = quotas_of(Global(cap), costs)
    caps, total = caps_of(quotas), sum(sizes(costs).values())
    for share in sorted(shares):  # the second time with what the first has marked
        fraction = share * sum(caps.values()) / total  # the caps bind, the nearer the share is to 1
        assume(round(fraction * total) <= sum(caps.values()))
        chosen = Global(cap).select(costs, fraction, quotas)
        assert sum(int(mask.sum()) for mask in chosen.values()) == round(fraction * total)
        assert all(int(mask.sum()) <= caps[name] for name, mask in chosen.items())
        assert as_lists(chosen) == walk(costs, round(fraction * total), caps)
        costs = {name: cost.masked_fill(chosen[name], -math.inf) for name, cost in costs.items()}


@PROPERTY
@given(costs=layers(), share=st.floats(0, 1), cap=CAPS, floor=st.sampled_from([0.1, 0.25, 0.3]))
def test_global_with_floors_takes_the_cheapest_of_each_layer_first(costs, share, cap, floor):
    allocation = Global(cap, min_per_layer=floor)
    quotas = quotas_of(allocation, costs)
    caps, floors, total = caps_of(quotas), floors_of(quotas), sum(sizes(costs).values())
    count = round(sum(floors.values()) + share * (sum(caps.values()) - sum(floors.values())))
    chosen = allocation.select(costs, count / total, quotas)
    assert sum(int(mask.sum()) for mask in chosen.values()) == count
    assert all(floors[name] <= int(mask.sum()) <= caps[name] for name, mask in chosen.items())
    assert as_lists(chosen) == walk(costs, count, caps, floors)


@PROPERTY
@given(
    costs=layers(),
    share=st.floats(0, 1),
    random=st.randoms(use_true_random=False),
    allocation=st.sampled_from([Global(0.7), Uniform(0.7), Global(0.7, min_per_layer=0.2), Uniform(0.7, 0.2)]),
)
def test_the_order_in_which_layers_are_given_does_not_matter(costs, share, random, allocation):
    quotas = quotas_of(allocation, costs)
    fraction = share * sum(caps_of(quotas).values()) / sum(sizes(costs).values())
    shuffled = dict(random.sample(list(costs.items()), len(costs)))
    first = allocation.select(costs, fraction, quotas)
    second = allocation.select(shuffled, fraction, {name: quotas[name] for name in shuffled})
    assert as_lists(first) == as_lists(second)
    assert as_lists(first) == as_lists(allocation.select(costs, fraction, quotas))


@PROPERTY
@given(costs=layers(), share=st.floats(0, 1), cap=CAPS)
def test_uniform_meets_the_total_and_each_layer_within_a_unit(costs, share, cap):
    quotas = quotas_of(Uniform(cap), costs)
    caps, total = caps_of(quotas), sum(sizes(costs).values())
    fraction = share * cap
    assume(round(fraction * total) <= sum(caps.values()))
    chosen = Uniform(cap).select(costs, fraction, quotas)
    counts = {name: int(mask.sum()) for name, mask in chosen.items()}
    assert sum(counts.values()) == round(fraction * total)
    for name, cost in costs.items():
        assert counts[name] <= caps[name]
        assert as_lists(chosen)[name] == walk({name: cost}, counts[name], caps)[name]
        if all(round(fraction * len(c)) < caps[n] for n, c in costs.items()):  # no cap is in the way
            assert abs(counts[name] - fraction * len(cost)) < 1


@PROPERTY
@given(costs=layers(), extra=st.floats(0, 1), floor=st.sampled_from([0.1, 0.25, 0.5]))
def test_uniform_keeps_the_floors(costs, extra, floor):
    allocation = Uniform(1.0, floor)
    quotas = quotas_of(allocation, costs)
    fraction = floor + extra * (1 - floor)
    chosen = allocation.select(costs, fraction, quotas)
    assert all(int(mask.sum()) >= quotas[name].floor for name, mask in chosen.items())
    assert sum(int(mask.sum()) for mask in chosen.values()) == round(fraction * sum(sizes(costs).values()))


@PROPERTY
@given(
    costs=layers(),
    fraction=st.floats(0, 1),
    allocation=st.sampled_from([Global(0.5), Uniform(0.5), Global(0.5, 0.2), Uniform(0.5, 0.2)]),
)
def test_selecting_leaves_the_costs_alone(costs, fraction, allocation):
    before = {name: cost.clone() for name, cost in costs.items()}
    allocation.select(costs, fraction, quotas_of(allocation, costs))
    for name, cost in costs.items():
        torch.testing.assert_close(cost, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", [Global, Uniform])
@pytest.mark.parametrize("floor", [0.0, 0.25])
@PROPERTY
@given(
    costs=layers(),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=5),
    cap=st.sampled_from([0.5, 0.9, 1.0]),
    seed=st.integers(0, 100),
)
def test_what_is_pruned_stays_pruned_while_scores_change(kind, floor, costs, shares, cap, seed):
    """And the count is exact at each update, with caps that bind, and floors that grow with the part that is due."""
    allocation = kind(cap, floor)
    caps, total = caps_of(quotas_of(allocation, costs)), sum(sizes(costs).values())
    target = sum(caps.values()) / total
    assume(target >= floor)
    gone = nothing_gone(costs)
    random = torch.Generator().manual_seed(seed)
    for share in sorted(shares):
        now = {name: cost[torch.randperm(len(cost), generator=random)] for name, cost in costs.items()}
        chosen = next_update(allocation, now, share * target, quotas_of(allocation, costs, share), gone)
        assert come_back(gone, chosen) == 0
        assert sum(int(mask.sum()) for mask in chosen.values()) == round(share * target * total)
        assert all(int(mask.sum()) <= caps[name] for name, mask in chosen.items())
        gone = chosen


@pytest.mark.parametrize("kind", [Global, Uniform])
@PROPERTY
@given(costs=layers(), shares=st.lists(st.floats(0, 1), min_size=2, max_size=5), room=st.sampled_from([0.0, 0.2]))
def test_floors_hold_at_each_update_to_within_a_unit(kind, costs, shares, room):
    """Of those of other layers, what has gone before stays, so that rounding may make a layer wait for one unit."""
    floor = 0.4
    allocation = kind(1.0, floor)
    gone = nothing_gone(costs)
    for share in sorted([*shares, 1.0]):
        quotas = quotas_of(allocation, costs, share)
        gone = next_update(allocation, costs, share * (floor + room), quotas, gone)
        for name, mask in gone.items():
            assert int(mask.sum()) >= quotas[name].floor - 1


def test_ties_break_by_name_then_index():
    costs = {"b": torch.zeros(3), "a": torch.zeros(3)}
    chosen = Global(1.0).select(costs, 4 / 6, {"a": Quota(3, 1), "b": Quota(3, 1)})
    assert as_lists(chosen) == {"a": [True] * 3, "b": [True, False, False]}


def test_what_a_cap_protects_is_taken_from_the_other_layers():
    costs = {"cheap": torch.arange(10.0), "dear": torch.arange(100.0, 110.0)}
    chosen = Global(0.6).select(costs, 0.5, {"cheap": Quota(10, 1, cap=6), "dear": Quota(10, 1, cap=6)})
    assert as_lists(chosen) == {"cheap": [True] * 6 + [False] * 4, "dear": [True] * 4 + [False] * 6}


def test_what_a_cap_pushes_over_the_cap_of_another_layer_is_taken_from_the_rest():
    costs = {"a": torch.arange(8.0), "b": torch.arange(8.0) + 4, "c": torch.arange(100.0, 108.0)}
    quotas = {name: Quota(8, 1, cap=5) for name in costs}
    chosen = Global(0.7).select(costs, 14 / 24, quotas)
    assert [int(chosen[name].sum()) for name in "abc"] == [5, 5, 4]
    assert as_lists(chosen) == walk(costs, 14, dict.fromkeys(costs, 5))


def test_a_layer_of_zero_saliency_is_not_wiped_out():
    costs = {"dead": torch.zeros(100), "alive": torch.rand(100) + 1}
    chosen = Global(0.98).select(costs, 0.8, quotas_of(Global(0.98), costs))
    assert int(chosen["dead"].sum()) == 98
    assert int(chosen["alive"].sum()) == 62


def test_caps_hold_even_where_every_cost_is_infinite():
    costs = {"a": torch.full((4,), math.inf), "b": torch.full((4,), math.inf)}
    chosen = Global().select(costs, 0.75, {name: Quota(4, 1, cap=3) for name in costs})
    assert as_lists(chosen) == {"a": [True, True, True, False], "b": [True, True, True, False]}


def test_costs_that_are_not_numbers_go_last():
    costs = {"a": torch.tensor([math.nan, 1.0, math.nan]), "b": torch.tensor([5.0, math.nan])}
    chosen = Global(1.0).select(costs, 3 / 5, {"a": Quota(3, 1), "b": Quota(2, 1)})
    assert as_lists(chosen) == {"a": [True, True, False], "b": [True, False]}


def test_a_floor_takes_from_a_layer_that_the_ranking_would_spare():
    costs = {"cheap": torch.arange(10.0), "dear": torch.arange(109.0, 99.0, -1)}
    chosen = Global(1.0).select(costs, 0.5, {"cheap": Quota(10, 1), "dear": Quota(10, 1, floor=3)})
    assert as_lists(chosen) == {"cheap": [True] * 7 + [False] * 3, "dear": [False] * 7 + [True] * 3}


def test_uniform_settles_where_rounding_erred_most():
    costs = {"a": torch.zeros(3), "b": torch.zeros(3), "c": torch.zeros(4)}
    chosen = Uniform(1.0).select(costs, 0.5, {name: Quota(len(cost), 1) for name, cost in costs.items()})
    assert [int(chosen[name].sum()) for name in "abc"] == [1, 2, 2]  # round(1.5) is 2 for both; the first by name gives


def test_uniform_does_not_give_a_unit_back_when_the_whole_gets_more():
    """The Alabama paradox: by largest remainders alone, c gets two of ten units, and one of eleven."""
    costs = {"a": torch.arange(6.0), "b": torch.arange(6.0), "c": torch.arange(2.0)}
    quotas = {name: Quota(len(cost), 1) for name, cost in costs.items()}
    before = Uniform(1.0).select(costs, 10 / 14, quotas)
    after = next_update(Uniform(1.0), costs, 11 / 14, quotas, before)
    assert [sum(int(mask.sum()) for mask in chosen.values()) for chosen in (before, after)] == [10, 11]
    assert come_back(before, after) == 0


@pytest.mark.parametrize("kind", [Global, Uniform])
def test_a_budget_below_what_has_gone_brings_nothing_back(kind):
    """As when a layer that got little drops out for one update, because its gradients are zero."""
    costs = {"a": torch.tensor([5.0, 9.0, 4.0, 9.0, 9.0])}
    gone = {"a": torch.tensor([False, True, False, True, True])}
    chosen = next_update(kind(1.0), costs, 0.4, quotas_of(kind(1.0), costs), gone)
    assert as_lists(chosen) == as_lists(gone)


def test_a_floor_counts_what_has_gone():
    """Only the two missing units of b go first; a, which is far above its floor, gets the rest."""
    costs = {"a": torch.arange(10.0), "b": torch.arange(100.0, 110.0)}
    gone = {"a": torch.arange(10) >= 6, "b": torch.arange(10) >= 8}
    allocation = Global(1.0, 0.4)
    chosen = next_update(allocation, costs, 0.45, quotas_of(allocation, costs), gone)
    assert as_lists(chosen) == {
        "a": [True] + [False] * 5 + [True] * 4,
        "b": [True] * 2 + [False] * 6 + [True] * 2,
    }


# --- whole rows and columns: units that differ in size ---------------------------------------------------------------

WHOLE = [Block(1, 0), Block(0, 1), Block(2, 0), Block(0, 2)]


@st.composite
def whole_layers(draw, values=VALUES):
    """Costs of each layer, and how many weights there are in a unit of each."""
    costs = draw(layers(values))
    return costs, {name: draw(st.integers(1, 9)) for name in costs}


def zeros_of(chosen, zeros):
    return sum(int(mask.sum()) * zeros[name] for name, mask in chosen.items())


@PROPERTY
@given(case=whole_layers(), share=st.floats(0, 1), cap=CAPS, floor=st.sampled_from([0.0, 0.1, 0.3]))
def test_global_comes_as_near_to_the_number_of_zeros_as_whole_units_allow(case, share, cap, floor):
    costs, zeros = case
    allocation = Global(cap, floor)
    quotas = allocation.quotas(sizes(costs), zeros, 1.0)
    total = sum(q.units * q.zeros for q in quotas.values())
    least = sum(q.floor * q.zeros for q in quotas.values())
    most = sum(q.most * q.zeros for q in quotas.values())
    budget = least + share * (most - least)
    chosen = allocation.select(costs, budget / total, quotas)
    assert abs(zeros_of(chosen, zeros) - budget) <= max(zeros.values()) / 2 + 1e-6
    assert all(quotas[n].floor <= int(mask.sum()) <= quotas[n].most for n, mask in chosen.items())
    shuffled = dict(reversed(costs.items()))
    assert as_lists(allocation.select(shuffled, budget / total, quotas)) == as_lists(chosen)
    # The cheapest first: nothing that stays, and may go, is cheaper than what goes beyond the floors.
    if not floor:
        dearest = max((as_rank(v) for n, mask in chosen.items() for v in costs[n][mask].tolist()), default=-math.inf)
        for name, mask in chosen.items():
            if int(mask.sum()) < quotas[name].most:
                assert all(as_rank(value) >= dearest for value in costs[name][~mask].tolist())


@PROPERTY
@given(case=whole_layers(), fraction=st.floats(0, 1))
def test_uniform_gives_each_layer_its_part_where_units_differ_in_size(case, fraction):
    costs, zeros = case
    chosen = Uniform(1.0).select(costs, fraction, Uniform(1.0).quotas(sizes(costs), zeros, 1.0))
    for name, cost in costs.items():
        count = int(chosen[name].sum())
        assert abs(count - fraction * len(cost)) < 1 or len(set(zeros.values())) == 1
        assert as_lists(chosen)[name] == walk({name: cost}, count, {name: count})[name]


@PROPERTY
@given(case=whole_layers(), fraction=st.floats(0, 1))
def test_uniform_comes_within_half_a_unit_of_the_whole_where_units_differ_in_size(case, fraction):
    costs, zeros = case
    quotas = Uniform(1.0).quotas(sizes(costs), zeros, 1.0)
    total = sum(q.units * q.zeros for q in quotas.values())
    chosen = Uniform(1.0).select(costs, fraction, quotas)
    assert abs(zeros_of(chosen, zeros) - fraction * total) <= max(zeros.values()) / 2 + 1e-6


@pytest.mark.parametrize("kind", [Global, Uniform])
@pytest.mark.parametrize("floor", [0.0, 0.25])
@PROPERTY
@given(
    case=whole_layers(),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=5),
    cap=st.sampled_from([0.5, 0.9, 1.0]),
    seed=st.integers(0, 100),
)
def test_rows_and_columns_that_are_pruned_stay_pruned(kind, floor, case, shares, cap, seed):
    costs, zeros = case
    allocation = kind(cap, floor)
    quotas = allocation.quotas(sizes(costs), zeros, 1.0)
    target = sum(q.most * q.zeros for q in quotas.values()) / sum(q.units * q.zeros for q in quotas.values())
    assume(target >= floor)
    gone = nothing_gone(costs)
    random = torch.Generator().manual_seed(seed)
    for share in sorted(shares):
        now = {name: cost[torch.randperm(len(cost), generator=random)] for name, cost in costs.items()}
        due = allocation.quotas(sizes(costs), zeros, 1.0, share)
        chosen = next_update(allocation, now, share * target, due, gone)
        assert come_back(gone, chosen) == 0
        assert all(int(mask.sum()) <= quotas[name].most for name, mask in chosen.items())
        if kind is Global and not floor:
            budget = share * target * sum(q.units * q.zeros for q in quotas.values())
            assert abs(zeros_of(chosen, zeros) - budget) <= max(zeros.values()) / 2 + 1e-6
        gone = chosen


def test_rows_of_two_sizes_stay_pruned_though_another_order_would_come_nearer():
    """4 + 6 zeros are as near to 7.5 as the ranking allows; of the two that have gone, 6 alone would be nearer."""
    costs = {"a": torch.tensor([2.0]), "b": torch.tensor([1.0]), "c": torch.tensor([3.0])}
    quotas = {"a": Quota(1, 6), "b": Quota(1, 4), "c": Quota(1, 4)}
    before = Global(1.0).select(costs, 7.5 / 14, quotas)
    assert as_lists(before) == {"a": [True], "b": [True], "c": [False]}
    assert come_back(before, next_update(Global(1.0), costs, 7.5 / 14, quotas, before)) == 0


# --- patterns, criteria and allocations together ---------------------------------------------------------------------


@st.composite
def models(draw, cls, kinds=KINDS):
    """A pattern, and the saliencies of several layers that it fits: some of one row or column, if it fits those."""
    pattern = draw(patterns(cls))
    fitting = shapes_of(pattern)
    thin = [shape for shape in fitting if min(shape) == 1]
    shape = st.one_of(st.sampled_from(fitting), st.sampled_from(thin or fitting))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    shapes = {name: draw(shape) for name in sorted(names)}
    values = {
        name: saliencies(draw(st.sampled_from(kinds)), shape, draw(st.integers(0, 1000)))
        for name, shape in shapes.items()
    }
    return Group(pattern, shapes), values


def group_gone(pattern: Pattern, score: torch.Tensor) -> torch.Tensor:
    """The units with a score of -inf."""
    units = score.reshape(-1, pattern.m) if isinstance(pattern, NofM) else score.reshape(-1, 1)
    return (units == -math.inf).any(dim=1)


def updated(
    group: Group,
    allocation: Allocation,
    scores: dict[str, torch.Tensor],
    sparsity: float,
    progress: float,
    again: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What one mask update makes of pooled scores: the pruned units and the pooled masks.

    If `again`, scores of -inf are of what has gone before.
    """
    pattern = group.pattern
    losers = {name: pattern.losers(score) for name, score in scores.items()}
    costs = {name: pattern.cost(score, losers[name]) for name, score in scores.items()}
    gone = {name: group_gone(pattern, score) for name, score in scores.items()} if again else nothing_gone(costs)
    quotas = group.quotas(allocation, progress)
    pruned = next_update(allocation, costs, pattern.unit_fraction(sparsity), quotas, gone)
    return pruned, {name: pattern.mask(losers[name], units) for name, units in pruned.items()}


def assert_as_asked(group: Group, allocation: Allocation, masks, pruned, sparsity: float, progress: float) -> None:
    """Counts, caps, floors and the pattern itself, seen in the masks spread over the weights."""
    pattern, quotas = group.pattern, group.quotas(allocation, progress)
    zeros, total = 0, sum(shape.numel() for shape in group.shapes.values())
    for name, shape in group.shapes.items():
        keep = pattern.expand(masks[name], shape)
        weight = nonzero_weight(shape) * keep
        count = int(pruned[name].sum())
        assert int((weight == 0).sum()) == count * pattern.unit_zeros(shape)
        broken = quotas[name].units - count if isinstance(pattern, NofM) else 0
        assert pattern.violations(weight) == broken
        assert count <= quotas[name].most
        assert count >= quotas[name].floor
        zeros += int((weight == 0).sum())
    sizes = {pattern.unit_zeros(shape) for shape in group.shapes.values()}
    if len(sizes) == 1:
        assert zeros == round(pattern.unit_fraction(sparsity) * sum(group.units.values())) * sizes.pop()
    else:
        slack = max(sizes) / 2 if isinstance(allocation, Global) else sum(sizes) * len(group.shapes)
        assert abs(zeros - sparsity * total) <= slack + 1e-6


def reachable(group: Group, allocation: Allocation) -> float:
    """The highest sparsity that the caps allow."""
    quotas = group.quotas(allocation).values()
    total = sum(shape.numel() for shape in group.shapes.values())
    return sum(quota.most * quota.zeros for quota in quotas) / total


@pytest.mark.parametrize("kind", [Global, Uniform])
@pytest.mark.parametrize("cls", [Block, NofM])
@PROPERTY
@given(data=st.data(), share=st.one_of(st.sampled_from([0.0, 1e-6, 1.0]), st.floats(0, 1)))
def test_every_pattern_with_every_allocation(cls, kind, data, share):
    group, saliency = data.draw(models(cls))
    allocation = kind(data.draw(CAPS))
    sparsity = share * reachable(group, allocation)
    scores = {name: group.pattern.pool(values) for name, values in saliency.items()}
    pruned, masks = updated(group, allocation, scores, sparsity, 1.0)
    assert_as_asked(group, allocation, masks, pruned, sparsity, 1.0)
    again, _ = updated(group, allocation, dict(reversed(scores.items())), sparsity, 1.0)
    assert as_lists(again) == as_lists(pruned)


@pytest.mark.parametrize("kind", [Global, Uniform])
@pytest.mark.parametrize("cls", [Block, NofM])
@FEWER
@given(data=st.data(), share=st.floats(0, 1), floor=st.sampled_from([0.1, 0.2]))
def test_every_pattern_with_every_allocation_and_floors(cls, kind, data, share, floor):
    group, saliency = data.draw(models(cls, [k for k in KINDS if k != "overflowing signed"]))  # no lower float is left
    allocation = kind(0.9, floor)
    highest = reachable(group, allocation)
    assume(highest > floor)
    sparsity = floor + share * (highest - floor)
    scores = {name: group.pattern.pool(values) for name, values in saliency.items()}
    pruned, masks = updated(group, allocation, scores, sparsity, 1.0)
    assert_as_asked(group, allocation, masks, pruned, sparsity, 1.0)


CRITERIA = [SnipMomentum, Magnitude, Gradient, Snip, Movement, Platon, DiagonalFisher, Random]


@pytest.mark.parametrize("kind", [Global, Uniform])
@pytest.mark.parametrize("cls", [Block, NofM])
@pytest.mark.parametrize("criterion", CRITERIA)
@settings(PROPERTY, max_examples=15)
@given(
    data=st.data(),
    reduce=st.sampled_from(["mean", "sum", "max"]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    cap=st.sampled_from([0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_criterion_with_every_pattern_and_allocation(criterion, cls, kind, data, reduce, shares, cap, seed):
    """Some mask updates with training steps between: exact, and what is pruned stays pruned."""
    group, _ = data.draw(models(cls))
    scoring, allocation, pattern = criterion(reduce=reduce), kind(cap), group.pattern
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=random) for name, shape in group.shapes.items()}
    moments = {name: torch.rand(shape, generator=random) for name, shape in group.shapes.items()}
    state: dict[str, dict[str, torch.Tensor]] = {name: {} for name in weights}
    masks = {name: torch.ones_like(pattern.pool(weight), dtype=torch.bool) for name, weight in weights.items()}
    for share in [*sorted(shares), 1.0]:
        sparsity = share * reachable(group, allocation)
        scores = {}
        for name, weight in weights.items():
            for _ in range(2 if criterion.needs_gradient else 0):
                gradient = torch.randn(weight.shape, generator=random)
                observed = scoring.observation(weight, gradient)
                scoring.accumulate(state[name], pattern.pool(observed, scoring.reduction))
            pool = partial(pattern.pool, reduction=scoring.reduction)
            score = scoring.saliency(Layer(name, weight, state[name], moments[name], pool))
            assert score is not None
            scores[name] = score.masked_fill(~masks[name], -math.inf)
        pruned, after = updated(group, allocation, scores, sparsity, share, again=True)
        assert_as_asked(group, allocation, after, pruned, sparsity, share)
        for name, weight in weights.items():
            assert not bool((after[name] & ~masks[name]).any())
            weight.mul_(pattern.expand(after[name], weight.shape))
        masks = after


# --- the lowest of many numbers --------------------------------------------------------------------------------------


def lowest_by_sorting(cost: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.where(cost.isnan(), math.inf, cost).sort(stable=True).indices
    mask = torch.zeros(len(cost), dtype=torch.bool)
    mask[order[: max(0, count)]] = True
    return mask


@PROPERTY
@given(values=st.lists(VALUES | st.just(-math.inf), min_size=1, max_size=40), data=st.data())
def test_lowest_of_few_is_the_start_of_the_sorted_list(values, data):
    count = data.draw(st.integers(-1, len(values) + 1))
    order = sorted(range(len(values)), key=lambda at: (as_rank(values[at]), at))
    expected = [at in order[: max(0, count)] for at in range(len(values))]
    assert lowest(torch.tensor(values), count).tolist() == expected


SAMPLED = 4 * 65_536  # above this many, a sample brackets the threshold
SIZES = [20_000, SAMPLED + 1, 300_007, 700_000]


def stride(size: int) -> int:
    """Distance of the numbers that are sampled."""
    return size // 65_536 | 1


def numbers(kind: str, size: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(size)
    values = torch.rand(size, generator=random)
    index = torch.arange(size)
    match kind:
        case "random":
            return values
        case "signed":
            return torch.randn(size, generator=random)
        case "ascending":
            return index.float()
        case "descending":
            return index.flip(0).float()
        case "constant":
            return torch.full((size,), 0.25)
        case "zero":
            return torch.zeros(size)
        case "few":
            return torch.randint(0, 4, (size,), generator=random).float()
        case "half pruned":
            return values.masked_fill(torch.rand(size, generator=random) < 0.5, -math.inf)
        case "pruned in front":
            return values.masked_fill(index < size // 2, -math.inf)
        case "not a number":
            return values.masked_fill(values > 0.9, math.nan)
        case "infinite":
            return values.masked_fill(values > 0.7, math.inf)
        case "everything":
            choices = torch.tensor([-math.inf, -1.0, 0.0, -0.0, 1.0, torch.finfo(torch.float32).min, 3e38, math.inf])
            picked = choices[torch.randint(0, len(choices), (size,), generator=random)]
            return torch.where(values < 0.3, values, picked).masked_fill(values > 0.95, math.nan)
        case "lowest float":  # no lower number is left to bracket with
            return values.masked_fill(values < 0.4, torch.finfo(torch.float32).min)
        case "sample sees the low":
            return torch.where(index % stride(size) == 0, values, values + 1)
        case "sample sees the high":
            return torch.where(index % stride(size) == 0, values + 1, values)
        case "sample sees one number":
            return torch.where(index % stride(size) == 0, 0.5, values)
        case "sample sees what is pruned":
            return values.masked_fill(index % stride(size) == 0, -math.inf)
        case "sample sees the infinite":
            return values.masked_fill(index % stride(size) == 0, math.inf)
        case "sample sees no number":
            return values.masked_fill(index % stride(size) == 0, math.nan)
        case "sample misses what is pruned":
            return torch.where(index % stride(size) == 0, values, -math.inf)
    raise AssertionError(kind)


NUMBERS = [
    *("random", "signed", "ascending", "descending", "constant", "zero", "few", "half pruned", "pruned in front"),
    *("not a number", "infinite", "everything", "lowest float", "sample sees the low", "sample sees the high"),
    *("sample sees one number", "sample sees what is pruned", "sample sees the infinite", "sample sees no number"),
    "sample misses what is pruned",
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", NUMBERS)
def test_lowest_of_many_is_the_start_of_the_sorted_list(kind, size):
    cost = numbers(kind, size)
    before = cost.clone()
    order = torch.where(cost.isnan(), math.inf, cost).sort(stable=True).indices
    at_start = {0, 1, 2, size - 1, size, stride(size)}
    shares = {round(share * size) for share in (0.001, 0.3, 0.5, 0.8)}
    pruned = int((cost == -math.inf).sum())
    for count in sorted(at_start | shares | {max(0, pruned - 1), pruned, min(size, pruned + 1)}):
        mask = lowest(cost, count)
        expected = torch.zeros(size, dtype=torch.bool)
        expected[order[:count]] = True
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected), (kind, size, count)
    torch.testing.assert_close(cost, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [SAMPLED - 1, SAMPLED])
@pytest.mark.parametrize("kind", ["random", "everything", "half pruned", "few"])
def test_lowest_of_as_many_as_are_not_sampled(kind, size):
    cost = numbers(kind, size)
    for count in (1, size // 2, size // 2 + 1, size - 1):
        assert torch.equal(lowest(cost, count), lowest_by_sorting(cost, count))


@pytest.mark.parametrize("kind", ["random", "everything", "few"])
def test_lowest_of_a_million_doubles(kind):
    cost = numbers(kind, 1_000_000).double()
    for count in (1, 500_000, 999_999):
        assert torch.equal(lowest(cost, count), lowest_by_sorting(cost, count))


# --- quotas and refusals ---------------------------------------------------------------------------------------------


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
    quotas = Global(max_per_layer).quotas({"layer": units}, {"layer": 4}, max_sparsity)
    assert quotas == {"layer": Quota(units, 4, 0, cap)}
    assert quotas["layer"].most == cap


@pytest.mark.parametrize(
    ("min_per_layer", "max_sparsity", "units", "progress", "floor"),
    [
        (0.0, 1.0, 100, 1.0, 0),
        (0.25, 1.0, 100, 1.0, 25),
        (0.25, 1.0, 10, 1.0, 2),  # to within a unit
        (0.29, 1.0, 100, 1.0, 29),
        (0.25, 0.5, 100, 1.0, 50),
        (0.7, 0.5, 100, 1.0, 100),  # all that 2:4 can do
        (0.25, 1.0, 100, 0.5, 12),
        (0.25, 1.0, 100, 0.0, 0),
    ],
)
def test_floors_are_in_units_of_the_layer_and_grow_with_what_is_due(
    min_per_layer, max_sparsity, units, progress, floor
):
    quotas = Uniform(0.98, min_per_layer).quotas({"layer": units}, {"layer": 1}, max_sparsity, progress)
    assert quotas["layer"].floor == floor
    assert floor <= quotas["layer"].most


def test_a_quota_without_a_cap_is_the_whole_layer():
    assert Quota(7, 4).most == 7
    assert Quota(7, 4, cap=0).most == 0


def test_a_pattern_that_prunes_nothing_has_quotas_of_nothing():
    assert Global().quotas({"a": 9}, {"a": 0}, 0.0) == {"a": Quota(9, 0, 0, 0)}
    Global(0.5, 0.3).check(Global(0.5, 0.3).quotas({"a": 9}, {"a": 0}, 0.0), 0.0, 0.0)


@pytest.mark.parametrize("kind", [Global, Uniform])
def test_check_refuses_a_target_above_the_caps_and_names_the_maximum(kind):
    units, zeros = {"a": 100, "b": 300}, {"a": 1, "b": 1}
    kind(0.5).check(kind(0.5).quotas(units, zeros, 1.0), 0.5, 1.0)
    with pytest.raises(PruningError, match=r"0\.6 is above .*max_per_layer=0\.5 .*at most 0\.5000"):
        kind(0.5).check(kind(0.5).quotas(units, zeros, 1.0), 0.6, 1.0)
    with pytest.raises(PruningError, match=r"0\.45 is above .*max_per_layer=0\.25 .*at most 0\.2500"):
        kind(0.25).check(kind(0.25).quotas(units, zeros, 0.5), 0.9, 0.5)


@pytest.mark.parametrize("kind", [Global, Uniform])
def test_check_refuses_a_target_below_the_floors_and_names_the_minimum(kind):
    units, zeros = {"a": 100, "b": 300}, {"a": 1, "b": 1}
    quotas = kind(0.9, 0.5).quotas(units, zeros, 1.0)
    kind(0.9, 0.5).check(quotas, 0.5, 1.0)
    with pytest.raises(PruningError, match=r"0\.4 is below .*min_per_layer=0\.5 .*at least 0\.5000"):
        kind(0.9, 0.5).check(quotas, 0.4, 1.0)


def test_check_counts_weights_where_units_differ_in_size():
    quotas = Global(0.5).quotas({"a": 10, "b": 10}, {"a": 1, "b": 99}, 1.0)
    Global(0.5).check(quotas, 0.5, 1.0)
    with pytest.raises(PruningError, match=r"at most 0\.5000"):
        Global(0.5).check(quotas, 0.56, 1.0)


@settings(PROPERTY, max_examples=100)
@given(
    units=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 20), min_size=1),
    cap=CAPS,
    fraction=st.floats(0.01, 0.99),
    allocation=st.sampled_from([Global, Uniform]),
)
def test_what_check_lets_pass_can_be_selected(units, cap, fraction, allocation):
    quotas = allocation(cap).quotas(units, dict.fromkeys(units, 1), 1.0)
    try:
        allocation(cap).check(quotas, fraction, 1.0)
    except PruningError:
        assert fraction * sum(units.values()) > sum(q.most for q in quotas.values())
        return
    costs = {name: torch.arange(float(count)) for name, count in units.items()}
    chosen = allocation(cap).select(costs, fraction, quotas)
    pruned = sum(int(mask.sum()) for mask in chosen.values())
    assert abs(pruned - fraction * sum(units.values())) <= 0.5 + 1e-6


@pytest.mark.parametrize("max_per_layer", [0.0, -0.5, 1.01, 98, math.nan])
def test_a_cap_is_a_fraction(max_per_layer):
    with pytest.raises(PruningError, match=r"^max_per_layer=.* must be in \(0, 1\]$"):
        Global(max_per_layer)


@pytest.mark.parametrize("min_per_layer", [-0.1, 0.6, 1.5, math.nan])
def test_a_floor_is_a_fraction_up_to_the_cap(min_per_layer):
    with pytest.raises(PruningError, match=r"^min_per_layer=.* from 0 to max_per_layer=0\.5"):
        Uniform(0.5, min_per_layer)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 80.0, math.nan])
def test_the_target_of_an_override_is_a_fraction(target):
    with pytest.raises(PruningError, match=r"^layers\['head'\]\.target=.* must be in \(0, 1\)"):
        Global(layers={"head": LayerOverride(target=target)})


def test_the_two_criteria_lists_agree():
    from tests.pruning.test_criteria import CONCRETE

    assert set(CRITERIA) == {cls for cls in CONCRETE if not cls.needs_calibration}


def test_every_pattern_that_prunes_is_here():
    from tests.pruning.test_patterns import COUPLED, PATTERNS

    coupled = set(COUPLED.values())  # test_coupled.py
    assert {cls for cls in PATTERNS if cls.prunes} - coupled == {Block, NofM}
    assert all(issubclass(cls, Pattern) for cls in PATTERNS)


def test_a_floor_holds_in_a_layer_whose_costs_are_not_numbers():
    costs = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.full((5,), math.nan)}
    quotas = Global(0.9, 0.2).quotas({"a": 4, "b": 5}, {"a": 5, "b": 5}, 1.0)
    assert quotas["b"].floor == 1
    chosen = Global(0.9, 0.2).select(costs, 0.2, quotas)
    assert {name: mask.tolist() for name, mask in chosen.items()} == {
        "a": [True] + [False] * 3,
        "b": [True] + [False] * 4,
    }
