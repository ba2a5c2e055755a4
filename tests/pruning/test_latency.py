"""Budgets of measured time: tables, the choice of units against loops, speed-ups as targets, resuming, refusals."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning import (
    Allocation,
    Block,
    Coupled,
    FeedForward,
    Global,
    Heads,
    LatencyTable,
    LayerOverride,
    Magnitude,
    OneShot,
    Pattern,
    Plan,
    Pruner,
    PruningError,
    Structured,
    Uniform,
    matrix_weights,
)
from pruning.latency import select_by_time, select_evenly
from pruning.quotas import Quota
from pruning.report import predict
from tests.pruning.test_coupled import build, candidates, network, train
from tests.pruning.training import LENGTH, SCHEDULE, STEPS

TABLE: dict[str, Any] = {
    "format": "prune-distill latency 1",
    "model": {"layers": 2, "hidden": 8, "heads": 4, "channels": 12},
    "settings": {"backend": "torch", "precision": "float32", "batch": 1, "length": 8, "threads": 1},
    "whole_ms": 10.0,
    "heads_ms": {"1": 0.5, "2": 1.3, "3": 1.4, "4": 2.0},
    "channels_ms": {"1": 0.0, "4": 0.9, "12": 2.5},
}
SETTINGS = "torch float32, batch 1, length 8, 1 thread"


@pytest.fixture
def table(tmp_path: Path) -> str:
    return write(tmp_path, TABLE)


def write(folder: Path, values: Any) -> str:
    file = folder / "table.json"
    file.write_text(json.dumps(values))
    return str(file)


def pruned(pruner: Pruner) -> dict[str, int]:
    """Units that are pruned, by name."""
    return {name: pruner.masks.pruned_units(name) for name, _ in pruner.masks.items()}


def milliseconds(counts: dict[str, int]) -> float:
    """The time of the model with so many units pruned, by hand."""
    total = 10.0
    for name, count in counts.items():
        if name.endswith("heads"):
            left = max(1, 4 - count)
            total -= 1.5 - {1: 0.0, 2: 0.8, 3: 0.9, 4: 1.5}[left]
        else:
            left = max(1, 12 - count)
            total -= 2.5 - (0.3 * (left - 1) if left <= 4 else 0.9 + 0.2 * (left - 4))
    return total


# --- the choice of units ----------------------------------------------------------------------------------------------


@st.composite
def layers(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Quota]]:
    """Costs and quotas of a few layers: plateaus, steps, infinite and missing scores, caps, floors, pruned units."""
    costs, quotas = {}, {}
    number = st.floats(0, 100, width=32)
    for name in "abc"[: draw(st.integers(1, 3))]:
        units = draw(st.integers(1, 7))
        each = draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 3.0]), min_size=units, max_size=units))
        cap = draw(st.integers(0, units))
        gone = draw(st.integers(0, cap))
        odd = st.sampled_from([math.inf, math.nan])
        cost = torch.tensor(draw(st.lists(number | odd, min_size=units, max_size=units)))
        cost[torch.randperm(units, generator=torch.Generator().manual_seed(units))[:gone]] = -math.inf
        saved = tuple(itertools.accumulate([0.0, *each]))
        costs[name] = cost
        quotas[name] = Quota(units, 1, draw(st.integers(0, cap)), cap, gone, saved)
    return costs, quotas


def counted(chosen: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in chosen.items()}


@settings(max_examples=150, deadline=None)
@given(layers=layers(), fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)), evenly=st.booleans())
def test_the_units_save_the_time_and_no_more_than_needed(
    layers: tuple[dict[str, Tensor], dict[str, Quota]], fractions: tuple[float, float], evenly: bool
) -> None:
    (costs, quotas), select = layers, select_evenly if evenly else select_by_time
    total = sum(quota.saves(quota.units) for quota in quotas.values())
    reachable = sum(quota.saves(max(quota.most, quota.gone)) for quota in quotas.values())
    few, many = (counted(select(costs, fraction, quotas)) for fraction in sorted(fractions))
    least = {name: max(quota.floor, quota.gone) for name, quota in quotas.items()}
    for fraction, counts in zip(sorted(fractions), (few, many), strict=True):
        saved = sum(quotas[name].saves(count) for name, count in counts.items())
        assert saved >= min(fraction * total, reachable) * (1 - 1e-6) - 1e-9
        assert all(least[name] <= counts[name] <= max(quotas[name].most, least[name]) for name in counts)
        if counts != least and not evenly:  # one unit less of some layer is not enough
            fewer = (saved - quotas[name].saves(counts[name]) + quotas[name].saves(counts[name] - 1)
                     for name in counts if counts[name] > least[name])  # fmt: skip
            assert min(fewer) < fraction * total
    assert all(few[name] <= many[name] for name in few)
    for name, mask in select(costs, max(fractions), quotas).items():
        ranks = costs[name].nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        assert not (mask.any() and not mask.all()) or ranks[mask].max() <= ranks[~mask].min()


def test_uniform_prunes_equal_layers_alike() -> None:
    times = tuple(itertools.accumulate([0.0, 0.5, 0.0, 2.0, 1.0, 0.5]))
    quotas = {name: Quota(5, 1, saved=times) for name in "ab"} | {"c": Quota(5, 1, gone=4, saved=times)}
    costs = {name: torch.rand(5) for name in "abc"}
    for fraction, count in ((0.0, 0), (0.1, 1), (0.2, 3), (0.625, 3), (0.64, 4), (1.0, 5)):
        assert counted(select_evenly(costs, fraction, quotas)) == {"a": count, "b": count, "c": max(4, count)}
    quotas["a"].cap = 1  # the others make up for it
    assert counted(select_evenly(costs, 0.5, quotas)) == {"a": 1, "b": 3, "c": 4}
    assert counted(select_evenly(costs, 0.7, quotas)) == {"a": 1, "b": 5, "c": 5}


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=9, unique=True), min_size=1, max_size=4),
    fraction=st.floats(0, 1),
)
def test_with_times_in_proportion_it_is_the_ranking_by_loss_for_each_millisecond(
    costs: list[list[int]], fraction: float
) -> None:
    each = [1.0, 2.0, 4.0, 0.5]  # milliseconds of a unit of each layer
    tensors = {str(i): torch.tensor(cost, dtype=torch.float32) for i, cost in enumerate(costs)}
    quotas = {str(i): Quota(len(c), 1, saved=tuple(each[i] * k for k in range(len(c) + 1)))
              for i, c in enumerate(costs)}  # fmt: skip
    ranking = sorted((cost / each[i], str(i), unit) for i, layer in enumerate(costs) for unit, cost in enumerate(layer))
    needed, expected = fraction * sum(each[i] * len(layer) for i, layer in enumerate(costs)), set()
    for _, name, unit in ranking:
        if sum(each[int(other)] for other, _ in expected) < needed * (1 - 1e-9):
            expected.add((name, unit))
    chosen = select_by_time(tensors, fraction, quotas)
    assert {(name, unit) for name, mask in chosen.items() for unit in mask.nonzero().flatten().tolist()} == expected


@settings(max_examples=100, deadline=None)
@given(layers=layers())
def test_no_other_units_lose_less_for_the_time_that_a_whole_step_saves(
    layers: tuple[dict[str, Tensor], dict[str, Quota]],
) -> None:
    costs, quotas = layers
    names = sorted(costs)
    ordered = {name: costs[name].nan_to_num(nan=1e4, posinf=1e4, neginf=0.0).sort().values.tolist() for name in names}
    plain = {name: torch.tensor(ordered[name]) for name in names}
    for quota in quotas.values():
        quota.gone = quota.floor = 0
    options = [
        (sum(quotas[name].saves(k) for name, k in zip(names, counts, strict=True)),
         sum(sum(ordered[name][:k]) for name, k in zip(names, counts, strict=True)))
        for counts in itertools.product(*(range(quotas[name].most + 1) for name in names))
    ]  # fmt: skip
    total = sum(quota.saves(quota.units) for quota in quotas.values())
    if not total:
        return
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        counts = counted(select_by_time(plain, fraction, quotas))
        loss = sum(sum(ordered[name][:k]) for name, k in counts.items())
        reached = [each for saved, each in options if saved >= fraction * total * (1 - 1e-9)]
        best = min(reached, default=loss)
        steepest = max(sum(ordered[name][: quotas[name].most]) for name in names)  # the loss of the longest last step
        assert best - 1e-3 <= loss <= best + steepest + 1e-3


@pytest.mark.parametrize("allocation", [Global, Uniform])
@pytest.mark.parametrize("pattern", [FeedForward(target_speedup=1.4), Heads(target_speedup=1.3),
                                     Structured(target_speedup=2), Structured(target_sparsity=0.6)])  # fmt: skip
def test_a_training_ends_within_the_time(allocation: type[Allocation], pattern: Coupled, table: str) -> None:
    model = network()
    pruner = build(model, pattern, allocation=allocation(cost="latency", latency=table))
    shares: list[float] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner.attach(optimizer)

    def note(step: int) -> None:
        shares.append(10.0 - milliseconds(pruned(pruner)))
        done = [progress for due, progress in pruner.updates.items() if due <= step + 1]
        due = pruner.schedule.sparsity(done[-1], pruner.pattern.target) if done else 0.0
        units = {FeedForward: 5.0, Heads: 3.0, Structured: 8.0}[type(pattern)]  # milliseconds that can be saved
        assert shares[-1] >= due * units - 1e-6

    train(model, optimizer, range(STEPS), note)
    pruner.check_reached()
    assert shares == sorted(shares)
    end = predict(pruner.plan, pruner.masks)
    assert end is not None
    assert end.sparse_ms == pytest.approx(milliseconds(pruned(pruner)))
    asked = pruner.plan.predict()
    assert asked is not None
    assert asked.speedup == pytest.approx(getattr(pattern, "target_speedup", None) or 10 / (10 - 0.6 * 8))
    over = 0.8 if allocation is Global else 2 * (0.8 + 0.3)  # the longest step of one unit; of one in each layer
    assert -1e-6 <= asked.sparse_ms - end.sparse_ms <= over
    assert str(asked) == f"{asked.speedup:.2f}x as fast, 10.00 to {asked.sparse_ms:.2f} ms ({SETTINGS})"


def test_a_state_is_not_taken_over_with_other_times(tmp_path: Path, table: str) -> None:
    def pruner() -> Pruner:
        return build(network(), Structured(target_speedup=2), allocation=Global(latency=table), schedule=SCHEDULE)

    saved = pruner().state_dict()
    pruner().load_state_dict(*saved)
    write(tmp_path, {**TABLE, "whole_ms": 9.5})
    with pytest.raises(PruningError, match="differs in its cost: latency"):
        pruner().load_state_dict(*saved)


# --- targets and tables -----------------------------------------------------------------------------------------------


def plan(pattern: Pattern, allocation: Allocation) -> Plan:
    model = network()
    units = candidates(model, pattern) if isinstance(pattern, Coupled) else matrix_weights(model)
    return Plan(units, pattern, allocation)


def test_the_largest_speed_up_is_named_and_can_be_had(table: str) -> None:
    for allocation in (Global(latency=table), Global(latency=table, max_per_layer=0.5)):
        with pytest.raises(PruningError, match=r"target_speedup=40 is out of reach: .*; at most [\d.]+$") as refusal:
            plan(Structured(target_speedup=40), allocation)
        most = float(str(refusal.value).rpartition(" ")[2])
        there = plan(Structured(target_speedup=most), allocation).predict()
        assert there is not None
        assert there.speedup == pytest.approx(most)
        with pytest.raises(PruningError, match="out of reach"):
            plan(Structured(target_speedup=most + 0.02), allocation)


def test_what_is_excluded_keeps_its_time(table: str) -> None:
    allocation = Global(latency=table, layers={"*layer.1*": LayerOverride(excluded=True)})
    assert list(plan(Structured(target_speedup=1.6), allocation).groups[0].saved) == [
        "bert.encoder.layer.0.channels", "bert.encoder.layer.0.heads"]  # fmt: skip
    with pytest.raises(PruningError, match=r"take 4\.00 ms; at most 1\.66$"):
        plan(Structured(target_speedup=1.7), allocation)


@pytest.mark.parametrize("other", ["dense", "locked"])
def test_layers_of_patterns_without_units_keep_their_time(other: str, table: str) -> None:
    layers = {"*layer.1*": LayerOverride(pattern=other)}
    made = plan(Structured(target_sparsity=0.5), Global(cost="latency", latency=table, layers=layers))
    assert {bool(group.saved) for group in made.groups if group.pattern.prunes} == {True}
    assert (
        made.predict()
        == plan(
            Structured(target_sparsity=0.5),
            Global(cost="latency", latency=table, layers={"*layer.1*": LayerOverride(excluded=True)}),
        ).predict()
    )


def test_contradictions_are_refused(table: str) -> None:
    cases: list[tuple[Any, Any, str]] = [
        (lambda: Structured(target_speedup=2, target_sparsity=0.5), Global,
         "target_sparsity=0.5, target_speedup=2: give one of them"),
        (lambda: Structured(target_speedup=1), Global, "target_speedup=1 must be above 1, such as 2"),
        (lambda: Heads(target_speedup=math.inf), Global, "target_speedup=inf must be above 1"),
        (lambda: Structured(target_speedup=2), Global, "target_speedup=2 needs times: give the allocation"),
        (Structured, lambda: Global(cost="latency"), "cost=latency needs times"),
        (Structured, lambda: Global(cost="seconds"), "cost='seconds' must be parameters, macs or latency"),
        (Structured, lambda: Global(latency=table), "has no effect with cost=parameters: set cost=latency"),
        (lambda: Structured(target_speedup=2), lambda: Global(latency=table, cost="macs"),
         "cost=macs: target_speedup=2 counts time; leave cost out"),
        (lambda: Block(4, 1), lambda: Global(latency=table, cost="latency"),
         "cost=latency counts heads and channels, not units of 4x1"),
        (lambda: Structured(target_speedup=2),
         lambda: Global(latency=table, layers={"*layer.0*": LayerOverride(target=0.3)}),
         r"layers\['\*layer.0\*'\]: target_speedup=2 is one target for all"),
    ]  # fmt: skip
    for pattern, allocation, text in cases:
        with pytest.raises(PruningError, match=text):
            plan(pattern(), allocation())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "2"}, "is no latency table of this version"),
        ({"heads_ms": {"1": 1.0, "4": 0.5}}, "heads_ms must rise with the units that are left"),
        ({"channels_ms": {"1": 0.0, "4": 1.0}}, "times must reach from 1 to 12 units"),
        ({"channels_step": 0}, "channels_step=0 must be at least 1"),
        ({"heads_ms": {"1": 0.0, "4": math.nan}}, "is damaged"),
        ({"heads_ms": [1, 2]}, "is damaged"),
        ({"whole_ms": 8.0}, "whole_ms must be above what all layers take together"),
        ({"model": {"layers": 2, "hidden": 8, "heads": 4}}, r"is damaged \(KeyError: 'channels'\)"),
        ({"model": {"layers": 2, "hidden": 16, "heads": 4, "channels": 12}},
         r"measured with 12 channels in a layer of width 16, and bert.encoder.layer.0.channels has 12 and width 8"),
        ({"heads_ms": {"1": 0, "8": 1}, "model": {**TABLE["model"], "heads": 8}}, "measured with 8 heads"),
        ({"heads_ms": {"1": 1, "4": 1}, "channels_ms": {"1": 1, "12": 1}}, "take no measurable time in it"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    file = write(tmp_path, {**TABLE, **change})
    with pytest.raises(PruningError, match=f"(?s)latency={file}.*{text}"):
        plan(Structured(), Global(cost="latency", latency=file))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    for text, reason in ((None, "No such file or directory"), ("{", "it is no JSON"), ("[]", "is no latency table")):
        file = tmp_path / "file"
        if text is not None:
            file.write_text(text)
        with pytest.raises(PruningError, match=f"^latency={file} .*{reason}.*; "):
            plan(Structured(), Global(cost="latency", latency=str(file)))


def test_a_table_is_interpolated_and_known_by_its_times(tmp_path: Path, table: str) -> None:
    read = LatencyTable.read(table)
    assert read.heads == pytest.approx((0, 0, 0.8, 0.9, 1.5))
    assert read.channels == pytest.approx((0, 0, 0.3, 0.6, 0.9, 1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3, 2.5))
    stepped = LatencyTable.read(write(tmp_path, {**TABLE, "channels_step": 5})).channels
    assert stepped == pytest.approx((*[0] * 6, *[1.0] * 5, 1.4, 1.4))
    write(tmp_path, TABLE)
    same = json.dumps({**TABLE, "machine": {"cpu": "another"}}, indent=4)
    (tmp_path / "same.json").write_text(same)
    assert LatencyTable.read(str(tmp_path / "same.json")).fingerprint == read.fingerprint
    write(tmp_path, {**TABLE, "channels_ms": {"1": 0, "12": 2.5}})
    assert LatencyTable.read(table).fingerprint != read.fingerprint


def test_the_other_costs_do_not_look_at_times(table: str) -> None:
    for cost in ("parameters", "macs"):
        pruner = build(network(), Structured(), Magnitude(), Global(cost=cost), schedule=OneShot("0"))
        assert (pruner.plan.table, pruner.plan.predict(), pruner.plan.groups[0].saved) == (None, None, {})
        assert repr(pruner.pattern) == "Structured(target_sparsity=0.5)"
        assert LENGTH.steps == STEPS
