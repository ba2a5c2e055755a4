"""Regularizers: the gradient against that of the penalty written out, by autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import Block, Dense, GroupLasso, Locked, NofM, PruningError, Regularizer
from tests.pruning.test_patterns import any_block, blocks_of, shapes_of

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)


def penalty(weight: torch.Tensor, pattern: Block, factor: float) -> torch.Tensor:
    """factor * sum over blocks of sqrt(|b|) * ||b||_2, block by block."""
    total = torch.zeros(())
    for block in blocks_of(pattern, weight.shape):
        values = torch.stack([weight[place] for place in block])
        if bool((values != 0).any()):  # the norm has no derivative at 0
            total = total + len(block) ** 0.5 * (values * values).sum().sqrt()
    return factor * total


def by_autograd(weight: torch.Tensor, pattern: Block, factor: float) -> torch.Tensor:
    leaf = weight.clone().requires_grad_()
    value = penalty(leaf, pattern, factor)
    return torch.autograd.grad(value, leaf)[0] if value.requires_grad else torch.zeros_like(weight)


@PROPERTY
@given(
    pattern=any_block(),
    data=st.data(),
    factor=st.sampled_from([1e-4, 0.5, 3.0]),
    seed=st.integers(0, 100),
    dead=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_group_lasso_is_the_gradient_of_its_penalty(pattern, data, factor, seed, dead):
    shape = data.draw(st.sampled_from([shape for shape in shapes_of(pattern) if shape.numel() <= 60]))
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=random)
    for block in blocks_of(pattern, shape):  # some blocks wholly pruned
        if float(torch.rand((), generator=random)) < dead:
            for place in block:
                weight[place] = 0.0
    before = weight.clone()
    pull = GroupLasso(factor).gradient(weight, pattern)
    assert pull is not None
    assert pull.shape == weight.shape
    torch.testing.assert_close(pull, by_autograd(weight, pattern, factor), rtol=1e-4, atol=1e-7)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("pattern", [Block(4, 1), Block(1, 4), Block(2, 2), Block(1, 0), Block(0, 1), Block(1, 1)])
def test_zero_blocks_are_not_pulled(pattern):
    pull = GroupLasso(1.0).gradient(torch.zeros(4, 8), pattern)
    assert pull is not None
    assert torch.equal(pull, torch.zeros(4, 8))


def test_a_dead_block_leaves_its_neighbours_their_pull():
    weight = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    pull = GroupLasso(0.5).gradient(weight, Block(2, 1))
    assert pull is not None
    torch.testing.assert_close(pull, 0.5 * 2**0.5 * torch.tensor([[0.0, 0.6], [0.0, 0.8]]))


def test_on_single_weights_it_is_the_sign():
    weight = torch.tensor([[-2.0, 0.0, 0.5]])
    pull = GroupLasso(0.1).gradient(weight, Block(1, 1))
    assert pull is not None
    torch.testing.assert_close(pull, torch.tensor([[-0.1, 0.0, 0.1]]))


def test_it_pulls_with_the_same_force_whatever_the_scale_of_a_block():
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    small = GroupLasso().gradient(weight, Block(4, 1))
    large = GroupLasso().gradient(weight * 1000, Block(4, 1))
    assert small is not None
    assert large is not None
    torch.testing.assert_close(small, large)
    norms = small.reshape(2, 4, 4).square().sum(dim=1).sqrt()
    torch.testing.assert_close(norms, torch.full((2, 4), 1e-4 * 2.0))


def test_a_weight_laid_out_by_columns_gets_the_same_pull():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    turned = weight.t().contiguous().t()
    for pattern in (Block(4, 1), Block(2, 3), Block(1, 0), Block(0, 1)):
        first, second = (GroupLasso().gradient(matrix, pattern) for matrix in (weight, turned))
        assert first is not None
        assert second is not None
        torch.testing.assert_close(first, second)


def test_a_step_along_it_lowers_the_penalty():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    pull = GroupLasso(1.0).gradient(weight, Block(4, 1))
    assert pull is not None
    assert float(penalty(weight - 1e-2 * pull, Block(4, 1), 1.0)) < float(penalty(weight, Block(4, 1), 1.0))


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 16), Dense(), Locked()])
def test_patterns_without_blocks_are_refused(pattern):
    with pytest.raises(PruningError, match=rf"GroupLasso\(\) needs a block pattern: {pattern} has no block"):
        GroupLasso().check(pattern)
    Regularizer().check(pattern)


@pytest.mark.parametrize("pattern", [Block(4, 1), Block(1, 1), Block(1, 0), Block(0, 1)])
def test_blocks_and_no_regularizer_are_fine(pattern):
    GroupLasso().check(pattern)
    Regularizer().check(pattern)
    assert Regularizer().gradient(torch.ones(4, 4), pattern) is None


@pytest.mark.parametrize("weight", [0.0, -1e-4, math.nan])
def test_a_weight_that_does_not_pull_is_refused(weight):
    with pytest.raises(PruningError, match=r"^weight=.*above 0"):
        GroupLasso(weight)
