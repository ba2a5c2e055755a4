"""The pruner in every kind of loop: what must hold after each step, whatever trains and whatever goes wrong."""

import copy
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import Block, DiagonalFisher, GroupLasso, Magnitude, NofM, OneShot, Snip, SnipMomentum, matrix_weights
from pruning.masks import KEEPS_ZEROS
from tests.conftest import few
from tests.pruning.training import (
    OPTIMIZERS,
    PATTERNS,
    STEPS,
    Branched,
    assert_enforced,
    build,
    gradient_of,
    has_sparsity,
    is_positive_zero,
    loss_of,
    masks_of,
    moments_of,
    network,
    same,
    snapshot,
    sparsity_after,
    train,
    warnings_of,
    zeros,
)
from tests.pruning.two_ranks import on_two_ranks


class Noisy(torch.optim.Optimizer):
    """None that the pruner knows: it moves every weight, whatever its gradient, and keeps a trace of all of them."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                trace = self.state[p].setdefault("trace", torch.zeros_like(p))
                trace.add_(1.0)
                p.sub_(0.1 * gradient_of(p)).add_(1e-3 * trace)


class NoisySGD(torch.optim.SGD):
    """One that calls another's step in its own."""

    def step(self, closure=None):  # type: ignore[override]
        loss = super().step(closure)
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(1e-3)
        return loss


MORE_OPTIMIZERS = OPTIMIZERS | {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-2),
    "sgd-maximize": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, dampening=0.1, maximize=True),
    "sgd-fused": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, weight_decay=0.1, fused=True),
    "adam-fused-maximize": lambda ps: torch.optim.Adam(ps, lr=1e-2, maximize=True, weight_decay=0.1, fused=True),
    "adamw-amsgrad-maximize": lambda ps: torch.optim.AdamW(ps, lr=1e-2, amsgrad=True, maximize=True),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=1e-2, weight_decay=0.1),
    "nadam-decoupled-maximize": lambda ps: torch.optim.NAdam(
        ps, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True, maximize=True
    ),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=1e-2, weight_decay=0.1),
    "radam-decoupled": lambda ps: torch.optim.RAdam(ps, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-3, weight_decay=0.1),
    "rmsprop-centered-momentum": lambda ps: torch.optim.RMSprop(ps, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=1e-2, weight_decay=0.1, initial_accumulator_value=0.1),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=1e-2, weight_decay=0.1),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, lr=1.0, weight_decay=0.1, maximize=True),
    "asgd": lambda ps: torch.optim.ASGD(ps, lr=1e-2),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=1e-3),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2, weight_decay=0.1),
    "muon": lambda ps: torch.optim.Muon([p for p in ps if p.dim() == 2], lr=1e-2, momentum=0.9),
    "noisy": Noisy,
    "noisy-sgd": lambda ps: NoisySGD(ps, lr=1e-2, momentum=0.9),
}
MOMENTLESS = {"sgd", "adafactor"}


def pruned_network(pattern_name="4x1", steps=6, optimizer_name="adamw-foreach", criterion=None):
    model = network()
    optimizer = MORE_OPTIMIZERS[optimizer_name](model.parameters())
    pruner = build(model, PATTERNS[pattern_name](), criterion)
    pruner.attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer, pruner


# --- any optimizer ---------------------------------------------------------------------------------------------------


def test_optimizers_of_both_kinds_are_tried():
    made = {type(make(network().parameters())) for make in MORE_OPTIMIZERS.values()}
    assert made >= set(KEEPS_ZEROS)
    assert len(made - set(KEEPS_ZEROS)) >= 6


@pytest.mark.parametrize("at_once", [False, True], ids=["gradual", "before the first step"])
@pytest.mark.parametrize("optimizer_name", MORE_OPTIMIZERS)
def test_after_every_step_of_any_optimizer(optimizer_name, at_once):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # torch hooks the step of a class when it is first built
    model, pattern = network(), PATTERNS["4x1"]()
    optimizer = MORE_OPTIMIZERS[optimizer_name](model.parameters())
    pruner = build(model, pattern, Magnitude(), schedule=OneShot(start="0")) if at_once else build(model, pattern)
    pruner.attach(optimizer)
    before, pruned = [p.detach().clone() for p in matrix_weights(model).values()], zeros(model)
    assert bool(pruned.any()) == at_once

    def check(step):
        nonlocal pruned
        assert pruner.steps_taken == step + 1
        assert not bool((pruned & ~zeros(model)).any()), "a pruned weight came back"
        pruned = zeros(model)
        assert has_sparsity(pruned, model, pattern, 0.75 if at_once else sparsity_after(pattern, step + 1))
        for p in matrix_weights(model).values():
            assert is_positive_zero(p[p == 0])
            moments = list(moments_of(optimizer, p))
            assert bool(moments) != (optimizer_name in MOMENTLESS)
            assert not any(bool((moment[p == 0] != 0).any()) for moment in moments)

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    for old, new in zip(before, matrix_weights(model).values(), strict=True):
        assert bool((old != new)[new != 0].any())
        assert bool(new.isfinite().all())


@pytest.mark.parametrize("optimizer_name", MORE_OPTIMIZERS)
def test_whatever_gets_under_a_mask_becomes_positive_zero(optimizer_name):
    model, optimizer, _ = pruned_network("4x1", STEPS, optimizer_name)
    pruned = {name: p.detach() == 0 for name, p in matrix_weights(model).items()}
    poison = torch.tensor([math.nan, math.inf, -math.inf, -0.0, -1.0])
    optimizer.zero_grad()
    for name, p in model.named_parameters():
        p.grad = torch.zeros_like(p)
        if name in pruned:
            values = poison.repeat(p.numel())[: int(pruned[name].sum())]
            p.data[pruned[name]] = values
            p.grad[pruned[name]] = values
    optimizer.step()
    for name, p in matrix_weights(model).items():
        assert int(pruned[name].sum()) >= len(poison)
        assert is_positive_zero(p[pruned[name]])
        assert bool((p[~pruned[name]] != 0).all())
        assert bool(p.isfinite().all())
        assert not any(bool((moment[pruned[name]] != 0).any()) for moment in moments_of(optimizer, p))


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_what_gets_under_a_mask_becomes_zero_also_in_a_layer_without_gradient_in_this_step(optimizer_name):
    model = Branched()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    build(model, PATTERNS["4x1"]()).attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruned = model.b.weight.detach() == 0
    assert bool(pruned.any())
    model.b.weight.data[pruned] = -1.0
    model.share = None  # a layer that is dropped in this step
    train(model, optimizer, [STEPS])
    assert is_positive_zero(model.b.weight[pruned])


@pytest.mark.parametrize("optimizer_name", ["adamw-foreach", "adamw-fused", "sgd-momentum", "adagrad"])
def test_a_loop_that_goes_back_to_before_an_update_keeps_the_masks(optimizer_name):
    """The moments that it brings back would push what is pruned by now."""
    model, optimizer, pruner = pruned_network("4x1", 3, optimizer_name)
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 8))
    pruned = zeros(model)
    assert has_sparsity(pruned, model, pruner.pattern, 0.75)
    optimizer.load_state_dict(before[1])
    model.load_state_dict(before[0])
    assert not bool(zeros(model).any())

    def check(step):
        assert torch.equal(zeros(model), pruned)
        assert_enforced(model, optimizer)

    train(model, optimizer, range(3, 6), check)


def test_several_parameter_groups_and_a_learning_rate_schedule():
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[2].parameters(), "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    pruner = build(model, PATTERNS["2:4"]())
    pruner.attach(optimizer)

    def check(step):
        scheduler.step()
        assert_enforced(model, optimizer)

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    assert has_sparsity(zeros(model), model, pruner.pattern, 0.5)


# --- any loop --------------------------------------------------------------------------------------------------------


def run(each_step, criterion=None, optimizer_name="adamw-foreach") -> tuple[nn.Module, Any, torch.optim.Optimizer]:
    """A loop of steps of one's own, with all that must hold after each."""
    model, pattern = network(), PATTERNS["4x1"]()
    optimizer = MORE_OPTIMIZERS[optimizer_name](model.parameters())
    pruner = build(model, pattern, criterion)
    pruner.attach(optimizer)
    for step in range(STEPS):
        each_step(model, optimizer, step)
        assert pruner.steps_taken == step + 1
        assert has_sparsity(zeros(model), model, pattern, sparsity_after(pattern, step + 1))
        assert_enforced(model, optimizer)
    pruner.check_reached()
    return model, pruner, optimizer


def plain(model, optimizer, step):
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()


def test_a_plain_loop():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = build(model, PATTERNS["4x1"]())
    pruner.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    pruner.check_reached()
    assert float(zeros(model).float().mean()) == 0.75


def test_gradient_accumulation_counts_optimizer_steps():
    def step_of_four(model, optimizer, step):
        optimizer.zero_grad()
        for micro in range(4):
            (loss_of(model, 4 * step + micro) / 4).backward()
        optimizer.step()

    def step_of_one(model, optimizer, step):
        optimizer.zero_grad()
        torch.stack([loss_of(model, 4 * step + micro) for micro in range(4)]).mean().backward()
        optimizer.step()

    _, accumulated, _ = run(step_of_four)
    _, at_once, _ = run(step_of_one)
    for key, tensor in snapshot(at_once).items():
        torch.testing.assert_close(accumulated.state_dict()[0][key], tensor)


def test_gradient_clipping_is_seen_by_the_criterion():
    def clipped(model, optimizer, step):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        assert float(norm) > 1e-3
        optimizer.step()

    model, pruner, _ = run(clipped, Snip())
    largest = max(float(p.detach().abs().max()) for p in matrix_weights(model).values())
    scores = [t for key, t in snapshot(pruner).items() if key.startswith("score/last/")]
    assert len(scores) == 2
    assert 0 < max(float(t.max()) for t in scores) <= 1e-3 * largest


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("optimizer_name", ["adamw-foreach", "adamw-fused", "sgd-momentum", "adagrad"])
def test_a_closure_is_as_good_as_a_loop_without(optimizer_name, keyword):
    losses = []

    def with_closure(model, optimizer, step):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure=closure) if keyword else optimizer.step(closure))

    expected, expected_pruner, _ = run(plain, optimizer_name=optimizer_name)
    model, pruner, _ = run(with_closure, optimizer_name=optimizer_name)
    assert same(model.state_dict(), expected.state_dict())
    assert same(snapshot(pruner), snapshot(expected_pruner))
    assert len(losses) == STEPS
    assert all(isinstance(loss, Tensor) for loss in losses)


@pytest.mark.parametrize("optimizer_name", ["adamw-foreach", "noisy-sgd"])
def test_a_step_that_raises_and_is_tried_again_is_one_step(optimizer_name):
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # so that torch hooks both steps of noisy-sgd
    raised = set()

    def at_second_try(model, optimizer, step):
        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            if step % 3 == 0 and step not in raised:
                raised.add(step)
                raise MemoryError
            return loss

        try:
            optimizer.step(closure)
        except MemoryError:
            optimizer.step(closure)

    run(at_second_try, optimizer_name=optimizer_name)
    assert len(raised) == 4


def test_a_closure_that_is_called_many_times_is_one_step():
    model, pattern = network(), PATTERNS["4x1"]()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    pruner = build(model, pattern)
    pruner.attach(optimizer)
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for step in range(STEPS):
        optimizer.step(closure)  # type: ignore[arg-type]
        assert pruner.steps_taken == step + 1
        assert has_sparsity(zeros(model), model, pattern, sparsity_after(pattern, step + 1))
        assert all(is_positive_zero(p[p == 0]) for p in matrix_weights(model).values())
    assert calls > STEPS
    pruner.check_reached()


@pytest.mark.parametrize("pattern_name", ["4x1", "2:4", "rows"])
def test_autocast(pattern_name):
    model, pattern = network(), PATTERNS[pattern_name]()
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    pruner = build(model, pattern)
    pruner.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(torch.ones(1, 8)).dtype == torch.bfloat16
            loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        assert has_sparsity(zeros(model), model, pattern, sparsity_after(pattern, step + 1))
        assert_enforced(model, optimizer)
    pruner.check_reached()
    assert {t.dtype for key, t in snapshot(pruner).items() if key.startswith("score/")} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("pattern_name", ["4x1", "2:4"])
def test_other_precisions(dtype, pattern_name):
    pattern, model = PATTERNS[pattern_name](), network(dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    pruner = build(model, pattern)
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS), lambda step: assert_enforced(model, optimizer), dtype)
    pruner.check_reached()
    expected = pattern.target * zeros(model).numel()
    assert sum(layer.zeros for layer in pruner.report()) == expected
    assert int(zeros(model).sum()) >= expected  # at low precision a kept weight may be zero by chance
    scores = [tensor for name, tensor in snapshot(pruner).items() if name.startswith("score/")]
    assert len(scores) == 2
    assert {tensor.dtype for tensor in scores} == {torch.float32}


# --- any layout of memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_a_weight_that_is_not_contiguous(pattern_name):
    straight, turned = network(), network()
    weight = turned.get_parameter("0.weight").detach().t().contiguous().t()
    turned[0].register_parameter("weight", nn.Parameter(weight))
    assert not turned.get_parameter("0.weight").is_contiguous()
    for model in (straight, turned):
        optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
        pruner = build(model, PATTERNS[pattern_name]())
        pruner.attach(optimizer)
        train(model, optimizer, range(STEPS))
        assert_enforced(model, optimizer)
        assert has_sparsity(zeros(model), model, pruner.pattern, pruner.pattern.target)
    assert torch.equal(zeros(straight), zeros(turned))


def convolutions(dimensions: int) -> nn.Sequential:
    torch.manual_seed(0)
    kind = nn.Conv2d if dimensions == 2 else nn.Conv1d
    return nn.Sequential(kind(4, 8, 3, padding=1), nn.Tanh(), kind(8, 4, 3, padding=1))


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def channels_last(model: nn.Module) -> nn.Module:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not any(p.is_contiguous() for p in matrix_weights(model).values())
    return model


def permuted(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            weight = module.weight.detach().transpose(0, 1).contiguous().transpose(0, 1)
            module.weight = nn.Parameter(weight)
            assert not module.weight.is_contiguous()
    return model


@pytest.mark.parametrize("pattern", [Block(4, 1), Block(2, 2), Block(1, 0), NofM(2, 4), NofM(1, 2)], ids=str)
@pytest.mark.parametrize(
    ("dimensions", "layout"), [(1, as_it_is), (1, permuted), (2, as_it_is), (2, channels_last), (2, permuted)]
)
def test_convolutions_are_matrices_of_outputs_by_taps_and_inputs(dimensions, layout, pattern):
    masks = []
    for arrange in (as_it_is, layout):
        model = arrange(convolutions(dimensions))
        optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
        pruner = build(model, pattern, Magnitude(), regularizer=GroupLasso() if isinstance(pattern, Block) else None)
        pruner.attach(optimizer)
        for step in range(STEPS):
            inputs = torch.randn(2, 4, *[6] * dimensions, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (model(inputs) - inputs).square().mean().backward()
            optimizer.step()
            assert_enforced(model, optimizer)
        pruner.check_reached()
        assert has_sparsity(zeros(model), model, pattern, pattern.target)
        for p in matrix_weights(model).values():
            assert pattern.violations(p.detach().movedim(1, -1).flatten(1)) == 0
            assert bool((p == 0).any())
        assert [row.violations for row in pruner.report()] == [0, 0]
        masks.append(zeros(model))
    assert torch.equal(masks[0], masks[1])


# --- numbers that are not numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["one number of one layer", "everywhere"])
@pytest.mark.parametrize("step", few([3, 4, 5, 7]))
@pytest.mark.parametrize("criterion", [SnipMomentum(), Snip(), Magnitude(), DiagonalFisher()], ids=repr)
def test_a_gradient_that_is_not_finite_changes_nothing_and_puts_off_an_update(value, where, step, criterion, caplog):
    """Updates are due after steps 3, 5 and 7."""
    model, optimizer, pruner = pruned_network(steps=step, criterion=criterion)
    kept, pruned = snapshot(pruner), zeros(model)
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    loss_of(model, step).backward()
    for p in matrix_weights(model).values():
        if where == "everywhere":
            gradient_of(p).fill_(value)
        else:
            gradient_of(p).view(-1)[int((p.detach().flatten() != 0).nonzero()[0])] = value
            break
    with caplog.at_level(logging.WARNING):
        optimizer.step()
    assert same(snapshot(pruner), kept)
    assert bool((zeros(model) >= pruned).all())
    assert_enforced(model, optimizer)
    noticed = criterion.needs_gradient or step != 4
    assert pruner.skipped_observations == int(noticed)
    assert [f"step {step}: gradients are not finite" in message for message in warnings_of(caplog)] == [True] * noticed

    model.load_state_dict(before[0])  # the loop takes the step back and goes on
    optimizer.load_state_dict(before[1])
    assert torch.equal(zeros(model), pruned)
    train(model, optimizer, [step + 1])
    assert has_sparsity(zeros(model), model, pruner.pattern, sparsity_after(pruner.pattern, step + 2))
    assert_enforced(model, optimizer)
    train(model, optimizer, range(step + 2, STEPS))
    pruner.check_reached()
    assert has_sparsity(zeros(model), model, pruner.pattern, pruner.pattern.target)


def test_gradients_whose_sum_overflows_are_finite():
    model, optimizer, pruner = pruned_network(steps=3)
    for p in matrix_weights(model).values():
        p.grad = torch.full_like(p, 2e38)
    before = snapshot(pruner)
    optimizer.step()
    assert pruner.skipped_observations == 0
    assert not same(snapshot(pruner), before)


@pytest.mark.parametrize("criterion", [SnipMomentum(), Magnitude()], ids=["snip", "magnitude"])
@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_masks_stay_as_they_are_when_the_training_has_diverged(pattern_name, criterion):
    model, optimizer, pruner = pruned_network(pattern_name, 6, criterion=criterion)
    masks = masks_of(pruner)
    assert len(masks) == 2
    for p in model.parameters():
        p.data[p.data != 0] = math.nan
    train(model, optimizer, range(6, STEPS))
    assert same(masks_of(pruner), masks)
    for name, p in matrix_weights(model).items():
        assert is_positive_zero(p[~pruner.pattern.expand(masks[name], p.shape)])
    with pytest.raises(Exception, match="the training ended after 12 optimizer steps"):
        pruner.check_reached()


# --- a GradScaler that skips steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled by the loop"])
@pytest.mark.parametrize(
    ("optimizer_name", "criterion"),
    [
        *((name, SnipMomentum()) for name in ("adamw-foreach", "adamw-fused", "sgd-momentum", "sgd-fused")),
        *((name, Magnitude()) for name in ("adamw-fused", "sgd-momentum")),
        *((name, DiagonalFisher()) for name in ("adamw-foreach", "adamw-fused")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("regularizer", [None, GroupLasso(0.05)], ids=["", "lasso"])
def test_a_step_that_a_grad_scaler_skips_counts_for_nothing(optimizer_name, unscale, criterion, regularizer):
    """Two batches overflow as updates are due. The rest goes as if they had never been, and nothing been scaled."""
    overflowing = [3, 6]  # after 3, and after 5 in the count of those that were taken
    pattern = PATTERNS["4x1"]()
    plain, model = network(), network()
    reference = MORE_OPTIMIZERS[optimizer_name](plain.parameters())
    reference_pruner = build(plain, pattern, criterion, regularizer=regularizer)
    reference_pruner.attach(reference)
    train(plain, reference, [step for step in range(STEPS) if step not in overflowing])

    optimizer = MORE_OPTIMIZERS[optimizer_name](model.parameters())
    pruner = build(model, pattern, criterion, regularizer=regularizer)
    pruner.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step in overflowing:
            gradient_of(model.get_parameter("0.weight"))[0, 0] = math.inf
            assert pruner.steps_taken + 1 in pruner.updates
        before = pruner.steps_taken, snapshot(pruner), copy.deepcopy(model.state_dict())
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step in overflowing:
            assert pruner.steps_taken == before[0]
            assert same(snapshot(pruner), before[1])
            assert same(model.state_dict(), before[2])
        else:
            assert has_sparsity(zeros(model), model, pattern, sparsity_after(pattern, pruner.steps_taken))
            assert_enforced(model, optimizer)
    assert scaler.get_scale() == 1024.0 / 4
    assert pruner.skipped_observations == 0
    assert pruner.steps_taken == reference_pruner.steps_taken == STEPS - 2
    pruner.check_reached()
    assert torch.equal(zeros(model), zeros(plain))
    for name, tensor in snapshot(reference_pruner).items():
        torch.testing.assert_close(pruner.state_dict()[0][name], tensor)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- several processes -----------------------------------------------------------------------------------------------


def train_on_one_rank(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Other data on each rank; in the step of one update, a gradient of the second that is not finite."""
    from torch.nn.parallel import DistributedDataParallel

    model, pattern = network(), PATTERNS["4x1"]()
    parallel = DistributedDataParallel(model)
    optimizer = OPTIMIZERS["adamw-foreach"](parallel.parameters())
    pruner = build(model, pattern)
    pruner.attach(optimizer)
    losses = []
    for step in range(STEPS):
        before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        optimizer.zero_grad()
        loss = loss_of(parallel, step + 1000 * rank)
        losses.append(loss.detach())
        (loss * (math.inf if step == 5 and rank == 1 else 1.0)).backward()
        optimizer.step()
        if step == 5:
            model.load_state_dict(before[0])
            optimizer.load_state_dict(before[1])
        assert has_sparsity(zeros(model), model, pattern, sparsity_after(pattern, 5 if step == 5 else step + 1))
        assert_enforced(model, optimizer)
    pruner.check_reached()
    assert pruner.skipped_observations == 1
    return snapshot(pruner), model.state_dict(), torch.stack(losses)


@pytest.mark.slow
def test_two_processes_have_the_same_masks_and_weights(tmp_path, monkeypatch):
    left, right = on_two_ranks(train_on_one_rank, tmp_path, monkeypatch)
    assert not torch.equal(left[2], right[2])  # they had other data
    assert same(left[0], right[0])
    assert same(left[1], right[1])
    assert sum(int((~t).sum()) for key, t in left[0].items() if key.startswith("mask")) == 0.75 * 256 / 4


# --- a loop of somebody else -----------------------------------------------------------------------------------------


class WithLoss(nn.Module):
    """What transformers.Trainer expects of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.network(inputs) - labels).square().mean()}


@pytest.mark.parametrize("pattern_name", ["4x1", "2:4"])
def test_the_trainer_of_transformers(pattern_name, tmp_path):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, pattern = WithLoss(), PATTERNS[pattern_name]()
    optimizer = OPTIMIZERS["adamw-fused"](model.parameters())
    pruner = build(model, pattern)
    pruner.attach(optimizer)
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            assert pruner.steps_taken == state.global_step
            assert_enforced(model, optimizer)
            seen.append(zeros(model))

    random = torch.Generator().manual_seed(0)
    data = [dict(zip(("inputs", "labels"), torch.randn(2, 8, generator=random), strict=True)) for _ in range(64)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True,
        max_grad_norm=1.0, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None), callbacks=[Look()])  # type: ignore[arg-type]
    trainer.train()
    pruner.check_reached()
    assert len(seen) == STEPS
    for step, zero in enumerate(seen):
        assert has_sparsity(zero, model, pattern, sparsity_after(pattern, step + 1))
