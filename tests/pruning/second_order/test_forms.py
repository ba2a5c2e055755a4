"""Both forms of a group's least squares against explicit inverses, and batches of groups of several sizes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.second_order import forms, solver
from pruning.second_order.forms import InverseForm, RestForm, batches
from tests.pruning.second_order.test_obs import PROPERTY, problem
from tests.pruning.second_order.test_obs import solver as layer_solver

FORMS = pytest.mark.parametrize("form", [InverseForm, RestForm])


def padded(weights: Tensor) -> Tensor:
    """[groups, rows, n] -> [groups, rows, n + 1]."""
    return torch.cat([weights, weights.new_zeros(*weights.shape[:2], 1)], 2)


@FORMS
@PROPERTY
@given(seed=st.integers(0, 1000), cols=st.sampled_from([1, 2]))
def test_each_form_is_the_explicit_inverse_of_what_stays(form, seed, cols):
    """Two groups of different sizes in one batch: the smaller one is padded."""
    weights, _, h, _ = problem(seed, 4, 8)
    h = h + torch.eye(9)
    alive = torch.ones(2, 9, dtype=torch.bool)
    alive[0, 2:4] = alive[1, 4:8] = False
    gone, kept = (
        torch.tensor([[2, 3, 9, 9], [4, 5, 6, 7]]),
        torch.tensor([[0, 1, 4, 5, 6, 7, 8], [0, 1, 2, 3, 8, 9, 9]]),
    )
    method, part = form(h, padded(weights.view(2, 2, 9)), cols), torch.arange(2)
    found, blocks = method.ranked(part, gone, kept, torch.float64)
    torch.testing.assert_close(method.weights(part, gone, kept, torch.float64), found)
    for group in range(2):
        columns = alive[group].nonzero()[:, 0]
        inverse = torch.linalg.inv(h[columns][:, columns])
        wanted = (weights.view(2, 2, 9)[group] @ h)[:, columns] @ inverse
        torch.testing.assert_close(found[group, :, : len(columns)], wanted, rtol=1e-6, atol=1e-9)
        for unit in range((len(columns) - 1) // cols):
            span = slice(unit * cols, unit * cols + cols)
            torch.testing.assert_close(blocks[group, unit], inverse[span, span], rtol=1e-6, atol=1e-9)


@PROPERTY
@given(seed=st.integers(0, 1000), block=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 3)]))
def test_batches_of_padded_groups_are_solved_as_each_group_alone(seed, block):
    random = torch.Generator().manual_seed(seed)
    kept = (torch.rand(8 // block[0], 12 // block[1], generator=random) > 0.4).repeat_interleave(block[1], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "_SLACK", 100.0)
        together = layer_solver(seed, 8, 12, block, kept)
        costs = together.solve(costs=True)
        rough = together.weights
        together.solve()
        patch.setattr(solver, "CHUNK", 1)
        alone = layer_solver(seed, 8, 12, block, kept)
        torch.testing.assert_close(alone.solve(costs=True), costs, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(alone.weights, rough, rtol=1e-6, atol=1e-9)
        alone.solve()
        torch.testing.assert_close(alone.weights, together.weights, rtol=1e-6, atol=1e-9)


@PROPERTY
@given(seed=st.integers(0, 1000), room=st.integers(1, 500), inverse=st.booleans())
def test_batches_hold_every_group_once_with_all_its_columns(seed, room, inverse):
    alive = torch.rand(12, 10, generator=torch.Generator().manual_seed(seed)) > 0.3
    alive[:2] = True
    chosen = torch.tensor([0, 1, 3, 5, 6, 7, 8, 11])
    seen: list[int] = []
    for part, gone, kept in batches(alive, chosen, room, inverse):
        seen += part.tolist()
        for group, lost, stays in zip(part.tolist(), gone.tolist(), kept.tolist(), strict=True):
            assert [c for c in stays if c < 10] == alive[group].nonzero()[:, 0].tolist()
            assert [c for c in lost if c < 10] == (~alive[group]).nonzero()[:, 0].tolist()
    assert sorted(seen) == chosen.tolist()


def test_what_float32_loses_in_a_difference_is_computed_in_float64():
    """Column 1 is nearly column 0, so that without it [H^-1]_00 - V^T V is a small part of [H^-1]_00."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=random, dtype=torch.float64)
    x[:, 1] = x[:, 0] + 1e-4 * x[:, 1]
    h = x.T @ x / 200
    method = InverseForm(h, padded(torch.randn(1, 2, 6, generator=random, dtype=torch.float64)), 1)
    part, gone, kept = torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[0, 2, 3, 4, 5]])
    _, blocks = method.ranked(part, gone, kept, torch.float32)
    wanted = torch.linalg.inv(h[kept[0]][:, kept[0]]).diagonal()
    torch.testing.assert_close(blocks.flatten(), wanted, rtol=1e-6, atol=0.0)


@FORMS
@PROPERTY
@given(seed=st.integers(0, 1000))
def test_large_systems_are_solved_by_float32_and_refined_to_float64(form, seed):
    weights, _, h, _ = problem(seed, 4, 8)
    h, part = h + torch.eye(9), torch.arange(2)
    gone, kept = torch.tensor([[2, 3, 9], [4, 5, 6]]), torch.tensor([[0, 1, 4, 5, 6, 7, 8], [0, 1, 2, 3, 7, 8, 9]])
    exact = form(h, padded(weights.view(2, 2, 9)), 1).weights(part, gone, kept, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "_LARGE", 0)
        factors = []
        patch.setattr(forms, "cholesky", lambda matrix: factors.append(matrix) or torch.linalg.cholesky(matrix))
        refined = form(h, padded(weights.view(2, 2, 9)), 1).weights(part, gone, kept, torch.float32)
    assert len(factors) == (form is InverseForm)  # the inverse of all columns alone is in float64
    torch.testing.assert_close(refined, exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("small", [1e-8, 1e-12])
def test_a_system_that_float32_cannot_solve_is_solved_in_float64(monkeypatch, small):
    """A matrix that is not definite in float32, and one whose corrections do not shrink."""
    monkeypatch.setattr(forms, "_LARGE", 0)
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    matrix = vectors * torch.logspace(0, math.log10(small), 6, dtype=torch.float64) @ vectors.T
    whole, right, places = torch.nn.functional.pad(matrix, (0, 1, 0, 1)), torch.randn(1, 2, 6).double(), torch.arange(6)
    found = forms.solution(whole, whole.float(), places[None], right)
    assert forms._refined(whole, whole.float(), places[None], right) is None
    torch.testing.assert_close(found @ matrix, right, rtol=1e-3, atol=1e-3)
    assert torch.equal(found, forms.solution(whole, whole, places[None], right))
