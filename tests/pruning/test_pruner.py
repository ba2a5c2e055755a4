"""The pruner in a plain training loop: which units go and when, that none comes back, and the regularizer."""

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    Block,
    Dense,
    DiagonalFisher,
    Global,
    Gradient,
    Gradual,
    GroupLasso,
    LayerOverride,
    Locked,
    Magnitude,
    NofM,
    OneShot,
    PruningError,
    Random,
    Snip,
    SnipMomentum,
    Uniform,
    matrix_weights,
)
from tests.pruning.training import (
    LENGTH,
    OPTIMIZERS,
    PATTERNS,
    SCHEDULE,
    STEPS,
    Branched,
    GivenSparsities,
    assert_enforced,
    build,
    gradient_of,
    has_sparsity,
    is_positive_zero,
    loss_of,
    masks_of,
    moments_of,
    network,
    snapshot,
    sparse_network,
    sparsity_after,
    train,
    updates_of,
    zeros,
)

CRITERIA = pytest.mark.parametrize("criterion", [SnipMomentum(), Magnitude()], ids=["snip", "magnitude"])


# --- which units go, and when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("pattern_name", PATTERNS)
@CRITERIA
def test_after_every_step(optimizer_name, pattern_name, criterion):
    pattern, model = PATTERNS[pattern_name](), network()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    pruner = build(model, pattern, criterion)
    pruner.attach(optimizer)
    assert list(pruner.updates) == [2, 4, 6, 8]
    history = [zeros(model)]

    def check(step):
        assert_enforced(model, optimizer)
        history.append(zeros(model))
        assert has_sparsity(history[-1], model, pattern, sparsity_after(pattern, step + 1))
        assert not bool((history[-2] & ~history[-1]).any()), "a pruned weight came back"
        assert sum(layer.zeros for layer in pruner.report()) == int(history[-1].sum())

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    assert len(history) == STEPS + 1
    assert pruner.sparsity == pattern.target
    assert pruner.steps_taken == STEPS
    assert [pattern.violations(p.detach()) for p in matrix_weights(model).values()] == [0, 0]


@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_updates_come_before_the_forward_pass_of_their_step(pattern_name):
    pattern, model = PATTERNS[pattern_name](), network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    build(model, pattern).attach(optimizer)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(zeros(module)))
    train(model, optimizer, range(STEPS))
    assert len(seen) == STEPS
    for step, zero in enumerate(seen):
        assert has_sparsity(zero, model, pattern, sparsity_after(pattern, step))
    assert int(seen[3].sum()) == 0 < int(seen[4].sum())


@pytest.mark.parametrize("pattern_name", ["4x1", "2x4", "1x1"])
def test_the_blocks_pruned_are_those_of_the_lowest_momentum_scores(pattern_name):
    pattern, model = PATTERNS[pattern_name](), network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    updates = updates_of(SCHEDULE, LENGTH, pattern.target)
    build(model, pattern).attach(optimizer)
    weights = matrix_weights(model)
    scores = {
        (name, i, j): 0.0
        for name, p in sorted(weights.items())
        for i in range(0, p.shape[0], pattern.rows)
        for j in range(0, p.shape[1], pattern.cols)
    }
    gone: set = set()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for (name, i, j), score in scores.items():
            block = slice(i, i + pattern.rows), slice(j, j + pattern.cols)
            seen = (weights[name][block] * gradient_of(weights[name])[block]).detach().abs().mean()
            scores[name, i, j] = 0.9 * score + float(seen)
        optimizer.step()
        if step + 1 in updates:
            order = sorted(scores, key=lambda unit: (unit not in gone, scores[unit], unit))
            gone = set(order[: round(updates[step + 1] * len(order))])
        for name, i, j in scores:
            block = weights[name][i : i + pattern.rows, j : j + pattern.cols]
            assert bool((block == 0).all()) == ((name, i, j) in gone)
    assert len(gone) == round(pattern.target * len(scores)) > 0


def test_an_update_at_step_0_is_made_when_attached():
    model = network()
    pruner = build(model, Block(4, 1, target_sparsity=0.5), Magnitude(), schedule=OneShot(start="0"))
    assert not bool(zeros(model).any())
    pruner.attach(OPTIMIZERS["adamw-foreach"](model.parameters()))
    assert float(zeros(model).float().mean()) == 0.5
    pruner.check_reached()


def test_an_update_at_step_0_waits_for_a_gradient_if_the_criterion_needs_one():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    build(model, Block(4, 1, target_sparsity=0.5), schedule=OneShot(start="0")).attach(optimizer)
    assert not bool(zeros(model).any())
    train(model, optimizer, [0])
    assert float(zeros(model).float().mean()) == 0.5


def test_before_the_first_update_training_is_untouched():
    plain, model = network(), network()
    train(plain, OPTIMIZERS["adamw-foreach"](plain.parameters()), range(3))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    build(model, PATTERNS["4x1"]()).attach(optimizer)
    train(model, optimizer, range(3))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


def test_the_dense_control_changes_nothing():
    plain, model = network(), network()
    train(plain, OPTIMIZERS["adamw-foreach"](plain.parameters()), range(STEPS))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, Dense())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruner.check_reached()
    assert pruner.updates == {}
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert [(layer.zeros, layer.violations, layer.skipped) for layer in pruner.report()] == [(0, 0, None)] * 2


# --- masks that never grow back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("regrow", [False, True])
def test_a_lower_sparsity_later_brings_something_back_with_regrow_only(regrow):
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    schedule = GivenSparsities(plan={2: 0.75, 4: 0.5})
    pruner = build(model, Block(4, 1, target_sparsity=0.5), allocation=Global(regrow=regrow), schedule=schedule)
    pruner.attach(optimizer)
    train(model, optimizer, range(3), lambda step: assert_enforced(model, optimizer))
    assert float(zeros(model).float().mean()) == 0.75
    train(model, optimizer, range(3, 4))
    assert sum(layer.zeros for layer in pruner.report()) == (0.5 if regrow else 0.75) * zeros(model).numel()
    assert pruner.sparsity == (0.5 if regrow else 0.75)
    train(model, optimizer, range(4, STEPS))
    assert sum(layer.zeros for layer in pruner.report()) == (0.5 if regrow else 0.75) * zeros(model).numel()
    if not regrow:
        assert float(zeros(model).float().mean()) == 0.75


@pytest.mark.parametrize("pattern_name", PATTERNS)
@pytest.mark.parametrize("regrow", [False, True])
def test_pruned_units_come_back_with_regrow_only(regrow, pattern_name):
    """The gradient alone ranks units that are pruned as high as others."""
    pattern, model = PATTERNS[pattern_name](), network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, pattern, Gradient(), Global(regrow=regrow))
    pruner.attach(optimizer)
    history: list[Tensor] = []

    def check(step):
        pruned = {}
        for name, mask in masks_of(pruner).items():
            p = model.get_parameter(name)
            pruned[name] = ~pattern.expand(mask, p.shape)
            assert is_positive_zero(p[pruned[name]])
            assert all(is_positive_zero(moment[pruned[name]]) for moment in moments_of(optimizer, p))
        if pruned:
            history.append(torch.cat([pruned[name].flatten() for name in sorted(pruned)]))
            assert has_sparsity(history[-1], model, pattern, sparsity_after(pattern, step + 1))

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    assert len(history) == STEPS - 3
    returned = torch.stack([before & ~after for before, after in pairwise(history)]).any(0)
    assert bool(returned.any()) == regrow
    if regrow:
        again = returned & ~history[-1]
        assert bool(
            (torch.cat([p.detach().flatten() for _, p in sorted(matrix_weights(model).items())])[again] != 0).any()
        )


def test_uniform_allocation_takes_no_unit_back_when_its_rounding_shifts():
    """The largest remainders of 0.3184 and 0.3342 of 23, 32, 37 and 8 units differ: the last layer would have one less.

    It is the Alabama paradox of apportionment.
    """
    torch.manual_seed(0)
    layers = {name: nn.Parameter(torch.randn(4, size)) for name, size in zip("abcd", (23, 32, 37, 8), strict=True)}
    optimizer = torch.optim.SGD(layers.values(), lr=1e-3)
    schedule = GivenSparsities(plan={1: 0.3184121965673167, 2: 0.33422203154339636})
    pruner = build(layers, Block(4, 1, target_sparsity=0.33422203154339636), Magnitude(), Uniform(), schedule)
    pruner.attach(optimizer)
    seen = []
    for _ in range(2):
        for p in layers.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        seen.append({name: mask.flatten() for name, mask in masks_of(pruner).items()})
    assert [sum(int((~kept).sum()) for kept in masks.values()) for masks in seen] == [32, 33]
    returned = {name: int((~seen[0][name] & seen[1][name]).sum()) for name in layers}
    assert returned == {"a": 0, "b": 0, "c": 0, "d": 0}


def test_global_allocation_takes_no_row_back_when_rows_differ_in_size():
    """A long row overshoots the first target. Of the rows that are pruned, other ones would fit the second better."""
    layers = {"a": nn.Parameter(torch.ones(4, 10)), "b": nn.Parameter(torch.ones(20, 1))}
    with torch.no_grad():
        layers["a"][0] = 0.2  # second to go
        layers["b"][0] = 0.1  # first to go
    optimizer = torch.optim.SGD(layers.values(), lr=1e-3)
    schedule = GivenSparsities(plan={1: 6.9 / 60, 2: 7.5 / 60})
    pruner = build(layers, Block(1, 0, target_sparsity=7.5 / 60), Magnitude(), Global(), schedule)
    pruner.attach(optimizer)
    masks = []
    for _ in range(2):
        for p in layers.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        masks.append({name: mask.flatten().tolist() for name, mask in masks_of(pruner).items()})
    assert masks[0] == {"a": [False] + [True] * 3, "b": [False] + [True] * 19}
    assert masks[1] == masks[0]


@pytest.mark.parametrize("criterion", [Snip(), Gradient(), SnipMomentum(momentum=0.0)], ids=repr)
@pytest.mark.parametrize("allocation", [Global(), Uniform()], ids=["global", "uniform"])
def test_nothing_comes_back_when_a_layer_falls_silent_for_an_update(criterion, allocation):
    """The budget is then over the others, which may have more pruned than that already."""
    model = Branched()
    with torch.no_grad():
        model.a.weight.mul_(1e-3)  # most of it goes first
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner = build(
        model, Block(4, 1, target_sparsity=0.5), criterion, allocation, GivenSparsities(plan={2: 0.45, 4: 0.5, 6: 0.5})
    )
    pruner.attach(optimizer)
    history = [zeros(model)]

    def check(step):
        history.append(zeros(model))
        model.share = 0.0 if step == 2 else 1.0  # of the step in which the second update is due

    train(model, optimizer, range(STEPS), check)
    assert int(history[2].sum()) == round(0.45 * 32) * 4
    assert [int((a & ~b).sum()) for a, b in pairwise(history)] == [0] * STEPS
    pruner.check_reached()


def test_a_layer_that_is_wholly_pruned_still_counts_in_the_budget():
    """All its w * g are zero from then on."""
    model = Branched()
    with torch.no_grad():
        model.b.weight.mul_(1e-9)
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    allocation = Global(max_per_layer=1.0)
    pruner = build(
        model, Block(4, 1, target_sparsity=0.75), Snip(), allocation, GivenSparsities(plan={2: 0.5, 4: 0.625, 6: 0.75})
    )
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert {layer.name: layer.sparsity for layer in pruner.report()} == {"a.weight": 0.5, "b.weight": 1.0}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "pattern", "reason"),
    [
        (nn.Linear(3, 130), Block(4, 1), r"\(weight: \[130, 3\] does not divide"),
        (nn.Linear(130, 8), NofM(2, 4), "groups of 4"),
        (nn.Linear(8, 8).requires_grad_(False), Block(4, 1), "frozen"),
        (nn.ReLU(), Block(4, 1), "pattern 4x1"),
    ],
)
def test_no_layer_to_prune_is_an_error(model, pattern, reason):
    with pytest.raises(PruningError, match=reason):
        build(model, pattern)


def test_a_target_out_of_the_bounds_of_the_layers_is_an_error_that_names_the_nearest():
    layers = {"w": nn.Parameter(torch.ones(40, 100))}
    with pytest.raises(PruningError, match=r"0\.99 is above .*at most 0\.98"):
        build(layers, Block(4, 1, target_sparsity=0.99))
    with pytest.raises(PruningError, match=r"0\.5 is below .*at least 0\.6"):
        build(layers, Block(4, 1, target_sparsity=0.5), allocation=Global(min_per_layer=0.6))
    assert build(layers, NofM(1, 100), allocation=Global(1.0)).pattern.target == 0.99


def test_a_schedule_that_does_not_fit_is_an_error_before_anything_is_trained():
    with pytest.raises(PruningError, match="does not fit into the training of 12 steps"):
        build(network(), PATTERNS["4x1"](), schedule=Gradual(start="5", end="6", frequency="2"))
    with pytest.raises(PruningError, match=r"initial=0\.8 is not below the target sparsity 0\.75"):
        build(network(), PATTERNS["4x1"](), schedule=replace(SCHEDULE, initial="0.8"))


def test_an_optimizer_of_other_parameters_is_an_error():
    model, other = network(), network(1)
    pruner = build(model, PATTERNS["4x1"]())
    with pytest.raises(PruningError, match=r"does not train 0\.weight \(and 1 more"):
        pruner.attach(OPTIMIZERS["adamw-foreach"](other.parameters()))
    with pytest.raises(PruningError, match=r"does not train 2\.weight"):
        pruner.attach(OPTIMIZERS["adamw-foreach"](model[0].parameters()))
    pruner.attach(OPTIMIZERS["adamw-foreach"](model.parameters()))  # neither was attached


def test_attaching_twice_is_an_error():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    with pytest.raises(PruningError, match="attached to an optimizer already"):
        pruner.attach(optimizer)


def test_a_detached_pruner_does_nothing_until_it_is_attached_to_another_optimizer():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    train(model, optimizer, range(5))
    pruned = zeros(model)
    assert bool(pruned.any())
    pruner.detach()
    train(model, optimizer, range(5, 7))
    assert pruner.steps_taken == 5
    assert not bool(zeros(model).any())  # nothing keeps them
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner.attach(optimizer)
    assert torch.equal(zeros(model), pruned)
    train(model, optimizer, range(7, 14), lambda step: assert_enforced(model, optimizer))
    pruner.check_reached()
    assert has_sparsity(zeros(model), model, pruner.pattern, 0.75)


@pytest.mark.parametrize(
    "optimizer",
    [lambda ps: torch.optim.SGD(ps, lr=0.1), torch.optim.RMSprop, torch.optim.Adamax],
    ids=["SGD", "RMSprop", "Adamax"],
)
def test_the_fisher_criterion_needs_an_optimizer_with_second_moments(optimizer):
    model = network()
    pruner = build(model, PATTERNS["4x1"](), DiagonalFisher())
    with pytest.raises(PruningError, match="DiagonalFisher reads the second moment of Adam"):
        pruner.attach(optimizer(model.parameters()))
    pruner.attach(OPTIMIZERS["adam-amsgrad"](model.parameters()))


def test_a_training_that_ends_early_is_an_error():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    train(model, optimizer, range(7))
    with pytest.raises(PruningError, match="after 7 optimizer steps, before the last mask update at step 8"):
        pruner.check_reached()
    train(model, optimizer, range(7, 8))
    pruner.check_reached()


# --- the regularizer -------------------------------------------------------------------------------------------------


def group_lasso(weight: Tensor, strength: float, rows: int, cols: int) -> Tensor:
    """Its gradient, block by block."""
    pull = torch.zeros_like(weight)
    for i in range(0, weight.shape[0], rows):
        for j in range(0, weight.shape[1], cols):
            block = weight[i : i + rows, j : j + cols]
            if bool((block != 0).any()):
                pull[i : i + rows, j : j + cols] = strength * (rows * cols) ** 0.5 * block / block.norm()
    return pull


@pytest.mark.parametrize(("rows", "cols"), [(4, 1), (2, 4), (1, 1)])
def test_group_lasso_pulls_until_the_last_update(rows, cols):
    model = network()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner = build(model, Block(rows, cols, target_sparsity=0.5), regularizer=GroupLasso(0.1))
    pruner.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before = {name: (p.detach().clone(), gradient_of(p).clone()) for name, p in matrix_weights(model).items()}
        bias = gradient_of(model.get_parameter("0.bias")).clone()
        optimizer.step()
        for name, (weight, gradient) in before.items():
            expected = gradient + group_lasso(weight, 0.1, rows, cols) if step < 8 else gradient
            expected = expected.masked_fill((weight == 0) & (step > 0), 0.0)  # pruned before
            torch.testing.assert_close(gradient_of(model.get_parameter(name)), expected)
            assert torch.equal(gradient_of(model.get_parameter(name)), gradient) == (
                step >= 8 and not (weight == 0).any()
            )
        assert torch.equal(gradient_of(model.get_parameter("0.bias")), bias)
    pruner.check_reached()


def test_the_criterion_does_not_see_the_regularizer():
    scores = []
    for regularizer in (None, GroupLasso(0.1)):
        model = network()
        optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
        pruner = build(model, PATTERNS["4x1"](), regularizer=regularizer)
        pruner.attach(optimizer)
        train(model, optimizer, [0])
        scores.append(snapshot(pruner))
        train(model, optimizer, [1])
        scores.append(snapshot(pruner))
    assert all(torch.equal(scores[0][key], scores[2][key]) for key in scores[0])
    assert not torch.equal(scores[1]["score/score/0.weight"], scores[3]["score/score/0.weight"])  # it has pulled


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(2, 4, mix=True, target_sparsity=0.3)], ids=str)
def test_group_lasso_is_refused_for_groups(pattern):
    with pytest.raises(PruningError, match=r"GroupLasso\(\) needs a block pattern: 2:4"):
        build(network(), pattern, regularizer=GroupLasso())
    allocation = Global(layers={"2": LayerOverride(pattern="2:4")})
    with pytest.raises(PruningError, match=r"GroupLasso\(\) needs a block pattern: 2:4"):
        build(network(), PATTERNS["4x1"](), allocation=allocation, regularizer=GroupLasso())


def test_group_lasso_leaves_locked_weights_to_the_loss():
    model, plain = sparse_network(), sparse_network()
    for each, regularizer in ((model, GroupLasso(0.1)), (plain, None)):
        optimizer = OPTIMIZERS["sgd-momentum"](each.parameters())
        build(each, Locked(), regularizer=regularizer).attach(optimizer)
        train(each, optimizer, range(3))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


def test_a_random_order_is_the_same_for_a_layer_whatever_the_others_are():
    model = network()
    alone = {"0.weight": model.get_parameter("0.weight")}
    masks = []
    for layers in (alone, matrix_weights(model), dict(reversed(matrix_weights(model).items()))):
        pruner = build(layers, Block(4, 1, target_sparsity=0.5), Random(), Uniform(), OneShot(start="0"))
        pruner.attach(OPTIMIZERS["adamw-foreach"](model.parameters()))
        masks.append(masks_of(pruner)["0.weight"])
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert float(masks[0].float().mean()) == 0.5


def test_once_detached_optimizer_and_pruner_do_not_hold_each_other():
    """Else a sweep's next run would find the memory of the one before taken, until the garbage collector comes by."""
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruner.detach()
    gone = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()
    assert [row.sparsity > 0 for row in pruner.report()] == [True, True]


@pytest.mark.parametrize("pattern_name", PATTERNS)
@pytest.mark.parametrize("regrow", [False, True])
def test_the_history_says_what_each_update_changed(regrow, pattern_name):
    pattern, model = PATTERNS[pattern_name](), network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = build(model, pattern, Gradient(), Global(regrow=regrow))
    pruner.attach(optimizer)
    expected, before = [], {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in matrix_weights(model).items()}

    def note(step):
        pruned = {name: ~pattern.expand(mask, before[name].shape) for name, mask in masks_of(pruner).items()}
        if len(pruner.history) > len(expected):
            removed = {name: int((now & ~before[name]).sum()) for name, now in pruned.items()}
            returned = {name: int((before[name] & ~now).sum()) for name, now in pruned.items()}
            expected.append(
                (step + 1, {n: c for n, c in removed.items() if c}, {n: c for n, c in returned.items() if c})
            )
        before.update(pruned)

    train(model, optimizer, range(STEPS), note)
    assert [(update.step, update.removed, update.returned) for update in pruner.history] == expected
    assert [update.step for update in pruner.history] == [4, 6, 8]  # at step 2 nothing is to be pruned yet
    assert bool(any(update.returned for update in pruner.history)) <= regrow
    assert [update.sparsity for update in pruner.history] == [sparsity_after(pattern, step) for step in (4, 6, 8)]
