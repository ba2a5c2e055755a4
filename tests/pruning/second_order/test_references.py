"""Layer-wise OBS against plain references: columns in order, magnitude, convolutions, wide layers."""

from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import Block, Calibration, Global, NofM, Plan, PruningError, as_matrix, matrix_weights, obs
from pruning.second_order import collect, solver
from pruning.second_order.solver import LayerSolver, damped
from tests.pruning.second_order.test_obs import DAMPING, PROPERTY, Attention, data, least_squares, loss_of, problem

# --- N:M ---------------------------------------------------------------------------------------------------------


def in_order(weights: Tensor, h: Tensor, n: int, m: int) -> Tensor:
    """Which weights go, row by row and group by group, with the explicit inverse of what is to the right.

    Frantar and Alistarh 2023, algorithm 1, but the best set of each group; beyond 128 sets its single weights.
    """
    lost = torch.zeros(weights.shape[0], weights.shape[1] - 1, dtype=torch.bool)
    for row, original in enumerate(weights):
        w = original.clone()
        for start in range(0, lost.shape[1], m):
            inverse = torch.linalg.inv(h[start:, start:])
            if comb(m, m - n) > 128:
                single = w[start : start + m] ** 2 / inverse.diagonal()[:m]
                best = single.argsort()[: m - n].tolist()
            else:
                prices = {}
                for places in map(list, combinations(range(m), m - n)):
                    gone = w[start:][places]
                    prices[tuple(places)] = float(gone @ torch.linalg.inv(inverse[places][:, places]) @ gone)
                best = list(min(prices, key=prices.__getitem__))
            lost[row, [start + place for place in best]] = True
            inner = torch.linalg.inv(inverse[best][:, best])
            w[start:] = w[start:] - w[start:][best] @ inner @ inverse[best]
            w[start:][best] = 0.0
    return lost


@PROPERTY
@given(seed=st.integers(0, 1000), size=st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (5, 10)]))
def test_columns_in_order_are_those_of_explicit_inverses(seed, size):
    n, m = size
    weights, _, hessian, fisher = problem(seed, 3, 2 * m)
    layer = LayerSolver(weights, hessian, fisher, DAMPING, (1, 1), torch.ones(3, 2 * m, dtype=torch.bool))
    lost = layer.columns_in_order(n, m, torch.ones(3, 2, dtype=torch.bool))
    h = damped(hessian, DAMPING)
    assert torch.equal(lost, in_order(weights, h, n, m))
    layer.alive = ~lost
    layer.solve()
    kept = torch.cat([~lost, torch.ones(3, 1, dtype=torch.bool)], 1)
    torch.testing.assert_close(layer.weights, least_squares(weights, h, kept), rtol=1e-6, atol=1e-8)


# --- magnitude ----------------------------------------------------------------------------------------------------


def errors(before: nn.Module, after: nn.Module, batches: list[Tensor], updated: bool) -> dict[str, tuple[float, float]]:
    """Weight -> the squared error of its layer's outputs, weighted by the Fisher information, after OBS and after
    pruning as many 1x1, 4x1 or N:M units by magnitude; `updated`: by least squares there too."""
    statistics = collect(Calibration(before, batches, loss_of(before)), matrix_weights(before))
    found = {}
    for name, weight in matrix_weights(before).items():
        layer = name.removesuffix("weight")
        full, pruned = (
            torch.cat([m.state_dict()[name], m.state_dict()[f"{layer}bias"][:, None]], 1).double()
            for m in (before, after)
        )
        h, f = damped(statistics.hessians[name], 0.01), statistics.fisher[name].double()
        zeros = after.state_dict()[name] == 0
        kept = torch.cat([~by_magnitude(weight.detach(), zeros), torch.ones(len(zeros), 1, dtype=torch.bool)], 1)
        other = least_squares(full, h, kept) if updated else full * kept
        found[name] = tuple(float((((w - full) @ h * (w - full)).sum(1) * f).sum()) for w in (pruned, other))
    return found


def by_magnitude(weight: Tensor, zeros: Tensor) -> Tensor:
    """As many zeros in the same units: 2:4 groups, else 4x1 blocks."""
    if bool((zeros.view(-1, 4).sum(1) == 2).all()):
        lowest = weight.abs().view(-1, 4).argsort(1)[:, :2]
        return torch.zeros(weight.numel() // 4, 4, dtype=torch.bool).scatter_(1, lowest, True).view(weight.shape)
    blocks = weight.abs().view(-1, 4, weight.shape[1]).mean(1)
    lost = torch.zeros(blocks.numel(), dtype=torch.bool)
    lost[blocks.flatten().argsort()[: int(zeros.sum()) // 4]] = True
    return lost.view(blocks.shape).repeat_interleave(4, 0)


@PROPERTY
@given(seed=st.integers(0, 1000), pattern=st.sampled_from([NofM(2, 4), Block(4, 1, target_sparsity=0.5)]))
def test_no_layer_errs_more_than_by_magnitude_with_as_many_zeros(seed, pattern):
    before, after = Attention(), Attention()
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(8, 8, generator=random)
    batches = [torch.randn(32, 8, generator=random) @ mixed for _ in range(4)]
    obs(after, Plan(matrix_weights(after), pattern, Global(max_per_layer=0.9)), batches, loss_of(after))
    for name, (ours, magnitude) in errors(before, after, batches, updated=False).items():
        assert 0 < ours <= magnitude, name
    both = errors(before, after, batches, updated=True).values()
    assert sum(ours for ours, _ in both) <= sum(magnitude for _, magnitude in both)


# --- convolutions -------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    nn.Conv1d(3, 4, 3, stride=2, padding=1),
    nn.Conv1d(2, 4, 2, padding=3, padding_mode="circular"),
    nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
    nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect", bias=False),
    nn.Conv3d(2, 4, (1, 2, 2), stride=(2, 1, 1)),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_a_convolution_is_a_matrix_of_the_patches_it_reads(layer):
    """[W b] H [W b]^T is the mean of y y^T if H is that of the patches, in the order of the weight's columns."""
    torch.manual_seed(0)
    batches = [torch.randn(2, layer.in_channels, *[6] * len(layer.kernel_size)) for _ in range(3)]
    found = collect(Calibration(layer, batches, lambda batch, _: (layer(batch) ** 3).sum()), {"weight": layer.weight})
    bias = layer.bias if layer.bias is not None else torch.zeros(4)
    w = torch.cat([as_matrix(layer.weight), bias[:, None]], 1).detach()
    y = torch.cat([layer(batch).movedim(1, -1).flatten(0, -2) for batch in batches]).detach()
    hessian = found.hessians["weight"]
    assert hessian.shape == (w.shape[1], w.shape[1])
    torch.testing.assert_close(w @ hessian @ w.T, y.T @ y / len(y))
    torch.testing.assert_close(hessian[-1, -1], torch.tensor(1.0))
    torch.testing.assert_close(found.fisher["weight"], (3 * y**2).square().sum(0))


class Pictures(nn.Module):
    """A network of convolutions with a linear layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 2, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize("pattern", [NofM(2, 4), Block(4, 1, target_sparsity=0.5), Block(0, 1, target_sparsity=0.25)])
def test_networks_of_convolutions_are_pruned_and_answer_nearly_as_before(pattern):
    random = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 4, 6, 6, generator=random) for _ in range(4)]
    model, zeroed, dense = Pictures(), Pictures(), Pictures()
    obs(model, Plan(matrix_weights(model), pattern), batches, loss_of(model))
    with torch.no_grad():
        for name, weight in matrix_weights(model).items():
            assert pattern.violations(as_matrix(weight)) == 0
            matrix_weights(zeroed)[name].mul_(weight != 0)
        zeros, total = (sum(int(f(w)) for w in matrix_weights(model).values()) for f in (count, Tensor.numel))
        assert zeros == pytest.approx(pattern.target * total, abs=8)
        x = torch.cat(batches)
        off = [float((m(x) - dense(x)).square().mean()) for m in (model, zeroed)]
    assert off[0] < off[1]


def count(weight: Tensor) -> Tensor:
    return (weight == 0).sum()


# --- wide layers --------------------------------------------------------------------------------------------------


def wide(inputs: int, tokens: int = 900) -> LayerSolver:
    weights, _, hessian, fisher = problem(0, 4, inputs, tokens)
    kept = torch.rand(2, inputs, generator=torch.Generator().manual_seed(1)) > 0.3
    return LayerSolver(weights, hessian, fisher, DAMPING, (2, 1), kept)


def test_wide_layers_are_ranked_in_float32_and_solved_in_float64(monkeypatch):
    layer, exact = wide(600), wide(600)
    costs = layer.solve(costs=True)
    monkeypatch.setattr(solver, "_EXACT", 10**9)
    wanted = exact.solve(costs=True)
    assert not torch.equal(costs, wanted)  # it was the other path
    torch.testing.assert_close(costs, wanted, rtol=1e-3, atol=0.0)
    assert bool((costs.isinf() == ~layer.alive).all())
    monkeypatch.undo()
    layer.solve()
    exact.solve()
    assert torch.equal(layer.weights, exact.weights)
    columns = torch.cat([layer.alive.repeat_interleave(2, 0), torch.ones(4, 1, dtype=torch.bool)], 1)
    expected = least_squares(layer.original, damped(layer.hessian, DAMPING), columns)
    torch.testing.assert_close(layer.weights, expected, rtol=1e-5, atol=1e-6)


def test_a_hessian_that_float32_cannot_factorise_is_factorised_in_float64(monkeypatch):
    monkeypatch.setattr(solver, "_EXACT", 4)
    layer = wide(60, tokens=20)  # fewer tokens than inputs
    layer.damping = 1e-10
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(damped(layer.hessian, layer.damping).float())
    costs = layer.solve(costs=True)
    assert bool(costs[layer.alive].isfinite().all())
    assert bool(layer.weights.isfinite().all())


def test_many_groups_are_solved_in_parts(monkeypatch):
    layer, parts = wide(24), wide(24)
    layer.solve(costs=True)
    monkeypatch.setattr(solver, "CHUNK", 1)
    parts.solve(costs=True)
    torch.testing.assert_close(layer.weights, parts.weights)


def test_layers_that_share_their_input_in_some_batches_only_are_refused():
    class Sometimes(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.q(x) * self.k(x if x[0, 0] > 0 else x.clone())))

    batches = [batch.abs() * sign for batch, sign in zip(data(2), (1, -1), strict=True)]
    model = Sometimes()
    with pytest.raises(PruningError, match="is shared with other layers in some calibration batches only"):
        collect(Calibration(model, batches, loss_of(model)), matrix_weights(model))
