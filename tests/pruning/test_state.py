"""The pruner saved and restored: a training that was interrupted goes on bit for bit, and no other takes its state."""

import copy
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pruning import (
    Block,
    Criterion,
    Global,
    GroupLasso,
    LayerOverride,
    Locked,
    Magnitude,
    NofM,
    OneShot,
    Plan,
    Pruner,
    PruningError,
    SnipMomentum,
    TrainingLength,
    Uniform,
    matrix_weights,
)
from tests.conftest import few
from tests.pruning.training import (
    LENGTH,
    OPTIMIZERS,
    SCHEDULE,
    STEPS,
    Branched,
    assert_enforced,
    build,
    gradient_of,
    is_positive_zero,
    loss_of,
    network,
    same,
    snapshot,
    sparse_network,
    train,
    zeros,
)

PATTERNS = {
    "4x1": Block(4, 1, target_sparsity=0.75),
    "2:4": NofM(2, 4),
    "1x1": Block(1, 1, target_sparsity=0.9),
    "rows": Block(1, 0, target_sparsity=0.5),
    "locked": Locked(),
}


def criteria() -> dict[str, type[Criterion]]:
    """All that can be built, found as one that is added will be."""
    found, waiting = {}, [Criterion]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__ == "pruning.criteria" and not cls.__subclasses__():
            found[cls.__name__] = cls
    return dict(sorted(found.items()))


def test_all_criteria_are_found():
    assert len(criteria()) >= 8
    assert {"SnipMomentum", "Magnitude", "Random", "DiagonalFisher"} <= criteria().keys()


def start(
    pattern_name: str, criterion: Criterion, seed: int = 0
) -> tuple[nn.Sequential, torch.optim.Optimizer, Pruner]:
    model = sparse_network(seed) if pattern_name == "locked" else network(seed)
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    return model, optimizer, build(model, PATTERNS[pattern_name], criterion)


def trained(pattern_name="4x1", criterion_name="SnipMomentum", steps=STEPS):
    model, optimizer, pruner = start(pattern_name, criteria()[criterion_name]())
    pruner.attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer, pruner


whole_training = cache(trained)


def save(pruner, path):
    tensors, values = pruner.state_dict()
    save_file(tensors, path, metadata=values)


def load(pruner, path):
    with safe_open(path, "pt") as file:
        pruner.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118


# --- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", few([0, 1, 3, 4, 5, 8, 10]))
@pytest.mark.parametrize("pattern_name", PATTERNS)
@pytest.mark.parametrize("criterion_name", criteria())
def test_an_interrupted_training_goes_on_bit_for_bit(stop, pattern_name, criterion_name, tmp_path):
    whole, _, whole_pruner = whole_training(pattern_name, criterion_name)

    model, optimizer, pruner = trained(pattern_name, criterion_name, stop)
    save(pruner, tmp_path / "pruner.safetensors")
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "rest.pt")

    model, optimizer, pruner = start(pattern_name, criteria()[criterion_name](), seed=99)
    states = torch.load(tmp_path / "rest.pt")
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    load(pruner, tmp_path / "pruner.safetensors")
    pruner.attach(optimizer)
    assert pruner.steps_taken == stop
    train(model, optimizer, range(stop, STEPS), lambda step: assert_enforced(model, optimizer))

    pruner.check_reached()
    assert same(model.state_dict(), whole.state_dict())
    assert same(snapshot(pruner), snapshot(whole_pruner))
    assert pruner.state_dict()[1] == whole_pruner.state_dict()[1]
    assert pruner.report() == whole_pruner.report()
    assert pruner.sparsity == whole_pruner.sparsity == pruner.pattern.target
    assert bool(zeros(model).any())


@pytest.mark.parametrize("stop", [3, 5, 9])
def test_exceptions_and_a_regularizer_go_on_too(stop):
    allocation = Uniform(
        layers={"2": LayerOverride(pattern="2x2", target=0.5), "0": LayerOverride(target=0.25)}, min_per_layer=0.1
    )
    results = []
    for stops in ([], [stop]):
        model = network()
        optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
        states = None
        for first, last in zip([0, *stops], [*stops, STEPS], strict=True):
            pruner = build(model, Block(4, 1), allocation=allocation, regularizer=GroupLasso(0.05))
            if states is not None:
                pruner.load_state_dict(*states)
            pruner.attach(optimizer)
            train(model, optimizer, range(first, last))
            states = copy.deepcopy(pruner.state_dict())
            pruner.detach()
        pruner.check_reached()
        results.append((model.state_dict(), *pruner.state_dict()))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def resumed_after_a_step_that(spoils, criterion: Criterion, interrupted: bool):
    """A step that spoils its gradients as an update is due, taken back by the loop; perhaps saved there and rebuilt."""
    model, optimizer, pruner = start("4x1", criterion)
    pruner.attach(optimizer)
    train(model, optimizer, range(5))
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    loss_of(model, 5).backward()
    spoils(model)
    optimizer.step()
    assert pruner.steps_taken == 6
    model.load_state_dict(before[0])
    optimizer.load_state_dict(before[1])
    if interrupted:
        state = pruner.state_dict()
        pruner.detach()
        pruner = build(model, PATTERNS["4x1"], criterion)
        pruner.load_state_dict(*state)
        pruner.attach(optimizer)
    pruned = int(zeros(model).sum())
    train(model, optimizer, range(6, STEPS))
    return pruned, model, pruner


@pytest.mark.parametrize("criterion_name", criteria())
def test_an_update_that_was_put_off_is_put_off_after_a_resume_too(criterion_name):
    def spoils(model):
        gradient_of(model.get_parameter("0.weight")).fill_(math.nan)

    criterion = criteria()[criterion_name]()
    pruned, model, pruner = resumed_after_a_step_that(spoils, criterion, interrupted=False)
    again, other_model, other_pruner = resumed_after_a_step_that(spoils, criterion, interrupted=True)
    assert again == pruned
    assert same(other_model.state_dict(), model.state_dict())
    assert same(snapshot(other_pruner), snapshot(pruner))


def test_attaching_a_restored_pruner_enforces_its_masks():
    pruned, _, saved = trained()
    model, optimizer, pruner = start("4x1", SnipMomentum(), seed=99)
    train(model, optimizer, range(3))  # the optimizer remembers what was not pruned yet
    pruner.load_state_dict(*saved.state_dict())
    assert not bool(zeros(model).any())
    pruner.attach(optimizer)
    assert torch.equal(zeros(model), zeros(pruned))
    assert_enforced(model, optimizer, moments=2)


def test_locked_zeros_survive_a_resume_even_if_the_weights_at_hand_are_dense():
    model, _, saved = trained("locked")
    kept = zeros(model)
    dense = network(seed=99)
    pruner = build(dense, Locked())
    pruner.load_state_dict(*saved.state_dict())
    optimizer = OPTIMIZERS["adamw-foreach"](dense.parameters())
    pruner.attach(optimizer)
    train(dense, optimizer, range(3))
    assert torch.equal(zeros(dense), kept)


def test_a_layer_without_evidence_stays_that_after_a_resume():
    model = Branched()
    model.share = 0.0
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    saved = build(model, PATTERNS["4x1"])
    saved.attach(optimizer)
    train(model, optimizer, range(7))
    saved.detach()
    pruner = build(model, PATTERNS["4x1"])
    pruner.load_state_dict(*saved.state_dict())
    pruner.attach(optimizer)
    train(model, optimizer, range(7, STEPS))
    pruner.check_reached()
    assert not bool((model.b.weight == 0).any())
    assert [row.skipped is None for row in pruner.report()] == [True, False]


# --- what is saved ---------------------------------------------------------------------------------------------------


def test_scores_and_masks_are_saved_by_the_names_of_the_layers():
    _, _, pruner = trained(steps=5)
    tensors, values = pruner.state_dict()
    assert sorted(tensors) == [
        f"{kind}/{name}" for kind in ("mask/", "score/score") for name in ("0.weight", "2.weight")
    ]
    assert {key: tuple(t.shape) for key, t in tensors.items() if "0.weight" in key} == {
        "mask//0.weight": (4, 8),
        "score/score/0.weight": (4, 8),
    }
    assert all(isinstance(value, str) for value in values.values())
    _, _, pruner = trained(criterion_name="Platon", steps=1)
    assert {key.split("/")[1] for key in pruner.state_dict()[0]} == {"sensitivity", "uncertainty"}


def test_names_with_slashes_are_saved_and_restored():
    layers = {"a/b//c": nn.Parameter(torch.randn(8, 8))}
    states = []
    for _ in range(2):
        pruner = build(layers, PATTERNS["4x1"])
        if states:
            pruner.load_state_dict(*states[0])
        else:
            pruner.attach(torch.optim.SGD(layers.values(), lr=0.1))
            layers["a/b//c"].grad = torch.ones(8, 8)
            pruner.observe()
        states.append(pruner.state_dict())
    assert list(states[0][0]) == ["score/score/a/b//c"]
    assert same(states[0][0], states[1][0])


@pytest.mark.parametrize("criterion_name", ["SnipMomentum", "Movement", "Platon"])
def test_a_loaded_state_is_a_copy(criterion_name):
    model, optimizer, saved = trained(criterion_name=criterion_name, steps=3)
    pruner = build(network(), PATTERNS["4x1"], criteria()[criterion_name]())
    pruner.load_state_dict(*saved.state_dict())
    scores = snapshot(pruner)
    train(model, optimizer, range(3, 5))
    assert same(snapshot(pruner), scores)
    assert not same(snapshot(saved), scores)


# --- what is refused -------------------------------------------------------------------------------------------------


def pruner_like(**changes) -> Pruner:
    model = network()
    arguments = {
        "parameters": matrix_weights(model),
        "pattern": PATTERNS["4x1"],
        "allocation": None,
        "schedule": SCHEDULE,
        "length": LENGTH,
        "criterion": SnipMomentum(),
    } | changes
    plan = Plan(*(arguments.pop(key) for key in ("parameters", "pattern", "allocation")))
    return Pruner(plan, **arguments)


OTHERS = {
    "pattern, another target": ("pattern", {"pattern": Block(4, 1, target_sparsity=0.5)}),
    "pattern, other blocks": ("pattern", {"pattern": Block(1, 4, target_sparsity=0.75)}),
    "pattern, groups": ("pattern", {"pattern": NofM(1, 4)}),
    "criterion, another": ("criterion", {"criterion": Magnitude()}),
    "criterion, another constant": ("criterion", {"criterion": SnipMomentum(momentum=0.8)}),
    "criterion, another reduction": ("criterion", {"criterion": SnipMomentum(reduce="max")}),
    "allocation, another": ("allocation", {"allocation": Uniform()}),
    "allocation, another cap": ("allocation", {"allocation": Global(max_per_layer=0.9)}),
    "allocation, regrow": ("allocation", {"allocation": Global(regrow=True)}),
    "allocation, an exception": ("allocation", {"allocation": Global(layers={"2": LayerOverride(target=0.5)})}),
    "schedule, another decay": ("schedule", {"schedule": replace(SCHEDULE, decay="exp")}),
    "schedule, another end": ("schedule", {"schedule": replace(SCHEDULE, end="6")}),
    "schedule, at once": ("schedule", {"schedule": OneShot(start="2")}),
    "length": ("length", {"length": TrainingLength(STEPS + 1)}),
    "regularizer": ("regularizer", {"regularizer": GroupLasso()}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_pruner_is_refused_naming_the_difference(other):
    _, _, saved = trained(steps=6)
    pruner_like().load_state_dict(*saved.state_dict())  # the same is taken
    key, changes = OTHERS[other]
    pruner = pruner_like(**changes)
    before = snapshot(pruner)
    with pytest.raises(PruningError, match=f"the saved pruner differs in its {key}: .* there, .* here") as error:
        pruner.load_state_dict(*saved.state_dict())
    for mine in (getattr(saved, key), getattr(pruner, key)):
        assert repr(mine) in str(error.value)
    assert pruner.steps_taken == 0
    assert same(snapshot(pruner), before)


def named(**shapes: tuple[int, int]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (named(a=(8, 8), b=(8, 8)), named(b=(8, 8)), r"a is \[8, 8\] there, not pruned here"),
        (named(b=(8, 8)), named(a=(8, 8), b=(8, 8)), r"a is not pruned there, \[8, 8\] here"),
        (named(a=(8, 8), c=(8, 4), d=(4, 4)), named(a=(8, 8), c=(4, 8), d=(8, 8)), r"c is \[8, 4\] there, \[4, 8\] he"),
        (named(x=(8, 8)), named(y=(8, 8)), r"x is \[8, 8\] there, not pruned here"),
    ],
)
def test_a_state_of_other_layers_is_refused_naming_the_first(theirs, ours, message):
    saved = pruner_like(parameters=theirs).state_dict()
    with pytest.raises(PruningError, match=f"differs in its layers: {message}"):
        pruner_like(parameters=ours).load_state_dict(*saved)


@pytest.mark.parametrize("key", ["mask//0.weight", "score/score/2.weight"])
def test_a_tensor_of_another_shape_is_refused(key):
    _, _, saved = trained(steps=6)
    tensors, values = saved.state_dict()
    pruner = pruner_like()
    with pytest.raises(PruningError, match=rf"the saved pruner has {key} of shape \(\d, 3\)"):
        pruner.load_state_dict(tensors | {key: tensors[key][:, :3].contiguous()}, values)
    assert pruner.state_dict()[0] == {}
    assert pruner.steps_taken == 0


def test_a_tensor_of_a_layer_that_is_not_there_is_refused():
    _, _, saved = trained(steps=6)
    tensors, values = saved.state_dict()
    with pytest.raises(PruningError, match="the saved pruner has mask//other of shape"):
        pruner_like().load_state_dict(tensors | {"mask//other": torch.ones(4, 8, dtype=torch.bool)}, values)


def test_a_state_that_does_not_say_what_it_is_of_is_refused():
    with pytest.raises(PruningError, match="differs in its pattern: None there"):
        pruner_like().load_state_dict({}, {})


@pytest.mark.parametrize("missing", ["mask//0.weight", "score/score/2.weight"])
def test_a_state_without_one_of_its_tensors_is_refused(missing):
    _, _, saved = trained(steps=6)
    tensors, values = saved.state_dict()
    assert missing in tensors
    with pytest.raises(PruningError, match=missing):
        pruner_like().load_state_dict({key: t for key, t in tensors.items() if key != missing}, values)


@pytest.mark.parametrize("missing", ["steps_taken", "last_update", "fractions"])
def test_a_state_without_one_of_its_values_is_refused(missing):
    _, _, saved = trained(steps=6)
    tensors, values = saved.state_dict()
    assert missing in values
    with pytest.raises(PruningError, match=missing):
        pruner_like().load_state_dict(tensors, {key: value for key, value in values.items() if key != missing})


def test_masks_of_a_restored_pruner_hold_before_it_takes_a_step():
    _, _, saved = trained(steps=STEPS)
    model, optimizer, pruner = start("4x1", SnipMomentum(), seed=99)
    pruner.load_state_dict(*saved.state_dict())
    pruner.attach(optimizer)
    assert [row.zeros for row in pruner.report()] == [row.zeros for row in saved.report()]
    assert [row.violations for row in pruner.report()] == [0, 0]
    assert all(is_positive_zero(p[p == 0]) for p in matrix_weights(model).values())
    pruner.check_reached()
