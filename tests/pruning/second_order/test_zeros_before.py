"""Layer-wise OBS of a model that has zeros already: they stay, count, and the others adapt on what is left.

References take explicit inverses, one row and one unit at a time, and decide with plain sorts.
"""

import copy
from itertools import combinations
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning import (
    OBS,
    Block,
    Calibration,
    Global,
    LayerOverride,
    NofM,
    OneShot,
    Pattern,
    Plan,
    Pruner,
    PruningError,
    TrainingLength,
    Uniform,
    matrix_weights,
    obs,
)
from pruning.second_order import collect
from pruning.second_order.solver import damped
from tests.pruning.second_order.test_obs import PROPERTY, Attention, check_resume, data, least_squares, loss_of


def with_zeros(start: str, seed: int = 0) -> Attention:
    """A model that another pruning has left with zeros, more in some layers than in others."""
    model, chance = Attention(), torch.Generator().manual_seed(seed)
    for number, p in enumerate(matrix_weights(model).values()):
        share = (0.1, 0.3, 0.5)[number]
        with torch.no_grad():
            if start in ("4x1", "2x2", "1x1"):
                rows, cols = map(int, start.split("x"))
                dead = torch.rand(8 // rows, 8 // cols, generator=chance) < share
                p[dead.repeat_interleave(rows, 0).repeat_interleave(cols, 1)] = 0.0
            elif start == "rows":
                p[4 : 4 + 4 * (number == 1)] = 0.0
            elif start == "dead":
                p[:, [1, 2, 6][: number + 1]] = 0.0
                p[number] = 0.0
    return model


def continued(model: Attention, pattern: Pattern, allocation=None, criterion=None) -> None:
    plan = Plan(matrix_weights(model), pattern, allocation or Global(max_per_layer=1.0), keeps_zeros=True)
    obs(model, plan, data(), loss_of(model), criterion=criterion)


def parts(model: Attention) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Weight -> float64 [out, in + 1] with the bias, the damped Hessian and the factor of each output."""
    found = collect(Calibration(model, data(), loss_of(model)), matrix_weights(model))
    return {
        name: (
            torch.cat([p.detach(), cast(Tensor, model.get_submodule(name[:-7]).bias).detach()[:, None]], 1).double(),
            damped(found.hessians[name], 0.01),
            found.fisher[name].double(),
        )
        for name, p in sorted(matrix_weights(model).items())
    }


def supports(alive: Tensor, rows: int, cols: int) -> Tensor:
    """bool [out / rows, in / cols] -> bool [out, in + 1], with the bias."""
    whole = alive.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return torch.cat([whole, torch.ones(len(whole), 1, dtype=torch.bool)], 1)


def unit_costs(w: Tensor, h: Tensor, f: Tensor, alive: Tensor, rows: int, cols: int) -> list[float]:
    """The cost of each unit by the explicit inverse of what its rows have left; -inf if it is pruned already."""
    support = supports(alive, rows, cols)
    current = least_squares(w, h, support)
    costs = []
    for group, unit in [divmod(i, alive.shape[1]) for i in range(alive.numel())]:
        if not alive[group, unit]:
            costs.append(-torch.inf)
            continue
        left = support[group * rows].nonzero()[:, 0].tolist()
        places = [left.index(j) for j in range(unit * cols, unit * cols + cols)]
        inner = torch.linalg.inv(torch.linalg.inv(h[left][:, left])[places][:, places])
        of_unit = current[group * rows : group * rows + rows, unit * cols : unit * cols + cols]
        costs.append(float((((of_unit @ inner) * of_unit).sum(1) * f[group * rows : group * rows + rows]).sum()))
    return costs


def naive(model: Attention, rows: int, cols: int, target: float, rounds: list[float]) -> dict[str, Tensor]:
    """Weight -> [out, in + 1] after the rounds over all layers; units with any zero are gone before the first."""
    given_parts = parts(model)
    alive = {
        name: (w[:, :-1] != 0).view(8 // rows, rows, 8 // cols, cols).all(3).all(1)
        for name, (w, _, _) in given_parts.items()
    }
    units = sum(mask.numel() for mask in alive.values())
    before = 1 - sum(int(mask.sum()) for mask in alive.values()) / units
    for part in rounds:
        costs = [
            (cost, name, place)
            for name, (w, h, f) in given_parts.items()
            for place, cost in enumerate(unit_costs(w, h, f, alive[name], rows, cols))
        ]
        for _, name, place in sorted(costs)[: round((before + (target - before) * part) * units)]:
            alive[name].view(-1)[place] = False
    return {name: least_squares(w, h, supports(alive[name], rows, cols)) for name, (w, h, _) in given_parts.items()}


def assert_equal(model: Attention, wanted: dict[str, Tensor]) -> None:
    for name, (w, _, _) in parts(model).items():
        assert torch.equal(w == 0, wanted[name] == 0), name
        torch.testing.assert_close(w, wanted[name], rtol=1e-4, atol=1e-5)


@PROPERTY
@given(
    seed=st.integers(0, 1000),
    case=st.sampled_from(
        [("4x1", 4, 1, 0.75), ("rows", 4, 1, 0.6), ("1x1", 2, 1, 0.85), ("4x1", 1, 1, 0.6), ("2x2", 2, 2, 0.6)]
    ),
)
def test_blocks_on_zeros_are_those_of_the_naive_update(seed, case):
    start, rows, cols, target = case
    model, rounds = with_zeros(start, seed), [0.4, 1.0]
    wanted = naive(model, rows, cols, target, rounds)
    continued(model, Block(rows, cols, target_sparsity=target), criterion=OBS(rounds=rounds))
    assert_equal(model, wanted)


def in_order(w: Tensor, h: Tensor, n: int, m: int) -> Tensor:
    """Which weights of one row are not zero: groups from left to right by the explicit inverse of all to the right that
    some row has left; a group's zeros are among its losers."""
    zero = w[:-1] == 0
    kept, current = ~zero, w.clone()
    for start in range(0, len(zero), m):
        dead = [j for j in range(start, start + m) if zero[j]]
        if len(dead) >= m - n:
            continue
        right = [j for j in range(start, len(w)) if h[j, j] != 1.0]
        live = [j for j in right if j < start + m]
        inverse, prices = torch.linalg.inv(h[right][:, right]), {}
        for chosen in combinations(live, m - n - (m - len(live))):
            if set(dead) & set(live) <= set(chosen):
                places = [right.index(j) for j in chosen]
                prices[chosen] = float(
                    current[list(chosen)] @ torch.linalg.inv(inverse[places][:, places]) @ current[list(chosen)]
                )
        best = min(prices, key=prices.__getitem__)
        places = [right.index(j) for j in best]
        factor = torch.linalg.inv(inverse[places][:, places]) @ inverse[places]
        current[right] = current[right] - current[list(best)] @ factor
        kept[list(best)] = False
    return kept


@PROPERTY
@given(seed=st.integers(0, 1000), start=st.sampled_from(["dead", "1x1", "4x1"]), size=st.sampled_from([(2, 4), (4, 8)]))
def test_n_of_m_on_zeros_are_those_of_columns_in_order(seed, start, size):
    model = with_zeros(start, seed)
    wanted = {}
    for name, (w, h, _) in parts(model).items():
        gone = (w[:, :-1] == 0).all(0)
        without = h.clone()
        without.diagonal()[:-1][gone] = 1.0  # a mark for `in_order`
        kept = torch.stack([in_order(row, without, *size) for row in w])
        wanted[name] = least_squares(w, h, torch.cat([kept, torch.ones(8, 1, dtype=torch.bool)], 1))
    continued(model, NofM(*size))
    assert_equal(model, wanted)


CASES = [
    ("4x1", Block(4, 1, target_sparsity=0.8)),
    ("rows", Block(4, 1, target_sparsity=0.6)),
    ("4x1", Block(1, 1, target_sparsity=0.8)),
    ("1x1", Block(2, 1, target_sparsity=0.9)),
    ("dead", NofM(2, 4)),
    ("1x1", NofM(5, 8)),
    ("4x1", NofM(2, 4, mix=True, target_sparsity=0.45)),
    ("rows", Block(1, 0, target_sparsity=0.5)),
]


@pytest.mark.parametrize(
    "allocation", [Global(max_per_layer=0.95), Uniform(max_per_layer=0.95)], ids=["global", "uniform"]
)
@pytest.mark.parametrize(("start", "pattern"), CASES, ids=str)
def test_zeros_stay_the_pattern_holds_and_the_target_is_exact(start, pattern, allocation):
    model = with_zeros(start)
    before = {name: p.detach().clone() for name, p in matrix_weights(model).items()}
    continued(model, pattern, allocation)
    weights = matrix_weights(model)
    assert all(bool((p[before[name] == 0] == 0).all()) for name, p in weights.items())
    assert all(bool(p.isfinite().all()) for p in weights.values())
    zeros = sum(int((p == 0).sum()) for p in weights.values())
    unit = pattern.unit_size(torch.Size([8, 8]))
    if isinstance(pattern, Block):
        assert all(pattern.violations(p.detach()) == 0 for p in weights.values())
        assert zeros == round(pattern.target * 192 / unit) * unit
    elif not pattern.mix:
        assert all(pattern.violations(p.detach()) == 0 for p in weights.values())
    if isinstance(pattern, NofM):  # more where a group has more zeros than it needs
        wanted = {name: (p == 0).view(-1, pattern.m).sum(1) for name, p in before.items()}
        enough = sum(int((count >= pattern.m - pattern.n).sum()) for count in wanted.values())
        done = sum(int(((p == 0).view(-1, pattern.m).sum(1) >= pattern.m - pattern.n).sum()) for p in weights.values())
        assert done == max(enough, round(pattern.target / pattern.max_sparsity * 192 / pattern.m))
    rows = pattern == Block(1, 0, target_sparsity=0.5)  # rows do not adapt to each other
    assert rows == all(torch.equal(p[p != 0], before[name][p != 0]) for name, p in weights.items())


@PROPERTY
@given(seed=st.integers(0, 1000))
def test_survivors_err_less_than_if_they_stayed_as_they_were(seed):
    model = with_zeros("4x1", seed)
    before = parts(model)
    continued(model, Block(4, 1, target_sparsity=0.8))
    for name, (w, _, _) in parts(model).items():
        old, h, f = before[name]
        plain = old * torch.cat([w[:, :-1] != 0, torch.ones(8, 1, dtype=torch.bool)], 1)
        ours, theirs = (float(((((v - old) @ h) * (v - old)).sum(1) * f).sum()) for v in (w, plain))
        assert ours <= theirs * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize(
    ("start", "pattern"),
    [("4x1", Block(4, 1, target_sparsity=0.8)), ("1x1", Block(2, 1, target_sparsity=0.9)), ("dead", NofM(2, 4))],
    ids=str,
)
def test_gradual_updates_on_zeros_resume_bit_for_bit(start, pattern):
    model = with_zeros(start)
    zero = {name: p == 0 for name, p in matrix_weights(model).items()}
    seen: list[Tensor] = []

    def each() -> None:
        gone = {name: p == 0 for name, p in matrix_weights(model).items()}
        assert all(bool((zero[name] <= mask).all()) for name, mask in gone.items())
        seen.append(torch.cat([mask.flatten() for mask in gone.values()]))
        assert len(seen) < 2 or bool((seen[-2] <= seen[-1]).all())

    check_resume(model, pattern, each, keeps_zeros=True)
    assert len({int(mask.sum()) for mask in seen}) >= 3


def test_what_the_zeros_forbid_is_refused_and_nothing_changes():
    model = with_zeros("1x1")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match="cannot hold with the zeros that the weights have"):
        continued(model, Block(4, 1, target_sparsity=0.5))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_layer_that_is_excluded_keeps_its_zeros():
    model = with_zeros("4x1")
    out = model.out.weight.detach().clone()
    allocation = Global(layers={"out": LayerOverride(excluded=True)})
    plan = Plan(matrix_weights(model), Block(4, 1, target_sparsity=0.7), allocation, keeps_zeros=True)
    calibration = Calibration(model, data(), loss_of(model))
    Pruner(plan, OneShot("0"), TrainingLength(0), OBS(), calibration=calibration).update_now()
    assert torch.equal(model.out.weight, out)
    assert int((model.q.weight == 0).sum()) + int((model.k.weight == 0).sum()) == round(0.7 * 32) * 4
