"""Units that span several matrices: scores and choices against loops, counts, masks, resuming, zeros, caps."""

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from pruning import (
    Allocation,
    Block,
    CalibratedFisher,
    CalibratedSnip,
    Calibration,
    Coupled,
    CoupledWeights,
    Criterion,
    DiagonalFisher,
    FeedForward,
    Global,
    Gradient,
    GroupLasso,
    Heads,
    LayerOverride,
    Magnitude,
    Movement,
    OneShot,
    Plan,
    Platon,
    Pruner,
    PruningError,
    Random,
    Snip,
    SnipMomentum,
    Structured,
    Uniform,
    Wanda,
    Weight,
    couple,
    matrix_weights,
    parse,
)
from tests.pruning.training import LENGTH, OPTIMIZERS, SCHEDULE, STEPS, is_positive_zero, moments_of, same, snapshot

WIDTH, INNER, HEADS, LAYERS = 8, 12, 4, 2
PATTERNS: list[type[Coupled]] = [FeedForward, Heads]
PATTERN = pytest.mark.parametrize("pattern", PATTERNS)


@cache
def _original() -> PreTrainedModel:
    config = AutoConfig.for_model("bert", vocab_size=20, hidden_size=WIDTH, num_hidden_layers=LAYERS,
                                  num_attention_heads=HEADS, intermediate_size=INNER, max_position_embeddings=16,
                                  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def network() -> PreTrainedModel:
    return copy.deepcopy(_original())


def candidates(model: PreTrainedModel, pattern: Coupled) -> dict[str, Weight]:
    inside = {name: p for name, p in matrix_weights(model).items() if ".layer." in name}
    return couple(model, inside, pattern, HEADS)


def build(
    model: PreTrainedModel,
    pattern: Coupled,
    criterion: Criterion | None = None,
    allocation: Allocation | None = None,
    keeps_zeros: bool = False,
    **others: Any,
) -> Pruner:
    plan = Plan(candidates(model, pattern), pattern, allocation, keeps_zeros)
    return Pruner(plan, others.pop("schedule", SCHEDULE), LENGTH, criterion, **others)


def loss_of(model: PreTrainedModel, step: int) -> Tensor:
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 20, (4, 6), generator=random)
    return model(input_ids=tokens, start_positions=tokens[:, 0] % 6, end_positions=tokens[:, 1] % 6).loss


def train(
    model: PreTrainedModel, optimizer: Any, steps: range, each: Callable[[int], object] = lambda step: None
) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        each(step)


def elements(kind: str, layer: int, unit: int) -> list[tuple[str, tuple[Any, ...]]]:
    """The weights of a unit, by parameter name and index, by hand."""
    name, size = f"bert.encoder.layer.{layer}.", WIDTH // HEADS
    if kind == "channels":
        return [(f"{name}intermediate.dense.weight", (unit,)), (f"{name}intermediate.dense.bias", (unit,)),
                (f"{name}output.dense.weight", (slice(None), unit))]  # fmt: skip
    features = slice(unit * size, (unit + 1) * size)
    rows = [(f"{name}attention.self.{kind}.{what}", (features,)) for kind in ("query", "key", "value")
            for what in ("weight", "bias")]  # fmt: skip
    return [*rows, (f"{name}attention.output.dense.weight", (slice(None), features))]


def units(pattern: Coupled) -> list[tuple[str, int, int]]:
    """Kind, layer and number of all units, in the order in which equal scores go."""
    kinds = {"ffn": ["channels"], "heads": ["heads"], "structured": ["channels", "heads"]}[str(pattern)]
    return [(kind, layer, unit) for layer in range(LAYERS) for kind in kinds
            for unit in range(INNER if kind == "channels" else HEADS)]  # fmt: skip


def values(tensors: Mapping[str, Tensor], unit: tuple[str, int, int]) -> Tensor:
    """What all weights of a unit have in some tensors."""
    return torch.cat([tensors[name].detach()[index].flatten() for name, index in elements(*unit)])


def dead(model: PreTrainedModel, pattern: Coupled) -> set[tuple[str, int, int]]:
    named = dict(model.named_parameters())
    return {unit for unit in units(pattern) if not bool(values(named, unit).any())}


# --- scores and choices -----------------------------------------------------------------------------------------------


class Loops:
    """A criterion's score of each unit, by loops over units."""

    def __init__(self, criterion: Criterion, pattern: Coupled) -> None:
        self.criterion, self.pattern = criterion, pattern
        self.state: dict[Any, Tensor] = {}

    def pool(self, numbers: Tensor) -> Tensor:
        return {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[self.criterion.reduce](numbers)

    def observe(self, model: PreTrainedModel) -> None:
        named = dict(model.named_parameters())
        grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in named.items()}
        for unit in units(self.pattern):
            w, g = values(named, unit), values(grads, unit)
            match self.criterion:
                case SnipMomentum():
                    self.state[unit] = 0.9 * self.state.get(unit, torch.zeros(())) + self.pool((w * g).abs())
                case Movement():
                    self.state[unit] = self.state.get(unit, torch.zeros(())) + self.pool(-(w * g))
                case Snip():
                    self.state[unit] = self.pool((w * g).abs())
                case Gradient():
                    self.state[unit] = self.pool(g.abs())

    def score(self, unit: tuple[str, int, int], model: PreTrainedModel, optimizer: Any) -> float:
        named = dict(model.named_parameters())
        if isinstance(self.criterion, Magnitude):
            return float(self.pool(values(named, unit).abs()))
        if isinstance(self.criterion, DiagonalFisher):
            second = {name: optimizer.state[p]["exp_avg_sq"] for name, p in named.items() if p in optimizer.state}
            return float(self.pool(values(named, unit).square() * values(second, unit)))
        return float(self.state[unit])


@PATTERN
@pytest.mark.parametrize("criterion", [
    SnipMomentum(), SnipMomentum(reduce="sum"), Movement(), Movement(reduce="max"), Snip(), Gradient(), Magnitude(),
    Magnitude(reduce="max"), DiagonalFisher(),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("allocation", [Global(), Uniform()], ids=["global", "uniform"])
def test_scores_and_choices_are_those_of_loops(
    pattern: type[Coupled], criterion: Criterion, allocation: Allocation
) -> None:
    model, update = network(), 4
    pruner = build(model, pattern(), criterion, allocation, schedule=OneShot(start=str(update)))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    loops = Loops(criterion, pattern())
    optimizer.register_step_pre_hook(lambda *_: loops.observe(model))
    before: dict[Any, float] = {}
    # In the step of the update, scores are read after the optimizer's step and before the pruner's hook.
    optimizer.register_step_post_hook(
        lambda *_: before.update({unit: loops.score(unit, model, optimizer) for unit in units(pattern())})
    )
    pruner.attach(optimizer)
    train(model, optimizer, range(update))
    per_layer = len(units(pattern())) // LAYERS
    if isinstance(allocation, Uniform):
        groups = [[unit for unit in units(pattern()) if unit[1] == layer] for layer in range(LAYERS)]
    else:
        groups = [units(pattern())]
    expected = {unit for group in groups for unit in sorted(group, key=before.__getitem__)[: len(group) // 2]}
    assert dead(model, pattern()) == expected
    assert len(expected) == per_layer * LAYERS // 2


@PATTERN
def test_the_matrix_of_units_has_each_of_their_weights_once(pattern: type[Coupled]) -> None:
    model = network()
    named = dict(model.named_parameters())
    found = {name: w for name, w in candidates(model, pattern()).items() if isinstance(w, CoupledWeights)}
    for kind, layer, unit in units(pattern()):
        matrix = found[f"bert.encoder.layer.{layer}.{kind}"].detach()
        expected = values(named, (kind, layer, unit))
        assert torch.equal(matrix[unit].sort().values, expected.sort().values)
    for weight in found.values():
        for part, numbers in weight.scatter(weight.detach()):
            assert torch.equal(numbers, part.view(part.parameter))


@pytest.mark.parametrize("criterion", [CalibratedSnip(), CalibratedFisher(), Wanda()], ids=repr)
@PATTERN
def test_calibrated_criteria_rank_units(pattern: type[Coupled], criterion: Criterion) -> None:
    model, size = network(), 6
    batches = [torch.randint(0, 20, (4, size), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    inputs: dict[str, Tensor] = {}

    def loss(batch: Tensor, chance: torch.Generator) -> Tensor:
        return model(input_ids=batch, start_positions=batch[:, 0] % size, end_positions=batch[:, 1] % size).loss

    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    if isinstance(criterion, Wanda):

        def hook(name: str) -> Callable[..., None]:
            def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                inputs[name] = inputs.get(name, 0) + args[0].flatten(0, -2).square().sum(0)

            return record

        handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        for batch in batches:
            loss(batch, torch.Generator())
        for handle in handles:
            handle.remove()
        tokens = sum(batch.numel() for batch in batches)
        for name, p in model.named_parameters():
            module, _, what = name.rpartition(".")
            scores[name] = p.abs() * ((inputs[module] / tokens).sqrt() if what == "weight" and module in inputs else 1)
    else:
        power = 1 if isinstance(criterion, CalibratedSnip) else 2
        for batch in batches:
            for (name, p), g in zip(model.named_parameters(), torch.autograd.grad(
                loss(batch, torch.Generator()), list(model.parameters()), allow_unused=True), strict=True):  # fmt: skip
                scores[name] += (
                    0 if g is None else (p * g).abs() ** power / (p.abs() ** (power - 1) if power < 2 else 1)
                )
    expected = sorted(units(pattern()), key=lambda unit: float(values(scores, unit).mean()))
    pruner = build(
        model, pattern(), criterion, schedule=OneShot(start="0"), calibration=Calibration(model, batches, loss)
    )
    pruner.update_now()
    assert dead(model, pattern()) == set(expected[: len(expected) // 2])


# --- masks, counts, state ---------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    pattern=st.sampled_from(PATTERNS),
    target=st.sampled_from([0.2, 0.5, 0.7]),
    criterion=st.sampled_from([Magnitude, SnipMomentum, Movement, Platon, Random]),
    allocation=st.sampled_from([Global(), Uniform(), Global(max_per_layer=1.0)]),
    optimizer_name=st.sampled_from(sorted(OPTIMIZERS)),
    freezes=st.booleans(),
)
def test_units_are_zero_from_their_update_on_and_counts_are_exact(
    pattern, target, criterion, allocation, optimizer_name, freezes
) -> None:
    model, wanted = network(), pattern(target_sparsity=target)
    named = dict(model.named_parameters())
    if freezes:
        for name, p in named.items():
            p.requires_grad_(not name.endswith("bias"))
    pruner = build(model, wanted, criterion(), allocation)
    optimizer = OPTIMIZERS[optimizer_name]([p for p in model.parameters() if p.requires_grad])
    pruner.attach(optimizer)
    gone: set[tuple[str, int, int]] = set()

    def check(step: int) -> None:
        nonlocal gone
        now = dead(model, wanted)
        assert gone <= now
        gone = now
        for unit in now:
            assert is_positive_zero(values(named, unit))
            for name, index in elements(*unit):
                for moment in moments_of(optimizer, named[name]):
                    assert is_positive_zero(moment[index])
        rows = {row.name: row for row in pruner.report()}
        for name, p in named.items():
            held = sum(p[index].numel() for unit in now for n, index in elements(*unit) if n == name)
            assert name not in rows or rows[name].zeros == held
            assert name not in rows or rows[name].violations == 0
            assert held == int((p == 0).sum())

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    assert len(gone) == round(target * len(units(wanted)))
    pruned = {unit: values(named, unit).numel() for unit in gone}
    removed = sum(sum(update.removed.values()) for update in pruner.history)
    assert removed == sum(pruned.values()) == sum(row.zeros for row in pruner.report())
    assert {name for update in pruner.history for name in update.removed} <= named.keys()
    assert pruner.sparsity == pytest.approx(target)


@pytest.mark.parametrize("pattern", [*PATTERNS, Structured])
@pytest.mark.parametrize("criterion", [SnipMomentum, Platon, DiagonalFisher])
@pytest.mark.parametrize("at", [0, 5, 9])
def test_an_interrupted_training_continues_bit_for_bit(pattern: type[Coupled], criterion: Any, at: int) -> None:
    whole = network()
    pruner = build(whole, pattern(), criterion(), Uniform())
    optimizer = OPTIMIZERS["adamw-foreach"](whole.parameters())
    pruner.attach(optimizer)
    train(whole, optimizer, range(STEPS))

    first = network()
    before = build(first, pattern(), criterion(), Uniform())
    old = OPTIMIZERS["adamw-foreach"](first.parameters())
    before.attach(old)
    train(first, old, range(at))
    tensors, texts = before.state_dict()
    tensors, texts = {k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(texts))

    second = network()
    second.load_state_dict(first.state_dict())
    optimizer = OPTIMIZERS["adamw-foreach"](second.parameters())
    optimizer.load_state_dict(copy.deepcopy(old.state_dict()))
    after = build(second, pattern(), criterion(), Uniform())
    after.load_state_dict(tensors, texts)
    after.attach(optimizer)
    train(second, optimizer, range(at, STEPS))
    assert same(snapshot(after), snapshot(pruner))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))
    assert after.report() == pruner.report()


def costs_of(cost: str, tokens: int) -> dict[str, int]:
    """What a unit of each kind costs, by hand."""
    if cost == "parameters":
        return {"channels": 2 * WIDTH + 1, "heads": 4 * WIDTH * WIDTH // HEADS + 3 * WIDTH // HEADS}
    return {"channels": 2 * WIDTH, "heads": 4 * WIDTH * WIDTH // HEADS + 2 * tokens * WIDTH // HEADS}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    target=st.floats(0.1, 0.7),
    cost=st.sampled_from(["parameters", "macs"]),
    tokens=st.sampled_from([8, 128]),
    cap=st.sampled_from([0.98, 1.0]),
    light=st.sampled_from(["channels", "heads", None]),
)
def test_one_budget_for_heads_and_channels_goes_by_score_for_each_cost(target, cost, tokens, cap, light) -> None:
    model, pattern = network(), Structured(target_sparsity=target)
    named, each = dict(model.named_parameters()), costs_of(cost, tokens)
    for unit in [unit for unit in units(pattern) if unit[0] == light]:
        for name, index in elements(*unit):
            named[name].data[index] *= 0.5
    scores = {unit: float(values(named, unit).abs().sum()) / each[unit[0]] for unit in units(pattern)}
    order = sorted(scores, key=scores.__getitem__)
    room = {
        (kind, layer): int(cap * count) for kind, count in (("channels", INNER), ("heads", HEADS)) for layer in (0, 1)
    }
    allowed = [u for u in order if order_in_layer(order, u) < room[u[0], u[1]]]
    budget = target * sum(each[unit[0]] for unit in order)
    reached = [sum(each[kind] for kind, *_ in allowed[:count]) for count in range(len(allowed) + 1)]
    best = min(range(len(reached)), key=lambda count: (abs(reached[count] - budget), count))

    plan = Plan(candidates(model, pattern), pattern, Global(max_per_layer=cap, cost=cost), tokens=tokens)
    pruner = Pruner(plan, OneShot(start="0"), LENGTH, Magnitude())
    pruner.update_now()
    assert dead(model, pattern) == set(allowed[:best])
    pruner.check_reached()
    assert sum(row.zeros for row in pruner.report()) == sum(values(named, unit).numel() for unit in allowed[:best])


def order_in_layer(order: list[tuple[str, int, int]], unit: tuple[str, int, int]) -> int:
    """Place of a unit among those of its kind and layer."""
    return [other for other in order if other[:2] == unit[:2]].index(unit)


def test_costs_of_units_are_in_the_saved_state() -> None:
    plans = [Plan(candidates(network(), Structured()), Structured(), Global(cost="macs"), tokens=n) for n in (8, 16)]
    short, long = (Pruner(plan, SCHEDULE, LENGTH) for plan in plans)
    tensors, texts = short.state_dict()
    short.load_state_dict(tensors, texts)
    with pytest.raises(PruningError, match=r"^the saved pruner differs in its cost"):
        long.load_state_dict(tensors, texts)
    with pytest.raises(PruningError, match=r"^cost='seconds' must be parameters, macs or latency$"):
        Global(cost="seconds")


def test_a_state_of_other_units_is_refused() -> None:
    tensors, texts = build(network(), FeedForward()).state_dict()
    with pytest.raises(PruningError, match=r"^the saved pruner differs in its pattern: FeedForward"):
        build(network(), Heads()).load_state_dict(tensors, texts)


# --- exceptions, caps, zeros of before, penalties ---------------------------------------------------------------------


@PATTERN
def test_a_layer_may_lose_all_its_units(pattern: type[Coupled]) -> None:
    model, wanted = network(), pattern(target_sparsity=0.5)
    with torch.no_grad():
        for unit in units(wanted):
            for name, index in elements(*unit):
                dict(model.named_parameters())[name][index] *= 1e-3 if unit[1] == 0 else 1.0
    pruner = build(model, wanted, Magnitude(), Global(max_per_layer=1.0))
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner.attach(optimizer)
    train(model, optimizer, range(STEPS))
    pruner.check_reached()
    assert {layer for _, layer, _ in dead(model, wanted)} == {0}
    assert bool(loss_of(model, 0).isfinite())
    with pytest.raises(PruningError, match=r"max_per_layer=0\.3 allows"):
        build(network(), wanted, Magnitude(), Global(max_per_layer=0.3))


def test_exceptions_name_units_or_their_matrices() -> None:
    layers = {
        "*.layer.0": LayerOverride(target=0.25), "*.1.attention.self.query": LayerOverride(excluded=True),
        "*.1.intermediate.dense": LayerOverride(pattern="4x1", target=0.5),
    }  # fmt: skip
    model = network()
    pruner = build(model, Heads(), Magnitude(), Global(layers=layers), schedule=OneShot(start="0"))
    pruner.update_now()
    assert {layer for _, layer, _ in dead(model, Heads())} == {0}
    assert len(dead(model, Heads())) == 1
    rows = {row.name.removeprefix("bert.encoder.layer."): row for row in pruner.report()}
    assert rows["1.attention.output.dense.weight"].skipped == "allocation.layers excludes it"
    assert rows["1.output.dense.weight"].skipped == "it belongs to no unit of heads"
    ffn = rows["1.intermediate.dense.weight"]
    assert (ffn.pattern, ffn.zeros) == ("4x1", INNER * WIDTH // 2)


def test_single_matrices_and_units_do_not_mix_up() -> None:
    model = network()
    with pytest.raises(
        PruningError, match=r"no layer can be pruned with pattern ffn \(.*: it belongs to no unit of ffn"
    ):
        Plan(matrix_weights(model), FeedForward())
    with pytest.raises(PruningError, match=r"its weights are pruned in units of several matrices, not by 4x1"):
        Plan({"bert.encoder.layer.0.heads": candidates(model, Heads())["bert.encoder.layer.0.heads"]}, Block(4, 1))


@PATTERN
@pytest.mark.parametrize("excluded", [False, True])
def test_zeros_of_before_stay_while_units_go(pattern: type[Coupled], excluded: bool) -> None:
    model = network()
    named = {name: p for name, p in model.named_parameters() if ".layer." in name and p.dim() > 1}
    for name, p in named.items():
        p.data[torch.rand(p.shape, generator=torch.Generator().manual_seed(len(name))) < 0.4] = 0.0
    named["bert.encoder.layer.0.intermediate.dense.weight"].data[0] = 0.0
    old = {name: p == 0 for name, p in named.items()}
    layers = {"*.layer.0.*": LayerOverride(excluded=True)} if excluded else {}
    pruner = build(model, pattern(), SnipMomentum(), Global(layers=layers), keeps_zeros=True)
    optimizer = OPTIMIZERS["adamw-foreach"](model.parameters())
    pruner.attach(optimizer)

    def check(step: int) -> None:
        for name, p in named.items():
            assert bool((p[old[name]] == 0).all())

    train(model, optimizer, range(STEPS), check)
    pruner.check_reached()
    gone = dead(model, pattern())
    here = [unit for unit in units(pattern()) if not excluded or unit[1] == 1]
    assert len(gone & set(here)) == len(here) // 2
    every = dict(model.named_parameters())
    for row in pruner.report():
        assert row.zeros == int((every[row.name] == 0).sum()), row
        assert row.skipped is None
        assert parse(row.pattern).violations(every[row.name]) == 0
    removed = sum(sum(update.removed.values()) for update in pruner.history)
    before = sum(int(zero.sum()) for zero in old.values())
    assert removed == sum(row.zeros for row in pruner.report()) - before


@PATTERN
def test_the_group_lasso_pulls_whole_units(pattern: type[Coupled]) -> None:
    model, plain, weight = network(), network(), 0.01
    pruner = build(model, pattern(), Magnitude(), regularizer=GroupLasso(weight))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.attach(optimizer)
    train(model, optimizer, range(1))
    named = dict(plain.named_parameters())
    loss = loss_of(plain, 0)
    for unit in units(pattern()):
        numbers = torch.cat([named[name][index].flatten() for name, index in elements(*unit)])
        loss = loss + weight * len(numbers) ** 0.5 * numbers.norm()
    loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@PATTERN
def test_units_that_never_grow_again_are_not_asked_to(pattern: type[Coupled]) -> None:
    with pytest.raises(PruningError, match=r"^regrow=True: .* leave regrow out$"):
        build(network(), pattern(), Magnitude(), Global(regrow=True))
