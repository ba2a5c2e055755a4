"""Which layers the pruner takes, how much of each, and what it says about those that it leaves as they are."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    Block,
    DiagonalFisher,
    Global,
    Gradient,
    Gradual,
    LayerOverride,
    Locked,
    Magnitude,
    NofM,
    Pattern,
    Pruner,
    PruningError,
    Snip,
    SnipMomentum,
    Uniform,
    matrix_weights,
)
from tests.pruning.training import (
    OPTIMIZERS,
    PATTERNS,
    STEPS,
    Branched,
    assert_enforced,
    build,
    has_sparsity,
    network,
    sparse_network,
    three_layers,
    train,
    warnings_of,
    zeros,
)

# --- how much of which layer -----------------------------------------------------------------------------------------


def test_the_caps_of_the_layers_hold():
    model = network()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(1e-6)  # without a cap all of it would go first
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner = build(model, Block(4, 1, target_sparsity=0.5), Magnitude(), Global(max_per_layer=0.75))
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert {layer.name: layer.sparsity for layer in pruner.report()} == {"0.weight": 0.25, "2.weight": 0.75}


def test_the_floors_of_the_layers_hold_and_grow_with_the_schedule():
    model = network()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(1e-6)
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    allocation = Global(max_per_layer=1.0, min_per_layer=0.25)
    schedule = Gradual(decay="linear", start="2", frequency="2", end="6")
    pruner = build(model, Block(4, 1, target_sparsity=0.5), Magnitude(), allocation, schedule)
    pruner.attach(optimizer)
    seen = []
    train(model, optimizer, range(STEPS), lambda step: seen.append([layer.sparsity for layer in pruner.report()]))
    assert seen == [[0.0, 0.0]] * 3 + [[0.125, 0.375]] * 2 + [[0.25, 0.75]] * (STEPS - 5)


def test_uniform_allocation_gives_each_layer_the_target():
    model = network()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner = build(model, Block(4, 1, target_sparsity=0.75), allocation=Uniform())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert [layer.sparsity for layer in pruner.report()] == [0.75, 0.75]
    assert [float((p == 0).float().mean()) for p in matrix_weights(model).values()] == [0.75, 0.75]


def overridden(
    override: LayerOverride, pattern: Pattern | None = None
) -> tuple[nn.Sequential, Pruner, list[list[Tensor]]]:
    """A training with an exception for the middle one of three layers, and its weights after each step."""
    model = three_layers()
    history = [[p.detach().clone() for p in matrix_weights(model).values()]]
    allocation = Global(max_per_layer=1.0, layers={"2": override})
    pruner = build(model, pattern or Block(4, 1, target_sparsity=0.5), allocation=allocation)
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner.attach(optimizer)

    def check(step):
        history.append([p.detach().clone() for p in matrix_weights(model).values()])
        for before, after in zip(history[-2], history[-1], strict=True):
            assert not bool(((before == 0) & (after != 0)).any())

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    return model, pruner, history


def test_a_layer_with_another_pattern():
    model, pruner, _ = overridden(LayerOverride(pattern="2:4"))
    first, second, third = pruner.report()
    assert [first.pattern, second.pattern, third.pattern] == ["4x1", "2:4", "4x1"]
    assert second.sparsity == 0.5
    assert second.units == second.pruned_units == 64
    assert first.zeros + third.zeros == 0.5 * (first.units + third.units) * 4
    assert [row.violations for row in (first, second, third)] == [0, 0, 0]
    assert NofM(2, 4).violations(model.get_parameter("2.weight").detach()) == 0


def test_a_layer_with_another_block_takes_over_the_target():
    _, pruner, _ = overridden(LayerOverride(pattern="2x2"))
    assert [(row.pattern, row.violations) for row in pruner.report()] == [("4x1", 0), ("2x2", 0), ("4x1", 0)]
    assert pruner.report()[1].sparsity == 0.5


def test_a_layer_with_a_target_of_its_own_is_not_in_the_budget_of_the_others():
    model, pruner, _ = overridden(LayerOverride(target=0.75))
    first, second, third = pruner.report()
    assert second.sparsity == float((model.get_parameter("2.weight") == 0).float().mean()) == 0.75
    assert first.zeros + third.zeros == 0.5 * (first.units + third.units) * 4
    assert pruner.sparsity == 0.5


def test_a_layer_locked_by_an_override_is_trained_with_the_zeros_it_came_with():
    model = three_layers()
    lock = torch.rand(16, 16) < 0.5
    with torch.no_grad():
        model.get_parameter("2.weight")[lock] = 0.0
    pruner = build(model, PATTERNS["4x1"](), allocation=Global(layers={"2": LayerOverride(pattern="locked")}))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruner.check_reached()
    assert torch.equal(model.get_parameter("2.weight") == 0, lock)
    first, second, third = pruner.report()
    assert (second.pattern, second.zeros) == ("locked", int(lock.sum()))
    assert first.zeros + third.zeros == 0.75 * (first.units + third.units) * 4


def test_a_layer_that_is_frozen_by_an_override_is_neither_pruned_nor_trained():
    model, pruner, history = overridden(LayerOverride(frozen=True))
    assert not model.get_parameter("2.weight").requires_grad
    assert model.get_parameter("2.bias").requires_grad
    assert all(torch.equal(weights[1], history[0][1]) for weights in history)
    assert pruner.report()[1].skipped == "allocation.layers freezes it"
    assert "2.weight" not in pruner.parameters


def test_a_layer_that_is_excluded_by_an_override_is_trained_and_not_pruned():
    model, pruner, history = overridden(LayerOverride(excluded=True))
    assert not bool((model.get_parameter("2.weight") == 0).any())
    assert bool((history[-1][1] != history[0][1]).all())
    assert pruner.report()[1].skipped == "allocation.layers excludes it"


def shared() -> tuple[nn.Sequential, Tensor, dict[str, nn.Parameter]]:
    """Three layers, of which the last two have one weight of two names."""
    torch.manual_seed(0)
    first, second, third = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
    third.weight = second.weight
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third)
    names = {name: p for name, p in model.named_parameters(remove_duplicate=False) if name.endswith("weight")}
    assert list(names) == ["0.weight", "2.weight", "4.weight"]
    return model, second.weight, names


def train_shared(model, optimizer, each=lambda step: None):
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(5, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        each(step)


@pytest.mark.parametrize("override", [LayerOverride(excluded=True), LayerOverride(frozen=True)], ids=["", "frozen"])
@pytest.mark.parametrize("name", ["2", "4"])
def test_an_exception_for_any_name_of_a_shared_weight_holds_for_the_weight(name, override):
    model, weight, names = shared()
    before = weight.detach().clone()
    pruner = build(names, PATTERNS["4x1"](), Magnitude(), Global(layers={name: override}))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner.attach(optimizer)
    train_shared(model, optimizer)
    assert not bool((weight == 0).any())
    assert torch.equal(weight, before) == override.frozen
    assert [row.pattern for row in pruner.report()] == ["4x1", "", ""]


def test_an_exception_that_matches_no_layer_is_an_error_that_names_it():
    with pytest.raises(PruningError, match=r"layers\['encoder\.\*'\] matches no layer \(such as 0, 2"):
        build(network(), PATTERNS["4x1"](), allocation=Global(layers={"encoder.*": LayerOverride(frozen=True)}))


def test_an_exception_that_makes_no_sense_is_an_error_that_names_the_layer():
    with pytest.raises(PruningError, match=r"for 0\.weight: .*target_sparsity=0\.7 is impossible for 2:4"):
        build(network(), NofM(2, 4), allocation=Global(layers={"0": LayerOverride(target=0.7)}))


# --- layers that are left as they are --------------------------------------------------------------------------------


def test_a_layer_that_does_not_fit_stays_dense_and_is_named(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    with caplog.at_level(logging.WARNING):
        pruner = build(model, Block(4, 1, target_sparsity=0.5))
        assert warnings_of(caplog) == []
        pruner.attach(optimizer)
    (warning,) = warnings_of(caplog)
    assert warning.startswith("0.weight is left dense: ")
    train(model, optimizer, range(STEPS))
    first, second = pruner.report()
    assert (first.name, first.pattern, first.zeros, first.units, first.sparsity) == ("0.weight", "", 0, 0, 0.0)
    assert first.skipped is not None
    assert "blocks of 4 rows" in first.skipped
    assert (second.name, second.shape, second.pattern, second.skipped) == ("1.weight", (8, 6), "4x1", None)
    assert (second.units, second.pruned_units, second.zeros, second.violations) == (12, 6, 24, 0)
    assert second.sparsity == 0.5
    assert not bool((model.get_parameter("0.weight") == 0).any())
    assert int((model.get_parameter("1.weight") == 0).sum()) == 24


def test_a_frozen_layer_stays_dense_and_unchanged(caplog):
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    before = model.get_parameter("0.weight").clone()
    pruner = build(model, PATTERNS["4x1"]())
    optimizer = OPTIMIZERS["adamw-foreach"]([p for p in model.parameters() if p.requires_grad])
    with caplog.at_level(logging.WARNING):
        pruner.attach(optimizer)
    assert warnings_of(caplog) == ["0.weight is left dense: it is frozen"]
    train(model, optimizer, range(STEPS))
    assert torch.equal(model.get_parameter("0.weight"), before)
    assert float((model.get_parameter("2.weight") == 0).float().mean()) == 0.75
    assert [layer.skipped for layer in pruner.report()] == ["it is frozen", None]


def test_a_weight_of_two_names_is_pruned_once_and_the_other_name_reported():
    model, _, names = shared()
    assert list(matrix_weights(model)) == ["0.weight", "2.weight"]
    pruner = build(names, PATTERNS["4x1"]())
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner.attach(optimizer)
    train_shared(model, optimizer, lambda step: assert_enforced(model, optimizer))
    pruner.check_reached()
    first, second, third = pruner.report()
    assert (third.units, third.zeros, third.skipped) == (0, 0, "it is the same tensor as 2.weight, which decides")
    assert first.zeros + second.zeros == int(zeros(model).sum()) == 0.75 * (16 * 8 + 16 * 16)


def test_a_weight_that_is_no_matrix_is_reported():
    model = network()
    pruner = build(dict(model.named_parameters()), PATTERNS["4x1"]())
    bias = next(layer for layer in pruner.report() if layer.name == "0.bias")
    assert bias.skipped is not None
    assert "matrix" in bias.skipped
    assert bias.sparsity == 0.0


@pytest.mark.parametrize("share", [None, 0.0], ids=["no gradient", "zero gradients"])
@pytest.mark.parametrize("criterion", [SnipMomentum(), Snip(), Gradient(), DiagonalFisher()], ids=repr)
@pytest.mark.parametrize("allocation", [Global(), Uniform()], ids=["global", "uniform"])
def test_a_layer_without_evidence_is_left_as_it_is(share, criterion, allocation, caplog):
    model = Branched()
    model.share = share
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    before = model.b.weight.detach().clone()
    pruner = build(model, PATTERNS["4x1"](), criterion, allocation)
    pruner.attach(optimizer)
    with caplog.at_level(logging.WARNING):
        train(model, optimizer, range(STEPS))
    pruner.check_reached()
    (warning,) = warnings_of(caplog)
    assert "b.weight (and 0 more) cannot be pruned" in warning
    assert torch.equal(model.b.weight, before)
    assert float((model.a.weight == 0).float().mean()) == 0.75  # the budget is over the others
    a, b = pruner.report()
    assert (a.skipped, a.zeros) == (None, 48)
    assert b.skipped is not None
    assert "gradients were missing or zero" in b.skipped
    assert (b.pattern, b.units, b.zeros) == ("", 0, 0)


def test_a_layer_that_awakes_later_is_pruned_from_then_on():
    model = Branched()
    model.share = None
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    train(model, optimizer, range(6))
    assert not bool((model.b.weight == 0).any())
    model.share = 1.0
    train(model, optimizer, range(6, STEPS))
    pruner.check_reached()
    assert has_sparsity(zeros(model), model, pruner.pattern, 0.75)
    assert bool((model.b.weight == 0).any())


def test_a_group_of_its_own_without_evidence_is_left_as_it_is_and_reported():
    model = Branched()
    model.share = None
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"](), allocation=Global(layers={"b": LayerOverride(pattern="2x1")}))
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert float((model.a.weight == 0).float().mean()) == 0.75
    pruner.check_reached()
    first, silent = pruner.report()
    assert (first.skipped, silent.zeros) == (None, 0)
    assert "gradients were missing or zero" in (silent.skipped or "")


def test_no_layer_with_a_gradient_at_all_is_an_error_at_the_end(caplog):
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(STEPS):
            optimizer.step()
    assert pruner.steps_taken == STEPS
    assert not bool(zeros(model).any())
    # The first update is to 0 and needs no scores.
    assert [m for m in warnings_of(caplog) if "no layer for pattern 4x1 has a gradient" in m] == warnings_of(caplog)
    assert len(warnings_of(caplog)) == 1
    with pytest.raises(PruningError, match="without a gradient to rank weights by"):
        pruner.check_reached()


# --- zeros that are kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_locked_keeps_the_zeros_and_trains_everything_else(optimizer_name):
    model = sparse_network()
    before, zero = copy.deepcopy(model), zeros(model)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    pruner = build(model, Locked())
    pruner.attach(optimizer)

    def check(step):
        assert_enforced(model, optimizer)
        assert torch.equal(zeros(model), zero)

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        assert bool(((old != new) | (old == 0)).all())
        assert bool((old != new).any())
    assert sum(row.zeros for row in pruner.report()) == int(zero.sum())
    assert [(row.pattern, row.violations, row.skipped) for row in pruner.report()] == [("locked", 0, None)] * 2


def test_locked_leaves_a_layer_without_zeros_dense():
    model = sparse_network()
    nn.init.normal_(model.get_parameter("0.weight"))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, Locked())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert [row.zeros > 0 for row in pruner.report()] == [False, True]


def test_locked_without_a_zero_anywhere_is_an_error_that_leaves_nothing_attached():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, Locked())
    with pytest.raises(PruningError, match=r"none of the 2 weights has a zero to keep \(such as 0\.weight\)"):
        pruner.attach(optimizer)
    sparse = sparse_network()
    model.load_state_dict(sparse.state_dict())  # the sparse checkpoint that the message asks for
    pruner.attach(optimizer)
    train(model, optimizer, range(3))
    assert torch.equal(zeros(model), zeros(sparse))
    assert pruner.steps_taken == 3
