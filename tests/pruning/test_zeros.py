"""Zeros that a model begins with: whatever pattern follows, they stay, count towards its target, and it holds exactly.

Expectations are counted weight by weight, without the engine's patterns.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import (
    Allocation,
    Block,
    Global,
    LayerOverride,
    Locked,
    Magnitude,
    Movement,
    NofM,
    OneShot,
    Pattern,
    Plan,
    Pruner,
    PruningError,
    Schedule,
    SnipMomentum,
    Uniform,
    matrix_weights,
)
from tests.pruning.training import (
    LENGTH,
    OPTIMIZERS,
    SCHEDULE,
    STEPS,
    assert_enforced,
    is_positive_zero,
    network,
    same,
    snapshot,
    train,
    zeros,
)


def tiles(weight: Tensor, rows: int, cols: int) -> Tensor:
    """[out, in] -> [blocks, rows * cols]."""
    out, width = weight.shape
    return weight.reshape(out // rows, rows, width // cols, cols).transpose(1, 2).reshape(-1, rows * cols)


def sparse(start: str, share: float, seed: int) -> nn.Sequential:
    """A network that another pruning has left with zeros, more in one layer than in the other."""
    model, chance = network(seed), torch.Generator().manual_seed(seed)
    for i, p in enumerate(matrix_weights(model).values()):
        part = share * (1.3 if i else 0.7)
        rows, cols = {"4x1": (4, 1), "1x1": (1, 1), "1x4": (1, 4), "2:4": (1, 4)}[start]
        blocks = tiles(p.detach(), rows, cols).shape[0]
        if start == "2:4":
            dead = torch.rand(blocks, 4, generator=chance).argsort(1) < 2
        else:
            dead = (torch.rand(blocks, generator=chance) < part)[:, None].expand(-1, rows * cols)
        shape = (p.shape[0] // rows, p.shape[1] // cols, rows, cols)
        p.data[dead.reshape(shape).transpose(1, 2).reshape(p.shape)] = 0.0
    return model


def going_on(
    model: nn.Module,
    pattern: Pattern,
    criterion=None,
    allocation: Allocation | None = None,
    schedule: Schedule = SCHEDULE,
) -> Pruner:
    plan = Plan(matrix_weights(model), pattern, allocation, keeps_zeros=True)
    return Pruner(plan, schedule, LENGTH, criterion)


def least_units(model: nn.Module, pattern: Block) -> tuple[int, int]:
    """Blocks that have a zero, and all blocks."""
    blocks = [tiles(p.detach(), pattern.rows, pattern.cols) for p in matrix_weights(model).values()]
    return sum(int((b == 0).any(1).sum()) for b in blocks), sum(len(b) for b in blocks)


def fits(model: nn.Module, pattern: Block, floor: float) -> bool:
    """Whether the floors of layers, and the zeros of those above theirs, are together within the target."""
    blocks = [tiles(p.detach(), pattern.rows, pattern.cols) for p in matrix_weights(model).values()]
    needed = sum(max(int((b == 0).any(1).sum()), int(floor * len(b) + 1e-9)) for b in blocks)
    return needed <= round(pattern.target * sum(map(len, blocks)))


PATTERNS = [
    Block(4, 1, target_sparsity=0.8), Block(2, 1, target_sparsity=0.75), Block(4, 2, target_sparsity=0.9),
    Block(1, 1, target_sparsity=0.7), Block(1, 4, target_sparsity=0.85), NofM(2, 4), NofM(1, 4), NofM(4, 8),
]  # fmt: skip


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    start=st.sampled_from(["4x1", "1x1", "1x4", "2:4"]),
    share=st.sampled_from([0.05, 0.3, 0.5, 0.7]),
    pattern=st.sampled_from(PATTERNS),
    criterion=st.sampled_from([Magnitude, SnipMomentum, Movement]),
    allocation=st.sampled_from([Global(), Uniform(), Global(max_per_layer=0.95, min_per_layer=0.2)]),
    schedule=st.sampled_from([SCHEDULE, OneShot(start="3")]),
    optimizer_name=st.sampled_from(sorted(OPTIMIZERS)),
    seed=st.integers(0, 5),
)
def test_zeros_stay_and_the_new_pattern_holds_exactly(
    start, share, pattern, criterion, allocation, schedule, optimizer_name, seed
) -> None:
    model = sparse(start, share, seed)
    old = zeros(model)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    pruner = going_on(model, pattern, criterion(), allocation, schedule)
    if isinstance(pattern, Block):
        least, units = least_units(model, pattern)
        target = round(pattern.target * units)
        if least > target:
            with pytest.raises(PruningError, match="cannot hold with the zeros that the weights have"):
                pruner.attach(optimizer)
            assert torch.equal(zeros(model), old)
            assert pruner.masks.items() == []
            return
    if allocation.min_per_layer and isinstance(pattern, Block) and not fits(model, pattern, allocation.min_per_layer):
        with pytest.raises(PruningError, match="cannot hold with the zeros"):
            pruner.attach(optimizer)
        return
    pruner.attach(optimizer)
    counts = [int(old.sum())]

    def check(step: int) -> None:
        now = zeros(model)
        assert bool((now | ~old).all()), f"a zero came back at step {step}"
        assert_enforced(model, optimizer)
        assert int(now.sum()) >= counts[-1]
        counts.append(int(now.sum()))
        assert pruner.sparsity == counts[-1] / now.numel()

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    weights = matrix_weights(model)
    for name, row in zip(sorted(weights), pruner.report(), strict=True):
        assert (row.zeros, row.violations, row.skipped) == (int((weights[name] == 0).sum()), 0, None)
    if isinstance(pattern, Block):
        blocks = torch.cat([tiles(p.detach() == 0, pattern.rows, pattern.cols) for p in weights.values()])
        assert bool((blocks.all(1) == blocks.any(1)).all())
        assert int(blocks.all(1).sum()) == target == sum(row.pruned_units for row in pruner.report())
    else:
        before = tiles(old.reshape(-1, pattern.m), 1, pattern.m).sum(1)  # the rows of both layers divide by m
        after = torch.cat([tiles(p.detach() == 0, 1, pattern.m) for _, p in sorted(weights.items())]).sum(1)
        assert torch.equal(after, before.clamp_min(pattern.m - pattern.n))  # as many as the pattern asks for, no more
    removed = sum(sum(update.removed.values()) for update in pruner.history)
    assert removed == counts[-1] - counts[0]
    assert all(not update.returned for update in pruner.history)


@pytest.mark.parametrize("pattern", [Block(4, 1, target_sparsity=0.9), NofM(2, 4), Block(4, 2, target_sparsity=0.9)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("at", [0, 3, 5, 9])
def test_an_interrupted_training_goes_on_bit_for_bit(pattern: Pattern, at: int) -> None:
    def begin() -> tuple[nn.Sequential, torch.optim.Optimizer, Pruner]:
        model = sparse("4x1", 0.4, 1)
        return model, OPTIMIZERS["adamw-foreach"](model.parameters()), going_on(model, pattern)

    whole, optimizer, pruner = begin()
    pruner.attach(optimizer)
    train(whole, optimizer, range(STEPS))

    first, optimizer, saved = begin()
    saved.attach(optimizer)
    train(first, optimizer, range(at))
    weights, moments, state = copy.deepcopy((first.state_dict(), optimizer.state_dict(), saved.state_dict()))
    second, optimizer, resumed = begin()
    second.load_state_dict(weights)
    resumed.load_state_dict(*state)
    optimizer.load_state_dict(moments)
    resumed.attach(optimizer)
    train(second, optimizer, range(at, STEPS))
    resumed.check_reached()
    assert same(snapshot(resumed), snapshot(pruner))
    assert same(second.state_dict(), whole.state_dict())
    assert resumed.history == pruner.history


def test_units_that_break_the_pattern_go_first_the_cheapest_before_the_others_and_in_all_layers() -> None:
    model = sparse("4x1", 0.0, 0)
    for p in matrix_weights(model).values():
        p.data[:2, ::2] = 0.0  # the upper halves of 4x1 blocks
        p.data[2:4, ::2] += 10.0  # large, so that nothing but the zeros lets them go first
    expected = sum(p.shape[1] // 2 for p in matrix_weights(model).values())
    pruner = going_on(model, Block(4, 1, target_sparsity=0.5), Magnitude(), schedule=OneShot(start="1"))
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner.attach(optimizer)
    assert len(pruner.masks.single) == 2
    assert sum(row.violations for row in pruner.report()) == expected
    train(model, optimizer, range(1))
    assert pruner.masks.single == {}
    for p in matrix_weights(model).values():
        assert is_positive_zero(p[:4, ::2])
    assert int(zeros(model).sum()) == 128


def test_layers_that_do_not_fit_or_are_excluded_keep_their_zeros() -> None:
    model = sparse("1x1", 0.4, 0)
    old = zeros(model)
    layers = {"0": LayerOverride(excluded=True)}
    pruner = going_on(model, NofM(1, 4), allocation=Global(layers=layers))
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    first, second = pruner.report()
    assert (first.pattern, second.pattern) == ("locked", "1:4")
    assert torch.equal((model.get_parameter("0.weight") == 0).flatten(), old[:128])
    assert bool((zeros(model) | ~old).all())

    small = Plan(matrix_weights(model), Block(16, 1, target_sparsity=0.9), keeps_zeros=True)  # fits the first alone
    assert [(name, str(p)) for name, p in small.patterns.items()] == [("0.weight", "16x1"), ("2.weight", "locked")]
    with pytest.raises(PruningError, match=r"no layer can be pruned with pattern 32x1 \(0.weight: \[16, 8\] does not"):
        Plan(matrix_weights(model), Block(32, 1), keeps_zeros=True)


def test_a_frozen_layer_stays_what_it_is() -> None:
    model = sparse("4x1", 0.4, 0)
    before = model.get_parameter("0.weight").detach().clone()
    pruner = going_on(model, Block(4, 1), allocation=Global(layers={"0": LayerOverride(frozen=True)}))
    optimizer = OPTIMIZERS["adamw-fused"]([p for p in model.parameters() if p.requires_grad])
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert torch.equal(model.get_parameter("0.weight"), before)
    assert "freezes" in str(pruner.report()[0].skipped)


def test_a_layer_with_more_zeros_than_the_cap_keeps_them() -> None:
    model = network()
    model.get_parameter("2.weight").data.zero_()
    model.get_parameter("2.weight").data[:, 0] = 1.0  # 15 of 16 columns are zero
    pruner = going_on(model, Block(4, 1, target_sparsity=0.8), allocation=Global(max_per_layer=0.85))
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruner.check_reached()
    first, second = pruner.report()
    assert second.zeros >= 120
    assert first.zeros + second.zeros == 4 * round(0.8 * 64)


def test_what_zeros_forbid_is_refused() -> None:
    model = sparse("2:4", 0.5, 0)
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    with pytest.raises(PruningError, match=r"of 64 units of 1x4, 0 are zero and 64 have a zero .* choose another"):
        going_on(model, Block(1, 4, target_sparsity=0.9)).attach(optimizer)
    model = sparse("4x1", 0.6, 0)
    least, units = least_units(model, Block(4, 1))
    message = rf"target_sparsity=0.3 cannot hold .*: of {units} units of 4x1, {least} are zero and 0 have"
    with pytest.raises(PruningError, match=message) as caught:
        going_on(model, Block(4, 1, target_sparsity=0.3)).attach(OPTIMIZERS["adamw-fused"](model.parameters()))
    assert f"the least is {least / units:.4f}" in str(caught.value)
    with pytest.raises(PruningError, match="regrow=True would bring back zeros"):
        going_on(model, Block(4, 1), allocation=Global(regrow=True))
    dense = network()
    for pattern in (Block(4, 1), Locked()):
        with pytest.raises(PruningError, match="none of the 2 weights has a zero to keep"):
            going_on(dense, pattern).attach(OPTIMIZERS["adamw-fused"](dense.parameters()))


def test_states_with_and_without_kept_zeros_are_not_mixed() -> None:
    model = sparse("4x1", 0.4, 0)
    kept = going_on(model, Block(4, 2, target_sparsity=0.9))
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    kept.attach(optimizer)
    plain = Pruner(Plan(matrix_weights(model), Block(4, 2, target_sparsity=0.9)), SCHEDULE, LENGTH)
    with pytest.raises(PruningError, match="single//"):
        plain.load_state_dict(*kept.state_dict())
    with pytest.raises(PruningError, match="differs in its zeros"):
        kept.load_state_dict(*plain.state_dict())


def test_a_convolution_keeps_its_zeros_too() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 3)
    model.weight.data[:, :, 0, 1] = 0.0
    model.weight.data[2, 1, 2, 2] = 0.0
    old = model.weight.detach() == 0
    pruner = going_on(model, Block(4, 1, target_sparsity=0.5), Magnitude())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        assert is_positive_zero(model.weight.detach()[old])
    pruner.check_reached()
    (row,) = pruner.report()
    assert (row.violations, row.zeros) == (0, 144)
    assert int((model.weight.detach() == 0).sum()) == 144
