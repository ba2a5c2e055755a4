"""Criteria against loops over single weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import Block, Magnitude, NofM, PruningError, SnipMomentum


def steps(count, shape, seed):
    """Weights and gradients of some optimizer steps."""
    random = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=random), torch.randn(shape, generator=random)) for _ in range(count)]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    count=st.integers(1, 6),
    rows=st.integers(1, 4),
    cols=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    scale=st.sampled_from([1.0, 0.1]),
    seed=st.integers(0, 100),
)
def test_snip_momentum_of_blocks_is_the_loop(count, rows, cols, momentum, scale, seed):
    criterion, pattern = SnipMomentum(momentum, scale), Block(rows, cols)
    seen = steps(count, (2 * rows, 3 * cols), seed)
    state = torch.zeros(2, 3)
    for weight, gradient in seen:
        criterion.accumulate(state, pattern.pool(criterion.observation(weight, gradient)))

    expected = [[0.0] * 3 for _ in range(2)]
    for weight, gradient in seen:
        for i in range(2):
            for j in range(3):
                places = [(i * rows + a, j * cols + b) for a in range(rows) for b in range(cols)]
                block = sum(abs(float(weight[at]) * float(gradient[at])) for at in places) / len(places)
                expected[i][j] = momentum * expected[i][j] + scale * block
    torch.testing.assert_close(criterion.saliency(seen[-1][0], state, pattern.pool), torch.tensor(expected))


def test_snip_momentum_of_groups_keeps_a_score_per_weight():
    criterion, pattern = SnipMomentum(), NofM(2, 4)
    state = torch.zeros(2, 8)
    expected = torch.zeros(2, 8)
    for weight, gradient in steps(5, (2, 8), 0):
        criterion.accumulate(state, pattern.pool(criterion.observation(weight, gradient)))
        for i in range(2):
            for j in range(8):
                expected[i, j] = 0.9 * expected[i, j] + abs(weight[i, j] * gradient[i, j])
    torch.testing.assert_close(criterion.saliency(weight, state, pattern.pool), expected)


def test_snip_momentum_leaves_weight_and_gradient_alone():
    (weight, gradient), *_ = steps(1, (4, 4), 0)
    before = weight.clone(), gradient.clone()
    SnipMomentum().observation(weight, gradient)
    assert torch.equal(weight, before[0])
    assert torch.equal(gradient, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitude_of_blocks_is_the_mean_absolute_weight(dtype):
    weight = steps(1, (4, 6), 0)[0][0].to(dtype)
    expected = [[sum(abs(float(weight[2 * i + a, j])) for a in range(2)) / 2 for j in range(6)] for i in range(2)]
    saliency = Magnitude().saliency(weight, None, Block(2, 1).pool)
    assert saliency.dtype == torch.float32
    torch.testing.assert_close(saliency, torch.tensor(expected))


def test_magnitude_ignores_the_sign():
    weight = torch.tensor([[-3.0, 1.0, -2.0, 0.5]])
    assert Magnitude().saliency(weight, None, NofM(2, 4).pool).tolist() == [[3.0, 1.0, 2.0, 0.5]]


def test_only_snip_momentum_asks_for_gradients():
    assert SnipMomentum.needs_gradient
    assert not Magnitude.needs_gradient


@pytest.mark.parametrize(("momentum", "scale"), [(1.0, 1.0), (-0.1, 1.0), (0.9, 0.0), (0.9, -1.0)])
def test_constants_that_make_no_sense_are_refused(momentum, scale):
    with pytest.raises(PruningError, match=r"criterion\.momentum"):
        SnipMomentum(momentum, scale)
