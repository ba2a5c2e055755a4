"""Layer-wise OBS against explicit inverses, least squares and brute force; and what holds for any mask update."""

import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import (
    OBS,
    Block,
    CalibratedSnip,
    Calibration,
    Global,
    Gradual,
    LayerOverride,
    NofM,
    OneShot,
    Plan,
    Pruner,
    PruningError,
    TrainingLength,
    Wanda,
    matrix_weights,
    obs,
)
from pruning.second_order import collect
from pruning.second_order.solver import LayerSolver, damped
from tests.pruning.two_ranks import on_two_ranks

PROPERTY = settings(deadline=None, derandomize=True, max_examples=15)
DAMPING = 1e-3


def problem(seed: int, rows: int, inputs: int, tokens: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[out, in + 1] weights with the bias, [tokens, in + 1] inputs with the constant, their Hessian, [out] factors."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, inputs + 1, generator=random, dtype=torch.float64)
    mixed = torch.randn(inputs, inputs, generator=random, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=random, dtype=torch.float64) @ mixed
    x = torch.cat([x, x.new_ones(tokens, 1)], 1)
    fisher = torch.rand(rows, generator=random, dtype=torch.float64) + 0.1
    return weights, x, x.T @ x / tokens, fisher


def solver(seed: int, rows: int, inputs: int, block: tuple[int, int], kept: Tensor) -> LayerSolver:
    weights, _, hessian, fisher = problem(seed, rows, inputs)
    return LayerSolver(weights, hessian, fisher, DAMPING, block, kept)


def least_squares(weights: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """One row after the other: min (w - w0) H (w - w0)^T on the columns that are kept, by torch.linalg.lstsq."""
    root = torch.linalg.cholesky(hessian).T
    result = torch.zeros_like(weights)
    for i, row in enumerate(weights):
        result[i, kept[i]] = torch.linalg.lstsq(root[:, kept[i]], (root @ row)[:, None]).solution[:, 0]
    return result


def masks(seed: int, groups: int, units: int, cols: int) -> Tensor:
    kept = torch.rand(groups, units, generator=torch.Generator().manual_seed(seed)) > 0.4
    return kept.repeat_interleave(cols, 1)


BLOCKS = st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 2), (2, 3)])


@PROPERTY
@given(seed=st.integers(0, 1000), block=BLOCKS)
def test_survivors_are_the_least_squares_solution_with_the_bias(seed, block):
    kept = masks(seed, 4 // block[0], 6 // block[1], block[1])
    layer = solver(seed, 4, 6, block, kept)
    layer.solve()
    weights, _, hessian, fisher = problem(seed, 4, 6)
    columns = torch.cat([kept.repeat_interleave(block[0], 0), torch.ones(4, 1, dtype=torch.bool)], 1)
    expected = least_squares(weights, damped(hessian, DAMPING), columns)
    torch.testing.assert_close(layer.weights, expected, rtol=1e-6, atol=1e-8)
    zeroed = weights * columns
    h = damped(hessian, DAMPING)
    without_update = (((zeroed - weights) @ h) * (zeroed - weights)).sum(1) * fisher
    assert bool((layer.error() <= without_update + 1e-9).all())


@PROPERTY
@given(seed=st.integers(0, 1000), block=BLOCKS)
def test_costs_and_updates_are_those_of_explicit_inverses_one_unit_at_a_time(seed, block):
    """Frantar and Alistarh 2022, equations 3 and 5: each next unit by the inverse of what is left."""
    rows, cols = block
    kept = torch.ones(4 // rows, 6, dtype=torch.bool)
    layer = solver(seed, 4, 6, block, kept)
    weights, _, hessian, fisher = problem(seed, 4, 6)
    h, current, left = damped(hessian, DAMPING), weights.clone(), [list(range(7)) for _ in range(4 // rows)]
    for _ in range(3):
        costs = layer.solve(costs=True)
        torch.testing.assert_close(layer.weights, current, rtol=1e-6, atol=1e-8)
        naive = torch.full_like(costs, torch.inf)
        for group, columns in enumerate(left):
            inverse = torch.linalg.inv(h[columns][:, columns])
            for unit in range(6 // cols):
                places = [columns.index(j) for j in range(unit * cols, unit * cols + cols) if j in columns]
                if places:
                    inner = torch.linalg.inv(inverse[places][:, places])
                    of_unit = current[group * rows : group * rows + rows][:, [columns[p] for p in places]]
                    each = ((of_unit @ inner) * of_unit).sum(1)
                    naive[group, unit] = (each * fisher[group * rows : group * rows + rows]).sum()
        torch.testing.assert_close(costs, naive, rtol=1e-6, atol=1e-9)
        group, unit = divmod(int(naive.argmin()), 6 // cols)
        columns = left[group]
        inverse = torch.linalg.inv(h[columns][:, columns])
        places = [columns.index(j) for j in range(unit * cols, unit * cols + cols)]
        factor = torch.linalg.inv(inverse[places][:, places]) @ inverse[places]
        for row in range(group * rows, group * rows + rows):
            gone = current[row, [columns[p] for p in places]]
            current[row, columns] -= gone @ factor
            current[row, [columns[p] for p in places]] = 0.0
        left[group] = [j for p, j in enumerate(columns) if p not in places]
        layer.alive = layer.alive.clone()
        layer.alive[group, unit * cols : unit * cols + cols] = False


@PROPERTY
@given(seed=st.integers(0, 1000))
def test_one_unit_is_the_best_of_all_and_no_choice_beats_brute_force(seed):
    weights, _, hessian, fisher = problem(seed, 1, 5)
    h = damped(hessian, DAMPING)

    def error(pruned: tuple[int, ...]) -> float:
        kept = torch.ones(1, 6, dtype=torch.bool)
        kept[0, list(pruned)] = False
        d = least_squares(weights, h, kept) - weights
        return float((d @ h * d).sum() * fisher[0])

    layer = solver(seed, 1, 5, (1, 1), torch.ones(1, 5, dtype=torch.bool))
    for count in (1, 2, 3):
        costs = layer.solve(costs=True)
        layer.alive = layer.alive & (torch.arange(5) != int(costs.argmin()))
        layer.solve()
        best = min(error(pruned) for pruned in combinations(range(5), count))
        found = float(layer.error()[0])
        assert found >= best * (1 - 1e-6) - 1e-9
        if count == 1:
            assert found == pytest.approx(best, rel=1e-6)
            assert found == pytest.approx(float(costs.min()), rel=1e-6)


# --- whole networks --------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Two layers of one input, and a third behind them."""

    q: nn.Linear
    k: nn.Linear
    out: nn.Linear

    def __init__(self, reverse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {"q": nn.Linear(8, 8), "k": nn.Linear(8, 8), "out": nn.Linear(8, 8)}
        for name in reversed(layers) if reverse else layers:
            self.add_module(name, layers[name])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.q(x) * self.k(x)))


def data(count: int = 4, tokens: int = 16, dead: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    batches = [torch.randn(tokens, 8, generator=random) for _ in range(count)]
    for batch in batches:
        batch[:, :dead] = 0.0
    return batches


def loss_of(model: nn.Module):
    def loss(batch: Tensor, chance: torch.Generator) -> Tensor:
        output = model(batch)
        return (output - output.detach() - torch.randn(output.shape, generator=chance)).square().sum() / 2

    return loss


def pruned(pattern, batches=None, model=None, criterion=None) -> nn.Module:
    model = model or Attention()
    plan = Plan(matrix_weights(model), pattern, Global(max_per_layer=0.9))
    obs(model, plan, batches or data(), loss_of(model), criterion=criterion)
    return model


def test_layers_of_one_input_have_one_hessian():
    model = Attention()
    statistics = collect(Calibration(model, data(), loss_of(model)), matrix_weights(model))
    hessians = statistics.hessians
    assert hessians["q.weight"] is hessians["k.weight"]
    assert hessians["out.weight"] is not hessians["q.weight"]
    x = torch.cat([torch.cat(data()), torch.ones(64, 1)], 1)
    torch.testing.assert_close(hessians["q.weight"], x.T @ x / 64)


PATTERNS = [Block(4, 1, target_sparsity=0.75), Block(1, 1, target_sparsity=0.6), Block(2, 2, target_sparsity=0.5)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("batches", [data(), data(1, 3), data(dead=3)], ids=["data", "few tokens", "dead inputs"])
def test_counts_are_exact_and_caps_hold(pattern, batches):
    weights = matrix_weights(pruned(pattern, batches))
    zeros = {name: int((p == 0).sum()) for name, p in weights.items()}
    size = pattern.unit_size(torch.Size([8, 8]))
    assert sum(zeros.values()) == round(pattern.target * 192 / size) * size
    assert all(count <= 0.9 * 64 for count in zeros.values())
    assert all(pattern.violations(p.detach()) == 0 and bool(p.isfinite().all()) for p in weights.values())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8)])
def test_n_of_m_stay_in_every_group(n, m):
    for p in matrix_weights(pruned(NofM(n, m))).values():
        assert bool(((p.detach() != 0).view(-1, m).sum(1) == n).all())


@pytest.mark.parametrize("pattern", [*PATTERNS, NofM(2, 4)], ids=str)
def test_the_order_of_layers_does_not_matter(pattern):
    one, other = pruned(pattern).state_dict(), pruned(pattern, model=Attention(reverse=True)).state_dict()
    assert list(one) != list(other)
    for name, tensor in one.items():
        assert torch.equal(tensor == 0, other[name] == 0)
        torch.testing.assert_close(tensor, other[name])


def test_data_that_are_not_finite_are_refused_and_nothing_changes():
    model, batches = Attention(), data()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    batches[2][0, 0] = torch.nan
    with pytest.raises(PruningError, match="not finite"):
        pruned(PATTERNS[0], batches, model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_no_data_are_refused():
    model = Attention()
    with pytest.raises(PruningError, match="there is no calibration batch"):
        obs(model, Plan(matrix_weights(model), PATTERNS[0]), [], loss_of(model))


def gradual(model: nn.Module, pattern, keeps_zeros: bool = False, criterion: OBS | None = None) -> Pruner:
    schedule = Gradual(decay="cubic", start="2", frequency="2", end="8")
    calibration = Calibration(model, data(), loss_of(model))
    plan = Plan(matrix_weights(model), pattern, keeps_zeros=keeps_zeros)
    return Pruner(plan, schedule, TrainingLength(10), criterion or OBS(), calibration=calibration)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, each=lambda: None) -> None:
    for number in numbers:
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        each()


def check_resume(model: nn.Module, pattern, each, keeps_zeros: bool = False, criterion: OBS | None = None) -> None:
    """Ten steps of a gradual pruning give the same bits as five, a checkpoint, and five more on a copy.

    Args:
        each: called after each of the ten steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = gradual(model, pattern, keeps_zeros, criterion)
    pruner.attach(optimizer)
    steps(model, optimizer, range(5), each)
    tensors, values = pruner.state_dict()
    saved = {name: t.clone() for name, t in tensors.items()}, values
    again = Attention()
    again.load_state_dict(model.state_dict())
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = gradual(again, pattern, keeps_zeros, criterion)
    resumed.load_state_dict(*saved)
    resumed.attach(other)
    steps(model, optimizer, range(5, 10), each)
    steps(again, other, range(5, 10))
    pruner.check_reached()
    resumed.check_reached()
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_masks_never_grow_back_and_a_resume_is_bit_for_bit(pattern):
    model = Attention()
    seen: list[Tensor] = []

    def each() -> None:
        zeros = torch.cat([(p == 0).flatten() for p in matrix_weights(model).values()])
        assert not seen or bool((seen[-1] <= zeros).all())
        seen.append(zeros)

    check_resume(model, pattern, each)
    assert len({int(zeros.sum()) for zeros in seen}) >= 3


def test_moments_of_what_goes_are_zeroed_and_those_of_survivors_stay():
    model = Attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = gradual(model, PATTERNS[0])
    before: dict[str, dict[str, Tensor]] = {}
    optimizer.register_step_post_hook(  # runs before that of the pruner
        lambda *_: before.update(
            {n: {k: t.clone() for k, t in optimizer.state[p].items()} for n, p in matrix_weights(model).items()}
        )
    )
    pruner.attach(optimizer)
    steps(model, optimizer, range(4))
    assert 0 < pruner.sparsity < PATTERNS[0].target
    assert pruner.history[-1].step == 4
    for name, p in matrix_weights(model).items():
        gone = p == 0
        assert bool(gone.any())
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[p][key], before[name][key].masked_fill(gone, 0.0))


def prune_on_one_rank(rank: int) -> list[dict[str, Tensor]]:
    """Each rank runs its part of the batches."""
    return [pruned(pattern).state_dict() for pattern in (PATTERNS[0], NofM(2, 4))]


@pytest.mark.slow
def test_two_processes_prune_as_one(tmp_path, monkeypatch):
    left, right = on_two_ranks(prune_on_one_rank, tmp_path, monkeypatch)
    for one, other, pattern in zip(left, right, (PATTERNS[0], NofM(2, 4)), strict=True):
        alone = pruned(pattern).state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("criterion", "why"),
    [
        (OBS(), "its calibration gradients were missing or zero"),
        (CalibratedSnip(), "its calibration gradients were missing or zero"),
        (Wanda(), "its calibration inputs were missing or zero"),
    ],
)
def test_a_layer_that_the_data_do_not_reach_is_named_with_the_reason(criterion, why, caplog):
    class WithIdle(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(8, 8)

    model = WithIdle()
    calibration = Calibration(model, data(), loss_of(model))
    plan = Plan(matrix_weights(model), PATTERNS[0])
    pruner = Pruner(plan, OneShot("0"), TrainingLength(0), criterion, calibration=calibration)
    before = model.idle.weight.detach().clone()
    pruner.update_now()
    assert torch.equal(model.idle.weight, before)
    (idle,) = [layer for layer in pruner.report() if layer.name == "idle.weight"]
    assert why in (idle.skipped or "")
    assert f"idle.weight (and 0 more) cannot be pruned: {why}" in caplog.text


def test_weights_that_come_back_are_refused():
    plan = Plan(matrix_weights(Attention()), PATTERNS[0], Global(regrow=True))
    with pytest.raises(PruningError, match=r"regrow=True: OBS adapts .* leave regrow out"):
        Pruner(plan, OneShot("0"), TrainingLength(0), OBS())


@pytest.mark.parametrize(
    ("criterion", "hessian"),
    [
        (OBS(), 4 * 9 * 9),
        (OBS(sequential=True), 4 * 9 * 9 + 4 * 64),
        (Wanda(), 4 * 9 * 9),
        (CalibratedSnip(), 0),
    ],
)
def test_memory_grows_with_the_layers(criterion, hessian):
    weights = matrix_weights(Attention())
    one, two, three = (criterion.memory(Plan(dict(list(weights.items())[:count]), PATTERNS[0])) for count in (1, 2, 3))
    assert two - one == three - two == 8 * 64 + hessian


def test_a_mix_of_groups_has_exactly_the_target():
    weights = matrix_weights(pruned(NofM(2, 4, mix=True, target_sparsity=0.3)))
    groups = torch.cat([(p.detach() != 0).view(-1, 4).sum(1) for p in weights.values()])
    assert set(groups.tolist()) == {2, 4}
    assert int((groups == 2).sum()) == round(0.6 * len(groups))


def test_layers_with_patterns_of_their_own_and_locked_ones():
    model = Attention()
    with torch.no_grad():
        model.out.weight[:3] = 0.0
    layers = {"q.weight": LayerOverride(pattern="2:4"), "out.weight": LayerOverride(pattern="locked")}
    plan = Plan(matrix_weights(model), Block(4, 1, target_sparsity=0.5), Global(layers=layers))
    locked = model.out.weight.detach().clone()
    obs(model, plan, data(), loss_of(model))
    assert bool(((model.q.weight != 0).view(-1, 4).sum(1) == 2).all())
    assert int((model.k.weight == 0).sum()) == 32
    assert torch.equal(model.out.weight, locked)
