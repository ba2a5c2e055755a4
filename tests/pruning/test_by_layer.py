"""Another criterion or cap for some layers: ranked among themselves, and nothing changes for the others."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    OBS,
    Block,
    Calibration,
    Global,
    Gradual,
    LayerOverride,
    Magnitude,
    OneShot,
    Plan,
    Pruner,
    PruningError,
    SnipMomentum,
    TrainingLength,
    Uniform,
    matrix_weights,
    obs,
)
from pruning.criteria import named
from tests.pruning.second_order.test_obs import Attention, data, loss_of, steps

PATTERN = Block(4, 1, target_sparsity=0.5)
SCHEDULE = Gradual(decay="cubic", start="2", frequency="2", end="8")


def plan(model: nn.Module, cap: float = 1.0, /, **layers: LayerOverride) -> Plan:
    """A plan with exceptions for `q`, `k`, `out`, or `q_k` for the first two."""
    exceptions = {"[qk]" if name == "q_k" else name: override for name, override in layers.items()}
    return Plan(matrix_weights(model), PATTERN, Global(max_per_layer=cap, layers=exceptions))


def trained(model: Attention, made: Plan, criterion) -> tuple[Pruner, torch.optim.Optimizer]:
    pruner = Pruner(made, SCHEDULE, TrainingLength(10), criterion)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner.attach(optimizer)
    return pruner, optimizer


def sparsities(model: nn.Module) -> dict[str, float]:
    return {name.removesuffix(".weight"): float((p == 0).float().mean()) for name, p in matrix_weights(model).items()}


def lowest_blocks(weight: Tensor, count: int) -> Tensor:
    """bool [out, in]: the `count` 4x1 blocks with the lowest mean magnitude."""
    means = weight.abs().view(-1, 4, weight.shape[1]).mean(1)
    lost = torch.zeros(means.numel(), dtype=torch.bool)
    lost[means.flatten().argsort()[:count]] = True
    return lost.view(means.shape).repeat_interleave(4, 0)


def test_a_layer_with_a_criterion_of_its_own_reaches_the_target_alone_by_that_criterion():
    model = Attention()
    weight = model.out.weight.detach().clone()
    made = plan(model, out=LayerOverride(criterion="magnitude"))
    assert [(group.criterion, list(group.shapes)) for group in made.groups] == [
        (None, ["k.weight", "q.weight"]),
        ("magnitude", ["out.weight"]),
    ]
    obs(model, made, data(), loss_of(model))
    assert torch.equal(model.out.weight, weight.masked_fill(lowest_blocks(weight, 8), 0.0))  # survivors stay
    zeros = sparsities(model)
    assert zeros["out"] == 0.5
    assert zeros["q"] + zeros["k"] == 1.0


def test_the_other_layers_are_pruned_as_if_it_were_not_there():
    model, without = Attention(), Attention()
    obs(model, plan(model, out=LayerOverride(criterion="magnitude")), data(), loss_of(model))
    obs(without, plan(without, out=LayerOverride(excluded=True)), data(), loss_of(without))
    assert torch.equal(model.q.weight, without.q.weight)
    assert torch.equal(model.k.weight, without.k.weight)


def test_training_by_two_criteria_is_each_alone_until_the_masks_differ():
    """Up to the first update weights are the same, so the scores of each criterion are too."""
    mixed, snip = Attention(), Attention()
    pruner, optimizer = trained(mixed, plan(mixed, q_k=LayerOverride(criterion="magnitude")), SnipMomentum())
    other, other_optimizer = trained(snip, plan(snip), SnipMomentum())
    steps(mixed, optimizer, range(1))
    steps(snip, other_optimizer, range(1))
    assert torch.equal(pruner.scores.state["out.weight"]["score"], other.scores.state["out.weight"]["score"])
    assert pruner.scores.state["q.weight"] == {}


def test_a_criterion_of_some_layers_observes_steps_that_the_main_one_does_not():
    model = Attention()
    pruner, optimizer = trained(model, plan(model, out=LayerOverride(criterion="snip_momentum")), Magnitude())
    steps(model, optimizer, range(10))
    pruner.check_reached()
    assert set(pruner.scores.state["out.weight"]) == {"score"}
    assert sparsities(model)["out"] == 0.5
    assert pruner.sparsity == 0.5


def test_a_resume_is_bit_for_bit_with_two_criteria_of_one_pattern():
    model = Attention()
    exceptions = {"out": LayerOverride(criterion="platon"), "k": LayerOverride(max_per_layer=0.25)}
    pruner, optimizer = trained(model, plan(model, **exceptions), SnipMomentum())
    steps(model, optimizer, range(5))
    tensors, values = copy.deepcopy(pruner.state_dict())
    again = Attention()
    again.load_state_dict(model.state_dict())
    resumed = Pruner(plan(again, **exceptions), SCHEDULE, TrainingLength(10), SnipMomentum())
    resumed.load_state_dict(tensors, values)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.attach(other)
    steps(model, optimizer, range(5, 10))
    steps(again, other, range(5, 10))
    assert 0 < sparsities(model)["out"] == 0.5
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    changed = Pruner(plan(again, out=LayerOverride(criterion="snip")), SCHEDULE, TrainingLength(10), SnipMomentum())
    with pytest.raises(PruningError, match="differs in its allocation"):
        changed.load_state_dict(tensors, values)


@pytest.mark.parametrize("allocation", [Global, Uniform])
@pytest.mark.parametrize("criterion", [OBS(), Magnitude()], ids=["obs", "magnitude"])
def test_a_cap_of_some_layers_holds_and_the_others_make_up_for_it(allocation, criterion):
    model = Attention()
    made = Plan(matrix_weights(model), PATTERN, allocation(1.0, layers={"k": LayerOverride(max_per_layer=0.25)}))
    calibration = Calibration(model, data(), loss_of(model))
    Pruner(made, OneShot("0"), TrainingLength(0), criterion, calibration=calibration).update_now()
    zeros = sparsities(model)
    assert zeros["k"] <= 0.25
    assert sum(zeros.values()) == 1.5


def test_a_cap_above_that_of_the_others():
    model = Attention()
    with torch.no_grad():
        model.out.weight.mul_(1e-3)
    made = plan(model, 0.5, out=LayerOverride(max_per_layer=0.75))
    Pruner(made, OneShot("0"), TrainingLength(0), Magnitude()).update_now()
    assert sparsities(model)["out"] == 0.75


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (LayerOverride(criterion="magnitud"), r"layers\['q'\].criterion=magnitud: there is no criterion 'magnitud': "
         r"write .*fisher, .*magnitude"),
        (LayerOverride(criterion="obs"), r"layers\['q'\].criterion=obs reads calibration data, which is for all"),
        (LayerOverride(max_per_layer=0.0), r"layers\['q'\].max_per_layer=0.0 must be in \(0, 1\]"),
        (LayerOverride(max_per_layer=0.1), r"layers\['q'\].max_per_layer=0.1 must be .* min_per_layer=0.2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(override, message):
    with pytest.raises(PruningError, match=message):
        Global(min_per_layer=0.2, layers={"q": override})


def test_caps_that_leave_too_little_are_refused():
    message = r"is above what max_per_layer=0.5, with its exceptions in layers, allows .* at most 0.4167"
    with pytest.raises(PruningError, match=message):
        plan(Attention(), 0.5, k=LayerOverride(max_per_layer=0.25))


def test_every_criterion_has_a_name():
    for name in ("snip_momentum", "magnitude", "fisher", "calibrated_snip", "obs", "wanda", "random", "platon"):
        assert type(named(name)).option() == name
