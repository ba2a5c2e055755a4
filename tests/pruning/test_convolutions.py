"""Convolutions: units run over input channels at each tap of the kernel, compared with loops over the indices."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import (
    Block,
    Global,
    GroupLasso,
    Magnitude,
    NofM,
    OneShot,
    Pattern,
    Plan,
    Pruner,
    PruningError,
    Snip,
    TrainingLength,
    as_matrix,
    matrix_weights,
    misfit,
)
from pruning.matrices import from_matrix

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PATTERNS = [Block(4, 1), Block(2, 2), Block(1, 4), Block(1, 0), Block(0, 1), NofM(2, 4), NofM(1, 4), NofM(1, 2)]
Index = tuple[int, ...]


def size_of(pattern: Pattern) -> tuple[int, int]:
    """Rows and input channels of a unit; 0: all."""
    if isinstance(pattern, NofM):
        return 1, pattern.m
    assert isinstance(pattern, Block)
    return pattern.rows, pattern.cols


def units_of(pattern: Pattern, shape: torch.Size) -> list[list[Index]]:
    """The indices of each unit, in the order that decides between equals: rows, then taps, then input channels."""
    outputs, inputs = shape[:2]
    taps = list(itertools.product(*map(range, shape[2:])))
    if isinstance(pattern, Block) and pattern.cols == 0:  # whole output channels
        groups = [taps[:]]
    else:
        groups = [[tap] for tap in taps]
    rows, cols = size_of(pattern)
    rows, cols = rows or outputs, cols or inputs
    return [
        [(o, i, *tap) for o in range(top, top + rows) for tap in group for i in range(left, left + cols)]
        for top in range(0, outputs, rows)
        for group in groups
        for left in range(0, inputs, cols)
    ]


def naive_zeros(pattern: Pattern, scores: Tensor) -> set[Index]:
    """What is pruned at the pattern's target, by loops over the indices of the weight."""
    units = units_of(pattern, scores.shape)
    losers = []
    for unit in units:
        ranked = sorted(unit, key=lambda index: (float(scores[index]), unit.index(index)))
        losers.append(ranked[: pattern.m - pattern.n] if isinstance(pattern, NofM) else ranked)
    costs = [sum(float(scores[index]) for index in chosen) for chosen in losers]
    count = round(pattern.unit_fraction(pattern.target) * len(units))
    order = sorted(range(len(units)), key=lambda k: (costs[k], k))[:count]
    return {index for k in order for index in losers[k]}


def naive_violations(pattern: Pattern, weight: Tensor) -> int:
    broken = 0
    for unit in units_of(pattern, weight.shape):
        alive = sum(float(weight[index]) != 0 for index in unit)
        broken += alive > pattern.n if isinstance(pattern, NofM) else 0 < alive < len(unit)
    return broken


def zeros_of(weight: Tensor) -> set[Index]:
    return {tuple(index) for index in (weight == 0).nonzero().tolist()}


def laid_out(weight: Tensor, layout: str) -> Tensor:
    """The same numbers in another order of memory."""
    if layout == "inputs first":
        return weight.transpose(0, 1).contiguous().transpose(0, 1)
    return weight.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels last" else weight.contiguous()


def whole_numbers(shape: torch.Size, seed: int) -> Tensor:
    """Numbers other than 0 whose sums are exact, of both signs, some of them equal."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, 20, shape, generator=random) * (1.0 - 2 * torch.randint(0, 2, shape, generator=random))


@st.composite
def cases(draw):
    """A pattern and a convolution that it fits, grouped ones and kernels of one tap among them."""
    pattern = draw(st.sampled_from(PATTERNS))
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    inputs = 1 if isinstance(pattern, Block) and pattern.cols < 2 and draw(st.booleans()) else 4
    module = KINDS[len(kernel)](inputs * groups, draw(st.sampled_from([4, 8])), tuple(kernel), groups=groups)
    weight = laid_out(
        whole_numbers(module.weight.shape, draw(st.integers(0, 999))),
        draw(st.sampled_from(["contiguous", "inputs first", "channels last"])),
    )
    module.weight = nn.Parameter(weight)
    return pattern, module


@settings(deadline=None, derandomize=True, max_examples=120)
@given(case=cases(), criterion=st.sampled_from([Magnitude(), Snip()]))
def test_masks_and_recount_are_those_of_loops_over_input_channels(case, criterion):
    pattern, module = case
    weight, before = module.weight, module.weight.detach().clone()
    weight.grad = laid_out(whole_numbers(weight.shape, 7), "channels last")
    scores = before.abs() if isinstance(criterion, Magnitude) else (before * weight.grad).abs()
    plan = Plan(matrix_weights(module), pattern, Global(max_per_layer=1.0))
    pruner = Pruner(plan, OneShot(), TrainingLength(10), criterion)
    pruner.observe()
    assert pruner.prune(1.0)
    expected = naive_zeros(pattern, scores)
    assert zeros_of(weight) == expected
    assert torch.equal(weight, before.where(weight != 0, 0.0))
    (row,) = pruner.report()
    assert (row.zeros, row.units, row.violations) == (len(expected), len(units_of(pattern, weight.shape)), 0)
    broken = weight.detach().clone()
    broken[min(expected)] = 1.0
    assert pattern.violations(as_matrix(broken)) == naive_violations(pattern, broken)
    pruner.masks.clear_gradients()
    assert zeros_of(weight.grad) == zeros_of(weight) == expected


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    pattern=st.sampled_from([*PATTERNS, NofM(2, 3), Block(3, 3)]),
)
def test_a_convolution_fits_if_one_tap_does(shape, pattern):
    size = torch.Size(shape)
    rows, cols = size_of(pattern)
    assert (misfit(pattern, size) is None) == (shape[0] % (rows or 1) == 0 and shape[1] % (cols or 1) == 0)
    assert misfit(pattern, size) == pattern.misfit(torch.Size(shape[:2]))
    tensor = torch.arange(float(math.prod(shape))).reshape(shape)
    assert torch.equal(from_matrix(as_matrix(tensor), size), tensor)


def broken_groups(weight: Tensor) -> int:
    """2:4 as sparse tensor cores and NVIDIA's APEX count it: along the input channels of each tap."""
    groups = weight.detach().movedim(1, -1).reshape(-1, 4)
    return int((groups.count_nonzero(dim=1) > 2).sum())


def pruned(module: nn.Module, pattern: Pattern) -> Pruner:
    torch.manual_seed(0)
    for p in matrix_weights(module).values():
        nn.init.normal_(p)
    pruner = Pruner(Plan(matrix_weights(module), pattern), OneShot(), TrainingLength(10), Magnitude())
    pruner.prune(1.0)
    return pruner


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(
            nn.Conv2d(8, 8, 3),
            marks=pytest.mark.bad_input(
                "A7", "Conv2d(8, 8, 3) at 2:4", before="47 of 144 groups broken", after="none broken"
            ),
        ),
        pytest.param(
            nn.Conv1d(16, 8, 4),
            marks=pytest.mark.bad_input(
                "A7", "Conv1d(16, 8, 4) at 2:4", before="groups of the four taps", after="groups of four input channels"
            ),
        ),
        pytest.param(
            nn.Conv2d(16, 8, 3, groups=2).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            marks=pytest.mark.bad_input(
                "A7",
                "Conv2d(16, 8, 3, groups=2) in channels_last at 2:4",
                before="groups along the taps",
                after="groups of the input channels of one group",
            ),
        ),
    ],
)
def test_n_of_m_holds_for_hardware(module):
    row = pruned(module, NofM(2, 4)).report()[0]
    weight = module.weight
    assert broken_groups(weight) == row.violations == 0
    assert row.units == weight.numel() // 4
    assert int((weight == 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize(
    ("module", "pattern", "reason"),
    [
        pytest.param(
            nn.Conv2d(3, 8, 4),
            NofM(2, 4),
            r"\[8, 3\] does not divide into groups of 4 along the input axis",
            marks=pytest.mark.bad_input(
                "A7", "Conv2d(3, 8, 4) at 2:4", before="pruned along the four taps", after="named and left dense"
            ),
        ),
        pytest.param(
            nn.Conv1d(8, 8, 4, groups=8),
            NofM(2, 4),
            r"\[8, 1\] does not divide into groups of 4 along the input axis",
            marks=pytest.mark.bad_input(
                "A7", "depthwise Conv1d(8, 8, 4) at 2:4", before="pruned along the taps", after="named and left dense"
            ),
        ),
        pytest.param(
            nn.Conv2d(3, 8, 2),
            Block(1, 4),
            r"\[8, 3\] does not divide into blocks of 1 rows by 4 columns",
            marks=pytest.mark.bad_input(
                "A7", "Conv2d(3, 8, 2) at 1x4", before="blocks of the four taps", after="named and left dense"
            ),
        ),
    ],
)
def test_a_convolution_that_does_not_fit_is_left_dense(module, pattern, reason):
    with pytest.raises(PruningError, match=f"no layer can be pruned .*weight: {reason}"):
        Plan(matrix_weights(module), pattern)
    linear = nn.Linear(8, 8)
    row, other = pruned(nn.ModuleDict({"a": module, "b": linear}), pattern).report()
    assert (row.name, row.zeros) == ("a.weight", 0)
    assert row.skipped is not None
    assert not bool((module.weight == 0).any())
    assert other.zeros > 0


@pytest.mark.parametrize("layout", ["contiguous", "inputs first", "channels last"])
def test_the_pull_of_a_group_lasso_is_over_input_channels(layout):
    module = nn.Conv2d(4, 4, 3)
    module.weight = nn.Parameter(laid_out(torch.randn(4, 4, 3, 3), layout))
    before, pattern = module.weight.detach().clone(), Block(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    plan = Plan(matrix_weights(module), pattern)
    Pruner(plan, OneShot(start="5"), TrainingLength(10), Magnitude(), GroupLasso(0.1)).attach(optimizer)
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    expected = before.clone()
    for unit in units_of(pattern, before.shape):
        norm = math.sqrt(sum(float(before[index]) ** 2 for index in unit))
        for index in unit:
            expected[index] -= 0.1 * 2 * before[index] / norm
    torch.testing.assert_close(module.weight.detach(), expected)


def test_a_state_whose_masks_ran_along_the_taps_is_refused():
    module = nn.Conv2d(8, 8, 3)
    tensors, values = pruned(module, NofM(2, 4)).state_dict()
    other = Pruner(Plan(matrix_weights(module), NofM(2, 4)), OneShot(), TrainingLength(10), Magnitude())
    other.load_state_dict(tensors, values)
    old = values | {"layers": json.dumps({"weight": [8, 8, 3, 3]})}
    with pytest.raises(PruningError, match=r"weight is \[8, 8, 3, 3\] there, \[8, 3, 3, 8\] here"):
        other.load_state_dict(tensors, old)
