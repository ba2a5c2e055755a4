"""OBS for attention heads and feed-forward channels: columns of the matrix that reads a unit's features go, and the
others of each row adapt (ZipLM, Kurtic et al. 2023, arXiv 2302.04089). References take explicit inverses, one unit at a
time, and decide with plain sorts.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning import (
    OBS,
    Allocation,
    Block,
    Calibration,
    Coupled,
    CoupledWeights,
    Criterion,
    FeedForward,
    Global,
    Gradual,
    Heads,
    LayerOverride,
    Magnitude,
    NofM,
    OneShot,
    Pattern,
    Plan,
    Pruner,
    PruningError,
    Structured,
    TrainingLength,
    Uniform,
    matrix_weights,
    obs,
    obs_each,
)
from pruning.latency import select_by_time
from pruning.runtime.cut import cut
from pruning.second_order import collect
from pruning.second_order.solver import damped
from tests.pruning import test_architectures as families
from tests.pruning.second_order.test_obs import PROPERTY, least_squares
from tests.pruning.test_coupled import (
    HEADS,
    INNER,
    LAYERS,
    WIDTH,
    candidates,
    costs_of,
    dead,
    elements,
    loss_of,
    network,
    train,
    units,
    values,
)
from tests.pruning.test_latency import TABLE

Unit = tuple[str, int, int]
PATTERNS: list[type[Coupled]] = [FeedForward, Heads, Structured]
TOKENS = 16
EVERY_ONE = [i / 8 for i in range(1, 9)]


def batches(count: int = 4, length: int = 6) -> list[Tensor]:
    return [torch.randint(0, 20, (8, length), generator=torch.Generator().manual_seed(i)) for i in range(count)]


def calibration(model: Any, data: list[Tensor] | None = None) -> Calibration:
    def loss(batch: Tensor, chance: torch.Generator) -> Tensor:
        output = model(input_ids=batch)
        logits = torch.stack([output.start_logits, output.end_logits]) if "start_logits" in output else output[0]
        return (logits * torch.randn(logits.shape, generator=chance)).sum()

    return Calibration(model, batches() if data is None else data, loss)


def prune(
    model: PreTrainedModel,
    pattern: Coupled,
    criterion: Criterion | None = None,
    allocation: Allocation | None = None,
    keeps_zeros: bool = False,
) -> Pruner:
    plan = Plan(candidates(model, pattern), pattern, allocation or Global(), keeps_zeros, tokens=TOKENS)
    pruner = Pruner(plan, OneShot("0"), TrainingLength(0), criterion or OBS(), calibration=calibration(model.eval()))
    pruner.update_now()
    pruner.check_reached()
    return pruner


# --- the naive transcription ------------------------------------------------------------------------------------------


class Reader:
    """The matrix that reads the features of a layer's units, with its bias as the last column."""

    def __init__(self, model: PreTrainedModel, kind: str, layer: int) -> None:
        what = "output" if kind == "channels" else "attention.output"
        self.name = f"bert.encoder.layer.{layer}.{what}.dense"
        module: Any = model.get_submodule(self.name)
        found = collect(calibration(model), {"it": module.weight})
        self.w = torch.cat([module.weight.detach(), module.bias.detach()[:, None]], 1).double()
        self.h, self.f = damped(found.hessians["it"], 0.01), found.fisher["it"].double()
        self.size = 1 if kind == "channels" else WIDTH // HEADS
        self.gone: list[int] = []

    def support(self) -> Tensor:
        """bool [out, in + 1]."""
        alive = torch.ones(len(self.h), dtype=torch.bool)
        for unit in self.gone:
            alive[unit * self.size : (unit + 1) * self.size] = False
        return alive.expand(self.w.shape)

    def costs(self) -> list[float]:
        current, left = least_squares(self.w, self.h, self.support()), self.support()[0].nonzero()[:, 0].tolist()
        inverse = torch.linalg.inv(self.h[left][:, left])
        costs = []
        for unit in range((len(self.h) - 1) // self.size):
            if unit in self.gone:
                costs.append(-torch.inf)
                continue
            places = [left.index(j) for j in range(unit * self.size, (unit + 1) * self.size)]
            inner = torch.linalg.inv(inverse[places][:, places])
            of_unit = current[:, unit * self.size : (unit + 1) * self.size]
            costs.append(float((((of_unit @ inner) * of_unit).sum(1) * self.f).sum()))
        return costs


def naive(
    model: PreTrainedModel, pattern: Coupled, cost: str, rounds: list[float], most: float = 0.98
) -> dict[str, Tensor]:
    """Reader -> [out, in + 1] after rounds in which units go by error for each cost."""
    model.eval()
    readers = {(kind, layer): Reader(model, kind, layer) for kind, layer, _ in units(pattern)}
    each = costs_of(cost, TOKENS)
    total = sum(each[kind] for kind, *_ in units(pattern))
    for part in rounds:
        costs = {place: reader.costs() for place, reader in readers.items()}
        ranked = sorted(units(pattern), key=lambda unit: costs[unit[:2]][unit[2]] / each[unit[0]])
        taken: list[Unit] = []
        for unit in ranked:
            room = int(most * (INNER if unit[0] == "channels" else HEADS) + 1e-9)
            if sum(other[:2] == unit[:2] for other in taken) < room:
                taken.append(unit)
        reached = [sum(each[kind] for kind, *_ in taken[:count]) for count in range(len(taken) + 1)]
        best = min(range(len(reached)), key=lambda count: (abs(reached[count] - pattern.target * part * total), count))
        for reader in readers.values():
            reader.gone = []
        for kind, layer, unit in taken[:best]:
            readers[kind, layer].gone.append(unit)
    return {reader.name: least_squares(reader.w, reader.h, reader.support()) for reader in readers.values()}


@settings(PROPERTY, max_examples=10)
@given(
    pattern=st.sampled_from(PATTERNS),
    target=st.sampled_from([0.25, 0.5, 0.7]),
    cost=st.sampled_from(["parameters", "macs"]),
    rounds=st.sampled_from([EVERY_ONE, [0.4, 1.0], [1.0]]),
    most=st.sampled_from([0.98, 0.75]),
)
def test_units_and_survivors_are_those_of_explicit_inverses(pattern, target, cost, rounds, most) -> None:
    model, wanted = network(), pattern(target_sparsity=target)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = naive(network(), wanted, cost, rounds, most)
    prune(model, wanted, OBS(rounds=rounds), Global(max_per_layer=most, cost=cost))
    now = dict(model.named_parameters())
    for name, weights in expected.items():
        got = torch.cat([now[f"{name}.weight"].detach(), now[f"{name}.bias"].detach()[:, None]], 1)
        assert torch.equal(got == 0, weights == 0), name
        torch.testing.assert_close(got.double(), weights, rtol=1e-4, atol=1e-5)
    gone = dead(model, wanted)
    assert gone
    changed = {f"{name}.{what}" for name in expected for what in ("weight", "bias")}
    for name, p in now.items():  # rows only go
        if name not in changed:
            assert torch.equal(p, before[name].masked_fill(p == 0, 0.0))
            assert int((p == 0).sum()) == sum(p[i].numel() for unit in gone for n, i in elements(*unit) if n == name)


def test_a_channel_that_another_can_stand_in_for_costs_nothing() -> None:
    model = network()
    first = model.get_submodule("bert.encoder.layer.1.intermediate.dense")
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight[3], first.bias[3] = first.weight[7], first.bias[7]
    whole = copy.deepcopy(model).eval()
    pattern = FeedForward(target_sparsity=1 / (LAYERS * INNER))
    prune(model, pattern, OBS(damping=1e-7))
    ((_, layer, unit),) = dead(model, pattern)
    assert layer == 1
    assert unit in (3, 7)
    tokens = batches(1)[0]
    torch.testing.assert_close(model(input_ids=tokens).start_logits, whole(input_ids=tokens).start_logits,
                               rtol=1e-3, atol=1e-3)  # fmt: skip


def error(before: PreTrainedModel, after: PreTrainedModel, pattern: Coupled) -> float:
    """Of all readers: f times the error of their outputs, for the inputs of the model before."""
    total = 0.0
    for kind, layer in {unit[:2] for unit in units(pattern)}:
        old, new = Reader(before, kind, layer), Reader(before, kind, layer)
        module: Any = after.get_submodule(old.name)
        new.w = torch.cat([module.weight.detach(), module.bias.detach()[:, None]], 1).double()
        total += float(((((new.w - old.w) @ old.h) * (new.w - old.w)).sum(1) * old.f).sum())
    return total


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("target", [0.1, 0.25, 0.5, 0.75])
def test_the_error_is_never_above_that_of_magnitude(pattern: type[Coupled], target: float) -> None:
    wanted, before = pattern(target_sparsity=target), network().eval()
    ours, theirs = network(), network()
    prune(ours, wanted, OBS(rounds=EVERY_ONE))
    prune(theirs, wanted, Magnitude())
    size = max(values(dict(ours.named_parameters()), unit).numel() for unit in units(wanted))
    sizes = [sum(values(dict(m.named_parameters()), u).numel() for u in dead(m, wanted)) for m in (ours, theirs)]
    assert abs(sizes[0] - sizes[1]) <= size
    assert 0 < error(before, ours, wanted) <= error(before, theirs, wanted)


# --- families, cutting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", families.CASES)
def test_what_goes_can_be_cut_out_of_every_family(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.network(case)
    weights = families.units_of(model, Structured())
    data = [torch.arange(5, 35).view(3, 10), torch.arange(15, 45).view(3, 10)]
    pattern = Structured(target_sparsity=0.4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruner = Pruner(Plan(weights, pattern), OneShot("0"), TrainingLength(0), OBS(),
                    calibration=calibration(model, data))  # fmt: skip
    pruner.update_now()
    pruner.check_reached()
    gone = {name: ~weight.detach().any(1) for name, weight in weights.items()}
    assert any(bool(units.any()) for units in gone.values())
    moved = 0
    for name, weight in weights.items():
        assert weight.reader is not None
        moved += not torch.equal(weight.reader.parameter, before[weight.reader.name].masked_fill(
            weight.reader.parameter == 0, 0.0))  # fmt: skip
        for part in weight.parts:
            assert not bool(part.view(part.parameter)[gone[name]].any())
            assert bool(part.parameter.isfinite().all())
    # a channel whose input is always 0 goes without leaving work for the others
    assert 0 < moved <= sum(bool(units.any() and not units.all()) for units in gone.values())
    whole, smaller = families.outputs(model), copy.deepcopy(model)
    report = cut(smaller)
    assert bool(report.reason) == (smaller.num_parameters() == model.num_parameters())
    torch.testing.assert_close(families.outputs(smaller), whole, rtol=1e-4, atol=1e-4)
    of_reader = {weight.parts[-1].name: gone[name] for name, weight in weights.items()}
    monkeypatch.setattr(families, "dead_units", lambda weight: of_reader[weight.parts[-1].name])
    for weight in weights.values():
        families.fill(weight, 0, None)
    families.without(model, weights)
    torch.testing.assert_close(families.outputs(model), whole, rtol=1e-4, atol=1e-4)


# --- training, zeros, exceptions --------------------------------------------------------------------------------------


def gradual(model: PreTrainedModel, pattern: Coupled) -> Pruner:
    schedule = Gradual(decay="cubic", start="2", frequency="2", end="8")
    plan = Plan(candidates(model, pattern), pattern)
    return Pruner(plan, schedule, TrainingLength(10), OBS(), calibration=calibration(model))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("at", [0, 5])
def test_gradual_updates_resume_bit_for_bit_and_units_never_return(pattern: type[Coupled], at: int) -> None:
    model, saved, seen = network(), dict[str, Any](), [set[Unit]()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = gradual(model, pattern())
    pruner.attach(optimizer)

    def each(step: int) -> None:
        seen.append(dead(model, pattern()))
        assert seen[-2] <= seen[-1]

    train(model, optimizer, range(at), each)
    tensors, texts = pruner.state_dict()
    saved = {"state": ({k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(texts))),
             "model": copy.deepcopy(model.state_dict()),
             "optimizer": copy.deepcopy(optimizer.state_dict())}  # fmt: skip
    train(model, optimizer, range(at, 10), each)
    pruner.check_reached()
    assert len({len(units) for units in seen}) >= 3

    again = network()
    again.load_state_dict(saved["model"])
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    other.load_state_dict(saved["optimizer"])
    resumed = gradual(again, pattern())
    resumed.load_state_dict(*saved["state"])
    resumed.attach(other)
    train(again, other, range(at, 10))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert resumed.report() == pruner.report()


def test_training_after_one_update_has_its_masks() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plan = Plan(candidates(model, Structured()), Structured())
    pruner = Pruner(plan, OneShot("0"), TrainingLength(6), OBS(), calibration=calibration(model))
    pruner.attach(optimizer)
    gone = dead(model, Structured())
    assert gone
    train(model, optimizer, range(6))
    pruner.check_reached()
    assert dead(model, Structured()) == gone
    assert bool(loss_of(model, 0).isfinite())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_zeros_of_before_stay_and_the_others_are_least_squares_without_them(pattern: type[Coupled], rows: int) -> None:
    model, wanted = network(), pattern(target_sparsity=0.6)
    for number, (name, p) in enumerate(model.named_parameters()):
        if ".layer." in name and p.dim() > 1:
            chance = torch.Generator().manual_seed(number)
            zero = torch.rand(len(p) // rows, p.shape[1], generator=chance) < 0.3
            p.data[zero.repeat_interleave(rows, 0)] = 0.0
    before = copy.deepcopy(model).eval()
    pruner = prune(model, wanted, keeps_zeros=True)
    gone, now = dead(model, wanted), dict(model.named_parameters())
    for name, p in before.named_parameters():
        assert bool((now[name][p == 0] == 0).all())
    for kind, layer in {unit[:2] for unit in units(wanted)}:
        reader = Reader(before, kind, layer)
        reader.gone = [unit for *place, unit in gone if tuple(place) == (kind, layer)]
        expected = least_squares(reader.w, reader.h, reader.support() & (reader.w != 0))
        got = torch.cat([now[f"{reader.name}.weight"].detach(), now[f"{reader.name}.bias"].detach()[:, None]], 1)
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    for row in pruner.report():
        assert row.zeros == int((now[row.name] == 0).sum())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_layer_may_get_the_target(pattern: type[Coupled]) -> None:
    model = network()
    prune(model, pattern(), allocation=Uniform())
    gone = dead(model, pattern())
    for kind, layer, _ in units(pattern()):
        assert sum(unit[:2] == (kind, layer) for unit in gone) == (INNER if kind == "channels" else HEADS) // 2


def test_single_matrices_and_other_criteria_for_some_layers() -> None:
    layers = {"*.layer.0.*": LayerOverride(criterion="magnitude"),
              "*.attention.self.query": LayerOverride(pattern="4x1", target=0.5)}  # fmt: skip
    model, plain = network(), network()
    prune(model, FeedForward(), allocation=Global(layers=layers))
    prune(plain, FeedForward(), Magnitude(), Global(layers=layers))
    gone, theirs = dead(model, FeedForward()), dead(plain, FeedForward())
    assert {unit for unit in gone if unit[1] == 0} == {unit for unit in theirs if unit[1] == 0}
    one, other = (dict(m.named_parameters()) for m in (model, plain))
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(one[name], other[name])  # nothing is refitted there
    queries = [one[f"bert.encoder.layer.{layer}.attention.self.query.weight"] for layer in range(LAYERS)]
    assert sum(int((query == 0).sum()) for query in queries) == LAYERS * WIDTH * WIDTH // 2


def test_a_frozen_bias_is_left_as_it_is() -> None:
    model = network()
    bias = model.get_submodule("bert.encoder.layer.0.output.dense").bias
    assert isinstance(bias, nn.Parameter)
    bias.requires_grad_(False)
    before = bias.detach().clone()
    prune(model, FeedForward())
    assert torch.equal(bias, before)


def test_units_that_nothing_reads_are_refused() -> None:
    weights = candidates(network(), FeedForward())
    name = "bert.encoder.layer.0.channels"
    whole = weights[name]
    assert isinstance(whole, CoupledWeights)
    rows = CoupledWeights([part for part in whole.parts if part.axis == 0])
    plan = Plan({name: rows}, FeedForward())
    with pytest.raises(PruningError, match=rf"^OBS refits the matrix .* {name} has no .* take another criterion$"):
        Pruner(plan, OneShot("0"), TrainingLength(0), OBS())
    Pruner(plan, OneShot("0"), TrainingLength(0), Magnitude())


def test_memory_is_that_of_the_matrices_that_are_refitted() -> None:
    weights = {name: w for name, w in candidates(network(), FeedForward()).items() if isinstance(w, CoupledWeights)}
    one, two = (OBS().memory(Plan(dict(list(weights.items())[:n]), FeedForward())) for n in (1, 2))
    assert two - one == 8 * INNER * (2 * WIDTH + 1) + 4 * (INNER + 1) ** 2


# --- several targets, one calibration ---------------------------------------------------------------------------------


def test_one_calibration_serves_several_patterns_and_targets() -> None:
    model, alone = network().eval(), dict[str, dict[str, Tensor]]()
    before = copy.deepcopy(model.state_dict())
    read: list[int] = []

    class Counted(list[Tensor]):
        def __iter__(self) -> Any:
            read.append(1)
            return super().__iter__()

    inside = {name: p for name, p in matrix_weights(model).items() if ".layer." in name}
    wanted: list[Pattern] = [Structured(target_sparsity=0.3), Structured(target_sparsity=0.5),
                             Block(4, 1, target_sparsity=0.5), NofM(2, 4)]  # fmt: skip
    plans = [Plan(candidates(model, p) if isinstance(p, Coupled) else inside, p) for p in wanted]
    for plan in plans:
        one = network().eval()
        same = Plan(candidates(one, plan.pattern) if isinstance(plan.pattern, Coupled) else {
            name: p for name, p in matrix_weights(one).items() if name in inside}, plan.pattern)  # fmt: skip
        of_one = calibration(one)
        obs(one, same, of_one.batches, of_one.loss)
        alone[repr(plan.pattern)] = one.state_dict()
    seen = []
    for plan, report in obs_each(calibration(model, Counted(batches())), plans):
        seen.append(repr(plan.pattern))
        assert all(torch.equal(t, alone[seen[-1]][name]) for name, t in model.state_dict().items())
        assert sum(row.zeros for row in report) > 0
    assert seen == list(map(repr, wanted))
    assert read == [1]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_budget_of_time_takes_the_error_of_whole_units(tmp_path: Path) -> None:
    """Where times count, units are not weighed by their size too: a head is four channels here."""
    file = tmp_path / "table.json"
    file.write_text(json.dumps(TABLE))
    allocation = Global(cost="latency", latency=str(file), max_per_layer=1.0)
    pattern, model = Structured(target_sparsity=0.5), network().eval()
    plan = Plan(candidates(model, pattern), pattern, allocation)
    (group,) = plan.groups
    costs = {f"bert.encoder.layer.{layer}.{kind}": torch.tensor(Reader(model, kind, layer).costs())
             for kind in ("channels", "heads") for layer in range(LAYERS)}  # fmt: skip
    fraction, quotas = group.budget(plan.allocation, 0.5, dict.fromkeys(costs, 0))
    expected = select_by_time(costs, fraction, quotas)
    criterion = OBS(rounds=[1.0])
    pruner = Pruner(plan, OneShot("0"), TrainingLength(0), criterion, calibration=calibration(model))
    pruner.update_now()
    assert {name: (~mask).tolist() for name, mask in pruner.masks.items()} == {
        name: mask.tolist() for name, mask in expected.items()
    }


@pytest.mark.parametrize("kind", PATTERNS)
def test_in_sequence_each_layer_loses_as_many_units_and_fits_them_to_other_inputs(kind):
    models, lost = [network().eval() for _ in range(2)], []
    for model, sequential in zip(models, (False, True), strict=True):
        pruner = prune(model, kind(target_sparsity=0.5), OBS(sequential=sequential))
        lost.append({name: pruner.masks.pruned_units(name) for name in pruner.plan.patterns})
        assert len(dead(model, kind(target_sparsity=0.5))) == sum(lost[-1].values())
    assert lost[0] == lost[1]
    what = "attention.output" if kind is Heads else "output"
    first, last = ([m.get_parameter(f"bert.encoder.layer.{i}.{what}.dense.weight") for m in models]
                   for i in (0, LAYERS - 1))  # fmt: skip
    assert not torch.equal(*last)
    if kind is not Structured:  # before the first reader nothing is pruned
        torch.testing.assert_close(*first, rtol=1e-3, atol=1e-4)
