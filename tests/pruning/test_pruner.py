"""The pruner in a training loop of its own: what must hold after every optimizer step, whatever the optimizer."""

import copy
import logging
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pruning import (
    Block,
    Dense,
    Global,
    LayerReport,
    Magnitude,
    NofM,
    Pruner,
    PruningError,
    Schedule,
    SnipMomentum,
    TrainingLength,
    Uniform,
)

STEPS = 12
SCHEDULE = Schedule(decay="cubic", start="2", frequency="2", end="8")

PATTERNS = {
    "4x1": lambda: Block(4, 1, target_sparsity=0.75),
    "1x1": lambda: Block(1, 1, target_sparsity=0.9),
    "2x4": lambda: Block(2, 4, target_sparsity=0.5),
    "2:4": lambda: NofM(2, 4),
    "1:4": lambda: NofM(1, 4),
}
OPTIMIZERS = {
    "adamw-foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1, fused=True),
    "adam-amsgrad": lambda ps: torch.optim.Adam(ps, lr=1e-2, weight_decay=0.1, amsgrad=True, foreach=False),
    "sgd-momentum": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def network(seed=0, **kwargs) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16, **kwargs), nn.Tanh(), nn.Linear(16, 8, **kwargs), nn.Tanh())


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.dim() == 2}


def updates_of(pattern, schedule=SCHEDULE, steps=STEPS):
    return schedule.updates(TrainingLength(steps, steps, 1), pattern.target)


def pruner_of(model, pattern, criterion=None, allocation=None, updates=None) -> Pruner:
    updates = updates_of(pattern) if updates is None else updates
    return Pruner(weights(model), pattern, criterion or SnipMomentum(), allocation or Global(), updates)


def loss_of(model, step, dtype=torch.float32):
    random = torch.Generator().manual_seed(1000 + step)
    inputs, targets = (torch.randn(5, 8, generator=random).to(dtype) for _ in range(2))
    return (model(inputs) - targets).square().mean()


def train(model, optimizer, steps, each=lambda step: None, dtype=torch.float32):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step, dtype).backward()
        optimizer.step()
        each(step)


def zeros(model) -> torch.Tensor:
    """Which weights are zero, flat, in the order of the names."""
    return torch.cat([(p == 0).flatten() for _, p in sorted(weights(model).items())])


def sparsity_after(updates, steps_taken) -> float:
    return max([value for step, value in updates.items() if step <= steps_taken], default=0.0)


def zeros_at(pattern, sparsity, elements) -> int:
    units = elements // pattern.unit_size
    return round(sparsity / pattern.max_sparsity * units) * pattern.unit_zeros


def is_positive_zero(values: torch.Tensor) -> bool:
    return not bool((values != 0).any()) and not bool(torch.signbit(values).any())


def assert_enforced(model, optimizer, expect_moments=True):
    """Zero weights are +0.0, and so is all that the optimizer remembers of them."""
    moments = 0
    for p in weights(model).values():
        pruned = p == 0
        assert is_positive_zero(p[pruned])
        for moment in optimizer.state[p].values():
            if isinstance(moment, torch.Tensor) and moment.shape == p.shape:
                moments += 1
                assert is_positive_zero(moment[pruned])
                assert pruned.all() or bool(moment[~pruned].any())
    assert moments >= 2 or not expect_moments


# --- in any loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("pattern_name", PATTERNS)
@pytest.mark.parametrize("criterion", [SnipMomentum(), Magnitude()], ids=["snip", "magnitude"])
def test_after_every_step(optimizer_name, pattern_name, criterion):
    pattern, model = PATTERNS[pattern_name](), network()
    updates = updates_of(pattern)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    pruner = pruner_of(model, pattern, criterion)
    pruner.attach(optimizer)
    assert len(updates) == 4
    history = [zeros(model)]

    def check(step):
        assert_enforced(model, optimizer)
        history.append(zeros(model))
        assert int(history[-1].sum()) == zeros_at(pattern, sparsity_after(updates, step + 1), history[-1].numel())
        assert not bool((history[-2] & ~history[-1]).any()), "a pruned weight came back"
        assert sum(layer.zeros for layer in pruner.report()) == int(history[-1].sum())

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    assert len(history) == STEPS + 1
    assert pruner.sparsity == pattern.target
    assert pruner.steps_taken == STEPS
    for p in weights(model).values():
        assert pattern.violations(p.detach()) == 0


@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_updates_come_before_the_forward_pass_of_their_step(pattern_name):
    pattern, model = PATTERNS[pattern_name](), network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner_of(model, pattern).attach(optimizer)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(int(zeros(module).sum())))
    train(model, optimizer, range(STEPS))
    updates = updates_of(pattern)
    assert seen == [zeros_at(pattern, sparsity_after(updates, step), zeros(model).numel()) for step in range(STEPS)]
    assert seen[3] == 0 < seen[4]


@pytest.mark.parametrize("pattern_name", ["4x1", "2x4", "1x1"])
def test_the_blocks_pruned_are_those_of_the_lowest_momentum_scores(pattern_name):
    pattern, model = PATTERNS[pattern_name](), network()
    assert isinstance(pattern, Block)
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    updates = updates_of(pattern)
    pruner_of(model, pattern).attach(optimizer)
    scores = {
        (name, i, j): 0.0
        for name, p in sorted(weights(model).items())
        for i in range(0, p.shape[0], pattern.rows)
        for j in range(0, p.shape[1], pattern.cols)
    }
    gone: set = set()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for (name, i, j), score in scores.items():
            p = weights(model)[name]
            assert p.grad is not None
            block = slice(i, i + pattern.rows), slice(j, j + pattern.cols)
            scores[name, i, j] = 0.9 * score + float((p[block] * p.grad[block]).detach().abs().mean())
        optimizer.step()
        if step + 1 in updates:
            order = sorted(scores, key=lambda unit: (unit not in gone, scores[unit], unit))
            gone = set(order[: round(updates[step + 1] * len(order))])
        for name, i, j in scores:
            block = weights(model)[name][i : i + pattern.rows, j : j + pattern.cols]
            assert bool((block == 0).all()) == ((name, i, j) in gone)
    assert len(gone) == round(pattern.target * len(scores)) > 0


def test_the_caps_of_the_layers_hold():
    model = network()
    with torch.no_grad():
        weights(model)["2.weight"].mul_(1e-6)  # without a cap all of it would go first
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner = pruner_of(model, Block(4, 1, target_sparsity=0.5), Magnitude(), Global(max_per_layer=0.75))
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert {layer.name: layer.sparsity for layer in pruner.report()} == {"0.weight": 0.25, "2.weight": 0.75}


def test_uniform_allocation_gives_each_layer_the_target():
    model = network()
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner = pruner_of(model, Block(4, 1, target_sparsity=0.75), allocation=Uniform())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert [layer.sparsity for layer in pruner.report()] == [0.75, 0.75]
    assert [float((p == 0).float().mean()) for p in weights(model).values()] == [0.75, 0.75]


def test_an_update_at_step_0_is_made_when_attached():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = pruner_of(model, Block(4, 1, target_sparsity=0.5), Magnitude(), updates={0: 0.5})
    pruner.attach(optimizer)
    assert float(zeros(model).float().mean()) == 0.5
    pruner.check_reached()


def test_a_lower_sparsity_later_brings_nothing_back():
    model = network()
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = pruner_of(model, Block(4, 1, target_sparsity=0.5), updates={2: 0.5, 4: 0.25})
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS), lambda step: assert_enforced(model, optimizer))
    assert float(zeros(model).float().mean()) == 0.5
    assert pruner.sparsity == 0.5


def test_the_dense_control_changes_nothing():
    plain, model = network(), network()
    train(plain, OPTIMIZERS["adamw-foreach"](plain.parameters()), range(STEPS))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner = pruner_of(model, Dense())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruner.check_reached()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert [layer.zeros for layer in pruner.report()] == [0, 0]


def test_before_the_first_update_training_is_untouched():
    plain, model = network(), network()
    train(plain, OPTIMIZERS["adamw-foreach"](plain.parameters()), range(3))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner_of(model, PATTERNS["4x1"]()).attach(optimizer)
    train(model, optimizer, range(3))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


# --- numbers that are not numbers ------------------------------------------------------------------------------------


def pruned_network(pattern_name="4x1", steps=6, optimizer_name="adamw-foreach", criterion=None):
    model = network()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    pruner = pruner_of(model, PATTERNS[pattern_name](), criterion)
    pruner.attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer, pruner


def snapshot(pruner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pruner.state_dict()[0].items()}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["one number of one layer", "everywhere"])
@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_a_gradient_that_is_not_finite_does_not_count_for_the_scores(value, where, pattern_name, caplog):
    model, optimizer, pruner = pruned_network(pattern_name, steps=6)
    scores, pruned = snapshot(pruner), zeros(model)
    assert bool(pruned.any())
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    loss_of(model, 6).backward()
    for p in weights(model).values():
        assert p.grad is not None
        if where == "everywhere":
            p.grad.fill_(value)
        else:
            p.grad.view(-1)[int((p.detach().flatten() != 0).nonzero()[0])] = value
            break
    with caplog.at_level(logging.WARNING):
        optimizer.step()
    assert same(snapshot(pruner), scores)
    assert pruner.skipped_observations == 1
    assert "step 6" in caplog.text
    assert "not finite" in caplog.text
    assert bool((zeros(model) >= pruned).all())
    assert_enforced(model, optimizer)

    model.load_state_dict(before[0])  # the loop takes the step back and goes on
    optimizer.load_state_dict(before[1])
    train(model, optimizer, range(7, STEPS))
    pruner.check_reached()
    assert int(zeros(model).sum()) == zeros_at(pruner.pattern, pruner.pattern.target, pruned.numel())


@pytest.mark.parametrize("criterion", [SnipMomentum(), Magnitude()], ids=["snip", "magnitude"])
@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_masks_stay_exact_when_the_training_has_diverged(pattern_name, criterion):
    model, optimizer, pruner = pruned_network(pattern_name, 6, criterion=criterion)
    pruned = zeros(model)
    for p in model.parameters():
        p.data[p.data != 0] = math.nan
    train(model, optimizer, range(6, STEPS))
    assert int(zeros(model).sum()) == zeros_at(pruner.pattern, pruner.pattern.target, pruned.numel())
    assert not bool((pruned & ~zeros(model)).any())


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, -0.0, -1.0])
def test_whatever_gets_under_a_mask_becomes_positive_zero(poison, optimizer_name):
    model, optimizer, _ = pruned_network("4x1", STEPS, optimizer_name)
    pruned = {name: p.detach() == 0 for name, p in weights(model).items()}
    optimizer.zero_grad()
    for name, p in weights(model).items():
        p.data[pruned[name]] = poison
        p.grad = torch.zeros_like(p)
        p.grad[pruned[name]] = poison
    optimizer.step()
    for name, p in weights(model).items():
        assert bool(pruned[name].any())
        assert is_positive_zero(p[pruned[name]])
        assert bool((p[~pruned[name]] != 0).all())
    assert_enforced(model, optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("pattern_name", ["4x1", "2:4"])
def test_other_precisions(dtype, pattern_name):
    pattern, model = PATTERNS[pattern_name](), network(dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    pruner = pruner_of(model, pattern)
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS), lambda step: assert_enforced(model, optimizer), dtype)
    pruner.check_reached()
    expected = zeros_at(pattern, pattern.target, zeros(model).numel())
    assert sum(layer.zeros for layer in pruner.report()) == expected
    assert int(zeros(model).sum()) >= expected  # at low precision a kept weight may be zero by chance
    scores = [tensor for name, tensor in pruner.state_dict()[0].items() if name.startswith("score/")]
    assert len(scores) == 2
    assert {tensor.dtype for tensor in scores} == {torch.float32}


@pytest.mark.parametrize("pattern_name", PATTERNS)
def test_a_weight_that_is_not_contiguous(pattern_name):
    straight, turned = network(), network()
    turned[0].register_parameter("weight", nn.Parameter(weights(turned)["0.weight"].detach().t().contiguous().t()))
    assert not weights(turned)["0.weight"].is_contiguous()
    for model in (straight, turned):
        optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
        pruner = pruner_of(model, PATTERNS[pattern_name]())
        pruner.attach(optimizer)
        train(model, optimizer, range(STEPS))
        assert_enforced(model, optimizer)
        assert int(zeros(model).sum()) == zeros_at(pruner.pattern, pruner.pattern.target, zeros(model).numel())
    assert torch.equal(zeros(straight), zeros(turned))


# --- a GradScaler that skips steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled by the loop"])
@pytest.mark.parametrize("optimizer_name", ["adamw-foreach", "adamw-fused", "sgd-momentum"])
def test_a_step_that_a_grad_scaler_skips_counts_for_nothing(optimizer_name, unscale):
    """Two batches overflow; the rest must go as if they had never been there, and as if nothing had been scaled."""
    overflowing = [3, 7]
    pattern = PATTERNS["4x1"]()
    plain, model = network(), network()
    reference = OPTIMIZERS[optimizer_name](plain.parameters())
    reference_pruner = pruner_of(plain, pattern)
    reference_pruner.attach(reference)
    train(plain, reference, [step for step in range(STEPS) if step not in overflowing])

    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    pruner = pruner_of(model, pattern)
    pruner.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step in overflowing:
            gradient = model.get_parameter("0.weight").grad
            assert gradient is not None
            gradient[0, 0] = math.inf
        before = pruner.steps_taken, snapshot(pruner), copy.deepcopy(model.state_dict())
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step in overflowing:
            assert pruner.steps_taken == before[0]
            assert same(snapshot(pruner), before[1])
            assert same(model.state_dict(), before[2])
    assert scaler.get_scale() == 1024.0 / 4
    assert pruner.skipped_observations == 0
    assert pruner.steps_taken == reference_pruner.steps_taken == STEPS - 2
    pruner.check_reached()
    assert torch.equal(zeros(model), zeros(plain))
    for name, tensor in snapshot(reference_pruner).items():
        torch.testing.assert_close(pruner.state_dict()[0][name], tensor)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- layers that cannot be pruned ------------------------------------------------------------------------------------


def test_a_layer_that_does_not_fit_stays_dense_and_is_named(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    with caplog.at_level(logging.WARNING):
        pruner = pruner_of(model, Block(4, 1, target_sparsity=0.5))
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["0.weight"]
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    first, second = pruner.report()
    assert (first.name, first.zeros, first.units, first.sparsity) == ("0.weight", 0, 0, 0.0)
    assert first.skipped is not None
    assert "blocks of 4 rows" in first.skipped
    assert second == LayerReport("1.weight", (8, 6), 12, 6, 24)
    assert second.sparsity == 0.5
    assert not bool((model.get_parameter("0.weight") == 0).any())
    assert int((model.get_parameter("1.weight") == 0).sum()) == 24


def test_a_frozen_layer_stays_dense_and_unchanged(caplog):
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    before = model.get_parameter("0.weight").clone()
    with caplog.at_level(logging.WARNING):
        pruner = pruner_of(model, PATTERNS["4x1"]())
    assert "0.weight is left dense: it is frozen" in caplog.text
    optimizer = OPTIMIZERS["adamw-foreach"]([p for p in model.parameters() if p.requires_grad])
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert torch.equal(model.get_parameter("0.weight"), before)
    assert float((model.get_parameter("2.weight") == 0).float().mean()) == 0.75
    assert [layer.skipped for layer in pruner.report()] == ["it is frozen", None]


def test_a_weight_that_is_no_matrix_is_reported():
    model = network()
    pruner = Pruner(dict(model.named_parameters()), PATTERNS["4x1"](), SnipMomentum(), Global(), {})
    bias = next(layer for layer in pruner.report() if layer.name == "0.bias")
    assert bias.skipped is not None
    assert "matrix" in bias.skipped
    assert bias.sparsity == 0.0


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
        Pruner(weights(model), pattern, SnipMomentum(), Global(), {1: 0.5})


def test_a_target_above_the_caps_is_an_error_that_names_the_maximum():
    with pytest.raises(PruningError, match=r"0\.99 is above .*at most 0\.98"):
        Pruner({"w": nn.Parameter(torch.ones(40, 100))}, Block(4, 1, target_sparsity=0.99), Magnitude(), Global(), {})
    Pruner({"w": nn.Parameter(torch.ones(40, 100))}, NofM(1, 100), Magnitude(), Global(1.0), {})


def test_an_optimizer_of_other_parameters_is_an_error():
    model, other = network(), network(1)
    pruner = pruner_of(model, PATTERNS["4x1"]())
    with pytest.raises(PruningError, match=r"does not train 0\.weight \(and 1 more"):
        pruner.attach(OPTIMIZERS["adamw-foreach"](other.parameters()))
    with pytest.raises(PruningError, match=r"does not train 2\.weight"):
        pruner.attach(OPTIMIZERS["adamw-foreach"](model[0].parameters()))


def test_a_layer_that_never_has_a_gradient_is_an_error():
    model = network()
    unused = nn.Parameter(torch.ones(8, 8))
    optimizer = OPTIMIZERS["adamw-foreach"]([*model.parameters(), unused])
    pattern = PATTERNS["4x1"]()
    pruner = Pruner(weights(model) | {"unused": unused}, pattern, SnipMomentum(), Global(), updates_of(pattern))
    pruner.attach(optimizer)
    with pytest.raises(PruningError, match="unused never had a gradient"):
        train(model, optimizer, range(STEPS))


def test_a_training_that_ends_early_is_an_error():
    model, optimizer, pruner = pruned_network(steps=7)
    with pytest.raises(PruningError, match="after 7 optimizer steps, before the last mask update at step 8"):
        pruner.check_reached()
    train(model, optimizer, range(7, 8))
    pruner.check_reached()


# --- saved and restored ----------------------------------------------------------------------------------------------


def save(pruner, path):
    tensors, values = pruner.state_dict()
    save_file(tensors, path, metadata=values)


def load(pruner, path):
    with safe_open(path, "pt") as file:
        pruner.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 5, 8, 10])
@pytest.mark.parametrize("pattern_name", PATTERNS)
@pytest.mark.parametrize("criterion", [SnipMomentum(), Magnitude()], ids=["snip", "magnitude"])
def test_an_interrupted_training_goes_on_bit_for_bit(stop, pattern_name, criterion, tmp_path):
    whole, _, whole_pruner = pruned_network(pattern_name, STEPS, criterion=criterion)

    model, optimizer, pruner = pruned_network(pattern_name, stop, criterion=criterion)
    save(pruner, tmp_path / "pruner.safetensors")
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "rest.pt")

    model = network(seed=99)
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    states = torch.load(tmp_path / "rest.pt")
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    pruner = pruner_of(model, PATTERNS[pattern_name](), criterion)
    load(pruner, tmp_path / "pruner.safetensors")
    pruner.attach(optimizer)
    assert pruner.steps_taken == stop
    train(model, optimizer, range(stop, STEPS))

    pruner.check_reached()
    assert same(model.state_dict(), whole.state_dict())
    assert same(snapshot(pruner), snapshot(whole_pruner))
    assert pruner.report() == whole_pruner.report()
    assert pruner.sparsity == whole_pruner.sparsity == pruner.pattern.target


def test_attaching_a_restored_pruner_enforces_its_masks():
    pruned, _, saved = pruned_network(steps=STEPS)
    model = network(seed=99)
    pruner = pruner_of(model, PATTERNS["4x1"]())
    pruner.load_state_dict(*saved.state_dict())
    assert not bool(zeros(model).any())
    pruner.attach(OPTIMIZERS["adamw-foreach"](model.parameters()))
    assert torch.equal(zeros(model), zeros(pruned))


def test_a_loaded_state_is_a_copy():
    model, optimizer, saved = pruned_network(steps=3)
    pruner = pruner_of(network(), PATTERNS["4x1"]())
    pruner.load_state_dict(*saved.state_dict())
    scores = snapshot(pruner)
    train(model, optimizer, range(3, 5))
    assert same(snapshot(pruner), scores)
    assert not same(snapshot(saved), scores)


OTHER = {
    "pattern": lambda model: pruner_of(model, Block(4, 1, target_sparsity=0.5), updates=updates_of(PATTERNS["4x1"]())),
    "criterion": lambda model: pruner_of(model, PATTERNS["4x1"](), SnipMomentum(momentum=0.8)),
    "allocation": lambda model: pruner_of(model, PATTERNS["4x1"](), allocation=Uniform()),
    "updates": lambda model: pruner_of(
        model, PATTERNS["4x1"](), updates=updates_of(PATTERNS["4x1"](), Schedule(start="2", frequency="2", end="8"))
    ),
    "layers": lambda model: Pruner(
        {"2.weight": model.get_parameter("2.weight")},
        PATTERNS["4x1"](),
        SnipMomentum(),
        Global(),
        updates_of(PATTERNS["4x1"]()),
    ),
}


@pytest.mark.parametrize("difference", OTHER)
def test_a_state_of_another_pruner_is_refused_naming_the_difference(difference):
    _, _, saved = pruned_network(steps=6)
    model = network()
    pruner = OTHER[difference](model)
    before = snapshot(pruner)
    with pytest.raises(PruningError, match=f"differs in its {difference}"):
        pruner.load_state_dict(*saved.state_dict())
    assert pruner.steps_taken == 0
    assert same(snapshot(pruner), before)


def test_a_state_that_does_not_say_what_it_is_of_is_refused():
    with pytest.raises(PruningError, match="differs in its pattern: None there"):
        pruner_of(network(), PATTERNS["4x1"]()).load_state_dict({}, {})
